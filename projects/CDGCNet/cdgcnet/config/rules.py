"""What every configuration key may be: one rule for each key that the program reads.

A key without a rule is one of Detectron2's that CDGCNet does not read; setting it has no effect.
Rules that involve several keys are in ``validation``.
"""

from collections.abc import Sequence
from typing import Any

from detectron2.config import get_cfg

from cdgc import (
    EDGES,
    HARD_POSITIVES,
    MESSAGE_WEIGHTS,
    NODE_MODES,
    RECEIVERS,
    REDUCTIONS,
    SAMPLES,
    SCALES,
    SCOPES,
    SOFTMAX,
    TOPK_WEIGHTS,
)
from cdgcnet.config.rule_types import (
    Choice,
    Flag,
    Integer,
    Items,
    Mappings,
    Number,
    Rule,
    Scores,
    ShareOrCount,
    Text,
)

DILATED_RESNET, TIMM = "build_dilated_resnet_backbone", "build_timm_backbone"
DEPTHS = (18, 34, 50, 101, 152)
# The names that Detectron2's get_norm knows; "" is no norm.
NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN", "nnSyncBN", "naiveSyncBN")
SCHEDULERS = ("WarmupPolyLR", "WarmupMultiStepLR", "WarmupCosineLR")
CONTEXT_MODULES = ("graph", "non_local", "danet", "ocr", "psp", "pixelwise")
STRIDE_ADAPTERS = ("dilation", "interpolation", "none")
DATASET_CHECKS = ("labels", "all", "none")
FEATURES = ("stem", "res2", "res3", "res4", "res5")
MAX_CHANNELS = 16_384
MAX_SIDE = 32_768  # pixels
MAX_ITERATIONS = 1_000_000_000


def _choice(*choices: Any) -> Choice:
    return Choice(choices)


def _choices(values: Sequence[Any]) -> Choice:
    return Choice(tuple(values))


_FLAG = Flag()
_TEXT = Text()
_CHANNELS = Integer(1, MAX_CHANNELS)
_ITERATIONS = Integer(0, MAX_ITERATIONS)
_NORM = _choices(NORMS)
_WEIGHT = Number(0, 1e6)
_BYTE = Integer(0, 255)
_POSITIVE_SHARE = Number(0, 1, above=True)
_PIXELS = "[height, width] in pixels"
_SIZE = Items(Integer(16, MAX_SIDE), lengths=(2,), names=_PIXELS)

