"""Choosing between one launch per segment and one launch for all of them.

On a CUDA device a loop over segments costs a launch or two per segment. torch has kernels that
take all segments at once, but which of them work depends on its version, the GPU, the dtype and
the number of channels. Each is therefore compared with the loop before its first use, forward and
backward; the first that is as accurate as the loop is used from then on, and the choice is logged.
The CPU always runs the loop, which is faster there.
"""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

# A function of tensors, followed by the segment lengths: see the loop of each operation.
Kernel = Callable[..., Tensor]

# Devices on which a launch costs more than the loop's other work.
DEVICES = ("cuda",)

# Segments of the comparison: one row, no rows, and lengths that no block size divides.
LENGTHS = (0, 70, 1, 0, 257, 16, 130, 0)
# How much larger than the loop's error, in the same dtype, that of a kernel may be.
_TOLERANCE = 2.0

_loop_only = False


@contextmanager
def loop_only() -> Iterator[None]:
    """Run the segment loops on every device, for example to compare a kernel with them.

    Keep the backward pass inside the block where it recomputes anything, so that it does not choose
    another kernel.
    """
    global _loop_only
    before, _loop_only = _loop_only, True
    try:
        yield
    finally:
        _loop_only = before


def in_autocast_dtype(*tensors: Tensor) -> list[Tensor]:
    """The tensors in the dtype of autocast, where it is on: not all kernels know autocast.

    Like its own operators this leaves float64 as it is.
    """
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device) or tensors[0].dtype == torch.float64:
        return list(tensors)
    return [t.to(torch.get_autocast_dtype(device)) for t in tensors]


class Lengths(tuple[int, ...]):
    """Segment lengths that keep their copies on a device, so that each is sent once.

    One object serves the products of one forward pass and their backward passes, all of which run
    on one stream.
    """

    def __init__(self, lengths: Iterable[int]):
        """
        Args:
            lengths: what the tuple is made of.
        """
        self.filled = len(self) - self.count(0)  # segments that have rows
        self._sent: dict[tuple[str, torch.device], Tensor] = {}

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Lengths:
        """The lengths themselves if they are of this class, so that they stay shared."""
        return lengths if isinstance(lengths, cls) else cls(lengths)

    def ends(self, device: torch.device) -> Tensor:
        """The cumulative lengths, int32."""
        return self._once("ends", device, lambda: segment_ends(self, device))

    def empty(self, device: torch.device) -> Tensor:
        """The indices of the segments without rows, int64."""

        def send() -> Tensor:
            return to_device([index for index, n in enumerate(self) if not n], device)

        return self._once("empty", device, send)

    def _once(self, name: str, device: torch.device, send: Callable[[], Tensor]) -> Tensor:
        if (name, device) not in self._sent:
            self._sent[name, device] = send()
        return self._sent[name, device]


def segment_ends(lengths: Sequence[int], device: torch.device, start: bool = False) -> Tensor:
    """The cumulative lengths as int32 on the device, preceded by 0 if ``start``."""
    ends = list(itertools.accumulate(lengths))
    return to_device([0, *ends] if start else ends, device, torch.int32)


def to_device(
    numbers: Sequence[int], device: torch.device, dtype: torch.dtype = torch.int64
) -> Tensor:
    """Whole numbers, copied from pinned memory without making the host wait."""
    # Made on the CPU whatever torch's default device is.
    found = torch.tensor(numbers, dtype=dtype, device="cpu", pin_memory=device.type == "cuda")
    return found.to(device, non_blocking=True)


