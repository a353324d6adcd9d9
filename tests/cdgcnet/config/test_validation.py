"""Defaults, and an error that names key, value and choices for every wrong value."""

import logging

import pytest
from detectron2.config import get_cfg

from cdgcnet import add_cdgcnet_config, check_cfg, load_cfg
from cdgcnet.config.validation import adapt_cfg


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_cdgcnet_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def get(cfg, key):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def put(cfg, key, value):
    *nodes, last = key.split(".")
    get(cfg, ".".join(nodes))[last] = value


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
    "MODEL.CDGC.NODES": "dynamic",
    "MODEL.CDGC.HARD_POSITIVES": "nodes",
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


NAN = float("nan")
WRONG = [
    # key, wrong value, what the message must say besides the key and the value
    (
        "MODEL.CDGC.CONTEXT_MODULE",
        "ccnet",
        ["graph", "non_local", "danet", "ocr", "psp", "pixelwise"],
    ),
    ("MODEL.CDGC.LOSS.BASELINE", "focal", ["ce", "ohem"]),
    ("MODEL.CDGC.CONTEXT", "psp", ["aspp", "none"]),
    ("MODEL.CDGC.NODES", "dynamc", ["dynamic", "coarse", "soft"]),
    ("MODEL.CDGC.EDGES", "cosine", ["similarity", "uniform", "topk"]),
    ("MODEL.CDGC.SCOPE", "pixel", ["class", "image"]),
    ("MODEL.CDGC.FUSION", "product", ["concat", "sum"]),
    ("MODEL.CDGC.TOPK_WEIGHTS", "binary", ["softmax", "equal"]),
    ("MODEL.CDGC.SCALE", "cube", ["none", "sqrt"]),
    ("MODEL.CDGC.SAMPLES", [], ["easy_positive", "hard_positive", "hard_negative"]),
    ("MODEL.CDGC.SAMPLES", ["easy_negative"], ["easy_positive", "hard_positive", "hard_negative"]),
    ("MODEL.CDGC.EASY_RATIO", -0.1, ["[0.0, 1.0]"]),
    ("MODEL.CDGC.EASY_RATIO", 1.1, ["[0.0, 1.0]"]),
    ("MODEL.CDGC.EASY_RATIO", NAN, ["[0.0, 1.0]"]),
    ("MODEL.CDGC.EASY_RATIO", True, ["[0.0, 1.0]"]),
    ("MODEL.CDGC.DROPOUT", 1.0, ["[0.0, 0.999]"]),
    ("MODEL.CDGC.CHANNELS", 0, ["above 0"]),
    ("MODEL.CDGC.AUX_CHANNELS", -1, ["above 0"]),
    ("MODEL.CDGC.TOPK", 0, ["above 0"]),
    ("MODEL.CDGC.LOSS.COARSE_WEIGHT", -0.6, ["[0.0, "]),
    ("MODEL.CDGC.LOSS.REFINED_WEIGHT", -1.0, ["[0.0, "]),
    ("MODEL.CDGC.LOSS.AUX_WEIGHT", NAN, ["[0.0, "]),
    ("MODEL.CDGC.LOSS.BASELINE_WEIGHT", "1", ["[0.0, "]),
    ("MODEL.CDGC.LOSS.OHEM_THRESH", 0.0, ["above 0"]),
    ("MODEL.CDGC.LOSS.OHEM_THRESH", 1.5, ["[0.0, 1.0]"]),
    ("MODEL.CDGC.LOSS.OHEM_MIN_KEPT", -1.0, ["count", "share"]),
    ("MODEL.CDGC.LOSS.OHEM_MIN_KEPT", 1.5, ["count", "share"]),
    ("MODEL.CDGC.LOSS.OHEM_MIN_KEPT", NAN, ["count", "share"]),
    ("MODEL.CDGC.LOSS.OHEM_MIN_KEPT", float("inf"), ["count", "share"]),
    ("MODEL.CDGC.LOSS.CLASS_WEIGHTS", [1.0] * 18, ["19"]),
    ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 0, ["1 to 255"]),
    ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 256, ["1 to 255"]),
    ("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 18, ["19 to 255"]),  # class 18 would be ignored
    ("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 256, ["19 to 255"]),
    ("MODEL.RESNETS.DEPTH", 42, ["18", "34", "50", "101", "152"]),
    ("MODEL.RESNETS.STEM_TYPE", "deep", ["basic", "deeplab"]),
    ("INPUT.SCALE_JITTER", [2.0, 0.5], ["lowest", "highest"]),
    ("INPUT.SCALE_JITTER", [0.0, 1.0], ["above 0"]),
    ("INPUT.SCALE_JITTER", [1.0], ["lowest", "highest"]),
    ("INPUT.CROP.TYPE", "relative_range", ["absolute"]),
    ("INPUT.CROP.SIZE", [769], ["height", "width"]),
    ("INPUT.CROP.SIZE", [0.5, 0.5], ["pixels"]),
    ("INPUT.CROP.SIZE", [0, 769], ["pixels"]),
    ("INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", 0.0, ["(0, 1]"]),
    ("INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", 1.2, ["(0, 1]"]),
    ("INPUT.FORMAT", "YUV-BT.601", ["RGB", "BGR"]),
    ("MODEL.CDGC.HARD_POSITIVES", "queries", ["nodes", "keys_only"]),
    ("TEST.AUG.SCALES", [], ["ratios"]),
    ("TEST.AUG.SCALES", [1.0, 0.0], ["ratios"]),
    ("TEST.AUG.SCALES", ["1.0"], ["ratios"]),
    ("TEST.AUG.SCALES", [1.0, -0.5], ["ratios"]),
    ("TEST.SLIDE.CROP", [769], ["[height, width]"]),
    ("TEST.SLIDE.CROP", [769, 0], ["[height, width]"]),
    ("TEST.SLIDE.STRIDE", [0, 513], ["[height, width]", "above 0"]),
    ("TEST.SLIDE.STRIDE", [513, 770], ["at most TEST.SLIDE.CROP [769, 769]"]),
    ("TEST.PRECISION", "tf32", ["fp32", "bf16", "fp16"]),
    ("TEST.ACCUMULATE.DEVICE", "disk", ["model", "cpu"]),
    ("TEST.ACCUMULATE.DTYPE", "int8", ["fp32", "fp16"]),
    ("TEST.BOUNDARY_RATIO", -0.1, ["[0.0, 1.0]"]),
    ("TEST.WORST_IMAGES", -1, ["0 or more"]),
    ("SOLVER.HEAD_LR_FACTOR", 0.0, ["above 0"]),
    ("SOLVER.BASE_LR", -0.01, ["above 0"]),
    ("SOLVER.MAX_ITER", 0, ["above 0"]),
    ("SOLVER.IMS_PER_BATCH", 0, ["above 0"]),
]


@pytest.mark.parametrize(("key", "value", "allowed"), WRONG, ids=[f"{k}={v}" for k, v, _ in WRONG])
def test_wrong_value(cfg, key, value, allowed):
    put(cfg, key, value)
    with pytest.raises(ValueError) as raised:
        check_cfg(cfg)
    message = str(raised.value)
    assert key in message and repr(value) in message
    for part in allowed:
        assert part in message


# Values that nothing else would stop: they are ignored silently or fail deep inside Detectron2.
UNGUARDED = [
    ("MODEL.META_ARCHITECTURE", "CDGCSegmenter"),
    ("MODEL.SEM_SEG_HEAD.ASPP_DILATIONS", [12, 24]),  # Detectron2's ASPP asserts three
    ("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res5"]),
    ("MODEL.RESNETS.NORM", "BatchNorm"),
    ("MODEL.SEM_SEG_HEAD.NORM", "BatchNorm"),
    ("MODEL.CDGC.NORM", "BatchNorm"),
    ("MODEL.CDGC.LOSS.CLASS_WEIGHTS", [-1.0] * 19),
    ("INPUT.RANDOM_FLIP", "vertical"),  # the mapper would not flip at all
    ("INPUT.RANDOM_FLIP", "horizontl"),
]


