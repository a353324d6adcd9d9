"""Defaults, and an error that names key, value and choices for every wrong value."""

import itertools
import logging
import re
from collections import Counter

import pytest
import torch
from detectron2.modeling import build_model

from cdgc import EDGES, MESSAGE_WEIGHTS, NODE_MODES, RECEIVERS, SOFTMAX
from cdgcnet import check_cfg
from cdgcnet.config.adaptation import adapt_cfg, warn_of_schedule
from cdgcnet.config.defaults import default_cfg
from cdgcnet.config.rules import RULES
from cdgcnet.config.unused import unused_keys
from cdgcnet.config.validation import check_starting_weights, check_training
from cdgcnet.modeling.cdgc_head import build_graph


@pytest.fixture
def cfg():
    cfg = default_cfg()
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def get(cfg, key):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def put(cfg, key, value):
    *nodes, last = key.split(".")
    (get(cfg, ".".join(nodes)) if nodes else cfg)[last] = value


# What the paper (Sec. 3.4, 4.2, 4.3) and the README's table of open choices say.
DEFAULTS = {
    "MODEL.META_ARCHITECTURE": "CDGCSegmentor",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.DEPTH": 101,
    "MODEL.RESNETS.NORM": "SyncBN",
    "MODEL.RESNETS.RES4_DILATION": 2,
    "MODEL.RESNETS.RES5_DILATION": 4,
    "MODEL.RESNETS.RES5_MULTI_GRID": [1, 1, 1],
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.SEM_SEG_HEAD.NAME": "CDGCNetHead",
    "MODEL.SEM_SEG_HEAD.ASPP_DILATIONS": [12, 24, 36],
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": 255,
    "MODEL.CDGC.ENABLED": True,
    "MODEL.CDGC.CONTEXT_MODULE": "graph",
    "MODEL.CDGC.CHANNELS": 256,
    "MODEL.CDGC.NODES": "coarse",
    "MODEL.CDGC.HARD_POSITIVES": "nodes",
    "MODEL.CDGC.RECEIVERS": "all",
    "MODEL.CDGC.MESSAGE_WEIGHTS": "one",
    "MODEL.CDGC.SOFTMAX": "image",
    "MODEL.CDGC.HEADS": 4,
    "MODEL.CDGC.DISTANCE_BIAS": True,
    "MODEL.CDGC.EDGES": "similarity",
    "MODEL.CDGC.EASY_RATIO": 1.0,
    "MODEL.CDGC.SCALE": "none",
    "MODEL.CDGC.SHARED_PHI": True,
    "MODEL.CDGC.SCOPE": "class",
    "MODEL.CDGC.FUSION": "concat",
    "MODEL.CDGC.FUSE_CONV": False,
    "MODEL.CDGC.DROPOUT": 0.1,
    "MODEL.CDGC.ALIGN_CORNERS": True,
    "MODEL.CDGC.LOSS.COARSE_WEIGHT": 0.6,
    "MODEL.CDGC.LOSS.REFINED_WEIGHT": 0.7,
    "MODEL.CDGC.LOSS.AUX_WEIGHT": 0.4,
    "MODEL.CDGC.LOSS.REFINED": "ohem",
    "MODEL.CDGC.LOSS.BASELINE_WEIGHT": 1.0,
    "MODEL.CDGC.LOSS.BASELINE": "ce",
    "MODEL.CDGC.LOSS.OHEM_THRESH": 0.7,
    "MODEL.CDGC.LOSS.OHEM_MIN_KEPT": 100_000,
    "MODEL.CDGC.LOSS.CLASS_WEIGHTS": [],
    "INPUT.FORMAT": "RGB",
    "INPUT.SCALE_JITTER": [0.5, 2.0],
    "INPUT.COLOR_JITTER": False,
    "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": 1.0,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupPolyLR",
    "SOLVER.POLY_LR_POWER": 0.9,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.HEAD_LR_FACTOR": 1.0,
    "SOLVER.WEIGHT_DECAY_NORM": None,
    "TEST.AUG.ENABLED": False,
    "TEST.AUG.SCALES": [0.75, 1.0, 1.25, 1.5, 1.75, 2.0],
    "TEST.AUG.FLIP": True,
    "TEST.SLIDE.ENABLED": False,
    "TEST.PRECISION": "fp32",
    "MODEL.CHANNELS_LAST": True,
    "TEST.ACCUMULATE.DEVICE": "model",
    "TEST.ACCUMULATE.DTYPE": "fp32",
    "TEST.BOUNDARY_RATIO": 0.02,
    "TEST.ORACLE": True,
    "TEST.RESUME": False,
}


