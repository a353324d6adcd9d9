"""Fine-tuning on other classes, and classes that travel with the weights."""

import pytest
import torch
from detectron2.modeling import build_model

from cdgcnet.checkpoint.class_metadata import (
    check_same_classes,
    class_dependent_tensors,
    class_metadata,
    stored_classes,
)
from cdgcnet.checkpoint.strict_checkpointer import StrictCheckpointer

OF_CLASSES = {
    f"sem_seg_head.{name}.{leaf}"
    for name in ("coarse_predictor.1", "refined_predictor.1", "aux_head.1.1")
    for leaf in ("weight", "bias")
} | {"sem_seg_head.graph.graph_weight", "sem_seg_head.graph.merge_weight"}
NEW = {"MODEL.SEM_SEG_HEAD.NUM_CLASSES": 3}


def test_classifiers_and_class_graphs_depend_on_the_classes(tiny_cfg):
    assert class_dependent_tensors(tiny_cfg()) == OF_CLASSES
    assert class_dependent_tensors(tiny_cfg({"MODEL.CDGC.LOSS.AUX_WEIGHT": 0.0})) == {
        name for name in OF_CLASSES if "aux" not in name
    }


def test_a_matrix_per_class_depends_on_the_classes_too(tiny_cfg):
    more = class_dependent_tensors(tiny_cfg({"MODEL.CDGC.SHARED_PHI": False})) - OF_CLASSES
    assert more and all(name.startswith("sem_seg_head.graph.") for name in more)


@pytest.mark.parametrize("changes", [{}, {"MODEL.CDGC.SHARED_PHI": False}], ids=str)
def test_fine_tuning_keeps_all_but_these(tiny_cfg, build, tmp_path, caplog, changes):
    trained = build(tiny_cfg(changes), seed=3).state_dict()
    torch.save({"model": trained}, tmp_path / "five.pth")
    cfg = tiny_cfg({**changes, **NEW})
    model = build_model(cfg)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    checkpointer = StrictCheckpointer(model)
    with pytest.raises(ValueError, match=r"\(5,.*\(3,[\s\S]*set MODEL\.WEIGHTS_PARTIAL True"):
        checkpointer.load(str(tmp_path / "five.pth"))

    model.load_state_dict(before)
    fresh = class_dependent_tensors(cfg)
    checkpointer.reinitialized = fresh
    checkpointer.logger.addHandler(caplog.handler)
    checkpointer.logger.setLevel("INFO")
    checkpointer.load(str(tmp_path / "five.pth"))
    checkpointer.logger.removeHandler(caplog.handler)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key] if key in fresh else trained[key]), key
    (line,) = {m for m in caplog.messages if "WEIGHTS_PARTIAL" in m}
    assert ", ".join(sorted(fresh)) in line and f"{len(trained) - len(fresh)} tensors" in line


def test_partial_is_for_classes_only(tiny_cfg, build, tmp_path):
    torch.save({"model": build(tiny_cfg()).state_dict()}, tmp_path / "five.pth")
    cfg = tiny_cfg({**NEW, "MODEL.CDGC.CHANNELS": 16})
    checkpointer = StrictCheckpointer(build_model(cfg))
    checkpointer.reinitialized = class_dependent_tensors(cfg)
    with pytest.raises(ValueError, match="does not fit"):
        checkpointer.load(str(tmp_path / "five.pth"))


def test_a_resumed_training_loads_all_tensors(tiny_cfg, build, tmp_path):
    cfg = tiny_cfg()
    trained = build(cfg, seed=3)
    StrictCheckpointer(trained, str(tmp_path)).save("model_0000001", iteration=1)
    checkpointer = StrictCheckpointer(build_model(cfg), str(tmp_path))
    checkpointer.reinitialized = class_dependent_tensors(cfg)
    checkpointer.resume_or_load("from_scratch", resume=True)
    expected = trained.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in checkpointer.model.state_dict().items())


def test_classes_travel_in_the_checkpoint(tiny_cfg, build, tmp_path):
    names, colors = ["a", "b", "c", "d", "e"], [[i, 0, 255] for i in range(5)]
    cfg = tiny_cfg({"MODEL.CLASS_NAMES": names, "MODEL.CLASS_COLORS": colors})
    checkpointer = StrictCheckpointer(build(cfg), str(tmp_path))
    checkpointer.metadata = class_metadata(cfg)
    checkpointer.save("model_final")
    again = StrictCheckpointer(build_model(cfg))
    assert stored_classes(again.load(str(tmp_path / "model_final.pth"))) == (names, colors)
    again.metadata = {"class_names": ["a", "b", "x", "d", "e"]}
    with pytest.raises(ValueError, match=r"class 2 is 'c' in the file and 'x'.*WEIGHTS_PARTIAL"):
        again.load(str(tmp_path / "model_final.pth"))


def test_without_classes_nothing_is_stored_or_compared(tiny_cfg):
    assert class_metadata(tiny_cfg()) == {}
    assert stored_classes({}) == ([], [])
    check_same_classes([], ["a"], training=True)
    check_same_classes(["a"], [], training=True)
    for training, advice in ((True, "MODEL.WEIGHTS_PARTIAL True"), (False, "config.yaml beside")):
        with pytest.raises(ValueError, match=rf"the file has 1 classes, the config 2.*{advice}"):
            check_same_classes(["a"], ["a", "b"], training=training)


@pytest.mark.parametrize(
    "stored", [{"class_names": "road"}, {"class_names": [1]}, {"class_colors": [[0, 0, 256]]}]
)
def test_classes_of_another_form_are_refused(stored):
    with pytest.raises(ValueError, match="in the file is not a list"):
        stored_classes(stored)
