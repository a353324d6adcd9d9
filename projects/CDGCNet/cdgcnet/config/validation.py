"""Checks a config before anything else is done."""

import difflib
import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY
from detectron2.utils import comm

from cdgcnet.config.rule_types import show
from cdgcnet.config.rules import DILATED_RESNET, FEATURES, RULES, TIMM
from cdgcnet.config.unused import keys_without_effect

FROM_SCRATCH = "from_scratch"  # the MODEL.WEIGHTS of a training run from random weights


class ConfigError(ValueError):
    """A key with a value that it cannot have."""

    def __init__(self, key: str, found: Any, expected: str):
        super().__init__(f"{key} is {show(found)}; expected {expected}")
        self.key = key


def value_of(cfg: CfgNode, key: str) -> Any:
    """The value of a dotted key."""
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def suggest(key: str, known: list[str]) -> str:
    """ "; did you mean …?" for a key close to a known one, else nothing."""
    last = key.rpartition(".")[2]
    close = [k for k in known if k.rpartition(".")[2] == last]  # right name, wrong section
    close = close or difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


# ---- rules that involve several keys or the machine ----
# Norm keys and the numbers of channels that they normalize, each the product of some keys.
_NORMALIZED_BY_RESNET = {
    "MODEL.RESNETS.NORM": (
        ("MODEL.RESNETS.STEM_OUT_CHANNELS",),
        ("MODEL.RESNETS.RES2_OUT_CHANNELS",),
        ("MODEL.RESNETS.NUM_GROUPS", "MODEL.RESNETS.WIDTH_PER_GROUP"),
    ),
}
_NORMALIZED_BY_HEAD = {
    "MODEL.SEM_SEG_HEAD.NORM": (
        ("MODEL.SEM_SEG_HEAD.ASPP_CHANNELS",),
        ("MODEL.CDGC.CHANNELS",),
        ("MODEL.CDGC.AUX_CHANNELS",),
    ),
    "MODEL.CDGC.NORM": (("MODEL.CDGC.CHANNELS",),),
}


def _group_norm_problems(cfg: CfgNode) -> Iterator[tuple[str, str]]:
    """Norm keys that are GN over channels that Detectron2's 32 groups do not divide.

    Another backbone or head finds out for itself when it is built.
    """
    normalized: dict[str, tuple[tuple[str, ...], ...]] = {}
    if cfg.MODEL.BACKBONE.NAME == DILATED_RESNET:
        normalized |= _NORMALIZED_BY_RESNET
    if cfg.MODEL.SEM_SEG_HEAD.NAME == "CDGCNetHead":
        normalized |= _NORMALIZED_BY_HEAD
    # Some layers have a share of the channels.
    shares = {
        ("MODEL.RESNETS.NORM", "MODEL.RESNETS.STEM_OUT_CHANNELS"): (
            2 if cfg.MODEL.RESNETS.STEM_TYPE == "deeplab" else 1
        ),
        ("MODEL.CDGC.NORM", "MODEL.CDGC.CHANNELS"): (
            {"ocr": 2, "psp": 4}.get(cfg.MODEL.CDGC.CONTEXT_MODULE, 1)
        ),
    }
    unused = keys_without_effect(cfg)
    for norm, layers in normalized.items():
        if value_of(cfg, norm) != "GN" or norm in unused:
            continue
        for keys in layers:
            channels = math.prod(value_of(cfg, key) for key in keys)
            multiple = 32 * shares.get((norm, keys[0]), 1)
            if channels % multiple and not unused.keys() & keys:
                found = f"{' x '.join(keys)} {channels}"
                yield norm, f"another norm, or {found} as a multiple of {multiple}"


