"""From stride-8 scores to full-resolution logits or label maps.

The path of Detectron2 is: resize to the padded network input, crop to the image, resize to the
output size. Each axis of it is linear, so the whole path is one sparse matrix per axis.
Shape shorthand: M classes, h x w scores, H x W output pixels.
"""

import math
import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cdgc import resize_matrix, resize_taps

# Numbers of a band of full-size scores: it stays in a CPU core's cache.
_BAND_NUMBERS = {"cpu": 1 << 19, "cuda": 1 << 26}
# Pixels between nodes of unequal class are looked at in parts of so many numbers.
_GATHERED_NUMBERS = {"cpu": 1 << 20, "cuda": 1 << 25}


class ResizeGeometry(NamedTuple):
    """(height, width) along the way from the network to the user."""

    padded: tuple[int, int]  # the network's input, with batch padding
    image: tuple[int, int]  # the image inside it
    output: tuple[int, int]  # what the user asked for


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_fits(
    channels: int, size: tuple[int, int], device: torch.device, item_bytes: int = 4, copies: int = 2
) -> None:
    """Refuse a ``sem_seg`` that cannot fit the device's memory.

    Args:
        channels, size: of the tensor.
        device: where it lives.
        item_bytes: per number.
        copies: how many of them exist side by side; logits are resized, so 2.

    Raises:
        MemoryError: naming the size and the keys to change.
    """
    need = channels * size[0] * size[1] * item_bytes
    if copies * need > _memory_bytes(device):
        raise MemoryError(
            f'"sem_seg" of {channels} x {size[0]} x {size[1]} numbers of {item_bytes} bytes is '
            f"{need / 2**30:.1f} GiB; {device} cannot hold {copies} of them. Lower "
            "INPUT.MIN_SIZE_TEST or INPUT.MAX_SIZE_TEST if that is the network's input, give "
            "smaller images, set TEST.ACCUMULATE.DEVICE cpu or TEST.ACCUMULATE.DTYPE fp16 where "
            "probabilities are summed up (TTA, sliding window), or ask for label maps "
            "(CDGCSegmentor.predict_labels)."
        )


def full_size_logits(logits: Tensor, sizes: ResizeGeometry, align_corners: bool) -> Tensor:
    """Logits (M, h, w) -> (M, H, W) at ``sizes.output``."""
    largest = max(sizes.padded, sizes.output, key=math.prod)
    check_fits(logits.shape[0], largest, logits.device)
    out = F.interpolate(
        logits[None].float(), size=sizes.padded, mode="bilinear", align_corners=align_corners
    )[:, :, : sizes.image[0], : sizes.image[1]]
    if sizes.output != sizes.image:  # a resize to the same size is an identity
        out = F.interpolate(out, size=sizes.output, mode="bilinear", align_corners=False)
    return out[0]


def _axis_matrix(scores: Tensor, sizes: ResizeGeometry, axis: int, align_corners: bool) -> Tensor:
    """The way of one axis (0: height) from scores to output: (H, h) or (W, w)."""
    padded, image, output = (size[axis] for size in sizes)
    matrix = resize_matrix(scores.shape[1 + axis], padded, align_corners, scores)[:image]
    if output == image:
        return matrix
    low, high, weight = resize_taps(image, output, False, scores)
    return torch.lerp(matrix[low], matrix[high], weight[:, None])


def _widen(scores: Tensor, sizes: ResizeGeometry, align_corners: bool) -> Tensor:
    """The horizontal half of the way: (M, h, w) -> (M, h, W)."""
    height = scores.shape[1]

    def resize(x: Tensor, width: int, aligned: bool) -> Tensor:
        if x.shape[2] == width:
            return x
        return F.interpolate(x[None], size=(height, width), mode="bilinear", align_corners=aligned)[
            0
        ]

    wide = resize(scores, sizes.padded[1], align_corners)[:, :, : sizes.image[1]]
    return resize(wide, sizes.output[1], False)


