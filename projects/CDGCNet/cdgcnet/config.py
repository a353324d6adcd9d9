"""Every configuration key of CDGCNet: default, unit, where it comes from, what it may be.

``check_cfg`` turns a wrong value into an error that names the key before any data is read.
"""

import logging
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.projects.deeplab import add_deeplab_config
from detectron2.utils import comm

from cdgc import NODE_MODES, SAMPLES
from cdgc.cdgc import EDGES, SCALES, SCOPES, TOPK_WEIGHTS

DEPTHS = (18, 34, 50, 101, 152)
META_ARCHS = ("CDGCSegmentor", "SemanticSegmentor")
# What Detectron2's get_norm knows; "" is none.
NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN", "nnSyncBN", "naiveSyncBN", "LN")


def add_cdgcnet_config(cfg: CfgNode) -> None:
    """Add the keys of CDGCNet, and of Detectron2's DeepLab project, to a Detectron2 config.

    ``spec`` below means projects/CDGCNet/README.md, "What the paper leaves open".
    """
    add_deeplab_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "CDGCSegmentor"  # or Detectron2's "SemanticSegmentor"
    cfg.MODEL.BACKBONE.NAME = "build_dilated_resnet_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0  # spec
    cfg.MODEL.PIXEL_MEAN = [123.675, 116.28, 103.53]  # RGB, ImageNet
    cfg.MODEL.PIXEL_STD = [58.395, 57.12, 57.375]
    cfg.INPUT.FORMAT = "RGB"
    cfg.MODEL.RESNETS.DEPTH = 101  # Sec. 4.2
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res4", "res5"]
    cfg.MODEL.RESNETS.RES4_DILATION = 2  # output stride 8, Sec. 3.2
    cfg.MODEL.RESNETS.RES5_DILATION = 4
    cfg.MODEL.RESNETS.RES5_MULTI_GRID = [1, 1, 1]  # spec
    cfg.MODEL.RESNETS.STEM_TYPE = "basic"  # torchvision's 7x7; "deeplab" is the deep stem
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False  # True for MSRA/Caffe weights
    cfg.MODEL.RESNETS.NORM = "SyncBN"
    cfg.MODEL.SEM_SEG_HEAD.NAME = "CDGCNetHead"
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["res4", "res5"]  # auxiliary head, main path
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 19
    cfg.MODEL.SEM_SEG_HEAD.NORM = "SyncBN"
    cfg.MODEL.SEM_SEG_HEAD.ASPP_DILATIONS = [12, 24, 36]  # DeepLabv3 at output stride 8
    cfg.MODEL.SEM_SEG_HEAD.ASPP_CHANNELS = 256

    cfg.MODEL.CDGC = CfgNode()
    # False leaves the basic network alone (Tables 1-3, rows without CDGC).
    cfg.MODEL.CDGC.ENABLED = True
    cfg.MODEL.CDGC.CONTEXT = "aspp"  # or "none" (Table 2)
    cfg.MODEL.CDGC.CHANNELS = 256  # C, of X and of the refined features
    cfg.MODEL.CDGC.NODES = "dynamic"  # training nodes: Eq. 4, or "coarse" (Table 3 "sim")
    cfg.MODEL.CDGC.EASY_RATIO = 1.0  # share of the easy positives kept (Table 3 "ds")
    cfg.MODEL.CDGC.SAMPLES = list(SAMPLES)  # parts of Eq. 4 that enter (Table 5)
    cfg.MODEL.CDGC.EDGES = "similarity"  # Eqs. 2-3, or "uniform", "topk"
    cfg.MODEL.CDGC.TOPK = 64  # neighbours, for EDGES "topk"
    cfg.MODEL.CDGC.TOPK_WEIGHTS = "softmax"  # or "equal", the paper's binary matrix
    cfg.MODEL.CDGC.SCALE = "none"  # factor on the similarity; "sqrt" is C**-0.5
    cfg.MODEL.CDGC.SHARED_PHI = True  # one phi, phi' for all classes
    cfg.MODEL.CDGC.SCOPE = "class"  # "image" is the plain GCN (Table 1)
    cfg.MODEL.CDGC.NORM = "SyncBN"  # after the merge; "" for none
    cfg.MODEL.CDGC.RELU = True  # after that norm
    cfg.MODEL.CDGC.FUSION = "concat"  # or "sum" (Table 2)
    cfg.MODEL.CDGC.FUSE_CONV = False  # a 1x1 conv-norm-ReLU before the last classifier
    cfg.MODEL.CDGC.AUX_CHANNELS = 256  # width of the auxiliary head
    cfg.MODEL.CDGC.DROPOUT = 0.1  # before every classifier
    cfg.MODEL.CDGC.ALIGN_CORNERS = True  # of every resize of logits and targets

    cfg.MODEL.CDGC.LOSS = CfgNode()
    cfg.MODEL.CDGC.LOSS.COARSE_WEIGHT = 0.6  # alpha of Eq. 5
    cfg.MODEL.CDGC.LOSS.REFINED_WEIGHT = 0.7  # beta
    cfg.MODEL.CDGC.LOSS.AUX_WEIGHT = 0.4  # gamma; 0 builds no auxiliary head
    cfg.MODEL.CDGC.LOSS.PLAIN_WEIGHT = 1.0  # of the only prediction when ENABLED is False
    cfg.MODEL.CDGC.LOSS.OHEM_THRESH = 0.7
    # Pixels kept per GPU batch; below 1 a share of the batch's pixels (0.085 at the paper's crop).
    cfg.MODEL.CDGC.LOSS.OHEM_MIN_KEPT = 100000.0
    cfg.MODEL.CDGC.LOSS.CLASS_WEIGHTS = []  # one factor per class, or empty

    cfg.INPUT.SCALE_JITTER = [0.5, 2.0]
    cfg.INPUT.COLOR_JITTER = False  # brightness, contrast, saturation within 0.75-1.25
    # Shortest edge in pixels before jitter (training) and for testing; 0 keeps the image's size.
    cfg.INPUT.MIN_SIZE_TRAIN = (0,)
    cfg.INPUT.MIN_SIZE_TEST = 0
    cfg.INPUT.MAX_SIZE_TEST = 4096
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE = "absolute"
    cfg.INPUT.CROP.SIZE = [769, 769]

    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupPolyLR"
    cfg.SOLVER.WARMUP_ITERS = 0  # spec; Detectron2 warms up for 1000 iterations
    cfg.SOLVER.OPTIMIZER = "SGD"  # Sec. 4.2; or "ADAMW"
    cfg.SOLVER.HEAD_LR_FACTOR = 1.0
    cfg.SOLVER.RECIPE_IMS_PER_BATCH = 0  # batch the learning rate was set for; 0: not stated
    cfg.SOLVER.WEIGHT_DECAY_NORM = None  # as all other weights
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    cfg.TEST.EVAL_PERIOD = 5000
    cfg.TEST.AUG.SCALES = [0.75, 1.0, 1.25, 1.5, 1.75, 2.0]  # Sec. 4.3, ratios
    cfg.TEST.AUG.FLIP = True


