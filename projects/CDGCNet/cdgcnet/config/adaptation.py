"""Fits a checked config to the machine, and reports keys that are likely mistakes."""

import logging

from detectron2.config import CfgNode
from detectron2.utils import comm

from cdgcnet.config.defaults import default_cfg
from cdgcnet.config.identity import merge_sync_bn
from cdgcnet.config.rules import TIMM
from cdgcnet.config.unused import unused_keys

_LONG_SCHEDULE = 10000  # iterations; dynamic nodes were measured in shorter schedules only


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
