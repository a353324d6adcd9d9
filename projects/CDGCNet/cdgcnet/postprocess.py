"""From stride-8 logits to full-resolution logits or label maps.

The path of Detectron2 is: resize to the padded network input, crop to the image, resize to the
output size. Shape shorthand: M classes, h x w logits, H x W output pixels.
"""

import math
import os
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Sizes(NamedTuple):
    """(height, width) along the way from the network to the user."""

    padded: tuple[int, int]  # the network's input, with batch padding
    image: tuple[int, int]  # the image inside it
    output: tuple[int, int]  # what the user asked for


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_fits(channels: int, size: tuple[int, int], device: torch.device) -> None:
    """Refuse a ``sem_seg`` that cannot fit the device's memory.

    Raises:
        MemoryError: naming the size and the key to change.
    """
    need = channels * size[0] * size[1] * 4
    # The unresized logits and the resized ones exist side by side for a moment.
    if 2 * need > _memory_bytes(device):
        raise MemoryError(
            f'"sem_seg" of {channels} x {size[0]} x {size[1]} float32 is {need / 2**30:.1f} GiB, '
            f"more than {device} can hold twice. Lower INPUT.MIN_SIZE_TEST or INPUT.MAX_SIZE_TEST "
            "if that is the network's input, give smaller images, or ask for label maps "
            '(CDGCSegmentor.inference(..., output="labels")).'
        )


def full_size_logits(logits: Tensor, sizes: Sizes, align_corners: bool) -> Tensor:
    """Logits (M, h, w) -> (M, H, W) at ``sizes.output``."""
    largest = max(sizes.padded, sizes.output, key=math.prod)
    check_fits(logits.shape[0], largest, logits.device)
    out = F.interpolate(
        logits[None].float(), size=sizes.padded, mode="bilinear", align_corners=align_corners
    )[:, :, : sizes.image[0], : sizes.image[1]]
    if sizes.output != sizes.image:  # a resize to the same size is an identity
        out = F.interpolate(out, size=sizes.output, mode="bilinear", align_corners=False)
    return out[0]


def _source_rows(
    rows: range, in_size: int, out_size: int, align_corners: bool, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Upper and lower source row and the lower one's weight, for a range of resized rows."""
    i = torch.arange(rows.start, rows.stop, device=device, dtype=torch.float32)
    if align_corners:
        y = i * ((in_size - 1) / max(out_size - 1, 1))
    else:
        y = ((i + 0.5) * (in_size / out_size) - 0.5).clamp(min=0)
    upper = y.floor().long().clamp(max=in_size - 1)
    return upper, (upper + 1).clamp(max=in_size - 1), y - upper


def _resized_rows(x: Tensor, size: tuple[int, int], rows: range, align_corners: bool) -> Tensor:
    """Some rows of ``F.interpolate(x, size)``: (M, h, w) -> (M, len(rows), size[1])."""
    upper, lower, weight = _source_rows(rows, x.shape[1], size[0], align_corners, x.device)
    x = torch.lerp(x[:, upper], x[:, lower], weight[None, :, None])
    return F.interpolate(
        x[None], size=(len(rows), size[1]), mode="bilinear", align_corners=align_corners
    )[0]


def label_map(logits: Tensor, sizes: Sizes, align_corners: bool, band: int = 64) -> Tensor:
    """The class of each output pixel, without ever holding (M, H, W) logits.

    Args:
        logits: (M, h, w), M <= 256.
        sizes: see :class:`Sizes`.
        align_corners: as the logits were trained.
        band: rows worked on at a time.

    Returns:
        (H, W) uint8, equal to the argmax of :func:`full_size_logits` but for rounding ties.
    """
    logits = logits.float()
    height, width = sizes.output
    labels = torch.empty(height, width, dtype=torch.uint8, device=logits.device)
    for begin in range(0, height, band):
        rows = range(begin, min(begin + band, height))
        if sizes.output == sizes.image:
            out = _resized_rows(logits, sizes.padded, rows, align_corners)[:, :, :width]
        else:
            upper, lower, weight = _source_rows(rows, sizes.image[0], height, False, logits.device)
            first, last = int(upper[0]), int(lower[-1])
            image = _resized_rows(logits, sizes.padded, range(first, last + 1), align_corners)[
                :, :, : sizes.image[1]
            ]
            out = torch.lerp(
                image[:, upper - first], image[:, lower - first], weight[None, :, None]
            )
            out = F.interpolate(out[None], size=(len(rows), width), mode="bilinear")[0]
        labels[begin : rows.stop] = out.max(dim=0).indices.to(torch.uint8)
    return labels
