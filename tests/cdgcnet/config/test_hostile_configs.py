"""Configs drawn from the table of rules and beyond it: accepted, or one line that names the key."""

import random

import pytest
import torch
import yaml
from detectron2.modeling import build_model

from cdgcnet import load_cfg
from cdgcnet.config.rule_types import Choice, Integer, Items, Number
from cdgcnet.config.rules import RULES

HOSTILE = (
    *(None, True, False, "", " ", "x", "None", "[]", "é" * 200, "a\0b", "../..", "!!python/name:x"),
    *(-1, 0, 1, 2, 0.5, -0.0, 1e-300, 1e30, -1e30, 10**9, -(10**9), 10**400),
    *(float("nan"), float("inf"), float("-inf")),
    *([], [None], [[]], [0], [1, 1], [-1, 5], ["x"], [float("nan")] * 3, [True] * 2, [10**9] * 2),
    *({}, {"a": 1}, [{}], [{"NAME": "a"}]),
)
SMALL = {"MODEL.DEVICE": "cpu", "MODEL.RESNETS.DEPTH": 18, "MODEL.RESNETS.RES2_OUT_CHANNELS": 16}


def near_limits(rule):
    """Values at and just beyond the limits of a rule."""
    if isinstance(rule, Choice):
        return [*rule.choices, str(rule.choices[0]) + "x"]
    if isinstance(rule, Integer):
        return [rule.low - 1, rule.low, rule.high, rule.high + 1, float(rule.low)]
    if isinstance(rule, Number):
        return [rule.low, rule.low - 1e-9, rule.high, rule.high * 1.001, int(rule.high)]
    if isinstance(rule, Items):
        lengths = rule.lengths or (rule.low, 1, 2)
        inner = near_limits(rule.item) or ["x"]
        return [[value] * n for value in inner for n in {0, 1, *lengths, max(lengths) + 1}]
    return []


def draw(rng):
    """One to three keys with values from inside and outside their rules."""
    keys = rng.sample(sorted(RULES), rng.choice((1, 1, 2, 3)))
    near = {key: near_limits(RULES[key]) for key in keys}
    return {
        key: rng.choice(near[key] if near[key] and rng.random() < 0.7 else HOSTILE) for key in keys
    }


def load(changes, path):
    """The config of these changes: from a file or from overrides."""
    if path is None:
        return load_cfg("", [x for pair in changes.items() for x in pair])
    tree = {}
    for key, value in changes.items():
        *sections, last = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return load_cfg(str(path))


def check(changes, path):
    """Whether the config was accepted; a refusal is one line that names a changed key."""
    try:
        cfg = load({**SMALL, **changes}, path)
    except (ValueError, FileNotFoundError) as error:
        message = str(error)
        # A mapping is read as a section: the message names the key below it.
        assert any(key in message for key in changes), (changes, message)
        assert "\n" not in message and len(message) < 1000, (changes, message)
        return None
    return cfg


def run(seed, count, tmp_path, each=lambda cfg, changes: None):
    """Accepted and refused among ``count`` configs."""
    rng = random.Random(seed)
    accepted = 0
    for i in range(count):
        changes = draw(rng)
        cfg = check(changes, tmp_path / "a.yaml" if i % 2 else None)
        if cfg is not None:
            accepted += 1
            each(cfg, changes)
    return accepted, count - accepted


def test_drawn_configs_are_accepted_or_refused_by_key(tmp_path):
    accepted, refused = run(0, 150, tmp_path)
    assert accepted > 10 and refused > 50  # both kinds are drawn


def builds(cfg, changes):
    """The network of an accepted config can be built."""
    if cfg.MODEL.META_ARCHITECTURE != "CDGCSegmentor":
        return
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        build_model(cfg)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_many_drawn_configs_and_the_networks_of_the_accepted_ones(tmp_path, seed):
    accepted, refused = run(seed, 500, tmp_path, builds)
    assert accepted > 50 and refused > 200
