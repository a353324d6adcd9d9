"""Keys that have no effect in a config, each with the reason."""

import itertools
from collections.abc import Iterable, Iterator

from detectron2.config import CfgNode

from cdgcnet.config.identity import complete_config
from cdgcnet.config.rules import DILATED_RESNET, RULES, TIMM

_GRAPH_KEYS = (
    *("NODES", "EASY_RATIO", "SAMPLES", "HARD_POSITIVES", "EDGES", "TOPK", "TOPK_WEIGHTS"),
    *("SCALE", "SHARED_PHI", "SCOPE", "RELU", "CHECK_FINITE"),
    *("RECEIVERS", "MESSAGE_WEIGHTS", "SOFTMAX", "HEADS", "DISTANCE_BIAS"),
)
_REFINING_KEYS = ("CONTEXT_MODULE", "NORM", "FUSION", "FUSE_CONV", *_GRAPH_KEYS)
# They decide the number of the graph's parameters, which the pixelwise control has too.
_COUNTED_KEYS = ("SCOPE", "EDGES", "SHARED_PHI")
_Unused = Iterator[tuple[str, tuple[str, ...]]]  # a reason, and keys without effect


def _below(section: str, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{section}.{name}" for name in names)


def _unused_by_graph(cdgc: CfgNode) -> _Unused:
    """Keys below MODEL.CDGC without effect on a graph."""
    if cdgc.SCOPE == "image":
        keys = ("NODES", "EASY_RATIO", "SAMPLES", "HARD_POSITIVES", "MESSAGE_WEIGHTS", "SHARED_PHI")
        yield "MODEL.CDGC.SCOPE is image", keys
    if cdgc.NODES != "dynamic":
        yield f"MODEL.CDGC.NODES is {cdgc.NODES}", ("EASY_RATIO", "SAMPLES", "HARD_POSITIVES")
    elif cdgc.RECEIVERS == "all":
        yield "MODEL.CDGC.RECEIVERS is all", ("HARD_POSITIVES",)
    if cdgc.SOFTMAX == "class":
        yield "MODEL.CDGC.SOFTMAX is class", ("HEADS", "DISTANCE_BIAS")
    if cdgc.EDGES != "topk":
        yield f"MODEL.CDGC.EDGES is {cdgc.EDGES}", ("TOPK", "TOPK_WEIGHTS")
    elif cdgc.TOPK_WEIGHTS == "equal":
        yield "MODEL.CDGC.TOPK_WEIGHTS is equal", ("SCALE",)
    if cdgc.EDGES == "uniform":
        yield "MODEL.CDGC.EDGES is uniform", ("SCALE", "SHARED_PHI")


def _unused_by_head(cfg: CfgNode) -> _Unused:
    """Keys of the head and its losses without effect."""
    cdgc, module = cfg.MODEL.CDGC, cfg.MODEL.CDGC.CONTEXT_MODULE
    if not cdgc.ENABLED:
        losses = _below("LOSS", ("COARSE_WEIGHT", "REFINED_WEIGHT", "REFINED"))
        yield "MODEL.CDGC.ENABLED is False", _below("MODEL.CDGC", (*_REFINING_KEYS, *losses))
        yield "MODEL.CDGC.ENABLED is False", ("TEST.ORACLE",)
    else:
        losses = _below("LOSS", ("BASELINE", "BASELINE_WEIGHT"))
        yield "MODEL.CDGC.ENABLED is True", _below("MODEL.CDGC", losses)
        if module != "graph":
            used = _COUNTED_KEYS if module == "pixelwise" else ()
            keys = _below("MODEL.CDGC", (key for key in _GRAPH_KEYS if key not in used))
            yield f"MODEL.CDGC.CONTEXT_MODULE is {module}", (*keys, "TEST.ORACLE")
        if module == "non_local":
            yield "MODEL.CDGC.CONTEXT_MODULE is non_local", ("MODEL.CDGC.NORM",)
        for reason, names in _unused_by_graph(cdgc):
            yield reason, _below("MODEL.CDGC", names)
    name = "REFINED" if cdgc.ENABLED else "BASELINE"
    if cdgc.LOSS[name] == "ce":
        keys = _below("MODEL.CDGC.LOSS", ("OHEM_THRESH", "OHEM_MIN_KEPT"))
        yield f"MODEL.CDGC.LOSS.{name} is ce", keys
    if cdgc.CONTEXT == "none":
        keys = _below("MODEL.SEM_SEG_HEAD", ("ASPP_DILATIONS", "ASPP_CHANNELS"))
        yield "MODEL.CDGC.CONTEXT is none", keys
    if cdgc.LOSS.AUX_WEIGHT == 0:
        yield "MODEL.CDGC.LOSS.AUX_WEIGHT is 0", ("MODEL.CDGC.AUX_CHANNELS",)


def _unused_by_backbone(cfg: CfgNode) -> _Unused:
    backbone = cfg.MODEL.BACKBONE.NAME
    other = "MODEL.RESNETS" if backbone == TIMM else "MODEL.TIMM"
    keys = tuple(key for key in RULES if key.startswith(f"{other}."))
    yield f"MODEL.BACKBONE.NAME is {backbone}", keys
    if cfg.MODEL.TIMM.STRIDE_ADAPTER == "none":
        yield "MODEL.TIMM.STRIDE_ADAPTER is none", ("MODEL.TIMM.OUTPUT_STRIDE",)
    if cfg.MODEL.RESNETS.DEPTH < 50:
        keys = _below("MODEL.RESNETS", ("NUM_GROUPS", "WIDTH_PER_GROUP", "STRIDE_IN_1X1"))
        yield f"MODEL.RESNETS.DEPTH is {cfg.MODEL.RESNETS.DEPTH}", keys


def _unused_by_solver(cfg: CfgNode) -> _Unused:
    """Keys of INPUT and SOLVER without effect."""
    solver = cfg.SOLVER
    if not cfg.INPUT.CROP.ENABLED:
        yield (
            "INPUT.CROP.ENABLED is False",
            _below("INPUT.CROP", ("SIZE", "SINGLE_CATEGORY_MAX_AREA")),
        )
    if solver.OPTIMIZER != "SGD":
        yield "SOLVER.OPTIMIZER is ADAMW", _below("SOLVER", ("MOMENTUM", "NESTEROV"))
    if solver.LR_SCHEDULER_NAME != "WarmupPolyLR":
        keys = _below("SOLVER", ("POLY_LR_POWER", "POLY_LR_CONSTANT_ENDING"))
        yield f"SOLVER.LR_SCHEDULER_NAME is {solver.LR_SCHEDULER_NAME}", keys
    else:
        yield "SOLVER.LR_SCHEDULER_NAME is WarmupPolyLR", ("SOLVER.RESCALE_INTERVAL",)
    if solver.LR_SCHEDULER_NAME != "WarmupCosineLR":
        keys = ("SOLVER.BASE_LR_END",)
        yield f"SOLVER.LR_SCHEDULER_NAME is {solver.LR_SCHEDULER_NAME}", keys
    if solver.LR_SCHEDULER_NAME != "WarmupMultiStepLR":
        keys = _below("SOLVER", ("STEPS", "GAMMA"))
        yield f"SOLVER.LR_SCHEDULER_NAME is {solver.LR_SCHEDULER_NAME}", keys
    if not solver.WARMUP_ITERS:
        keys = _below("SOLVER", ("WARMUP_FACTOR", "WARMUP_METHOD"))
        yield "SOLVER.WARMUP_ITERS is 0", keys
    if not solver.CLIP_GRADIENTS.ENABLED:
        keys = _below("SOLVER.CLIP_GRADIENTS", ("CLIP_TYPE", "CLIP_VALUE", "NORM_TYPE"))
        yield "SOLVER.CLIP_GRADIENTS.ENABLED is False", keys
    if not solver.AMP.ENABLED:
        yield "SOLVER.AMP.ENABLED is False", ("SOLVER.AMP.PRECISION",)


def _unused_by_inference(cfg: CfgNode) -> _Unused:
    """Keys of TEST without effect. TEST.AUG waits in many configs for TEST.AUG.ENABLED True."""
    test = cfg.TEST
    if not test.SLIDE.ENABLED:
        yield "TEST.SLIDE.ENABLED is False", _below("TEST.SLIDE", ("CROP", "STRIDE"))
    if not test.PRECISE_BN.ENABLED:
        yield "TEST.PRECISE_BN.ENABLED is False", ("TEST.PRECISE_BN.NUM_ITER",)


_SECTIONS = (_unused_by_head, _unused_by_backbone, _unused_by_solver, _unused_by_inference)


def keys_without_effect(cfg: CfgNode) -> dict[str, str]:
    """Keys that CDGCNet's own backbones and head do not read, each with the reason.

    Args:
        cfg: a config in which every key has a value that it may have.
    """
    unused: dict[str, str] = {}
    for reason, keys in itertools.chain.from_iterable(part(cfg) for part in _SECTIONS):
        for key in keys:
            unused.setdefault(key, reason)
    return unused


def unused_keys(cfg: CfgNode, default: CfgNode) -> dict[str, str]:
    """Keys that differ from their defaults without having an effect, each with the reason.

    Args:
        cfg: a checked config.
        default: all defaults.
    """
    before = complete_config(default)
    changed = [key for key, value in complete_config(cfg).items() if value != before.get(key)]
    unused: dict[str, str] = {}
    backbone, head = cfg.MODEL.BACKBONE.NAME, cfg.MODEL.SEM_SEG_HEAD.NAME
    if backbone in (DILATED_RESNET, TIMM) and head == "CDGCNetHead":
        # Another backbone or head may read any key.
        unused = dict.fromkeys((k for k in changed if k not in RULES), "CDGCNet does not read it")
        for key, reason in keys_without_effect(cfg).items():
            if key in changed:
                unused.setdefault(key, reason)
    return unused