@pytest.mark.parametrize(("key", "value"), DEFAULTS.items(), ids=DEFAULTS)
def test_default(cfg, key, value):
    assert get(cfg, key) == value


def test_defaults_pass(cfg):
    check_cfg(cfg)


NAN, INF = float("nan"), float("inf")
WRONG = [
    # key, wrong values, what the message must say besides the key and the value
    (
        "MODEL.CDGC.CONTEXT_MODULE",
        ["ccnet", None, 3],
        "graph.*non_local.*danet.*ocr.*psp.*pixelwise",
    ),
    ("MODEL.CDGC.LOSS.BASELINE", ["focal"], "ce.*ohem"),
    ("MODEL.CDGC.LOSS.REFINED", ["focal"], "ohem.*ce"),
    ("MODEL.CDGC.CONTEXT", ["psp"], "aspp.*none"),
    ("MODEL.CDGC.NODES", ["dynamc"], "coarse.*dynamic.*soft"),
    ("MODEL.CDGC.EDGES", ["cosine"], "similarity.*uniform.*topk"),
    (
        "MODEL.CDGC.SAMPLES",
        [[], ["easy_negative"], "easy_positive"],
        "easy_positive.*hard_negative",
    ),
    ("MODEL.CDGC.EASY_RATIO", [-0.1, 1.1, NAN, True, "1", None], "a number from 0 to 1"),
    ("MODEL.CDGC.DROPOUT", [1.0, -INF], "0 to 0.999"),
    ("MODEL.CDGC.CHANNELS", [0, -1, 2.0, True, 10**9, 10**5000], "a whole number from 1"),
    ("MODEL.CDGC.TOPK", [0, INF], "a whole number from 1"),
    ("MODEL.CDGC.CHECK_FINITE", ["yes", 1, None], "True or False"),
    ("MODEL.CDGC.LOSS.COARSE_WEIGHT", [-0.6, NAN, INF, "1", True], "a number from 0"),
    ("MODEL.CDGC.LOSS.OHEM_THRESH", [0.0, 1.5], "above 0, at most 1"),
    ("MODEL.CDGC.LOSS.OHEM_MIN_KEPT", [-1.0, 1.5, NAN, INF, True], "count.*share"),
    ("MODEL.CDGC.LOSS.CLASS_WEIGHTS", [[1.0] * 18, [-1.0] * 19, [NAN] * 19, [0.0] * 19], ""),
    ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", [0, 256, 2.0], "1 to 255"),
    ("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", [18, 256], "255"),  # class 18 would be ignored
    ("MODEL.SEM_SEG_HEAD.ASPP_DILATIONS", [[12, 24], [12, 24, 0], "12"], "a list of 3"),
    (
        "MODEL.SEM_SEG_HEAD.IN_FEATURES",
        [["res5"], ["res4", "res6"], ["res5", "res5"]],
        "a list of 2",
    ),
    ("MODEL.META_ARCHITECTURE", ["CDGCSegmenter", "", "PanopticFPN"], ""),
    ("MODEL.CDGC.NORM", ["BatchNorm", None], "SyncBN"),
    ("MODEL.RESNETS.DEPTH", [42, 50.0], "18.*34.*50.*101.*152"),
    ("MODEL.RESNETS.STEM_TYPE", ["deep"], "basic.*deeplab"),
    ("MODEL.RESNETS.OUT_FEATURES", [["res4"], []], ""),
    ("MODEL.PIXEL_STD", [[1, 1], [1, 1, 0], [1, 1, NAN]], "a list of 3"),
    ("MODEL.DEVICE", ["gpu", "cuda:x", ""], ""),
    ("MODEL.CLASS_NAMES", [["road"], ["a"] * 19, [""] * 19], ""),
    ("MODEL.CLASS_COLORS", [[[0, 0, 256]] * 19, [[0, 0]] * 19], "R, G, B"),
    ("INPUT.SCALE_JITTER", [[2.0, 0.5], [0.0, 1.0], [1.0], [1, 1e30]], "lowest, highest"),
    ("INPUT.CROP.TYPE", ["relative_range"], "absolute"),
    ("INPUT.CROP.SIZE", [[769], [0.5, 0.5], [1, 1], [0, 769], [10**6, 769], None], "height, width"),
    ("INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", [0.0, 1.2], "above 0, at most 1"),
    ("INPUT.MIN_SIZE_TRAIN", [[], [-1], [0.5]], "not empty"),
    ("INPUT.RANDOM_FLIP", ["vertical", True], "horizontal.*none"),  # the mapper would not flip
    ("INPUT.FORMAT", ["YUV-BT.601"], "RGB.*BGR"),
    ("DATASETS.TEST", [["a", "a"], [3]], "without repetition"),
    ("DATASETS.FOLDERS", [["a"], "a"], "own_data.md"),
    ("DATALOADER.NUM_WORKERS", [-1, 10**6], "0 to 256"),
    ("SOLVER.HEAD_LR_FACTOR", [0.0], "above 0"),
    ("SOLVER.BASE_LR", [-0.01, 0.0, INF, "fast"], "above 0"),
    ("SOLVER.MAX_ITER", [0, 1e4], "a whole number from 1"),
    ("SOLVER.IMS_PER_BATCH", [0, 10**9], "1 to 4096"),
    ("SOLVER.CHECKPOINT_PERIOD", [0, -1], "a whole number from 1"),
    ("SOLVER.POLY_LR_POWER", [-1, NAN], "from 0"),
    ("SOLVER.WARMUP_METHOD", ["burnin"], "linear.*constant"),
    ("SOLVER.REFERENCE_WORLD_SIZE", [3], "divisor of SOLVER.IMS_PER_BATCH 16"),
    ("SOLVER.STEPS", [[20, 10], [0]], ""),
    ("SEED", [2**31, -2, 0.5], "whole number"),
    ("TEST.AUG.SCALES", [[], [1.0, 0.0], ["1.0"], [-0.5], [1e30], [NAN], [1.0, 1.0]], "0.01 to 16"),
    ("TEST.SLIDE.CROP", [[769], [769, 0]], "height, width"),
    ("TEST.SLIDE.STRIDE", [[0, 513], [513, 770], [1, 513]], "height, width|sixteenth"),
    ("TEST.PRECISION", ["tf32"], "fp32.*bf16.*fp16"),
    ("TEST.ACCUMULATE.DEVICE", ["disk"], "model.*cpu"),
    ("TEST.BOUNDARY_RATIO", [-0.1], "from 0 to 1"),
    ("TEST.WORST_IMAGES", [-1, 4.0], "whole number"),
    ("TEST.EXPECTED_RESULTS", [[["sem_seg", "mIoU", 40]], [3]], "task, metric, score, tolerance"),
    ("VERSION", [1, "2"], "2$"),
    ("OUTPUT_DIR", ["", " ", None, "a\0b"], "not empty"),
]
WRONG_VALUES = [(key, value, expected) for key, values, expected in WRONG for value in values]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    WRONG_VALUES,
    ids=[
        f"{k}={str(v)[:30]}" if not isinstance(v, int) or v < 10**30 else f"{k}=huge"
        for k, v, _ in WRONG_VALUES
    ],
)
def test_wrong_value(cfg, key, value, expected):
    put(cfg, key, value)
    with pytest.raises(
        ValueError, match=rf"^{re.escape(key)} is .*; expected .*{expected}"
    ) as raised:
        check_cfg(cfg)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500