class KernelChoice:
    """The kernel of one operation for each device, dtype and number of channels."""

    def __init__(
        self,
        operation: str,
        loop: Kernel,
        candidates: Mapping[str, Kernel],
        example: Callable[[Sequence[int], Sequence[int]], list[Tensor]],
        loop_name: str = "segment loop",
    ):
        """
        Args:
            operation: what messages call the operation.
            loop: the reference; called with float tensors and the segment lengths.
            candidates: kernels by name, the preferred one first; called like the loop. They raise
                any exception for what they do not support.
            example: tensors for given segment lengths and numbers of channels (the last size of
                each tensor), in float64 on the CPU.
            loop_name: what messages call the loop.
        """
        self.operation = operation
        self.loop = loop
        self.candidates = candidates
        self.example = example
        self.loop_name = loop_name
        self._chosen: dict[tuple, Kernel] = {}

    def __call__(self, *tensors: Tensor) -> Kernel:
        """The kernel for tensors like these."""
        channels = tuple(t.shape[-1] for t in tensors)
        return self.kernel(tensors[0].device, tensors[0].dtype, channels)

    def kernel(self, device: torch.device, dtype: torch.dtype, channels: tuple) -> Kernel:
        """The kernel for such tensors; the first call for each kind compares them all."""
        # torch's deterministic algorithms are known for the loop's operations only.
        if device.type not in DEVICES or _loop_only or torch.are_deterministic_algorithms_enabled():
            return self.loop
        key = (device, dtype, channels)
        if key not in self._chosen:
            # A thread of its own has none of the caller's modes: no autocast, no inference mode,
            # and no checkpoint that would take the comparison for a part of the network.
            with ThreadPoolExecutor(max_workers=1) as thread:
                self._chosen[key] = thread.submit(self._choose, *key).result()
        return self._chosen[key]

    def _choose(self, device: torch.device, dtype: torch.dtype, channels: tuple) -> Kernel:
        exact = [t.to(device) for t in self.example(LENGTHS, channels)]
        inputs = [t.to(dtype) for t in exact]
        expected = outputs_and_gradients(self.loop, [t.double() for t in inputs])
        limits = [
            _TOLERANCE * error + torch.finfo(dtype).eps
            for error in relative_errors(outputs_and_gradients(self.loop, inputs), expected)
        ]
        reasons = []
        for name, kernel in self.candidates.items():
            try:
                with _refuse_waits(device):
                    found = outputs_and_gradients(kernel, inputs)
                errors = relative_errors(found, expected)
            except Exception as error:  # whatever an unsupported kernel raises
                first_line = (str(error).splitlines() or [""])[0]
                reasons.append(f"{name}: {type(error).__name__}: {first_line}")
                continue
            if all(e <= limit for e, limit in zip(errors, limits, strict=True)):
                return self._log(name, kernel, device, dtype, channels, reasons)
            reasons.append(f"{name}: relative errors {', '.join(f'{e:.1e}' for e in errors)}")
        return self._log(self.loop_name, self.loop, device, dtype, channels, reasons)

    def _log(
        self,
        name: str,
        kernel: Kernel,
        device: torch.device,
        dtype: torch.dtype,
        channels: tuple,
        reasons: list[str],
    ) -> Kernel:
        refused = f"; not used: {'; '.join(reasons)}" if reasons else ""
        logging.getLogger(__name__).info(
            f"{self.operation} on {device}, {dtype}, channels {channels}: {name}{refused}"
        )
        return kernel


def outputs_and_gradients(kernel: Kernel, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The result of a kernel and the gradients of its inputs, for a fixed gradient."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    out = kernel(*leaves, LENGTHS)
    grad = torch.linspace(-1, 1, out.numel(), device=out.device, dtype=out.dtype).view_as(out)
    # Given a gradient, torch.autograd.grad would import torch's compiler, which takes seconds.
    return [out.detach(), *torch.autograd.grad((out * grad).sum(), leaves)]


def relative_errors(found: Sequence[Tensor], expected: Sequence[Tensor]) -> list[float]:
    """Relative errors; NaN or infinity, which no limit admits, where a value is not finite."""
    pairs = zip(found, expected, strict=True)
    return [float((a.double() - b).norm() / b.norm()) for a, b in pairs]


@contextmanager
def _refuse_waits(device: torch.device) -> Iterator[None]:
    """Raise if the host waits for the device; a kernel that does would stall every step."""
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings():
            # torch warns that the mode is a prototype; as an error that would leave the mode on.
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
