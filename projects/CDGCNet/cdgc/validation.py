"""Checks of options, tensors and label maps, with messages that name what is wrong."""

from collections.abc import Collection, Sequence
from typing import NoReturn

import torch
from torch import Tensor


def check_choice(name: str, value: str, allowed: Collection[str]) -> None:
    """Refuse a value that is not one of the allowed ones."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {tuple(allowed)}, got {value!r}")


def check_shape(name: str, found: Tensor, shape: Sequence[int | str], of: str = "") -> None:
    """Refuse a tensor of another shape.

    Args:
        name: what the message calls the tensor.
        found: the tensor.
        shape: the expected sizes; a letter allows any size.
        of: what the sizes were taken from, if not from the tensor's module or function.
    """
    sizes = tuple(found.shape)
    if len(sizes) != len(shape) or any(
        size != wanted
        for size, wanted in zip(sizes, shape, strict=True)
        if not isinstance(wanted, str)
    ):
        expected = ", ".join(map(str, shape))
        raise ValueError(
            f"expected {name} ({expected}){f' to fit {of}' if of else ''}, got {sizes}"
        )


def check_device(name: str, found: torch.device, expected: torch.device, of: str) -> None:
    """Refuse a tensor on another device than that of ``of``."""
    if found != expected:
        raise ValueError(f"{name} is on {found}, expected {expected}, the device of {of}")


def check_finite(name: str, values: Tensor) -> None:
    """Refuse NaN and infinity. The host waits for the device."""
    wrong = int(values.numel() - values.detach().isfinite().sum())
    if wrong:
        raise ValueError(
            f"{name}: {wrong} of {values.numel()} values are NaN or infinite, expected finite ones"
        )


def check_features(x: Tensor, images: int, pixels: int, weight: Tensor) -> None:
    """Check features against the nodes that were selected for them and the parameters.

    Args:
        x: expected (B, C, h, w).
        images: B.
        pixels: B*h*w.
        weight: a parameter of the module, (…, C, C).

    Raises:
        ValueError: naming what was expected and what was found.
    """
    check_shape("x", x, (images, weight.shape[-1], "h", "w"), "the nodes")
    found = x.shape[0] * x.shape[2] * x.shape[3]
    if found != pixels:
        raise ValueError(
            f"expected x of {pixels} pixels, for which the nodes were selected, got {found} in x "
            f"{tuple(x.shape)}"
        )
    check_device("x", x.device, weight.device, "the module's parameters")
    if not torch.is_autocast_enabled(x.device.type) and x.dtype != weight.dtype:
        raise ValueError(
            f"x is {x.dtype}, expected {weight.dtype}, the dtype of the module's parameters "
            "(or use torch.autocast)"
        )


def check_maps(coarse_logits: Tensor, targets: Tensor | None, num_classes: int) -> None:
    """Check what nodes are selected from.

    Args:
        coarse_logits: expected (B, M, h, w).
        targets: expected (B, H, W) integers, or None.
        num_classes: M.

    Raises:
        ValueError: naming the tensor, what was expected and what was found.
    """
    check_shape("coarse_logits", coarse_logits, ("B", num_classes, "h", "w"))
    if targets is not None:
        check_shape("targets", targets, (len(coarse_logits), "H", "W"), "coarse_logits")
        check_integers(targets, "targets")
        check_device("targets", targets.device, coarse_logits.device, "coarse_logits")


def check_not_tracing() -> None:
    """Refuse ``torch.jit.trace`` and ``torch.export`` (and the ONNX exporters built on them).

    A trace would be silently wrong; ``torch.export`` fails on the node lists in any case, but with
    a message about symbols.

    Raises:
        RuntimeError: while tracing or exporting.
    """
    # torch 2.6 has no is_exporting
    exporting = hasattr(torch.compiler, "is_exporting") and torch.compiler.is_exporting()
    if torch.jit.is_tracing() or exporting:
        raise RuntimeError(
            "CDGCModule cannot be traced or exported: its node lists depend on the input, and the "
            "recording would repeat those of the example for every other image. Use "
            "`cdgcnet export` instead, which writes ONNX and torch.export files; export networks "
            "of cdgc.refine as cdgcnet.export.refined.exportable_copy(net)"
        )


def check_integers(labels: Tensor, name: str) -> None:
    """Refuse labels of any dtype but an integer one."""
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"{name} must be integers, got {labels.dtype}")


def check_labels(labels: Tensor, num_classes: int, ignore_label: int | None, name: str) -> None:
    """Refuse labels that are neither a class nor the ignore label. The host waits for the device.

    Raises:
        ValueError: naming the dtype or the first wrong value.
    """
    check_integers(labels, name)
    check = LabelCheck(name, labels, num_classes, ignore_label)
    if bool(check.wrong.any()):
        check.refuse()


class LabelCheck:
    """A check of labels that leaves it to the caller when the host waits for the device."""

    def __init__(self, name: str, labels: Tensor, num_classes: int, ignore_label: int | None):
        """
        Args:
            name: what the message calls the labels.
            labels: integers of any shape.
            num_classes: labels within [0, num_classes) are classes.
            ignore_label: a further label that is allowed, or None.
        """
        self.name = name
        labels = labels.long()  # in uint8 an ignore label of -1 would be 255
        self.labels = labels
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        #: Mask of the labels that are a class and not ignored.
        self.is_class = (labels >= 0) & (labels < num_classes)
        allowed = self.is_class
        if ignore_label is not None:
            ignored = labels == ignore_label
            allowed = allowed | ignored
            if 0 <= ignore_label < num_classes:
                self.is_class = self.is_class & ~ignored
        #: Mask of the labels that are neither a class nor the ignore label.
        self.wrong = ~allowed

    def refuse(self) -> NoReturn:
        """Raise a ValueError that names the first wrong label."""
        value, classes = int(self.labels[self.wrong][0]), f"a class in [0, {self.num_classes})"
        if self.ignore_label is None:
            raise ValueError(f"{self.name} value {value} is not {classes}")
        raise ValueError(
            f"{self.name} value {value} is neither {classes} nor the ignore label "
            f"{self.ignore_label}"
        )
