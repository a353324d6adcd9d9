"""A network without a graph, which is exported quickly, and its file."""

import pytest
import torch

from cdgcnet import Predictor
from cdgcnet.export.exporter import write_export
from cdgcnet.export.preparation import prepare_export

NAMES = ["road", "car", "tree", "sky", "person"]
COLORS = [[i, 2 * i, 3 * i] for i in range(5)]
CLASSES = {"MODEL.CLASS_NAMES": NAMES, "MODEL.CLASS_COLORS": COLORS}
PLAIN = {"MODEL.CDGC.ENABLED": False}


@pytest.fixture(scope="module")
def predictor_of(tiny_cfg, build, tmp_path_factory):
    def make(changes=None, tta=False):
        changes = {**CLASSES, **(changes or {})}
        path = tmp_path_factory.mktemp("weights") / "model.pth"
        torch.save({"model": build(tiny_cfg(changes)).state_dict()}, path)
        return Predictor(tiny_cfg({**changes, "MODEL.WEIGHTS": str(path)}), tta)

    return make


@pytest.fixture(scope="module")
def plain(predictor_of, tmp_path_factory):
    """The quick one: a network without a graph, as predictor, export and file."""
    predictor = predictor_of({**PLAIN, "INPUT.FORMAT": "RGB"})
    export = prepare_export(predictor)
    path = tmp_path_factory.mktemp("plain") / "plain.onnx"
    assert write_export(export, path, "onnx") <= 1e-4
    return predictor, export, path