@pytest.mark.parametrize(("key", "value"), UNGUARDED, ids=[f"{k}={v}" for k, v in UNGUARDED])
def test_wrong_value_that_detectron2_would_not_report(cfg, key, value):
    put(cfg, key, value)
    with pytest.raises(ValueError, match=key.replace(".", r"\.")):
        check_cfg(cfg)


def test_soft_nodes_need_similar_edges(cfg):
    cfg.merge_from_list(["MODEL.CDGC.NODES", "soft"])
    check_cfg(cfg)
    cfg.merge_from_list(["MODEL.CDGC.EDGES", "topk"])
    with pytest.raises(ValueError, match=r"MODEL\.CDGC\.EDGES.*topk.*similarity.*soft"):
        check_cfg(cfg)


@pytest.mark.parametrize("dilations", [(2, 2), (1, 4), (4, 8), (2, 1)])
def test_wrong_dilations(cfg, dilations):
    cfg.MODEL.RESNETS.RES4_DILATION, cfg.MODEL.RESNETS.RES5_DILATION = dilations
    with pytest.raises(ValueError, match=r"RES4,RES5.*\(2, 4\).*\(1, 2\).*\(1, 1\)"):
        check_cfg(cfg)


def test_number_of_class_weights_follows_the_classes(cfg):
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 3
    cfg.MODEL.CDGC.LOSS.CLASS_WEIGHTS = [1.0, 2.0, 0.5]
    check_cfg(cfg)


