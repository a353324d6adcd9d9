"""Fits a checked config to the machine, and reports keys that are likely mistakes."""

import logging
from collections.abc import Iterator

from detectron2.config import CfgNode
from detectron2.utils import comm

from cdgcnet.config.defaults import default_cfg
from cdgcnet.config.identity import complete_config, merge_sync_bn
from cdgcnet.config.rules import DILATED_RESNET, RULES, TIMM

_LONG_SCHEDULE = 10000  # iterations; dynamic nodes were measured in shorter schedules only

_GRAPH_KEYS = (
    *("NODES", "EASY_RATIO", "SAMPLES", "HARD_POSITIVES", "EDGES", "TOPK", "TOPK_WEIGHTS"),
    *("SCALE", "SHARED_PHI", "SCOPE", "RELU", "CHECK_FINITE"),
    *("RECEIVERS", "MESSAGE_WEIGHTS", "SOFTMAX", "HEADS", "DISTANCE_BIAS"),
)
_REFINING_KEYS = ("CONTEXT_MODULE", "NORM", "FUSION", "FUSE_CONV", *_GRAPH_KEYS)


def _unused_sections(cfg: CfgNode) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Why keys have no effect in this config, and which."""
    cdgc, solver = cfg.MODEL.CDGC, cfg.SOLVER

    def below(section: str, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(f"{section}.{name}" for name in names)

    if not cdgc.ENABLED:
        unused = below("MODEL.CDGC", _REFINING_KEYS)
        losses = below("MODEL.CDGC.LOSS", ("COARSE_WEIGHT", "REFINED_WEIGHT", "REFINED"))
        yield "MODEL.CDGC.ENABLED is False", unused + losses
    else:
        yield (
            "MODEL.CDGC.ENABLED is True",
            below("MODEL.CDGC.LOSS", ("BASELINE", "BASELINE_WEIGHT")),
        )
        if cdgc.CONTEXT_MODULE != "graph":
            keys = below("MODEL.CDGC", _GRAPH_KEYS)
            yield f"MODEL.CDGC.CONTEXT_MODULE is {cdgc.CONTEXT_MODULE}", keys
        if cdgc.NODES != "dynamic":
            keys = below("MODEL.CDGC", ("EASY_RATIO", "SAMPLES", "HARD_POSITIVES"))
            yield f"MODEL.CDGC.NODES is {cdgc.NODES}", keys
        elif cdgc.RECEIVERS == "all":
            yield "MODEL.CDGC.RECEIVERS is all", ("MODEL.CDGC.HARD_POSITIVES",)
        if cdgc.SOFTMAX == "class":
            yield "MODEL.CDGC.SOFTMAX is class", below("MODEL.CDGC", ("HEADS", "DISTANCE_BIAS"))
        if cdgc.EDGES != "topk":
            yield f"MODEL.CDGC.EDGES is {cdgc.EDGES}", below("MODEL.CDGC", ("TOPK", "TOPK_WEIGHTS"))
    if cdgc.CONTEXT == "none":
        keys = below("MODEL.SEM_SEG_HEAD", ("ASPP_DILATIONS", "ASPP_CHANNELS"))
        yield "MODEL.CDGC.CONTEXT is none", keys
    if cdgc.ENABLED and cdgc.LOSS.REFINED == "ce":
        keys = below("MODEL.CDGC.LOSS", ("OHEM_THRESH", "OHEM_MIN_KEPT"))
        yield "MODEL.CDGC.LOSS.REFINED is ce", keys
    if cdgc.LOSS.AUX_WEIGHT == 0:
        yield "MODEL.CDGC.LOSS.AUX_WEIGHT is 0", ("MODEL.CDGC.AUX_CHANNELS",)
    backbone = cfg.MODEL.BACKBONE.NAME
    other = "MODEL.RESNETS" if backbone == TIMM else "MODEL.TIMM"
    keys = tuple(key for key in RULES if key.startswith(f"{other}."))
    yield f"MODEL.BACKBONE.NAME is {backbone}", keys
    if cfg.MODEL.TIMM.STRIDE_ADAPTER == "none":
        yield "MODEL.TIMM.STRIDE_ADAPTER is none", ("MODEL.TIMM.OUTPUT_STRIDE",)
    if cfg.MODEL.RESNETS.DEPTH < 50:
        keys = below("MODEL.RESNETS", ("NUM_GROUPS", "WIDTH_PER_GROUP", "STRIDE_IN_1X1"))
        yield f"MODEL.RESNETS.DEPTH is {cfg.MODEL.RESNETS.DEPTH}", keys
    if not cfg.INPUT.CROP.ENABLED:
        yield (
            "INPUT.CROP.ENABLED is False",
            below("INPUT.CROP", ("SIZE", "SINGLE_CATEGORY_MAX_AREA")),
        )
    if solver.OPTIMIZER != "SGD":
        yield "SOLVER.OPTIMIZER is ADAMW", below("SOLVER", ("MOMENTUM", "NESTEROV"))
    if solver.LR_SCHEDULER_NAME != "WarmupPolyLR":
        keys = below("SOLVER", ("POLY_LR_POWER", "POLY_LR_CONSTANT_ENDING"))
        yield f"SOLVER.LR_SCHEDULER_NAME is {solver.LR_SCHEDULER_NAME}", keys
    else:
        yield "SOLVER.LR_SCHEDULER_NAME is WarmupPolyLR", ("SOLVER.RESCALE_INTERVAL",)
    if solver.LR_SCHEDULER_NAME != "WarmupCosineLR":
        keys = ("SOLVER.BASE_LR_END",)
        yield f"SOLVER.LR_SCHEDULER_NAME is {solver.LR_SCHEDULER_NAME}", keys
    if solver.LR_SCHEDULER_NAME != "WarmupMultiStepLR":
        keys = below("SOLVER", ("STEPS", "GAMMA"))
        yield f"SOLVER.LR_SCHEDULER_NAME is {solver.LR_SCHEDULER_NAME}", keys
    if not solver.WARMUP_ITERS:
        keys = below("SOLVER", ("WARMUP_FACTOR", "WARMUP_METHOD"))
        yield "SOLVER.WARMUP_ITERS is 0", keys
    if not solver.CLIP_GRADIENTS.ENABLED:
        keys = below("SOLVER.CLIP_GRADIENTS", ("CLIP_TYPE", "CLIP_VALUE", "NORM_TYPE"))
        yield "SOLVER.CLIP_GRADIENTS.ENABLED is False", keys
    if not cfg.TEST.SLIDE.ENABLED:
        yield "TEST.SLIDE.ENABLED is False", below("TEST.SLIDE", ("CROP", "STRIDE"))


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
        for reason, keys in _unused_sections(cfg):
            for key in keys:
                if key in changed:
                    unused.setdefault(key, reason)
    return unused


def adapt_cfg(cfg: CfgNode) -> None:
    """Fit a checked config to where it runs and log what is likely a mistake.

    SyncBN becomes BN in a single process and on CPUs. Logged are keys without effect, and a ResNet
    of an unusual width.
    """
    logger = logging.getLogger(__name__)
    if cfg.MODEL.DEVICE == "cpu" or comm.get_world_size() == 1:
        switched = merge_sync_bn(cfg)
        if switched:
            logger.info(
                f"{comm.get_world_size()} process(es) on {cfg.MODEL.DEVICE}: SyncBN, which is for "
                f"several GPUs, becomes BN in {', '.join(switched)}"
            )
    if unused := unused_keys(cfg, default_cfg()):
        listed = "; ".join(f"{key} ({reason})" for key, reason in unused.items())
        logger.warning(f"Keys without effect in this config: {listed}")
    resnet = cfg.MODEL.BACKBONE.NAME != TIMM and cfg.MODEL.RESNETS.DEPTH < 50
    if resnet and cfg.MODEL.RESNETS.RES2_OUT_CHANNELS == 256:
        logger.warning(
            f"MODEL.RESNETS.RES2_OUT_CHANNELS is 256 with DEPTH {cfg.MODEL.RESNETS.DEPTH}: four "
            "times as wide as torchvision's, which has 64"
        )


def warn_of_schedule(cfg: CfgNode) -> None:
    """Log what is likely a mistake in the schedule of a training run.

    That is a batch smaller than the one that the recipe's learning rate was chosen for, or dynamic
    nodes in a short schedule.
    """
    logger = logging.getLogger(__name__)
    recipe, batch = cfg.SOLVER.RECIPE_IMS_PER_BATCH, cfg.SOLVER.IMS_PER_BATCH
    recipe_lr = cfg.SOLVER.RECIPE_BASE_LR or cfg.SOLVER.BASE_LR
    scaled = recipe_lr * batch / max(recipe, 1)
    if batch < recipe and scaled * 1.01 < cfg.SOLVER.BASE_LR:
        logger.warning(
            f"SOLVER.IMS_PER_BATCH {batch} is smaller than the recipe's {recipe}, whose BASE_LR is "
            f"{recipe_lr}; BASE_LR is {cfg.SOLVER.BASE_LR}. Scaled linearly it would be "
            f"{scaled:.6g} (SOLVER.BASE_LR)."
        )
    cdgc = cfg.MODEL.CDGC
    leaks = cdgc.ENABLED and cdgc.CONTEXT_MODULE == "graph" and cdgc.SCOPE == "class"
    leaks = leaks and cdgc.NODES == "dynamic" and "hard_positive" in cdgc.SAMPLES
    if leaks and cfg.SOLVER.MAX_ITER < _LONG_SCHEDULE:
        logger.warning(
            f"MODEL.CDGC.NODES is dynamic and SOLVER.MAX_ITER {cfg.SOLVER.MAX_ITER}: in short "
            "schedules the network can read labels off the graph of hard positives, and no form of "
            "dynamic nodes was better than coarse nodes where it was measured "
            "(projects/CDGCNet/EXPERIMENTS.md). MODEL.CDGC.NODES coarse avoids it"
        )
