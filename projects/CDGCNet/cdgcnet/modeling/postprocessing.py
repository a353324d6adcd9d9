"""From scores at the resolution of the feature map to full-size logits or label maps.

Detectron2 resizes to the padded input of the network, crops to the image, and resizes to the
output size. Along each axis all of this is linear, so it is a single sparse matrix per axis.
Shape shorthand: M classes, h x w scores, H x W output pixels.
"""

import functools
import itertools
import math
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cdgc import resize_matrix, resize_taps

# Sizes for a CPU and for accelerators of any kind, see :func:`_of_device`.
# Values per band of full-size scores, sized to fit the cache of a CPU core.
_BAND_VALUES = {"cpu": 1 << 18, "gpu": 1 << 26}
# Columns that are interpolated at a time: few, because the matrix of a block is nearly full.
_BLOCK_COLUMNS = {"cpu": 128, "gpu": 1 << 30}
# Pixels between nodes of different classes whose scores are interpolated at a time.
_INTERPOLATED_PIXELS = {"cpu": 1 << 14, "gpu": 1 << 17}
# Pixels whose best class is found at a time; the scores of one class fit the cache of a CPU core.
_ARGMAX_PIXELS = 1 << 15


def _of_device(sizes: dict[str, int], device: torch.device) -> int:
    return sizes["cpu" if device.type == "cpu" else "gpu"]


class ResizeGeometry(NamedTuple):
    """How scores are resized to the output; sizes are (height, width)."""

    padded: tuple[int, int]  # the network's input, including batch padding
    image: tuple[int, int]  # the image within it
    output: tuple[int, int]  # the size that the user asked for
    align_corners: bool  # of the resize from scores to padded; the others do not align corners


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_fits(
    channels: int, size: tuple[int, int], device: torch.device, item_bytes: int = 4, copies: int = 2
) -> None:
    """Raise an error if a ``sem_seg`` tensor cannot fit the memory of the device.

    Args:
        channels, size: shape of the tensor.
        device: device of the tensor.
        item_bytes: bytes per value.
        copies: how many such tensors exist at the same time; 2 for logits, which are resized.

    Raises:
        MemoryError: naming the size and the keys to change.
    """
    need = channels * size[0] * size[1] * item_bytes
    if copies * need > _memory_bytes(device):
        raise MemoryError(
            f'"sem_seg" of {channels} x {size[0]} x {size[1]} values of {item_bytes} bytes is '
            f"{need / 2**30:.1f} GiB; {device} cannot hold {copies} of them. Lower "
            "INPUT.MIN_SIZE_TEST or INPUT.MAX_SIZE_TEST if that is the size of the network's "
            "input, use smaller images, set TEST.ACCUMULATE.DEVICE cpu or TEST.ACCUMULATE.DTYPE "
            "fp16 where probabilities are accumulated (TTA, sliding window), or predict label "
            "maps (CDGCSegmentor.predict_labels)."
        )


def full_size_logits(logits: Tensor, geometry: ResizeGeometry) -> Tensor:
    """Logits (M, h, w) -> (M, H, W) at ``geometry.output``."""
    largest = max(geometry.padded, geometry.output, key=math.prod)
    check_fits(logits.shape[0], largest, logits.device)
    out = F.interpolate(
        logits[None].float(),
        size=geometry.padded,
        mode="bilinear",
        align_corners=geometry.align_corners,
    )[:, :, : geometry.image[0], : geometry.image[1]]
    if geometry.output != geometry.image:  # a resize to the same size is the identity
        out = F.interpolate(out, size=geometry.output, mode="bilinear", align_corners=False)
    return out[0]


def _axis_matrix(scores: Tensor, geometry: ResizeGeometry, axis: int) -> Tensor:
    """The resize from scores to output along one axis: (H, h) for axis 0, (W, w) for axis 1."""
    padded, image, output = (size[axis] for size in geometry[:3])
    in_size = scores.shape[1 + axis]
    matrix = resize_matrix(in_size, padded, geometry.align_corners, scores)[:image]
    if output == image:
        return matrix
    low, high, weight = resize_taps(image, output, False, scores)
    return torch.lerp(matrix[low], matrix[high], weight[:, None])


class _Block(NamedTuple):
    """Output columns that are interpolated from a few neighboring columns of the scores."""

    source: slice
    output: slice
    matrix: Tensor  # (source columns, output columns)


