"""Precision of a network's forward pass: float32, or autocast to a 16-bit type."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from detectron2.config import CfgNode

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast_to(precision: str, device: torch.device) -> AbstractContextManager:
    """Autocast to "bf16" or "fp16"; for "fp32" nothing, so that a surrounding autocast holds."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, DTYPES[precision])


def training_precision(cfg: CfgNode) -> str:
    """What the network itself casts to in training: "bf16", or "fp32".

    "fp16" is left to Detectron2's ``AMPTrainer``, whose autocast surrounds the model, because
    its gradients must be scaled.
    """
    amp = cfg.SOLVER.AMP
    return "bf16" if amp.ENABLED and amp.PRECISION == "bf16" else "fp32"


def has_bfloat16(device: str | torch.device) -> bool:
    """Whether a device multiplies bfloat16 natively; others emulate it, slower than float32."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # since PyTorch 2.10
    return any(known.get(key) for key in ("avx512_bf16", "amx_bf16"))