def _backbone_problems(cfg: CfgNode) -> Iterator[tuple[str, str]]:
    """Keys of the backbone that do not fit each other.

    The features of other backbones than the ones here are known when they are built.
    """
    model = cfg.MODEL
    features = set(model.SEM_SEG_HEAD.IN_FEATURES)
    if model.BACKBONE.NAME == DILATED_RESNET:
        if not features <= set(FEATURES):
            yield "MODEL.SEM_SEG_HEAD.IN_FEATURES", f"a list of 2 of {list(FEATURES)}"
        if not features <= set(model.RESNETS.OUT_FEATURES):
            yield (
                "MODEL.RESNETS.OUT_FEATURES",
                f"all of MODEL.SEM_SEG_HEAD.IN_FEATURES {model.SEM_SEG_HEAD.IN_FEATURES}",
            )
    if model.BACKBONE.NAME == TIMM and model.BACKBONE.FREEZE_AT:
        yield "MODEL.BACKBONE.FREEZE_AT", f"0 with MODEL.BACKBONE.NAME {TIMM}"


def _segmentation_architectures() -> list[str]:
    """The registered meta-architectures without Detectron2's detectors and panoptic networks."""
    return sorted(
        name
        for name, factory in META_ARCH_REGISTRY
        if name == "SemanticSegmentor" or not factory.__module__.startswith("detectron2.")
    )


def _graph_problems(cfg: CfgNode) -> Iterator[tuple[str, str]]:
    """Keys of the graph that do not fit each other."""
    cdgc = cfg.MODEL.CDGC
    if cdgc.NODES == "soft" and cdgc.EDGES != "similarity":
        yield "MODEL.CDGC.EDGES", "'similarity', which MODEL.CDGC.NODES soft needs"
    if cdgc.SOFTMAX == "image":
        for key, expected in (
            ("RECEIVERS", "all"),
            ("EDGES", "similarity"),
            ("SHARED_PHI", True),
            ("MESSAGE_WEIGHTS", "one"),
        ):
            if cdgc[key] != expected:
                yield "MODEL.CDGC.SOFTMAX", f"'class' with MODEL.CDGC.{key} {cdgc[key]}"
        if cdgc.NODES == "soft":
            yield "MODEL.CDGC.SOFTMAX", "'class' with MODEL.CDGC.NODES soft"
        if cdgc.CHANNELS % cdgc.HEADS:
            yield "MODEL.CDGC.HEADS", f"a divisor of MODEL.CDGC.CHANNELS {cdgc.CHANNELS}"
    if cdgc.RECEIVERS == "nodes" and cdgc.MESSAGE_WEIGHTS != "one":
        yield "MODEL.CDGC.MESSAGE_WEIGHTS", "'one' with MODEL.CDGC.RECEIVERS nodes"


def _model_problems(cfg: CfgNode) -> Iterator[tuple[str, str]]:
    """Keys of MODEL that do not fit each other: the key and what was expected of it."""
    head, res, cdgc = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.RESNETS, cfg.MODEL.CDGC
    classes = head.NUM_CLASSES
    architectures = _segmentation_architectures()
    if cfg.MODEL.META_ARCHITECTURE not in architectures:
        yield "MODEL.META_ARCHITECTURE", f"one of {architectures}"
    for key, registry in (
        ("MODEL.BACKBONE.NAME", BACKBONE_REGISTRY),
        ("MODEL.SEM_SEG_HEAD.NAME", SEM_SEG_HEADS_REGISTRY),
    ):
        if value_of(cfg, key) not in registry:
            yield key, f"one of {sorted(name for name, _ in registry)}"
    if classes > head.IGNORE_VALUE:
        yield (
            "MODEL.SEM_SEG_HEAD.IGNORE_VALUE",
            f"a label that is no class, {classes} (MODEL.SEM_SEG_HEAD.NUM_CLASSES) to 255",
        )
    for key in ("MODEL.CDGC.LOSS.CLASS_WEIGHTS", "MODEL.CLASS_NAMES", "MODEL.CLASS_COLORS"):
        if len(value_of(cfg, key)) not in (0, classes):
            yield (
                key,
                (
                    f"an empty list or {classes} entries, one per class "
                    "(MODEL.SEM_SEG_HEAD.NUM_CLASSES)"
                ),
            )
    if len(cdgc.LOSS.CLASS_WEIGHTS) and not any(cdgc.LOSS.CLASS_WEIGHTS):
        yield "MODEL.CDGC.LOSS.CLASS_WEIGHTS", "at least one weight above 0"
    yield from _backbone_problems(cfg)
    if (res.RES4_DILATION, res.RES5_DILATION) not in ((1, 1), (1, 2), (2, 4)):
        yield (
            "MODEL.RESNETS.RES5_DILATION",
            f"a value that fits MODEL.RESNETS.RES4_DILATION {res.RES4_DILATION}: 2 (RES4) and 4 "
            "(RES5) for output stride 8, 1 and 2 for 16, 1 and 1 for 32",
        )
    # The pixelwise control counts the parameters of the graph.
    if cdgc.ENABLED and cdgc.CONTEXT_MODULE in ("graph", "pixelwise"):
        yield from _graph_problems(cfg)
    least = 8 if cdgc.ENABLED and cdgc.CONTEXT_MODULE != "graph" else 1
    if least > cdgc.CHANNELS:
        yield (
            "MODEL.CDGC.CHANNELS",
            (f"{least} or more with MODEL.CDGC.CONTEXT_MODULE {cdgc.CONTEXT_MODULE}"),
        )
    yield from _group_norm_problems(cfg)
    device = re.fullmatch(r"cpu|cuda(?::(\d+))?", cfg.MODEL.DEVICE)
    if device is None:
        yield "MODEL.DEVICE", "cpu, cuda or cuda:N"
    elif cfg.MODEL.DEVICE != "cpu" and not torch.cuda.is_available():
        yield (
            "MODEL.DEVICE",
            "cpu, since no CUDA device is available here (add MODEL.DEVICE cpu, after --opts where "
            "the command has that option)",
        )
    elif device[1] and int(device[1]) >= torch.cuda.device_count():
        yield "MODEL.DEVICE", f"a device below cuda:{torch.cuda.device_count()}"