def test_every_rule_names_a_key_and_its_default_passes():
    cfg = default_cfg()
    for key, rule in RULES.items():
        assert rule.accepts(get(cfg, key)), key
        assert rule.expected, key


COMBINATIONS = {
    "soft nodes with top-k edges": (
        {"MODEL.CDGC.NODES": "soft", "MODEL.CDGC.EDGES": "topk"},
        "MODEL.CDGC.EDGES",
    ),
    "one softmax for all classes, and receivers of one": (
        {"MODEL.CDGC.RECEIVERS": "nodes"},
        "MODEL.CDGC.SOFTMAX",
    ),
    "weights of messages that only nodes receive": (
        {
            "MODEL.CDGC.RECEIVERS": "nodes",
            "MODEL.CDGC.SOFTMAX": "class",
            "MODEL.CDGC.MESSAGE_WEIGHTS": "mean",
        },
        "MODEL.CDGC.MESSAGE_WEIGHTS",
    ),
    "dilations of no output stride": ({"MODEL.RESNETS.RES4_DILATION": 1}, "MODEL.RESNETS.RES5"),
    "Nesterov without momentum": (
        {"SOLVER.NESTEROV": True, "SOLVER.MOMENTUM": 0.0},
        "SOLVER.NESTEROV",
    ),
    "groups that do not divide the channels": (
        {"MODEL.CDGC.NORM": "GN", "MODEL.CDGC.CHANNELS": 100},
        "MODEL.CDGC.NORM",
    ),
    "groups that do not divide the keys of OCR, half as many channels": (
        {
            "MODEL.CDGC.NORM": "GN",
            "MODEL.CDGC.CHANNELS": 32,
            "MODEL.CDGC.CONTEXT_MODULE": "ocr",
        },
        "MODEL.CDGC.NORM",
    ),
    "groups that do not divide the half of a deep stem": (
        {
            "MODEL.RESNETS.NORM": "GN",
            "MODEL.RESNETS.STEM_TYPE": "deeplab",
            "MODEL.RESNETS.STEM_OUT_CHANNELS": 96,
        },
        "MODEL.RESNETS.NORM",
    ),
    "groups that do not divide the bottleneck": (
        {
            "MODEL.RESNETS.NORM": "GN",
            "MODEL.RESNETS.NUM_GROUPS": 5,
            "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
        },
        "MODEL.RESNETS.NORM",
    ),
    "a feature that the dilated ResNet does not compute": (
        {"MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res3", "res5"]},
        "MODEL.RESNETS.OUT_FEATURES",
    ),
    "frozen stages of a timm network": (
        {"MODEL.BACKBONE.NAME": "build_timm_backbone", "MODEL.BACKBONE.FREEZE_AT": 2},
        "MODEL.BACKBONE.FREEZE_AT",
    ),
    "a sliding window that only one segmentor has": (
        {"TEST.SLIDE.ENABLED": True, "MODEL.META_ARCHITECTURE": "SemanticSegmentor"},
        "TEST.SLIDE.ENABLED",
    ),
}