def score_bands(
    scores: Tensor, sizes: ResizeGeometry, align_corners: bool, flip: bool = False
) -> Iterator[tuple[slice, Tensor]]:
    """Full-size scores, a band of rows at a time.

    Args:
        scores: (M, h, w).
        sizes: see :class:`Sizes`.
        align_corners: as the scores were trained.
        flip: mirror the result left to right.

    Yields:
        Rows of the output, and their scores (M, rows, W), which may be overwritten.
    """
    scores = scores.float()
    height, width = sizes.output
    vertical = _axis_matrix(scores, sizes, 0, align_corners)
    touched = vertical != 0
    first = touched.int().argmax(dim=1).tolist()
    last = (vertical.shape[1] - touched.flip(1).int().argmax(dim=1)).tolist()
    wide = _widen(scores, sizes, align_corners)
    wide = wide.flip(-1) if flip else wide.contiguous()
    band = max(1, _BAND_NUMBERS[scores.device.type] // (scores.shape[0] * width))
    for begin in range(0, height, band):
        rows = slice(begin, min(begin + band, height))
        source = slice(min(first[rows]), max(last[rows]))
        yield rows, vertical[rows, source] @ wide[:, source]


class _Taps(NamedTuple):
    """The nodes that each output row (or column) is made of: number and share, (H, K) each."""

    node: Tensor
    share: Tensor


def _taps(matrix: Tensor) -> _Taps:
    count = int((matrix != 0).sum(dim=1).max())
    weight, index = matrix.topk(count, dim=1)
    # A tap without weight must not count as another node.
    return _Taps(torch.where(weight > 0, index, index[:, :1]), weight)


def _between(scores: Tensor, pixel: Tensor, rows: _Taps, columns: _Taps) -> Tensor:
    """The class of some output pixels, from all of their nodes' scores: (P,) -> (P,) uint8."""
    classes, _, width = scores.shape
    table = scores.flatten(1).t().contiguous()  # (h*w, M)
    labels = torch.empty(len(pixel), dtype=torch.uint8, device=scores.device)
    step = max(1, _GATHERED_NUMBERS[scores.device.type] // classes)
    # 32 bits: the time goes into moving indices.
    row_node, column_node = (rows.node * width).int(), columns.node.int()
    for begin in range(0, len(pixel), step):
        part = pixel[begin : begin + step].int()
        y = torch.div(part, len(column_node), rounding_mode="floor")
        x = part - y * len(column_node)
        node = row_node.index_select(0, y)[:, :, None] + column_node.index_select(0, x)[:, None]
        weight = (
            rows.share.index_select(0, y)[:, :, None] * columns.share.index_select(0, x)[:, None]
        )
        mixed = F.embedding_bag(
            node.flatten(1), table, per_sample_weights=weight.flatten(1), mode="sum"
        )
        labels[begin : begin + step] = mixed.max(dim=1).indices.to(torch.uint8)
    return labels


def _true_places(mask: Tensor) -> Tensor:
    if mask.is_cuda:
        return mask.nonzero()[:, 0]
    return torch.from_numpy(np.flatnonzero(mask.numpy()))  # several times faster than PyTorch


def label_map(scores: Tensor, sizes: ResizeGeometry, align_corners: bool) -> Tensor:
    """The class of each output pixel, without ever holding (M, H, W) scores.

    Where all nodes that a pixel is made of have the same best class, that is its class: a mean
    of rows with a common largest entry has it there too. Only the other pixels are computed.

    Args:
        scores: (M, h, w) logits or probabilities, M <= 256.
        sizes: see :class:`Sizes`.
        align_corners: as the scores were trained.

    Returns:
        (H, W) uint8, equal to the argmax of :func:`full_size_logits` but for rounding ties.
    """
    scores = scores.float()
    best = scores.max(dim=0).indices.to(torch.uint8)
    rows, columns = (_taps(_axis_matrix(scores, sizes, axis, align_corners)) for axis in (0, 1))
    # Columns first, while there are h rows only; copying whole rows is fast.
    low = high = best.index_select(1, columns.node[:, 0])  # (h, W)
    for k in range(1, columns.node.shape[1]):
        other = best.index_select(1, columns.node[:, k])
        low, high = torch.minimum(low, other), torch.maximum(high, other)
    labels, highest = (x.index_select(0, rows.node[:, 0]) for x in (low, high))  # (H, W)
    for k in range(1, rows.node.shape[1]):
        index = rows.node[:, k]
        torch.minimum(labels, low.index_select(0, index), out=labels)
        torch.maximum(highest, high.index_select(0, index), out=highest)
    pixel = _true_places((labels != highest).flatten())
    if 2 * len(pixel) < labels.numel():
        labels.view(-1)[pixel] = _between(scores, pixel, rows, columns)
        return labels
    # Hardly two neighbors agree: gathering their nodes would cost more than all bands.
    for band, full in score_bands(scores, sizes, align_corners):
        labels[band] = full.max(dim=0).indices.to(torch.uint8)
    return labels
