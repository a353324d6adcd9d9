"""Exported files compute what the eager model computes, and say what they are."""

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import Metadata
from detectron2.engine import DefaultPredictor

from cdgcnet import Predictor
from cdgcnet.cli.main import main
from cdgcnet.engine.export_metadata import METADATA_KEY, ExportMetadata
from cdgcnet.export.exporter import compare, load_pt2, verify, write_export
from cdgcnet.export.preparation import prepare_export

onnx = pytest.importorskip("onnx", reason="needs the extra [export]")
pytest.importorskip("onnxruntime", reason="needs the extra [export]")
pytest.importorskip("onnxscript", reason="needs the extra [export]")

DEFAULT = {"NODES": "coarse", "RECEIVERS": "all", "SOFTMAX": "image"}
SMALL = [(1, 1, 1), (1, 1, 50), (1, 50, 1), (2, 9, 9), (3, 33, 41), (1, 64, 96), (4, 17, 130)]
LARGE = [(1, 769, 769), (1, 512, 1024), (1, 513, 500), (2, 257, 321), (8, 96, 96), (5, 65, 129)]


def image_of(height, width):
    blocks = np.random.default_rng(0).integers(0, 256, (5, 5, 3), np.uint8)
    return cv2.resize(blocks, (width, height), interpolation=cv2.INTER_CUBIC)


# ---------------------------------------------------------------- exactness
@pytest.mark.slow
@pytest.mark.parametrize("file_format", ["onnx", "pt2"])
def test_default_network(predictor_of, tmp_path, file_format):
    changes = {f"MODEL.CDGC.{key}": value for key, value in DEFAULT.items()}
    opset = 18 if file_format == "onnx" else None
    export = prepare_export(predictor_of(changes), coarse=True, opset=opset)
    path = tmp_path / f"network.{file_format}"
    assert write_export(export, path, file_format) <= 1e-4
    assert verify(export, path, file_format, SMALL + LARGE) <= 1e-4  # 30 images of 13 sizes


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [DEFAULT, {"RECEIVERS": "nodes"}, {"CONTEXT_MODULE": "psp"}], ids=str
)
def test_networks_at_opset_17(predictor_of, tmp_path, changes):
    changes = {f"MODEL.CDGC.{key}": value for key, value in changes.items()}
    export = prepare_export(predictor_of(changes), coarse=True, opset=17)
    path = tmp_path / "network.onnx"
    assert write_export(export, path, "onnx") <= 1e-4
    assert verify(export, path, "onnx", SMALL + LARGE[3:]) <= 1e-4
    assert onnx.load(path).opset_import[0].version == 17


@pytest.mark.slow
@pytest.mark.parametrize("file_format", ["onnx", "pt2"])
@pytest.mark.parametrize("module", ["non_local", "danet", "ocr", "psp", "pixelwise"])
def test_networks_with_context_modules(predictor_of, tmp_path, module, file_format):
    opset = 18 if file_format == "onnx" else None
    export = prepare_export(predictor_of({"MODEL.CDGC.CONTEXT_MODULE": module}), opset=opset)
    assert write_export(export, tmp_path / f"network.{file_format}", file_format) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("file_format", ["onnx", "pt2"])
@pytest.mark.parametrize(
    "changes",
    [
        {"RECEIVERS": "nodes"},  # as in the paper
        {"RECEIVERS": "all", "MESSAGE_WEIGHTS": "probability"},
        {"NODES": "soft", "SHARED_PHI": False},
        {"EDGES": "uniform"},
        {"EDGES": "topk", "TOPK": 5},
    ],
    ids=str,
)
def test_graph_alone(predictor_of, tmp_path, changes, file_format):
    changes = {f"MODEL.CDGC.{key}": value for key, value in changes.items()}
    opset = 18 if file_format == "onnx" else None
    export = prepare_export(predictor_of(changes), "graph", opset=opset)
    assert write_export(export, tmp_path / f"graph.{file_format}", file_format) <= 1e-4


def test_plain_network(plain):
    _, export, path = plain
    assert verify(export, path, "onnx", SMALL) <= 1e-4


def test_plain_network_at_opset_17(plain, tmp_path):
    export = prepare_export(plain[0], opset=17)
    path = tmp_path / "plain.onnx"
    assert write_export(export, path, "onnx") <= 1e-4
    assert verify(export, path, "onnx", SMALL) <= 1e-4
    model = onnx.load(path)
    # The file format of ONNX Runtime 1.12, which knows no newer opset.
    assert (model.opset_import[0].version, model.ir_version) == (17, 8)
    assert not any(node.metadata_props for node in model.graph.node)  # stack traces