@pytest.mark.parametrize(("changes", "key"), COMBINATIONS.values(), ids=COMBINATIONS)
def test_values_that_do_not_fit_each_other(cfg, changes, key):
    for name, value in changes.items():
        put(cfg, name, value)
    with pytest.raises(ValueError, match=rf"^{re.escape(key)}.* is .*; expected "):
        check_cfg(cfg)


GROUP_NORMS = {
    "ResNeXt 32x4d, whose bottleneck has 128 channels": {
        "MODEL.RESNETS.NORM": "GN",
        "MODEL.RESNETS.NUM_GROUPS": 32,
        "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
    },
    "a ResNet-18, which has no bottlenecks": {
        "MODEL.RESNETS.NORM": "GN",
        "MODEL.RESNETS.DEPTH": 18,
        "MODEL.RESNETS.WIDTH_PER_GROUP": 5,
    },
    "no graph": {
        "MODEL.CDGC.NORM": "GN",
        "MODEL.CDGC.ENABLED": False,
        "MODEL.CDGC.CHANNELS": 100,
    },
    "no ASPP": {
        "MODEL.SEM_SEG_HEAD.NORM": "GN",
        "MODEL.CDGC.CONTEXT": "none",
        "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS": 100,
    },
    "no auxiliary head": {
        "MODEL.SEM_SEG_HEAD.NORM": "GN",
        "MODEL.CDGC.LOSS.AUX_WEIGHT": 0.0,
        "MODEL.CDGC.AUX_CHANNELS": 100,
    },
}


