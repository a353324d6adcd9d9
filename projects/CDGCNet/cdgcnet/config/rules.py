"""What every configuration key may be: one rule for each key that the program reads.

A key without a rule is one of Detectron2's that CDGCNet does not read; setting it has no effect.
Rules that involve several keys are in ``validation``.
"""

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

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
MAX_PIXELS = 1_000_000_000_000
MAX_ITERATIONS = 1_000_000_000


class Rule(Protocol):
    """Accepts or refuses the value of one key."""

    @property
    def expected(self) -> str:
        """What a message says after "expected"."""

    def accepts(self, value: Any) -> bool:
        """Whether the key may have this value."""


@dataclass(frozen=True)
class Flag:
    """True or False."""

    expected: str = "True or False"

    def accepts(self, value: Any) -> bool:
        return isinstance(value, bool)


@dataclass(frozen=True)
class Choice:
    """One of a few values."""

    choices: tuple[Any, ...]

    @property
    def expected(self) -> str:
        return f"one of {list(self.choices)}" if len(self.choices) > 1 else repr(self.choices[0])

    def accepts(self, value: Any) -> bool:
        return any(type(value) is type(choice) and value == choice for choice in self.choices)


@dataclass(frozen=True)
class Integer:
    """A whole number within limits, both included."""

    low: int
    high: int

    @property
    def expected(self) -> str:
        return f"a whole number from {self.low} to {self.high}"

    def accepts(self, value: Any) -> bool:
        return type(value) is int and self.low <= value <= self.high


@dataclass(frozen=True)
class Number:
    """A finite number within limits, both included unless ``above`` leaves out the lower one."""

    low: float
    high: float
    above: bool = False  # the lower limit itself is not allowed
    optional: bool = False  # None is allowed

    @property
    def expected(self) -> str:
        low, high = f"{self.low:g}", f"{self.high:g}"
        limits = f"above {low}, at most {high}" if self.above else f"from {low} to {high}"
        return f"a number {limits}{', or None' if self.optional else ''}"

    def accepts(self, value: Any) -> bool:
        if value is None:
            return self.optional
        if type(value) not in (int, float):  # a bool is no number
            return False
        return self.low <= value <= self.high and not (self.above and value == self.low)


@dataclass(frozen=True)
class Text:
    """A string."""

    empty: bool = True  # "" is allowed

    @property
    def expected(self) -> str:
        return "a text" if self.empty else "a text that is not empty"

    def accepts(self, value: Any) -> bool:
        return isinstance(value, str) and "\0" not in value and (self.empty or bool(value.strip()))


@dataclass(frozen=True)
class Items:
    """A list or tuple with one rule for all items."""

    item: Rule
    lengths: tuple[int, ...] | None = None  # None: any length
    low: int = 0  # the least length
    names: str = ""  # of the items, "[height, width]"
    distinct: bool = False

    @property
    def expected(self) -> str:
        if self.names:
            start = self.names
        elif self.lengths:
            start = f"a list of {' or '.join(map(str, self.lengths))}"
        else:
            start = "a list that is not empty" if self.low else "a list"
        each = ", without repetition" if self.distinct else ""
        return f"{start}, each {self.item.expected}{each}"

    def accepts(self, value: Any) -> bool:
        if not isinstance(value, (list, tuple)) or len(value) < self.low:
            return False
        if self.lengths and len(value) not in self.lengths:
            return False
        if not all(self.item.accepts(item) for item in value):
            return False
        return not self.distinct or len(set(value)) == len(value)


@dataclass(frozen=True)
class ShareOrCount:
    """A share below 1, or a whole number."""

    expected: str = "a pixel count, or a share of the batch below 1"

    def accepts(self, value: Any) -> bool:
        if type(value) not in (int, float) or not 0 <= value <= MAX_PIXELS:
            return False
        return value < 1 or value == int(value)


@dataclass(frozen=True)
class Mappings:
    """A list of mappings, whose keys are checked where they are used."""

    expected: str = "a list of mappings such as {NAME: …, IMAGES: …} (docs/own_data.md)"

    def accepts(self, value: Any) -> bool:
        return isinstance(value, (list, tuple)) and all(isinstance(v, Mapping) for v in value)


@dataclass(frozen=True)
class Scores:
    """Detectron2's list of expected results."""

    expected: str = "a list of [task, metric, score, tolerance]"

    def accepts(self, value: Any) -> bool:
        number = Number(-1e9, 1e9)
        return isinstance(value, (list, tuple)) and all(
            isinstance(row, (list, tuple))
            and len(row) == 4
            and all(isinstance(name, str) for name in row[:2])
            and all(number.accepts(v) for v in row[2:])
            for row in value
        )


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


def show(value: Any) -> str:
    """``repr`` of a value of any size in at most about a hundred characters."""
    shorter = reprlib.Repr()
    shorter.maxstring = shorter.maxother = 80
    shorter.maxlist = shorter.maxtuple = shorter.maxdict = 8
    try:
        return shorter.repr(value)
    except ValueError:  # Python refuses to write integers of thousands of digits
        return f"an integer of {value.bit_length()} bits"