@functools.lru_cache(maxsize=16)
def _column_blocks(
    in_size: int, geometry: ResizeGeometry, flip: bool, device: torch.device
) -> list[_Block]:
    """The horizontal resize, mirrored or not; kept like :func:`_axis_taps`."""
    like = torch.empty(1, 1, in_size, dtype=torch.float32, device=device)
    matrix = _axis_matrix(like, geometry, 1)
    matrix = matrix.flip(0) if flip else matrix
    first, last = _nonzero_range(matrix)
    width, step = geometry.output[1], _of_device(_BLOCK_COLUMNS, device)
    blocks = []
    for begin in range(0, width, step):
        output = slice(begin, min(begin + step, width))
        source = slice(min(first[output]), max(last[output]))
        blocks.append(_Block(source, output, matrix[output, source].t().contiguous()))
    return blocks


def _nonzero_range(matrix: Tensor) -> tuple[list[int], list[int]]:
    """Of each row: the first column that is not zero, and the one after the last."""
    touched = matrix != 0
    first = touched.int().argmax(dim=1)
    last = matrix.shape[1] - touched.flip(1).int().argmax(dim=1)
    return first.tolist(), last.tolist()


def _widen(scores: Tensor, geometry: ResizeGeometry, flip: bool) -> Tensor:
    """The horizontal half of the resize: (M, h, w) -> (M, h, W), mirrored or not."""
    classes, height, width = scores.shape
    if {width, geometry.padded[1], geometry.image[1]} == {geometry.output[1]}:
        return scores.flip(-1) if flip else scores
    rows = scores.reshape(-1, width)
    wide = rows.new_empty(len(rows), geometry.output[1])
    for block in _column_blocks(width, geometry, flip, scores.device):
        torch.mm(rows[:, block.source], block.matrix, out=wide[:, block.output])
    return wide.view(classes, height, -1)