def load_cfg(config_file: str, overrides: list[str] | None = None) -> CfgNode:
    """A checked, unfrozen config from a YAML file and ``KEY VALUE`` overrides.

    Raises:
        FileNotFoundError, ValueError: naming the file or the key.
    """
    cfg = get_cfg()
    add_cdgcnet_config(cfg)
    if config_file:
        if not Path(config_file).is_file():
            raise FileNotFoundError(f"--config-file {config_file}: there is no such file")
        try:
            cfg.merge_from_file(config_file)
        # What yacs, fvcore and PyYAML raise for unknown keys, wrong types and broken files.
        except (AssertionError, AttributeError, KeyError, yaml.YAMLError, OSError) as error:
            raise ValueError(f"{config_file}: {_message(error)}") from error
    if overrides:
        if len(overrides) % 2:
            raise ValueError(f"overrides come in pairs KEY VALUE; found {overrides}")
        try:
            cfg.merge_from_list(overrides)
        except (AssertionError, KeyError) as error:
            raise ValueError(f"overrides {' '.join(overrides)}: {_message(error)}") from error
    check_cfg(cfg)
    return cfg


def _message(error: Exception) -> str:
    # str() of a KeyError is the repr of its message.
    return str(error.args[0]) if isinstance(error, KeyError) else str(error)


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

    one_of("MODEL.CDGC.CONTEXT", cdgc.CONTEXT, ("aspp", "none"))
    one_of("MODEL.CDGC.NODES", cdgc.NODES, NODE_MODES)
    one_of("MODEL.CDGC.EDGES", cdgc.EDGES, EDGES)
    one_of("MODEL.CDGC.SCOPE", cdgc.SCOPE, SCOPES)
    one_of("MODEL.CDGC.FUSION", cdgc.FUSION, ("concat", "sum"))
    one_of("MODEL.CDGC.TOPK_WEIGHTS", cdgc.TOPK_WEIGHTS, TOPK_WEIGHTS)
    one_of("MODEL.CDGC.SCALE", cdgc.SCALE, SCALES)
    _check(
        len(cdgc.SAMPLES) > 0 and set(cdgc.SAMPLES) <= set(SAMPLES),
        "MODEL.CDGC.SAMPLES",
        cdgc.SAMPLES,
        f"a non-empty list out of {list(SAMPLES)}",
    )
    within("MODEL.CDGC.EASY_RATIO", cdgc.EASY_RATIO, 0.0, 1.0)
    within("MODEL.CDGC.DROPOUT", cdgc.DROPOUT, 0.0, 0.999)
    for key in ("CHANNELS", "AUX_CHANNELS", "TOPK"):
        positive(f"MODEL.CDGC.{key}", cdgc[key])
    for key in ("COARSE_WEIGHT", "REFINED_WEIGHT", "AUX_WEIGHT", "PLAIN_WEIGHT"):
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
    one_of("MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, META_ARCHS)
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
    one_of("SOLVER.OPTIMIZER", cfg.SOLVER.OPTIMIZER, ("SGD", "ADAMW"))
    positive("SOLVER.HEAD_LR_FACTOR", cfg.SOLVER.HEAD_LR_FACTOR)
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
    _check(
        not device.startswith("cuda") or torch.cuda.is_available(),
        "MODEL.DEVICE",
        device,
        "cpu: no CUDA device is available here (add MODEL.DEVICE cpu to the command)",
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
    if 0 < batch < recipe:
        logger.warning(
            f"SOLVER.IMS_PER_BATCH {batch} is smaller than the recipe's {recipe}; BASE_LR "
            f"{cfg.SOLVER.BASE_LR} is meant for {recipe}. Scaled linearly it would be "
            f"{cfg.SOLVER.BASE_LR * batch / recipe:.6g} (SOLVER.BASE_LR)."
        )