def test_a_file_that_computes_something_else_is_not_kept(plain, tmp_path):
    _, export, _ = plain
    path = tmp_path / "a.onnx"
    path.write_bytes(b"earlier")
    other = dataclasses.replace(
        export, reference=lambda image: [x + 1 for x in export.reference(image)]
    )
    with pytest.raises(ValueError, match=r"network differs from the model by .* 1 x 1 x 1"):
        write_export(other, path, "onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["a.onnx"]
    assert path.read_bytes() == b"earlier"


def test_comparison_excuses_ties_only():
    logits = torch.tensor([0.5, 0.5 + 1e-6, 0.0]).view(1, 3, 1, 1)
    label = torch.tensor([[[1]]], dtype=torch.uint8)
    assert compare([label, logits], [label - 1, logits])[1] == 0  # classes 0 and 1 tie
    assert compare([label, logits], [label + 1, logits])[1] == 1
    assert compare([logits], [logits + 0.25])[0] == pytest.approx(0.25)
    assert compare([logits], [logits * float("nan")])[0] == float("inf")
    assert compare([logits], [logits[0]])[0] == float("inf")


# ---------------------------------------------------------------- metadata
def test_metadata(plain):
    predictor, _, path = plain
    found = Predictor.from_onnx(path)
    assert found.export.class_names == predictor.cfg.MODEL.CLASS_NAMES
    assert found.export.class_colors == predictor.cfg.MODEL.CLASS_COLORS
    assert found.metadata.stuff_colors[2] == (2, 4, 6)
    assert found.export.trained_format == "RGB"
    assert found.export.pixel_mean == list(predictor.cfg.MODEL.PIXEL_MEAN)
    assert len(found.export.config_sha256) == 64
    assert ExportMetadata.from_json(found.export.to_json(), "a") == found.export


def test_a_dataset_without_colors_gets_those_of_detectron2(plain, monkeypatch):
    predictor, *_ = plain
    names = ["road", "tree", "sky"]
    monkeypatch.setattr(predictor, "metadata", Metadata(stuff_classes=names))
    export = prepare_export(predictor).metadata
    assert export.class_names == names
    assert len({tuple(color) for color in export.class_colors}) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "was not written by `cdgcnet export`"),
        ("{", "damaged"),
        ("[]", "damaged"),
        ({"format_version": 99}, "has export format 99, expected 1"),
        ({"slide": ...}, r"damaged \(slide\)"),
    ],
)
def test_files_of_others_are_refused(plain, tmp_path, change, message):
    model = onnx.load(plain[2])
    (entry,) = [p for p in model.metadata_props if p.key == METADATA_KEY]
    if change is None:
        model.metadata_props.remove(entry)
    elif isinstance(change, str):
        entry.value = change
    else:
        values = {**json.loads(entry.value), **change}
        entry.value = json.dumps({k: v for k, v in values.items() if v is not ...})
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(ValueError, match=rf"a\.onnx.*{message}"):
        Predictor.from_onnx(tmp_path / "a.onnx")


