"""Which keys identify a run, a row of an experiment and an evaluation."""

import pytest

from cdgcnet.config.defaults import default_cfg
from cdgcnet.config.identity import (
    NORM_KEYS,
    complete_config,
    flat_config,
    identifies,
    merge_sync_bn,
    row_hash,
)
from cdgcnet.config.rules import RULES


@pytest.fixture
def cfg():
    return default_cfg()


@pytest.mark.parametrize(
    ("key", "scopes"),
    [
        ("MODEL.CDGC.NODES", "run row evaluation"),
        ("MODEL.CDGC.LOSS.COARSE_WEIGHT", "run row"),  # of no effect once trained
        ("SOLVER.BASE_LR", "run row"),
        ("SEED", "run"),  # rows of several seeds are one row
        ("TEST.AUG.SCALES", "row evaluation"),
        ("TEST.BOUNDARY_RATIO", "evaluation"),  # another column, the same row
        ("INPUT.MIN_SIZE_TEST", "run row evaluation"),
        ("MODEL.WEIGHTS", ""),  # compared by contents
        ("MODEL.WEIGHTS_PARTIAL", ""),
        ("MODEL.CLASS_NAMES", ""),
        ("MODEL.DEVICE", ""),
        ("MODEL.CDGC.CHECK_FINITE", ""),  # a run that met a NaN resumes with it
        ("OUTPUT_DIR", ""),
        ("DATALOADER.NUM_WORKERS", ""),
        ("DATALOADER.ASPECT_RATIO_GROUPING", ""),  # False in finished runs, and without effect
        ("A.KEY.OF.LATER", "run row"),
    ],
)
def test_what_a_key_identifies(key, scopes):
    for scope in ("run", "row", "evaluation"):
        assert identifies(key, scope) == (scope in scopes.split()), scope


def test_sync_bn_is_bn_for_all(cfg):
    plain = cfg.clone()
    assert merge_sync_bn(plain) == list(NORM_KEYS)
    assert merge_sync_bn(plain) == []
    assert complete_config(plain) == complete_config(cfg)
    assert row_hash(plain) == row_hash(cfg)
    plain.MODEL.CDGC.NORM = "GN"
    assert row_hash(plain) != row_hash(cfg)


def test_a_stored_config_is_the_config(cfg):
    assert flat_config(cfg.dump()) == flat_config(cfg)
    assert row_hash(cfg.dump()) == row_hash(cfg) == row_hash(complete_config(cfg))


def test_a_run_without_a_newer_key_is_still_the_run(cfg):
    stored = cfg.dump().replace("  CHANNELS_LAST: true\n", "")
    assert stored != cfg.dump()
    assert row_hash(stored) == row_hash(cfg)


@pytest.mark.parametrize("key", sorted(RULES))
def test_the_hash_changes_exactly_with_the_keys_of_a_row(cfg, key):
    flat = complete_config(cfg)
    changed = {**flat, key: "another value", "TEST.AUG.ENABLED": True}
    before = {**flat, "TEST.AUG.ENABLED": True}
    if key == "TEST.AUG.ENABLED":
        before, changed = flat, before
    assert (row_hash(changed) != row_hash(before)) == identifies(key, "row")
    trains = identifies(key, "row") and not key.startswith("TEST.")
    assert (row_hash(changed, training=True) != row_hash(before, training=True)) == trains


def test_the_scales_count_with_augmentation_only(cfg):
    flat = complete_config(cfg)
    other = {**flat, "TEST.AUG.SCALES": [1.0]}
    assert row_hash(other) == row_hash(flat)
    assert row_hash(other, tta=True) != row_hash(flat, tta=True)
