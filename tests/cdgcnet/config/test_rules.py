"""The table of rules is complete: every key that a run reads is in it."""

import runpy
from argparse import Namespace

import pytest
from detectron2.config import CfgNode, get_cfg

from cdgc import DEFAULT_GRAPH
from cdgcnet.config import rules
from cdgcnet.config.defaults import default_cfg
from cdgcnet.config.reading import flatten
from cdgcnet.engine.defaults import run, setup
from cdgcnet.modeling.context_modules import CONTEXT_MODULES


def test_choices_are_those_of_the_modules_that_implement_them():
    assert ("graph", *CONTEXT_MODULES) == rules.CONTEXT_MODULES


def test_the_default_graph_is_that_of_the_records():
    keys = ("NODES", "RECEIVERS", "SOFTMAX", "HEADS", "DISTANCE_BIAS")
    defaults = default_cfg().MODEL.CDGC
    assert [defaults[key] for key in keys] == ["coarse", "all", "image", 4, True]
    assert {key.lower(): defaults[key] for key in keys} == DEFAULT_GRAPH


def test_rules_are_of_keys_that_exist():
    assert set(rules.RULES) <= {key for key, _ in flatten(default_cfg())}


def test_newer_keys_have_rules_where_detectron2_has_them(monkeypatch):
    def newer():
        cfg = get_cfg()
        cfg.SOLVER.BASE_LR_END = 0.0
        return cfg

    monkeypatch.setattr("detectron2.config.get_cfg", newer)
    found = runpy.run_path(rules.__file__)["RULES"]
    assert "SOLVER.BASE_LR_END" in found
    assert ("SOLVER.RESCALE_INTERVAL" in found) == ("RESCALE_INTERVAL" in get_cfg().SOLVER)


@pytest.fixture
def read_keys(monkeypatch):
    """The dotted keys that are read as attributes of a config, whoever reads them."""
    read = set()
    plain = CfgNode.__getattr__

    def recording(node, name):
        value = plain(node, name)
        section = node.__dict__.get("_section", "")
        if isinstance(value, CfgNode):
            value.__dict__["_section"] = f"{section}{name}."
        elif not name.startswith("_"):
            read.add(section + name)
        return value

    monkeypatch.setattr(CfgNode, "__getattr__", recording)
    return read


def test_every_key_that_a_run_reads_has_a_rule(
    read_keys, run_data, run_yaml, tmp_path, clean_logging
):
    overrides = [
        *("OUTPUT_DIR", str(tmp_path / "run"), "SOLVER.MAX_ITER", "1"),
        *("TEST.AUG.ENABLED", "True", "TEST.AUG.SCALES", "[0.5]", "TEST.AUG.FLIP", "False"),
        *("TEST.SLIDE.ENABLED", "True", "TEST.SLIDE.CROP", "[48, 48]"),
        *("TEST.SLIDE.STRIDE", "[48, 48]", "SOLVER.CLIP_GRADIENTS.ENABLED", "True"),
    ]
    run(setup(Namespace(config_file=str(run_yaml), opts=overrides, eval_only=False, resume=False)))
    assert len(read_keys) > 100
    assert read_keys <= set(rules.RULES), sorted(read_keys - set(rules.RULES))