def _training_problems(cfg: CfgNode) -> Iterator[tuple[str, str]]:
    """Keys of INPUT and SOLVER that do not fit each other."""
    solver = cfg.SOLVER
    low, high = cfg.INPUT.SCALE_JITTER
    if low > high:
        yield "INPUT.SCALE_JITTER", "[lowest, highest] ratio, in this order"
    if list(solver.STEPS) != sorted(solver.STEPS):
        yield "SOLVER.STEPS", "iterations in rising order"
    end = solver.get("BASE_LR_END", 0.0)  # not in Detectron2 v0.6
    if solver.LR_SCHEDULER_NAME == "WarmupCosineLR" and end > solver.BASE_LR:
        yield "SOLVER.BASE_LR_END", f"at most SOLVER.BASE_LR {solver.BASE_LR}"
    world = solver.REFERENCE_WORLD_SIZE
    if world and solver.IMS_PER_BATCH % world:
        yield (
            "SOLVER.REFERENCE_WORLD_SIZE",
            f"0, or a divisor of SOLVER.IMS_PER_BATCH {solver.IMS_PER_BATCH}",
        )
    if solver.NESTEROV and not solver.MOMENTUM:
        yield "SOLVER.NESTEROV", "False with SOLVER.MOMENTUM 0"


def _machine_problems(cfg: CfgNode) -> Iterator[tuple[str, str]]:
    """Keys that do not fit the device or the number of processes of a training run."""
    solver, cdgc = cfg.SOLVER, cfg.MODEL.CDGC
    if solver.AMP.ENABLED and solver.AMP.PRECISION == "fp16" and cfg.MODEL.DEVICE == "cpu":
        yield (
            "SOLVER.AMP.ENABLED",
            "False with MODEL.DEVICE cpu and SOLVER.AMP.PRECISION fp16: scaled gradients need "
            "CUDA (on a CPU with bfloat16 instructions, use SOLVER.AMP.PRECISION bf16)",
        )
    pools = cdgc.ENABLED and cdgc.CONTEXT_MODULE == "psp"
    # On a CPU, SyncBN becomes BN.
    shares = comm.get_world_size() > 1 and cfg.MODEL.DEVICE != "cpu"
    alone = cdgc.NORM == "BN" or (cdgc.NORM.endswith("SyncBN") and not shares)
    # With a reference, Detectron2 scales the batch to keep the number of images per process.
    processes = solver.REFERENCE_WORLD_SIZE or comm.get_world_size()
    if pools and alone and processes == solver.IMS_PER_BATCH:
        yield (
            "SOLVER.IMS_PER_BATCH",
            "two images or more per process: MODEL.CDGC.CONTEXT_MODULE psp pools to one pixel, "
            "and batch norm (MODEL.CDGC.NORM) cannot be trained on a single value",
        )