def test_files_that_no_runtime_loads_are_refused(plain, tmp_path):
    path = tmp_path / "a.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"a\.onnx is no ONNX file that ONNX Runtime .* can load"):
        Predictor.from_onnx(path)
    model = onnx.load(plain[2])
    model.opset_import[0].version = 999
    onnx.save(model, path)
    with pytest.raises(ValueError, match=r"a\.onnx is no ONNX file that ONNX Runtime .* can load"):
        Predictor.from_onnx(path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        Predictor.from_onnx(tmp_path / "b.onnx")
    with pytest.raises(ValueError, match=r"a\.onnx is no pt2 archive that PyTorch .* can load"):
        load_pt2(path)


# ---------------------------------------------------------------- prediction
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"INPUT.MIN_SIZE_TEST": 48},
        {"TEST.SLIDE.ENABLED": True, "TEST.SLIDE.CROP": [32, 40], "TEST.SLIDE.STRIDE": [20, 24]},
    ],
    ids=str,
)
@pytest.mark.parametrize("tta", [False, True])
def test_prediction_equals_the_predictors(plain, predictor_of, tmp_path, changes, tta):
    changes = {
        "MODEL.CDGC.ENABLED": False,
        "INPUT.FORMAT": "RGB",
        "TEST.AUG.SCALES": [0.75, 1.5],
        **changes,
    }
    eager = predictor_of(changes, tta)
    model = onnx.load(plain[2])  # the same weights, with the metadata of other options
    (entry,) = [p for p in model.metadata_props if p.key == METADATA_KEY]
    entry.value = prepare_export(eager).metadata.to_json()
    onnx.save(model, tmp_path / "a.onnx")
    exported = Predictor.from_onnx(tmp_path / "a.onnx", tta)
    for size in ((41, 57), (97, 64), (1, 1), (1, 50)):
        image = image_of(*size)
        expected, found = eager(image)["sem_seg"].numpy(), exported(image)["sem_seg"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
        best = np.sort(expected, axis=0)
        clear = best[-1] - best[-2] > 1e-4
        assert (exported.labels(image) == eager.labels(image))[clear].all()


def test_subnormal_numbers_are_0_where_that_is_asked_for(plain):
    image = image_of(41, 57)
    expected = Predictor.from_onnx(plain[2])(image)["sem_seg"]

    def predict():
        predictor = Predictor.from_onnx(plain[2], flush_subnormals=True)
        options = predictor.session.get_session_options()
        return predictor(image)["sem_seg"], options

    with ThreadPoolExecutor(1) as pool:  # the mode is that of a thread
        found, options = pool.submit(predict).result()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert options.get_session_config_entry("session.set_denormal_as_zero") == "1"


@pytest.mark.parametrize("image", [None, np.zeros((4, 5)), np.zeros((4, 5, 3), np.float32)])
def test_wrong_images_are_refused(plain, image):
    with pytest.raises((TypeError, ValueError), match="expected a uint8 array"):
        Predictor.from_onnx(plain[2])(image)


# ---------------------------------------------------------------- refusals and the command
def test_models_that_cannot_be_exported_are_refused(plain, tiny_cfg):
    predictor = plain[0]
    with pytest.raises(ValueError, match="no coarse logits"):
        prepare_export(predictor, coarse=True)
    with pytest.raises(ValueError, match="no class graph to export alone"):
        prepare_export(predictor, "graph")
    with pytest.raises(ValueError, match="part must be one of"):
        prepare_export(predictor, "head")
    with pytest.raises(ValueError, match="opset must be from 17 to 22, got 16"):
        prepare_export(predictor, opset=16)
    with pytest.raises(ValueError, match="the format must be one of"):
        write_export(plain[1], Path("a.tflite"), "tflite")
    other = DefaultPredictor(
        tiny_cfg(
            {
                "MODEL.SEM_SEG_HEAD.NAME": "SemSegFPNHead",
                "MODEL.META_ARCHITECTURE": "SemanticSegmentor",
            }
        )
    )
    predictor = object.__new__(Predictor)
    predictor.__dict__.update(plain[0].__dict__, model=other.model)
    with pytest.raises(ValueError, match="cannot export a SemanticSegmentor with a SemSegFPNHead"):
        prepare_export(predictor)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--output", "a.txt"], 2, "expected a name that ends with .onnx"),
        (["--output", "a.onnx", "--coarse", "--part", "graph"], 2, "--coarse"),
        (["--output", "a.pt2", "--format", "pt2", "--opset", "18"], 2, "--opset"),
        (["--output", "a.onnx", "--opset", "16"], 2, "--opset 16: expected 17 to 22"),
        (["--output", "there.onnx"], 1, "there.onnx exists"),
    ],
)
def test_wrong_arguments(tmp_path, monkeypatch, capsys, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    Path("there.onnx").write_bytes(b"earlier")
    command = ["export", "--config-file", "a.yaml", "--weights", "a.pth", *arguments]
    try:
        found = main(command)
    except SystemExit as error:
        found = error.code
    assert found == code
    assert message in capsys.readouterr().err
    assert Path("there.onnx").read_bytes() == b"earlier"


def test_command(plain, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text(plain[0].cfg.dump(), encoding="utf-8")
    output = tmp_path / "a.onnx"
    weights = plain[0].cfg.MODEL.WEIGHTS
    command = ["export", "--config-file", str(config), "--weights", weights, "--output"]
    assert main([*command, str(output)]) == 0
    assert "differs from the model by at most" in capsys.readouterr().out
    assert Predictor.from_onnx(output).export.class_names == [
        "road",
        "car",
        "tree",
        "sky",
        "person",
    ]