RULES: dict[str, Rule] = {
    "VERSION": _choice(2),
    "OUTPUT_DIR": Text(empty=False),
    "SEED": Integer(-1, 2**31 - 1),
    "CUDNN_BENCHMARK": _FLAG,
    "VIS_PERIOD": _ITERATIONS,
    "WANDB_PROJECT": Text(),
    # ---- model ----
    "MODEL.META_ARCHITECTURE": Text(empty=False),
    "MODEL.DEVICE": Text(empty=False),
    "MODEL.WEIGHTS": _TEXT,
    "MODEL.WEIGHTS_PARTIAL": _FLAG,
    "MODEL.CLASS_NAMES": Items(Text(empty=False), distinct=True),
    "MODEL.CLASS_COLORS": Items(Items(_BYTE, lengths=(3,), names="[R, G, B]")),
    "MODEL.CHANNELS_LAST": _FLAG,
    "MODEL.PIXEL_MEAN": Items(Number(0, 255), lengths=(3,)),
    "MODEL.PIXEL_STD": Items(Number(0, 255, above=True), lengths=(3,)),
    "MODEL.BACKBONE.NAME": Text(empty=False),
    "MODEL.BACKBONE.FREEZE_AT": Integer(0, 5),
    "MODEL.RESNETS.DEPTH": _choices(DEPTHS),
    "MODEL.RESNETS.NORM": _NORM,
    "MODEL.RESNETS.NUM_GROUPS": Integer(1, 1024),
    "MODEL.RESNETS.WIDTH_PER_GROUP": Integer(1, 4096),
    "MODEL.RESNETS.OUT_FEATURES": Items(_choices(FEATURES), low=1, distinct=True),
    "MODEL.RESNETS.RES2_OUT_CHANNELS": Integer(1, 4096),
    "MODEL.RESNETS.STEM_OUT_CHANNELS": Integer(2, 4096),
    "MODEL.RESNETS.STEM_TYPE": _choice("basic", "deeplab"),
    "MODEL.RESNETS.STRIDE_IN_1X1": _FLAG,
    "MODEL.RESNETS.RES4_DILATION": _choice(1, 2),
    "MODEL.RESNETS.RES5_DILATION": _choice(1, 2, 4),
    "MODEL.RESNETS.RES5_MULTI_GRID": Items(Integer(1, 64), low=1),
    "MODEL.TIMM.NAME": Text(empty=False),
    "MODEL.TIMM.PRETRAINED": _TEXT,
    "MODEL.TIMM.OUT_INDICES": Items(Integer(-64, 63), low=2, distinct=True),
    "MODEL.TIMM.STRIDE_ADAPTER": _choices(STRIDE_ADAPTERS),
    "MODEL.TIMM.OUTPUT_STRIDE": _choice(8, 16, 32),
    "MODEL.SEM_SEG_HEAD.NAME": Text(empty=False),
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": Integer(1, 255),
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": _BYTE,
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": Items(Text(empty=False), lengths=(2,), distinct=True),
    "MODEL.SEM_SEG_HEAD.NORM": _NORM,
    "MODEL.SEM_SEG_HEAD.ASPP_DILATIONS": Items(Integer(1, 1024), lengths=(3,)),
    "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS": _CHANNELS,
    # ---- the graph ----
    "MODEL.CDGC.ENABLED": _FLAG,
    "MODEL.CDGC.CONTEXT_MODULE": _choices(CONTEXT_MODULES),
    "MODEL.CDGC.CONTEXT": _choice("aspp", "none"),
    "MODEL.CDGC.CHANNELS": _CHANNELS,
    "MODEL.CDGC.NODES": _choices(NODE_MODES),
    "MODEL.CDGC.EASY_RATIO": Number(0, 1),
    "MODEL.CDGC.SAMPLES": Items(_choices(SAMPLES), low=1, distinct=True),
    "MODEL.CDGC.HARD_POSITIVES": _choices(HARD_POSITIVES),
    "MODEL.CDGC.RECEIVERS": _choices(RECEIVERS),
    "MODEL.CDGC.MESSAGE_WEIGHTS": _choices(MESSAGE_WEIGHTS),
    "MODEL.CDGC.SOFTMAX": _choices(SOFTMAX),
    "MODEL.CDGC.HEADS": Integer(1, 64),
    "MODEL.CDGC.DISTANCE_BIAS": _FLAG,
    "MODEL.CDGC.EDGES": _choices(EDGES),
    "MODEL.CDGC.TOPK": Integer(1, 1_000_000),
    "MODEL.CDGC.TOPK_WEIGHTS": _choices(TOPK_WEIGHTS),
    "MODEL.CDGC.SCALE": _choices(SCALES),
    "MODEL.CDGC.SHARED_PHI": _FLAG,
    "MODEL.CDGC.SCOPE": _choices(SCOPES),
    "MODEL.CDGC.NORM": _NORM,
    "MODEL.CDGC.RELU": _FLAG,
    "MODEL.CDGC.FUSION": _choice("concat", "sum"),
    "MODEL.CDGC.FUSE_CONV": _FLAG,
    "MODEL.CDGC.AUX_CHANNELS": _CHANNELS,
    "MODEL.CDGC.DROPOUT": Number(0, 0.999),
    "MODEL.CDGC.ALIGN_CORNERS": _FLAG,
    "MODEL.CDGC.CHECK_FINITE": _FLAG,
    "MODEL.CDGC.LOSS.COARSE_WEIGHT": _WEIGHT,
    "MODEL.CDGC.LOSS.REFINED_WEIGHT": _WEIGHT,
    "MODEL.CDGC.LOSS.REFINED": _choice("ohem", "ce"),
    "MODEL.CDGC.LOSS.AUX_WEIGHT": _WEIGHT,
    "MODEL.CDGC.LOSS.BASELINE_WEIGHT": _WEIGHT,
    "MODEL.CDGC.LOSS.BASELINE": _choice("ce", "ohem"),
    "MODEL.CDGC.LOSS.OHEM_THRESH": _POSITIVE_SHARE,
    "MODEL.CDGC.LOSS.OHEM_MIN_KEPT": ShareOrCount(),
    "MODEL.CDGC.LOSS.REDUCE": _choices(REDUCTIONS),
    "MODEL.CDGC.LOSS.CLASS_WEIGHTS": Items(_WEIGHT),
    # ---- data ----
    "INPUT.FORMAT": _choice("RGB", "BGR"),
    "INPUT.SCALE_JITTER": Items(Number(0.01, 100), lengths=(2,), names="[lowest, highest] ratio"),
    "INPUT.COLOR_JITTER": _FLAG,
    "INPUT.RANDOM_FLIP": _choice("horizontal", "none"),
    "INPUT.MIN_SIZE_TRAIN": Items(Integer(0, MAX_SIDE), low=1),
    "INPUT.MIN_SIZE_TEST": Integer(0, MAX_SIDE),
    "INPUT.MAX_SIZE_TEST": Integer(1, MAX_SIDE),
    "INPUT.CROP.ENABLED": _FLAG,
    "INPUT.CROP.TYPE": _choice("absolute"),
    "INPUT.CROP.SIZE": _SIZE,
    "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": _POSITIVE_SHARE,
    "INPUT.MAX_PIXELS": Integer(1, MAX_SIDE**2),
    "INPUT.CACHE": _TEXT,
    "DATASETS.FOLDERS": Mappings(),
    "DATASETS.CHECK": _choices(DATASET_CHECKS),
    "DATASETS.TRAIN": Items(Text(empty=False), distinct=True),
    "DATASETS.TEST": Items(Text(empty=False), distinct=True),
    "DATALOADER.NUM_WORKERS": Integer(0, 256),
    # ---- training ----
    "SOLVER.OPTIMIZER": _choice("SGD", "ADAMW"),
    "SOLVER.LR_SCHEDULER_NAME": _choices(SCHEDULERS),
    "SOLVER.BASE_LR": Number(0, 1000, above=True),
    "SOLVER.HEAD_LR_FACTOR": Number(0, 1000, above=True),
    "SOLVER.BIAS_LR_FACTOR": Number(0, 1000),
    "SOLVER.MOMENTUM": Number(0, 0.9999),
    "SOLVER.NESTEROV": _FLAG,
    "SOLVER.WEIGHT_DECAY": Number(0, 1),
    "SOLVER.WEIGHT_DECAY_NORM": Number(0, 1, optional=True),
    "SOLVER.WEIGHT_DECAY_BIAS": Number(0, 1, optional=True),
    "SOLVER.MAX_ITER": Integer(1, MAX_ITERATIONS),
    "SOLVER.IMS_PER_BATCH": Integer(1, 4096),
    "SOLVER.RECIPE_IMS_PER_BATCH": Integer(0, 4096),
    "SOLVER.RECIPE_BASE_LR": Number(0, 1000),
    "SOLVER.REFERENCE_WORLD_SIZE": Integer(0, 4096),
    "SOLVER.CHECKPOINT_PERIOD": Integer(1, MAX_ITERATIONS),
    "SOLVER.EXTEND_SCHEDULE": Flag(),
    "SOLVER.POLY_LR_POWER": Number(0, 100),
    "SOLVER.POLY_LR_CONSTANT_ENDING": Number(0, 1),
    "SOLVER.GAMMA": _POSITIVE_SHARE,
    "SOLVER.STEPS": Items(Integer(1, MAX_ITERATIONS), distinct=True),
    "SOLVER.WARMUP_ITERS": _ITERATIONS,
    "SOLVER.WARMUP_FACTOR": Number(0, 1),
    "SOLVER.WARMUP_METHOD": _choice("linear", "constant"),
    "SOLVER.CLIP_GRADIENTS.ENABLED": _FLAG,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": _choice("value", "norm"),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": Number(0, 1e9, above=True),
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": Number(1, 1000),
    "SOLVER.AMP.ENABLED": _FLAG,
    "SOLVER.AMP.PRECISION": _choice("fp16", "bf16"),
    # ---- evaluation ----
    "TEST.EVAL_PERIOD": _ITERATIONS,
    "TEST.EXPECTED_RESULTS": Scores(),
    "TEST.PRECISE_BN.ENABLED": _FLAG,
    "TEST.PRECISE_BN.NUM_ITER": Integer(1, MAX_ITERATIONS),
    "TEST.AUG.ENABLED": _FLAG,
    "TEST.AUG.FLIP": _FLAG,
    "TEST.AUG.SCALES": Items(Number(0.01, 16), low=1, distinct=True),
    "TEST.SLIDE.ENABLED": _FLAG,
    "TEST.SLIDE.CROP": _SIZE,
    "TEST.SLIDE.STRIDE": Items(Integer(1, MAX_SIDE), lengths=(2,), names=_PIXELS),
    "TEST.PRECISION": _choice("fp32", "bf16", "fp16"),
    "TEST.ACCUMULATE.DEVICE": _choice("model", "cpu"),
    "TEST.ACCUMULATE.DTYPE": _choice("fp32", "fp16"),
    "TEST.BOUNDARY_RATIO": Number(0, 1),
    "TEST.ORACLE": _FLAG,
    "TEST.WORST_IMAGES": Integer(0, 10_000),
    "TEST.PICTURES": _FLAG,
    "TEST.SAVE_LABELS": _FLAG,
    "TEST.SAVE_RLE": _FLAG,
    "TEST.RESUME": _FLAG,
}
# Keys that v0.6 of Detectron2 lacks, with their defaults on its main branch. With these values both
# do the same, so v0.6 can read the config.yaml of a run there, which holds every key.
NEWER_DEFAULTS: dict[str, Any] = {
    "DATALOADER.REPEAT_SQRT": True,
    "FLOAT32_PRECISION": "",
    "MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER": 0.5,
    "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES": 50,
    "MODEL.ROI_BOX_HEAD.USE_FED_LOSS": False,
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": False,
    "SOLVER.BASE_LR_END": 0.0,
    "SOLVER.NUM_DECAYS": 3,
    "SOLVER.RESCALE_INTERVAL": False,
}
# Of these, CDGCNet reads two.
_NEWER: dict[str, Rule] = {"BASE_LR_END": Number(0, 1000), "RESCALE_INTERVAL": _FLAG}
RULES |= {f"SOLVER.{key}": rule for key, rule in _NEWER.items() if key in get_cfg().SOLVER}