@pytest.mark.parametrize("changes", GROUP_NORMS.values(), ids=GROUP_NORMS)
def test_group_norm_needs_a_fit_only_where_there_is_such_a_layer(cfg, changes):
    for name, value in changes.items():
        put(cfg, name, value)
    check_cfg(cfg)
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        build_model(cfg)


OTHER_PARTS = {
    "a block without a norm": {
        "MODEL.CDGC.CONTEXT_MODULE": "non_local",
        "MODEL.CDGC.NORM": "GN",
        "MODEL.CDGC.CHANNELS": 100,
    },
    "keys of the ResNet with a backbone of timm": {
        "MODEL.BACKBONE.NAME": "build_timm_backbone",
        "MODEL.RESNETS.NORM": "GN",
        "MODEL.RESNETS.STEM_OUT_CHANNELS": 100,
    },
    "another backbone, which may read other keys": {
        "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
        "MODEL.RESNETS.NORM": "GN",
        "MODEL.RESNETS.STEM_OUT_CHANNELS": 100,
    },
    "another head, which may read other keys": {
        "MODEL.SEM_SEG_HEAD.NAME": "DeepLabV3PlusHead",
        "MODEL.SEM_SEG_HEAD.NORM": "GN",
        "MODEL.CDGC.CHANNELS": 100,
    },
}


@pytest.mark.parametrize("changes", OTHER_PARTS.values(), ids=OTHER_PARTS)
def test_group_norm_of_other_parts_is_not_judged(cfg, changes):
    for name, value in changes.items():
        put(cfg, name, value)
    check_cfg(cfg)


PSP = {"MODEL.CDGC.CONTEXT_MODULE": "psp"}
ONLY_IN_TRAINING = {
    "scaled gradients on a CPU": ({"SOLVER.AMP.ENABLED": True}, "SOLVER.AMP.ENABLED"),
    "batch norm over one pixel": ({**PSP, "SOLVER.IMS_PER_BATCH": 1}, "SOLVER.IMS_PER_BATCH"),
    "the same, with a batch for two processes that is scaled to one": (
        {**PSP, "SOLVER.IMS_PER_BATCH": 2, "SOLVER.REFERENCE_WORLD_SIZE": 2},
        "SOLVER.IMS_PER_BATCH",
    ),
}


@pytest.mark.parametrize(("changes", "key"), ONLY_IN_TRAINING.values(), ids=ONLY_IN_TRAINING)
def test_only_training_depends_on_the_machine(cfg, changes, key):
    for name, value in changes.items():
        put(cfg, name, value)
    check_cfg(cfg)
    with pytest.raises(ValueError, match=rf"^{re.escape(key)} is .*; expected "):
        check_training(cfg)


TRAINABLE = {
    "bfloat16 on a CPU": {"SOLVER.AMP.ENABLED": True, "SOLVER.AMP.PRECISION": "bf16"},
    "batch norm over one pixel of each of two images": {**PSP, "SOLVER.IMS_PER_BATCH": 2},
    "batch norm with stored statistics": {
        **PSP,
        "SOLVER.IMS_PER_BATCH": 1,
        "MODEL.CDGC.NORM": "FrozenBN",
    },
}


@pytest.mark.parametrize("changes", TRAINABLE.values(), ids=TRAINABLE)
def test_a_config_that_fits_the_machine_can_be_trained(cfg, changes):
    for name, value in changes.items():
        put(cfg, name, value)
    check_training(cfg)


@pytest.mark.parametrize(("norm", "fits"), [("SyncBN", True), ("nnSyncBN", True), ("BN", False)])
def test_batch_norm_over_one_pixel_of_each_of_eight_processes(cfg, monkeypatch, norm, fits):
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 8)
    cfg.merge_from_list(["MODEL.CDGC.CONTEXT_MODULE", "psp", "MODEL.CDGC.NORM", norm])
    cfg.merge_from_list(["SOLVER.IMS_PER_BATCH", 8, "MODEL.DEVICE", "cuda"])
    if fits:
        check_training(cfg)
        cfg.MODEL.DEVICE = "cpu"
    if norm == "SyncBN" or not fits:
        with pytest.raises(ValueError, match=r"^SOLVER\.IMS_PER_BATCH is 8; expected two images"):
            check_training(cfg)