def score_bands(
    scores: Tensor, geometry: ResizeGeometry, flip: bool = False
) -> Iterator[tuple[slice, Tensor]]:
    """Full-size scores, one band of rows at a time, without gradients.

    Args:
        scores: (M, h, w).
        geometry: how they are resized.
        flip: mirror the result left to right.

    Yields:
        Rows of the output, and their scores (M, rows, W) in float32, which may be overwritten.
    """
    scores = scores.detach().float()
    height, width = geometry.output
    vertical = _axis_matrix(scores, geometry, 0)
    first, last = _nonzero_range(vertical)
    with torch.autocast(scores.device.type, enabled=False):  # it would round the scores
        wide = _widen(scores, geometry, flip)
    band_rows = max(1, _of_device(_BAND_VALUES, scores.device) // (scores.shape[0] * width))
    for begin in range(0, height, band_rows):
        rows = slice(begin, min(begin + band_rows, height))
        source = slice(min(first[rows]), max(last[rows]))
        # A surrounding autocast must not be disabled over the yield.
        with torch.autocast(scores.device.type, enabled=False):
            band = vertical[rows, source] @ wide[:, source]
        yield rows, band


class _Taps(NamedTuple):
    """The nodes that each output row (or column) is interpolated from."""

    node: Tensor  # (H, K): index along the axis
    weight: Tensor  # (H, K)
    groups: Tensor  # (G, K): the different rows of ``node``, which are few: G <= 2 h or so
    group: Tensor  # (H,): the group of each output row


def _taps(matrix: Tensor) -> _Taps:
    count = int((matrix != 0).sum(dim=1).max())
    weight, index = matrix.topk(count, dim=1)
    # A tap of weight 0 must not count as another node.
    node = torch.where(weight > 0, index, index[:, :1])
    groups, group = node.sort(dim=1).values.unique_consecutive(dim=0, return_inverse=True)
    return _Taps(node, weight, groups, group)


@functools.lru_cache(maxsize=16)
def _axis_taps(in_size: int, geometry: ResizeGeometry, axis: int, device: torch.device) -> _Taps:
    """The taps of one axis, kept because most images of a dataset have one size."""
    shape = (1, in_size, 1) if axis == 0 else (1, 1, in_size)
    like = torch.empty(shape, dtype=torch.float32, device=device)
    return _taps(_axis_matrix(like, geometry, axis))


def _interpolated_labels(scores: Tensor, pixel: Tensor, rows: _Taps, columns: _Taps) -> Tensor:
    """Classes of the given output pixels, by interpolating scores: (P,) -> (P,) uint8."""
    width = scores.shape[2]
    table = scores.flatten(1).t().contiguous()  # (h*w, M)
    labels = torch.empty(len(pixel), dtype=torch.uint8, device=scores.device)
    step = _of_device(_INTERPOLATED_PIXELS, scores.device)
    # 32-bit indices: most of the time is spent moving them.
    row_node, column_node = (rows.node * width).int(), columns.node.int()
    for begin in range(0, len(pixel), step):
        part = pixel[begin : begin + step].int()
        y = torch.div(part, len(column_node), rounding_mode="floor")
        x = part - y * len(column_node)
        node = _outer(torch.add, row_node.index_select(0, y), column_node.index_select(0, x))
        weight = _outer(
            torch.mul, rows.weight.index_select(0, y), columns.weight.index_select(0, x)
        )
        mixed = F.embedding_bag(node, table, per_sample_weights=weight, mode="sum")
        labels[begin : begin + step] = _argmax_of_rows(mixed)
    return labels


def _outer(operation: Callable[..., Tensor], a: Tensor, b: Tensor) -> Tensor:
    """All combinations of a's and b's columns: (P, J), (P, K) -> (P, J * K).

    One column at a time: broadcasting over dimensions this short takes six times as long.
    """
    out = a.new_empty(len(a), a.shape[1] * b.shape[1])
    for i, (left, right) in enumerate(itertools.product(a.unbind(1), b.unbind(1))):
        operation(left, right, out=out[:, i])
    return out


def _argmax_of_rows(scores: Tensor) -> Tensor:
    """The index of the largest value along the last dimension, the first if there are several."""
    if scores.device.type != "cpu":
        return scores.max(dim=-1).indices.to(torch.uint8)
    return torch.from_numpy(scores.numpy().argmax(-1).astype(np.uint8))


def best_class(scores: Tensor) -> Tensor:
    """The class with the largest score, the first if there are several: (M, H, W) -> (H, W) uint8.

    PyTorch's argmax along the first dimension takes three times as long on a CPU.

    Args:
        scores: M <= 256.
    """
    if scores.device.type != "cpu":
        return scores.max(dim=0).indices.to(torch.uint8)
    labels = torch.empty(scores.shape[1:], dtype=torch.uint8)
    parts = zip(
        scores.detach().flatten(1).split(_ARGMAX_PIXELS, dim=1),
        labels.view(-1).split(_ARGMAX_PIXELS),
        strict=True,
    )
    for part, out in parts:
        largest = part.amax(dim=0)
        if bool(largest.isnan().any()):
            out.copy_(part.max(dim=0).indices)
            continue
        out.zero_()  # becomes 255 - class, of which the largest wins
        for m, own in enumerate(part):
            found = (own == largest).view(torch.uint8)
            torch.maximum(out, found.mul_(255 - m), out=out)
        torch.sub(255, out, out=out)
    return labels


def _true_indices(mask: Tensor) -> Tensor:
    if mask.device.type != "cpu":
        return mask.nonzero()[:, 0]
    return torch.from_numpy(np.flatnonzero(mask.numpy()))  # several times faster than PyTorch


def _extremes(low: Tensor, high: Tensor, nodes: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """The smallest value of ``low`` and the largest of ``high`` among the nodes (G, K)."""
    least, most = (x.index_select(axis, nodes[:, 0]) for x in (low, high))
    for node in nodes.unbind(1)[1:]:
        torch.minimum(least, low.index_select(axis, node), out=least)
        torch.maximum(most, high.index_select(axis, node), out=most)
    return least, most


def label_map(scores: Tensor, geometry: ResizeGeometry) -> Tensor:
    """The class of each output pixel, without storing (M, H, W) scores.

    If all nodes that a pixel is interpolated from have the same best class, the pixel has that
    class too, because it is the largest in every term of the sum. Only the scores of the other
    pixels are computed.

    Args:
        scores: (M, h, w) logits or probabilities, M <= 256.
        geometry: how they are resized.

    Returns:
        (H, W) uint8, equal to the argmax of :func:`full_size_logits` except for rounding at ties.
    """
    scores = scores.detach().float()
    best = best_class(scores)
    rows, columns = (
        _axis_taps(scores.shape[1 + axis], geometry, axis, scores.device) for axis in (0, 1)
    )
    # Pixels in the same group of rows and group of columns have the same nodes.
    low, high = _extremes(*_extremes(best, best, columns.groups, 1), rows.groups, 0)
    labels, differ = (
        of_groups.index_select(1, columns.group).index_select(0, rows.group)
        for of_groups in (low, low != high)
    )
    pixel = _true_indices(differ.flatten())
    if 2 * len(pixel) < labels.numel():
        labels.view(-1)[pixel] = _interpolated_labels(scores, pixel, rows, columns)
        return labels
    # Most neighbors disagree: gathering their nodes would cost more than computing all bands.
    for band, full in score_bands(scores, geometry):
        labels[band] = best_class(full)
    return labels