def _inference_problems(cfg: CfgNode) -> Iterator[tuple[str, str]]:
    """Keys of TEST that do not fit each other."""
    slide = cfg.TEST.SLIDE
    for stride, crop in zip(slide.STRIDE, slide.CROP, strict=True):
        if not crop / 16 <= stride <= crop:
            yield (
                "TEST.SLIDE.STRIDE",
                f"from a sixteenth of TEST.SLIDE.CROP {list(slide.CROP)} to all of it: a larger "
                "stride would leave out pixels between the windows",
            )
            break
    if cfg.MODEL.META_ARCHITECTURE != "CDGCSegmentor":
        for key, plain in (("TEST.SLIDE.ENABLED", False), ("TEST.PRECISION", "fp32")):
            if value_of(cfg, key) != plain:
                yield (
                    key,
                    f"{plain} with MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE}; only "
                    "CDGCSegmentor knows this key",
                )


def check_cfg(cfg: CfgNode) -> None:
    """Check every key that the program reads, then the keys that depend on each other.

    The config of a training run passes wherever its network can run, see :func:`check_training`.

    Raises:
        ConfigError: naming the key, the value found and the values allowed.
    """
    for key, rule in RULES.items():
        value = value_of(cfg, key)
        if not rule.accepts(value):
            raise ConfigError(key, value, rule.expected)
    for problems in (_model_problems, _training_problems, _inference_problems):
        for key, expected in problems(cfg):
            raise ConfigError(key, value_of(cfg, key), expected)


def check_training(cfg: CfgNode) -> None:
    """Check whether a config that has passed :func:`check_cfg` can be trained here.

    Evaluation and prediction do not need this: they may run on another device and in another
    number of processes than the training run.

    Raises:
        ConfigError: naming the key, the value found and the values allowed.
    """
    for key, expected in _machine_problems(cfg):
        raise ConfigError(key, value_of(cfg, key), expected)


def weights_file(cfg: CfgNode) -> str:
    """MODEL.WEIGHTS as a file or address; "" where it is empty or "from_scratch"."""
    return "" if cfg.MODEL.WEIGHTS == FROM_SCRATCH else cfg.MODEL.WEIGHTS


def check_starting_weights(cfg: CfgNode) -> None:
    """Refuse to start a training run whose config does not say what it starts from.

    Evaluation and prediction read MODEL.WEIGHTS alone, so for them MODEL.TIMM.PRETRAINED may stay
    in the config.

    Raises:
        ValueError: for an empty MODEL.WEIGHTS, for MODEL.TIMM.PRETRAINED beside MODEL.WEIGHTS, or
            for random weights that would be frozen.
    """
    if cfg.MODEL.BACKBONE.NAME == TIMM and cfg.MODEL.TIMM.PRETRAINED:
        if cfg.MODEL.WEIGHTS:
            raise ConfigError(
                "MODEL.TIMM.PRETRAINED",
                cfg.MODEL.TIMM.PRETRAINED,
                f"an empty text with MODEL.WEIGHTS {cfg.MODEL.WEIGHTS}: a training run starts "
                "from one of them",
            )
        return
    if not cfg.MODEL.WEIGHTS:
        raise ValueError(
            "MODEL.WEIGHTS is empty; expected the file of an ImageNet backbone "
            "(docs/weights.md) or of a trained CDGCNet, or for a backbone of timm "
            f"MODEL.TIMM.PRETRAINED. To train from random weights, set MODEL.WEIGHTS {FROM_SCRATCH}"
        )
    if cfg.MODEL.WEIGHTS == FROM_SCRATCH and cfg.MODEL.BACKBONE.FREEZE_AT:
        raise ValueError(
            f"MODEL.BACKBONE.FREEZE_AT is {cfg.MODEL.BACKBONE.FREEZE_AT} with MODEL.WEIGHTS "
            f"{FROM_SCRATCH}, which would freeze random weights; name a weight file or set "
            "MODEL.BACKBONE.FREEZE_AT 0"
        )
