"""Checks of options and tensors that name what is wrong."""

from collections.abc import Collection

import torch
from torch import Tensor


def check_choice(name: str, value: str, allowed: Collection[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {tuple(allowed)}, got {value!r}")


def check_device(name: str, found: torch.device, expected: torch.device, of: str) -> None:
    if found != expected:
        raise ValueError(f"{name} is on {found}, expected {expected}, the device of {of}")


def check_finite(name: str, values: Tensor) -> None:
    wrong = int(values.numel() - values.detach().isfinite().sum())  # waits for the device
    if wrong:
        raise ValueError(
            f"{name}: {wrong} of {values.numel()} values are NaN or infinite, expected finite ones"
        )
