"""What the configuration keys may be, and what a config becomes on this machine."""

import logging
import math
from collections.abc import Collection
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY
from detectron2.utils import comm

from cdgc import (
    EDGES,
    HARD_POSITIVES,
    NODE_MODES,
    SAMPLES,
    SCALES,
    SCOPES,
    TOPK_WEIGHTS,
)
from cdgcnet.data.preflight import LEVELS
from cdgcnet.modeling.context_modules import CONTEXT_MODULES

DEPTHS = (18, 34, 50, 101, 152)
# What Detectron2's get_norm knows; "" is none.
NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN", "nnSyncBN", "naiveSyncBN")
SCHEDULES = ("WarmupPolyLR", "WarmupMultiStepLR", "WarmupCosineLR")


def _check(condition: bool, key: str, found: Any, expected: str) -> None:
    if not condition:
        raise ValueError(f"{key} is {found!r}; expected {expected}")


def check_cfg(cfg: CfgNode) -> None:
    """Check every value of ours, and those of Detectron2's that we depend on.

    Raises:
        ValueError: naming the key, the value found and the allowed values.
    """
    cdgc = cfg.MODEL.CDGC
    loss = cdgc.LOSS

    def one_of(key: str, value: Any, allowed: Collection) -> None:
        _check(value in allowed, key, value, f"one of {list(allowed)}")

    def positive(key: str, value: Any) -> None:
        _check(isinstance(value, (int, float)) and value > 0, key, value, "a number above 0")

    def within(key: str, value: Any, low: float, high: float) -> None:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        _check(number and low <= value <= high, key, value, f"a number within [{low}, {high}]")

    one_of("MODEL.CDGC.CONTEXT_MODULE", cdgc.CONTEXT_MODULE, ("graph", *CONTEXT_MODULES))
    one_of("MODEL.CDGC.LOSS.BASELINE", loss.BASELINE, ("ce", "ohem"))
    one_of("MODEL.CDGC.CONTEXT", cdgc.CONTEXT, ("aspp", "none"))
    one_of("MODEL.CDGC.NODES", cdgc.NODES, NODE_MODES)
    one_of("MODEL.CDGC.EDGES", cdgc.EDGES, EDGES)
    if cdgc.NODES == "soft":
        _check(
            cdgc.EDGES == "similarity",
            "MODEL.CDGC.EDGES",
            cdgc.EDGES,
            "'similarity', which NODES 'soft' needs",
        )
    one_of("MODEL.CDGC.SCOPE", cdgc.SCOPE, SCOPES)
    one_of("MODEL.CDGC.FUSION", cdgc.FUSION, ("concat", "sum"))
    one_of("MODEL.CDGC.HARD_POSITIVES", cdgc.HARD_POSITIVES, HARD_POSITIVES)
    one_of("MODEL.CDGC.TOPK_WEIGHTS", cdgc.TOPK_WEIGHTS, TOPK_WEIGHTS)
    one_of("MODEL.CDGC.SCALE", cdgc.SCALE, SCALES)
    _check(
        len(cdgc.SAMPLES) > 0 and set(cdgc.SAMPLES) <= set(SAMPLES),
        "MODEL.CDGC.SAMPLES",
        cdgc.SAMPLES,
        f"a non-empty list out of {list(SAMPLES)}",
    )
    finite = cdgc.CHECK_FINITE
    _check(isinstance(finite, bool), "MODEL.CDGC.CHECK_FINITE", finite, "True or False")
    within("MODEL.CDGC.EASY_RATIO", cdgc.EASY_RATIO, 0.0, 1.0)
    within("MODEL.CDGC.DROPOUT", cdgc.DROPOUT, 0.0, 0.999)
    for key in ("CHANNELS", "AUX_CHANNELS", "TOPK"):
        positive(f"MODEL.CDGC.{key}", cdgc[key])
    for key in ("COARSE_WEIGHT", "REFINED_WEIGHT", "AUX_WEIGHT", "BASELINE_WEIGHT"):
        within(f"MODEL.CDGC.LOSS.{key}", loss[key], 0.0, 1e6)
    positive("MODEL.CDGC.LOSS.OHEM_THRESH", loss.OHEM_THRESH)
    within("MODEL.CDGC.LOSS.OHEM_THRESH", loss.OHEM_THRESH, 0.0, 1.0)
    kept = loss.OHEM_MIN_KEPT
    _check(
        math.isfinite(kept) and kept >= 0 and (kept < 1 or kept == int(kept)),
        "MODEL.CDGC.LOSS.OHEM_MIN_KEPT",
        kept,
        "a pixel count, or a share of the batch below 1",
    )
    classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    _check(1 <= classes <= 255, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", classes, "1 to 255 classes")
    ignore = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    _check(
        classes <= ignore <= 255,
        "MODEL.SEM_SEG_HEAD.IGNORE_VALUE",
        ignore,
        f"a label that is no class, {classes} to 255",
    )
    _check(
        len(loss.CLASS_WEIGHTS) in (0, classes),
        "MODEL.CDGC.LOSS.CLASS_WEIGHTS",
        loss.CLASS_WEIGHTS,
        f"an empty list or {classes} numbers (NUM_CLASSES)",
    )
    _check(
        all(w >= 0 for w in loss.CLASS_WEIGHTS),
        "MODEL.CDGC.LOSS.CLASS_WEIGHTS",
        loss.CLASS_WEIGHTS,
        "numbers of 0 or more",
    )
    for key, name, registry in (
        ("MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, META_ARCH_REGISTRY),
        ("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME, BACKBONE_REGISTRY),
        ("MODEL.SEM_SEG_HEAD.NAME", cfg.MODEL.SEM_SEG_HEAD.NAME, SEM_SEG_HEADS_REGISTRY),
    ):
        one_of(key, name, sorted(n for n, _ in registry))
    for node, key in (
        (cfg.MODEL.RESNETS, "MODEL.RESNETS.NORM"),
        (cfg.MODEL.SEM_SEG_HEAD, "MODEL.SEM_SEG_HEAD.NORM"),
        (cdgc, "MODEL.CDGC.NORM"),
    ):
        one_of(key, node.NORM, NORMS)
    for key, length in (("ASPP_DILATIONS", 3), ("IN_FEATURES", 2)):
        value = cfg.MODEL.SEM_SEG_HEAD[key]
        _check(len(value) == length, f"MODEL.SEM_SEG_HEAD.{key}", value, f"a list of {length}")
    grid = cfg.MODEL.RESNETS.RES5_MULTI_GRID
    _check(
        len(grid) > 0 and all(isinstance(g, int) and g > 0 for g in grid),
        "MODEL.RESNETS.RES5_MULTI_GRID",
        grid,
        "a non-empty list of whole numbers above 0",
    )
    needed = [
        f for f in cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES if f not in cfg.MODEL.RESNETS.OUT_FEATURES
    ]
    _check(
        not needed,
        "MODEL.RESNETS.OUT_FEATURES",
        cfg.MODEL.RESNETS.OUT_FEATURES,
        f"all of MODEL.SEM_SEG_HEAD.IN_FEATURES {cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES}",
    )
    one_of("DATASETS.CHECK", cfg.DATASETS.CHECK, LEVELS)
    one_of("INPUT.RANDOM_FLIP", cfg.INPUT.RANDOM_FLIP, ("horizontal", "none"))
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    _check(
        len(sizes) > 0 and all(s >= 0 for s in sizes),
        "INPUT.MIN_SIZE_TRAIN",
        sizes,
        "shortest edges in pixels, 0 for the image's own",
    )
    _check(
        len(cfg.MODEL.PIXEL_STD) == 3 and all(s > 0 for s in cfg.MODEL.PIXEL_STD),
        "MODEL.PIXEL_STD",
        cfg.MODEL.PIXEL_STD,
        "three numbers above 0",
    )
    one_of("MODEL.RESNETS.DEPTH", cfg.MODEL.RESNETS.DEPTH, DEPTHS)
    one_of("MODEL.RESNETS.STEM_TYPE", cfg.MODEL.RESNETS.STEM_TYPE, ("basic", "deeplab"))
    dilations = (cfg.MODEL.RESNETS.RES4_DILATION, cfg.MODEL.RESNETS.RES5_DILATION)
    _check(
        dilations in ((1, 1), (1, 2), (2, 4)),
        "MODEL.RESNETS.{RES4,RES5}_DILATION",
        dilations,
        "(2, 4) for output stride 8, (1, 2) for 16 or (1, 1) for 32",
    )
    jitter = cfg.INPUT.SCALE_JITTER
    _check(
        len(jitter) == 2 and 0 < jitter[0] <= jitter[1],
        "INPUT.SCALE_JITTER",
        jitter,
        "[lowest, highest] ratio above 0",
    )
    crop = cfg.INPUT.CROP
    one_of("INPUT.CROP.TYPE", crop.TYPE, ("absolute",))
    _check(
        len(crop.SIZE) == 2 and all(isinstance(s, int) and s > 0 for s in crop.SIZE),
        "INPUT.CROP.SIZE",
        crop.SIZE,
        "[height, width] in pixels",
    )
    _check(
        0 < crop.SINGLE_CATEGORY_MAX_AREA <= 1,
        "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA",
        crop.SINGLE_CATEGORY_MAX_AREA,
        "a share of the crop within (0, 1]; 1 switches the limit off",
    )
    one_of("INPUT.FORMAT", cfg.INPUT.FORMAT, ("RGB", "BGR"))
    scales = cfg.TEST.AUG.SCALES
    _check(
        len(scales) > 0 and all(isinstance(s, (int, float)) and s > 0 for s in scales),
        "TEST.AUG.SCALES",
        scales,
        "a non-empty list of ratios above 0",
    )
    slide = cfg.TEST.SLIDE
    for key in ("CROP", "STRIDE"):
        _check(
            len(slide[key]) == 2 and all(isinstance(s, int) and s > 0 for s in slide[key]),
            f"TEST.SLIDE.{key}",
            slide[key],
            "[height, width] in pixels, above 0",
        )
    _check(
        all(s <= c for s, c in zip(slide.STRIDE, slide.CROP, strict=True)),
        "TEST.SLIDE.STRIDE",
        slide.STRIDE,
        f"at most TEST.SLIDE.CROP {slide.CROP}, or pixels between the windows would be left out",
    )
    if cfg.MODEL.META_ARCHITECTURE != "CDGCSegmentor":
        for key, value, plain in (
            ("TEST.SLIDE.ENABLED", slide.ENABLED, False),
            ("TEST.PRECISION", cfg.TEST.PRECISION, "fp32"),
        ):
            _check(
                value == plain,
                key,
                value,
                f"{plain} with MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE}; only "
                "CDGCSegmentor knows this key",
            )
    one_of("TEST.PRECISION", cfg.TEST.PRECISION, ("fp32", "bf16", "fp16"))
    one_of("TEST.ACCUMULATE.DEVICE", cfg.TEST.ACCUMULATE.DEVICE, ("model", "cpu"))
    one_of("TEST.ACCUMULATE.DTYPE", cfg.TEST.ACCUMULATE.DTYPE, ("fp32", "fp16"))
    within("TEST.BOUNDARY_RATIO", cfg.TEST.BOUNDARY_RATIO, 0.0, 1.0)
    _check(
        isinstance(cfg.TEST.WORST_IMAGES, int) and cfg.TEST.WORST_IMAGES >= 0,
        "TEST.WORST_IMAGES",
        cfg.TEST.WORST_IMAGES,
        "a whole number, 0 or more",
    )
    one_of("SOLVER.OPTIMIZER", cfg.SOLVER.OPTIMIZER, ("SGD", "ADAMW"))
    positive("SOLVER.HEAD_LR_FACTOR", cfg.SOLVER.HEAD_LR_FACTOR)
    one_of("SOLVER.LR_SCHEDULER_NAME", cfg.SOLVER.LR_SCHEDULER_NAME, SCHEDULES)
    world = cfg.SOLVER.REFERENCE_WORLD_SIZE
    _check(
        world == 0 or (world > 0 and cfg.SOLVER.IMS_PER_BATCH % world == 0),
        "SOLVER.REFERENCE_WORLD_SIZE",
        world,
        f"0, or a divisor of SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH}",
    )
    positive("SOLVER.BASE_LR", cfg.SOLVER.BASE_LR)
    positive("SOLVER.MAX_ITER", cfg.SOLVER.MAX_ITER)
    positive("SOLVER.IMS_PER_BATCH", cfg.SOLVER.IMS_PER_BATCH)
    _check(
        not (cfg.SOLVER.AMP.ENABLED and cfg.MODEL.DEVICE == "cpu"),
        "SOLVER.AMP.ENABLED",
        True,
        "False with MODEL.DEVICE cpu: Detectron2's mixed precision needs CUDA",
    )
    device = str(cfg.MODEL.DEVICE)
    _check(device.split(":")[0] in ("cpu", "cuda"), "MODEL.DEVICE", device, "cpu or cuda")
    _check(
        not device.startswith("cuda") or torch.cuda.is_available(),
        "MODEL.DEVICE",
        device,
        "cpu, since no CUDA device is available here (override it with MODEL.DEVICE cpu)",
    )


def adapt_cfg(cfg: CfgNode) -> None:
    """Fit a checked config to where it runs, saying so: SyncBN needs several GPUs.

    Also warns where the batch is smaller than the one the recipe's learning rate is for.
    """
    logger = logging.getLogger(__name__)
    if cfg.MODEL.DEVICE == "cpu" or comm.get_world_size() == 1:
        switched = []
        for node, name in (
            (cfg.MODEL.RESNETS, "MODEL.RESNETS.NORM"),
            (cfg.MODEL.SEM_SEG_HEAD, "MODEL.SEM_SEG_HEAD.NORM"),
            (cfg.MODEL.CDGC, "MODEL.CDGC.NORM"),
        ):
            if node.NORM == "SyncBN":
                node.NORM = "BN"
                switched.append(name)
        if switched:
            logger.info(
                f"One process on {cfg.MODEL.DEVICE}: SyncBN becomes BN in {', '.join(switched)}"
            )
    recipe, batch = cfg.SOLVER.RECIPE_IMS_PER_BATCH, cfg.SOLVER.IMS_PER_BATCH
    recipe_lr = cfg.SOLVER.RECIPE_BASE_LR or cfg.SOLVER.BASE_LR
    scaled = recipe_lr * batch / max(recipe, 1)
    if batch < recipe and scaled * 1.01 < cfg.SOLVER.BASE_LR:
        logger.warning(
            f"SOLVER.IMS_PER_BATCH {batch} is smaller than the recipe's {recipe}, whose BASE_LR is "
            f"{recipe_lr}; BASE_LR is {cfg.SOLVER.BASE_LR}. Scaled linearly it would be "
            f"{scaled:.6g} (SOLVER.BASE_LR)."
        )
    if cfg.MODEL.RESNETS.DEPTH < 50 and cfg.MODEL.RESNETS.RES2_OUT_CHANNELS == 256:
        logger.warning(
            f"MODEL.RESNETS.RES2_OUT_CHANNELS is 256 with DEPTH {cfg.MODEL.RESNETS.DEPTH}: four "
            "times as wide as torchvision's, which has 64"
        )
