"""Checks of options, tensors and integer label maps that name what is wrong."""

from collections.abc import Collection
from typing import NoReturn

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


def check_integers(labels: Tensor, name: str) -> None:
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"{name} must be integers, got {labels.dtype}")


def outside(labels: Tensor, num_classes: int, ignore_label: int | None) -> Tensor:
    """Where labels are neither a class nor the ignore label."""
    wrong = (labels < 0) | (labels >= num_classes)
    return wrong if ignore_label is None else wrong & (labels != ignore_label)


def refuse(
    labels: Tensor, wrong: Tensor, num_classes: int, ignore_label: int | None, name: str
) -> NoReturn:
    value = int(labels[wrong][0])
    if ignore_label is None:
        raise ValueError(f"{name} value {value} is no class in [0, {num_classes})")
    raise ValueError(
        f"{name} value {value} is neither a class in [0, {num_classes}) nor the ignore label "
        f"{ignore_label}"
    )


def check_labels(labels: Tensor, num_classes: int, ignore_label: int | None, name: str) -> None:
    """Refuse labels that are neither a class nor the ignore label.

    Raises:
        ValueError: naming the dtype or the first wrong value.
    """
    check_integers(labels, name)
    wrong = outside(labels, num_classes, ignore_label)
    if bool(wrong.any()):  # waits for the device
        refuse(labels, wrong, num_classes, ignore_label, name)