@pytest.mark.parametrize("changes", [{"CHANNELS": 50}, {"EDGES": "uniform"}], ids=str)
def test_rules_of_the_graph_count_where_there_is_one(cfg, changes):
    for key, value in changes.items():
        cfg.MODEL.CDGC[key] = value
    cfg.MODEL.CDGC.SOFTMAX, cfg.MODEL.CDGC.RECEIVERS = "image", "all"
    for module in ("graph", "pixelwise"):
        cfg.MODEL.CDGC.CONTEXT_MODULE = module
        with pytest.raises(ValueError, match=r"^MODEL\.CDGC\.(HEADS|SOFTMAX)"):
            check_cfg(cfg)
    cfg.MODEL.CDGC.CONTEXT_MODULE = "danet"
    check_cfg(cfg)
    cfg.MODEL.CDGC.CONTEXT_MODULE, cfg.MODEL.CDGC.ENABLED = "graph", False
    check_cfg(cfg)


GRAPHS = {
    "NODES": NODE_MODES,
    "EDGES": EDGES,
    "RECEIVERS": RECEIVERS,
    "MESSAGE_WEIGHTS": MESSAGE_WEIGHTS,
    "SOFTMAX": SOFTMAX,
    "SHARED_PHI": (True, False),
    "HEADS": (4, 3),  # three do not divide the channels
}


def test_configs_of_the_graph_are_refused_where_the_graph_is(cfg):
    # Both have these rules, in words of their own: a config names keys and may leave out options.
    results = Counter()
    for values in itertools.product(*GRAPHS.values()):
        for key, value in zip(GRAPHS, values, strict=True):
            cfg.MODEL.CDGC[key] = value
        accepted = []
        for check in (check_cfg, build_graph):
            try:
                with torch.device("meta"):
                    check(cfg)
                accepted.append(True)
            except ValueError:
                accepted.append(False)
        assert accepted[0] == accepted[1], dict(zip(GRAPHS, values, strict=True))
        results[accepted[0]] += 1
    assert results[True] > 20 and results[False] > 20


def test_a_cosine_schedule_falls(cfg):
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupCosineLR"
    cfg.SOLVER.BASE_LR_END = cfg.SOLVER.BASE_LR  # a key that Detectron2 v0.6 does not have
    check_cfg(cfg)
    cfg.SOLVER.BASE_LR_END = 2 * cfg.SOLVER.BASE_LR
    with pytest.raises(ValueError, match=r"^SOLVER\.BASE_LR_END is .* at most SOLVER\.BASE_LR"):
        check_cfg(cfg)


def test_only_a_training_run_refuses_two_files_to_start_from(cfg):
    put(cfg, "MODEL.BACKBONE.NAME", "build_timm_backbone")
    put(cfg, "MODEL.TIMM.PRETRAINED", "resnet50.pth")
    check_starting_weights(cfg)
    # The config of a finished run with the weights that it made, for an evaluation.
    put(cfg, "MODEL.WEIGHTS", "model_final.pth")
    check_cfg(cfg)
    with pytest.raises(
        ValueError, match=r"^MODEL\.TIMM\.PRETRAINED is .* with MODEL\.WEIGHTS model"
    ):
        check_starting_weights(cfg)


def test_number_of_class_weights_follows_the_classes(cfg):
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 3
    cfg.MODEL.CDGC.LOSS.CLASS_WEIGHTS = [1.0, 2.0, 0.5]
    check_cfg(cfg)


@pytest.mark.parametrize("kept", [0.0, 0.085, 0.999, 1.0, 100_000.0])
def test_ohem_minimum_is_a_share_or_a_count(cfg, kept):
    cfg.MODEL.CDGC.LOSS.OHEM_MIN_KEPT = kept
    check_cfg(cfg)


