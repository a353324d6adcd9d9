"""Convolutions whose weights oneDNN keeps in its own layout, for inference on a CPU.

``F.conv2d`` takes the weights as they are, copies those of larger kernels into oneDNN's blocked
layout in every call, and runs 1×1 convolutions on the plain layout, which is slower. Packed weights
made a ResNet-101 with channels_last features a tenth faster. The sums of 1×1 convolutions run in
another order, so results agree to rounding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import detectron2.layers
import torch
from torch import Tensor, nn


def can_pack(network: nn.Module, device: torch.device) -> bool:
    """Whether a network can run with packed convolutions here and now."""
    return (
        device.type == "cpu"
        and not network.training
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()
        and not torch.compiler.is_compiling()
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        and not any(_is_compiled(module) for module in network.modules())
    )


def _is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile was applied to a module, which would see its convolutions exchanged."""
    return module._compiled_call_impl is not None or hasattr(module, "_orig_mod")


class _Packed(NamedTuple):
    """A packed weight, and what it was packed from."""

    state: tuple[int, int]  # address and version
    digest: Tensor  # (output channels,)
    weight: Tensor


class PackedConvolutions:
    """The packed weights of a network; they cost as much memory as the weights themselves.

    The network is not changed. Weights are packed again after they were changed, and copies and
    pickles of this object are empty. PyTorch counts changes in place, but not those through
    ``weight.data`` (moving averages of a teacher, pruning), so a product with every weight is
    compared too; for an image of 256 x 256 this takes 3 to 11 % of a ResNet-101's time.
    """

    def __init__(self) -> None:
        self._packed: dict[nn.Conv2d, _Packed] = {}

    def __reduce__(self) -> tuple[type, tuple]:
        return type(self), ()

    def clear(self) -> None:
        """Free the memory."""
        self._packed.clear()

    @contextmanager
    def use(self, network: nn.Module) -> Iterator[None]:
        """Run the convolutions of a network with packed weights until the context ends."""
        chosen = [m for m in network.modules() if _is_plain_convolution(m)]
        for conv in chosen:
            conv.__dict__["forward"] = partial(self._forward, conv)
        try:
            yield
        finally:
            for conv in chosen:
                conv.__dict__.pop("forward", None)

    def _forward(self, conv: Any, x: Tensor) -> Tensor:
        usable = x.dtype == torch.float32 and x.dim() == 4 and x.numel() > 0
        if not usable or conv.weight.is_inference():  # whose changes leave no trace
            return type(conv).forward(conv, x)
        x = torch.ops.mkldnn._convolution_pointwise(
            x, self._weight(conv, x), conv.bias, conv.padding, conv.stride, conv.dilation,
            conv.groups, "none", [], "",
        )  # fmt: skip
        # As in Detectron2's Conv2d.
        if getattr(conv, "norm", None) is not None:
            x = conv.norm(x)
        return x if getattr(conv, "activation", None) is None else conv.activation(x)

    def _weight(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        weight = conv.weight.detach()
        state, digest = (weight.data_ptr(), weight._version), _digest(weight)
        kept = self._packed.get(conv)
        if kept is None or kept.state != state or not torch.equal(kept.digest, digest):
            # The size is a hint: for another one the weights are copied as usual.
            packed = torch.ops.mkldnn._reorder_convolution_weight(
                weight, conv.padding, conv.stride, conv.dilation, conv.groups, x.shape
            )
            kept = self._packed[conv] = _Packed(state, digest, packed)
        return kept.weight


def _digest(weight: Tensor) -> Tensor:
    """A weighted sum of the weights (D, C, kh, kw) of each output channel, (D,)."""
    rows = weight.permute(0, 2, 3, 1)  # as channels_last weights lie in memory
    rows = (rows if rows.is_contiguous() else weight).reshape(len(weight), -1)
    return rows @ torch.linspace(1.0, 2.0, rows.shape[1], dtype=weight.dtype)


def _is_plain_convolution(module: nn.Module) -> bool:
    """Whether a module is ``Conv2d`` of torch or Detectron2, no subclass, padded with zeros."""
    if type(module) not in (nn.Conv2d, detectron2.layers.Conv2d):
        return False
    return module.padding_mode == "zeros" and not isinstance(module.padding, str)
