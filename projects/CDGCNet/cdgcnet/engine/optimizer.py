"""The optimizer of a training run."""

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """SGD (Sec. 4.2) or AdamW; the learning rate of the head is BASE_LR * HEAD_LR_FACTOR.

    The parameters are grouped by part. Parameters outside backbone and head, which a user's
    meta-architecture may have, come last, because a checkpoint stores the state of the optimizer
    in this order.

    Args:
        cfg: SOLVER.
        model: with ``backbone`` and ``sem_seg_head``, as far as it has them.
    """
    params: list[dict[str, Any]] = []
    grouped: set[nn.Parameter] = set()
    for part, factor in (
        (getattr(model, "backbone", None), 1.0),
        (getattr(model, "sem_seg_head", None), cfg.SOLVER.HEAD_LR_FACTOR),
        (model, 1.0),
    ):
        if part is None:
            continue
        for group in get_default_optimizer_params(
            part,
            base_lr=cfg.SOLVER.BASE_LR * factor,
            weight_decay=cfg.SOLVER.WEIGHT_DECAY,
            weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
            bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
            weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        ):
            new = [p for p in group["params"] if p not in grouped]
            grouped.update(new)
            if new:
                params.append({**group, "params": new})
    if cfg.SOLVER.OPTIMIZER == "ADAMW":
        return maybe_add_gradient_clipping(cfg, torch.optim.AdamW)(
            params, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY
        )
    return maybe_add_gradient_clipping(cfg, torch.optim.SGD)(
        params,
        lr=cfg.SOLVER.BASE_LR,
        momentum=cfg.SOLVER.MOMENTUM,
        nesterov=cfg.SOLVER.NESTEROV,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
    )
