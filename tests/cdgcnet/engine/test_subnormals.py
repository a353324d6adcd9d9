"""Numbers closer to 0 than 1.2e-38: commands take them for 0, the library leaves that to others."""

import argparse
import threading

import pytest
import torch

from cdgcnet.cli.options import load_predictor
from cdgcnet.engine.defaults import setup
from cdgcnet.engine.predictor import Predictor
from cdgcnet.engine.subnormals import flush_subnormals
from cdgcnet.engine.trainer import Trainer


def are_kept() -> bool:
    return bool(torch.tensor([1e-38]) * 0.01)


def test_threads_inherit_the_mode():
    found = []
    assert are_kept()
    flush_subnormals()
    thread = threading.Thread(target=lambda: found.append(are_kept()))
    thread.start()
    thread.join()
    assert not are_kept() and found == [False]


@pytest.mark.parametrize("eval_only", [False, True])
def test_training_and_evaluation(eval_only, run_yaml, run_data, clean_logging, tmp_path):
    weights = tmp_path / "model.pth"
    torch.save({"model": {}}, weights)
    opts = ["OUTPUT_DIR", str(tmp_path / "run"), "MODEL.WEIGHTS", str(weights)]
    args = argparse.Namespace(
        config_file=str(run_yaml), opts=opts, resume=False, eval_only=eval_only
    )
    setup(args)
    assert not are_kept()


def test_prediction(run_cfg, tmp_path):
    weights = str(tmp_path / "model.pth")
    run_cfg.MODEL.CLASS_NAMES = [str(i) for i in range(19)]
    (tmp_path / "config.yaml").write_text(run_cfg.dump())
    torch.save({"model": Trainer.build_model(run_cfg).state_dict()}, weights)
    cfg = run_cfg.clone()
    cfg.MODEL.WEIGHTS = weights
    Predictor(cfg)
    assert are_kept()  # in other people's programs nothing changes
    load_predictor(
        argparse.Namespace(
            config_file=str(tmp_path / "config.yaml"),
            weights=weights,
            opts=[],
            onnx=None,
            tta=False,
        )
    )
    assert not are_kept()