@pytest.mark.parametrize("kept", [0.0, 0.085, 0.999, 1.0, 100_000.0])
def test_ohem_minimum_is_a_share_or_a_count(cfg, kept):
    cfg.MODEL.CDGC.LOSS.OHEM_MIN_KEPT = kept
    check_cfg(cfg)


def test_mixed_precision_needs_cuda(cfg):
    cfg.SOLVER.AMP.ENABLED = True
    with pytest.raises(ValueError, match=r"SOLVER\.AMP\.ENABLED.*CUDA"):
        check_cfg(cfg)


def test_missing_gpu(cfg, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    cfg.MODEL.DEVICE = "cuda"
    with pytest.raises(ValueError, match=r"MODEL\.DEVICE.*MODEL\.DEVICE cpu"):
        check_cfg(cfg)


def test_load_cfg_checks_overrides(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("MODEL: {DEVICE: cpu, CDGC: {FUSION: sum}}\nVERSION: 2\n")
    cfg = load_cfg(str(file), ["MODEL.CDGC.EDGES", "uniform"])
    assert (cfg.MODEL.CDGC.FUSION, cfg.MODEL.CDGC.EDGES) == ("sum", "uniform")
    assert not cfg.is_frozen()
    with pytest.raises(ValueError, match=r"MODEL\.CDGC\.EDGES.*similarity"):
        load_cfg(str(file), ["MODEL.CDGC.EDGES", "cosine"])


def test_a_wrong_type_or_key_is_named():
    with pytest.raises(ValueError, match=r"MODEL\.CDGC\.CHANNELS"):
        load_cfg("", ["MODEL.CDGC.CHANNELS", "wide"])
    # The one pair that is wrong, not all of them.
    with pytest.raises(ValueError, match=r"override MODEL\.CDGC\.CHANELS 64: .*CHANELS") as error:
        load_cfg("", ["SEED", "3", "MODEL.CDGC.CHANELS", "64"])
    assert "SEED" not in str(error.value)


# ---------------------------------------------------------------- adapt_cfg
NORMS = ("MODEL.RESNETS.NORM", "MODEL.SEM_SEG_HEAD.NORM", "MODEL.CDGC.NORM")


@pytest.fixture
def log(caplog):
    # Detectron2's setup_logger, which other tests may have called, stops propagation.
    logger = logging.getLogger("cdgcnet.config.validation")
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
    adapt_cfg(cfg)
    warnings = {r.getMessage() for r in log.records if r.levelno == logging.WARNING}
    assert len(warnings) == 1 and "0.0025" in warnings.pop()
    assert cfg.SOLVER.BASE_LR == 0.01


@pytest.mark.parametrize(("batch", "recipe"), [(8, 8), (16, 8), (2, 0)])
def test_no_warning_for_a_full_batch_or_no_recipe(cfg, log, batch, recipe):
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.RECIPE_IMS_PER_BATCH = batch, recipe
    adapt_cfg(cfg)
    assert not [r for r in log.records if r.levelno == logging.WARNING]