def test_missing_gpu(cfg, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    cfg.MODEL.DEVICE = "cuda"
    with pytest.raises(ValueError, match=r"MODEL\.DEVICE.*MODEL\.DEVICE cpu"):
        check_cfg(cfg)


# ---------------------------------------------------------------- keys without effect
UNUSED = {
    "cross entropy over all pixels": (
        {"MODEL.CDGC.LOSS.REFINED": "ce", "MODEL.CDGC.LOSS.OHEM_MIN_KEPT": 0.1},
        {"MODEL.CDGC.LOSS.OHEM_MIN_KEPT": "MODEL.CDGC.LOSS.REFINED is ce"},
    ),
    "a baseline with cross entropy": (
        {"MODEL.CDGC.ENABLED": False, "MODEL.CDGC.LOSS.OHEM_THRESH": 0.5},
        {"MODEL.CDGC.LOSS.OHEM_THRESH": "MODEL.CDGC.LOSS.BASELINE is ce"},
    ),
    "one graph over the image": (
        {"MODEL.CDGC.SCOPE": "image", "MODEL.CDGC.NODES": "dynamic"},
        {"MODEL.CDGC.NODES": "MODEL.CDGC.SCOPE is image"},
    ),
    "edges without similarities": (
        {"MODEL.CDGC.EDGES": "uniform", "MODEL.CDGC.SOFTMAX": "class", "MODEL.CDGC.SCALE": "sqrt"},
        {"MODEL.CDGC.SCALE": "MODEL.CDGC.EDGES is uniform"},
    ),
    "edges of equal weight": (
        {
            "MODEL.CDGC.EDGES": "topk",
            "MODEL.CDGC.TOPK_WEIGHTS": "equal",
            "MODEL.CDGC.SOFTMAX": "class",
            "MODEL.CDGC.SCALE": "sqrt",
        },
        {"MODEL.CDGC.SCALE": "MODEL.CDGC.TOPK_WEIGHTS is equal"},
    ),
    "the pixelwise control, which is as large as the graph": (
        {
            "MODEL.CDGC.CONTEXT_MODULE": "pixelwise",
            "MODEL.CDGC.SCOPE": "image",
            "MODEL.CDGC.RELU": False,
        },
        {"MODEL.CDGC.RELU": "MODEL.CDGC.CONTEXT_MODULE is pixelwise"},
    ),
    "a non-local block, which has no norm": (
        {"MODEL.CDGC.CONTEXT_MODULE": "non_local", "MODEL.CDGC.NORM": "GN"},
        {"MODEL.CDGC.NORM": "MODEL.CDGC.CONTEXT_MODULE is non_local"},
    ),
    "a precision without mixed precision": (
        {"SOLVER.AMP.PRECISION": "bf16"},
        {"SOLVER.AMP.PRECISION": "SOLVER.AMP.ENABLED is False"},
    ),
    "another context module": (
        {"MODEL.CDGC.CONTEXT_MODULE": "psp", "MODEL.CDGC.NODES": "dynamic"},
        {"MODEL.CDGC.NODES": "MODEL.CDGC.CONTEXT_MODULE is psp"},
    ),
    "a key that only Detectron2's own loader reads": (
        {"DATALOADER.SAMPLER_TRAIN": "bogus"},
        {"DATALOADER.SAMPLER_TRAIN": "CDGCNet does not read it"},
    ),
    "no graph": (
        {"MODEL.CDGC.ENABLED": False, "MODEL.CDGC.FUSION": "sum"},
        {"MODEL.CDGC.FUSION": "MODEL.CDGC.ENABLED is False"},
    ),
    "another optimizer": (
        {"SOLVER.OPTIMIZER": "ADAMW", "SOLVER.MOMENTUM": 0.5},
        {"SOLVER.MOMENTUM": "SOLVER.OPTIMIZER is ADAMW"},
    ),
    "keys of the backbone that is not used": (
        {"MODEL.TIMM.OUTPUT_STRIDE": 16},
        {"MODEL.TIMM.OUTPUT_STRIDE": "MODEL.BACKBONE.NAME is build_dilated_resnet_backbone"},
    ),
    "nothing": ({"MODEL.CDGC.NODES": "dynamic", "SOLVER.MOMENTUM": 0.5}, {}),
}


@pytest.mark.parametrize(("changes", "expected"), UNUSED.values(), ids=UNUSED)
def test_keys_without_effect_are_logged_in_one_line(cfg, log, changes, expected):
    for key, value in changes.items():
        put(cfg, key, value)
    assert unused_keys(cfg, default_cfg()) == expected
    adapt_cfg(cfg)
    # A set, since the log may be caught twice.
    lines = [*{r.getMessage() for r in log.records if "without effect" in r.getMessage()}]
    assert len(lines) == bool(expected)
    assert all(f"{key} ({reason})" in lines[0] for key, reason in expected.items())


def test_features_of_other_backbones_are_known_when_they_are_built(cfg):
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["p4", "p3"]
    check_cfg(cfg)


def test_another_head_may_read_any_key(cfg):
    cfg.MODEL.SEM_SEG_HEAD.NAME = "DeepLabV3PlusHead"
    cfg.MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS = [32]
    assert unused_keys(cfg, default_cfg()) == {}


# ---------------------------------------------------------------- adapt_cfg
NORMS = ("MODEL.RESNETS.NORM", "MODEL.SEM_SEG_HEAD.NORM", "MODEL.CDGC.NORM")


@pytest.fixture
def log(caplog):
    # Detectron2's setup_logger, which other tests may have called, stops propagation.
    logger = logging.getLogger("cdgcnet.config.adaptation")
    logger.addHandler(caplog.handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    yield caplog
    logger.removeHandler(caplog.handler)
    logger.setLevel(level)


def test_sync_bn_becomes_bn_on_one_process(cfg, log):
    adapt_cfg(cfg)
    assert [get(cfg, key) for key in NORMS] == ["BN"] * 3
    assert all(key in log.text for key in NORMS)


def test_other_norms_stay(cfg, log):
    for key, norm in zip(NORMS, ("BN", "GN", ""), strict=True):
        put(cfg, key, norm)
    adapt_cfg(cfg)
    assert [get(cfg, key) for key in NORMS] == ["BN", "GN", ""]
    assert not log.text


def test_sync_bn_stays_on_several_gpus(cfg, log, monkeypatch):
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 8)
    cfg.MODEL.DEVICE = "cuda"
    adapt_cfg(cfg)
    assert [get(cfg, key) for key in NORMS] == ["SyncBN"] * 3


def test_small_batch_warns_with_the_scaled_rate(cfg, log):
    # 0.01 * 2 / 8 = 0.0025; the rate itself is left alone.
    cfg.SOLVER.BASE_LR, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.RECIPE_IMS_PER_BATCH = 0.01, 2, 8
    warn_of_schedule(cfg)
    warnings = {r.getMessage() for r in log.records if r.levelno == logging.WARNING}
    assert len(warnings) == 1 and "0.0025" in warnings.pop()
    assert cfg.SOLVER.BASE_LR == 0.01


@pytest.mark.parametrize(("batch", "recipe"), [(8, 8), (16, 8), (2, 0)])
def test_no_warning_for_a_full_batch_or_no_recipe(cfg, log, batch, recipe):
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.RECIPE_IMS_PER_BATCH = batch, recipe
    warn_of_schedule(cfg)
    assert not [r for r in log.records if r.levelno == logging.WARNING]


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({}, False),
        ({"MODEL.CDGC.NODES": "dynamic"}, True),
        ({"MODEL.CDGC.NODES": "dynamic", "MODEL.CDGC.SAMPLES": ["easy_positive"]}, False),
        ({"MODEL.CDGC.NODES": "dynamic", "SOLVER.MAX_ITER": 30000}, False),
        ({"MODEL.CDGC.NODES": "dynamic", "MODEL.CDGC.ENABLED": False}, False),
    ],
)
def test_dynamic_nodes_in_a_short_schedule_are_mentioned(cfg, log, changes, warned):
    for key, value in {"SOLVER.MAX_ITER": 500, **changes}.items():
        put(cfg, key, value)
    warn_of_schedule(cfg)
    assert ("MODEL.CDGC.NODES is dynamic" in log.text) == warned
