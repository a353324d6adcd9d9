"""Selection of the nodes that form the graph of each class (Sec. 3.3, Eq. 4).

Shape shorthand: B images, M classes, h x w feature map, N = h*w pixels of one image, K selected
nodes of the whole batch. For each class, C is the set of pixels that the coarse prediction assigns
to it and G the set that the ground truth assigns to it. C∩G are the easy positives, G-C the hard
positives, and C-G the hard negatives.

Node lists are *ragged*: each pixel belongs to at most two classes (its coarse and its true class,
or its two most probable classes), so K <= 2*B*N, and an absent class costs nothing.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cdgc.validation import (
    LabelCheck,
    check_choice,
    check_device,
    check_integers,
    check_shape,
)

NODE_MODES = ("coarse", "dynamic", "soft")
SAMPLES = ("easy_positive", "hard_positive", "hard_negative")


def class_map(logits: Tensor) -> Tensor:
    """The most probable class of each pixel: (B, M, h, w) -> (B, h, w) int64, without gradient."""
    check_shape("logits", logits, ("B", "M", "h", "w"))
    return logits.detach().max(dim=1).indices  # faster than argmax over a strided dimension


def check_options(nodes: str, samples: Collection[str], easy_ratio: float) -> None:
    """Check the options of :func:`select_nodes`."""
    check_choice("nodes", nodes, NODE_MODES)
    if not samples or not set(samples) <= set(SAMPLES):
        raise ValueError(f"samples must be a non-empty subset of {SAMPLES}, got {tuple(samples)}")
    if not 0.0 <= easy_ratio <= 1.0:
        raise ValueError(f"easy_ratio must be within [0, 1], got {easy_ratio}")


def _check_maps(
    coarse: Tensor, target: Tensor | None, valid: Tensor | None, name_of_map: str
) -> None:
    check_shape(name_of_map, coarse, ("B", "h", "w"))
    for name, other in (("target_map", target), ("valid", valid)):
        if other is not None:
            check_shape(name, other, coarse.shape, name_of_map)
            check_device(name, other.device, coarse.device, name_of_map)
    if valid is not None and valid.dtype != torch.bool:
        raise ValueError(f"valid must be bool, got {valid.dtype}")
    if target is not None:
        check_integers(target, "target")


def _flat(valid: Tensor | None) -> Tensor | None:
    return None if valid is None else valid.reshape(-1)


def _usable_pixels(
    target_map: Tensor | None,
    valid: Tensor | None,
    num_classes: int,
    ignore_label: int,
) -> tuple[Tensor | None, list[LabelCheck]]:
    """Find the pixels that may become nodes: neither padding nor ignored.

    Returns:
        A mask of the pixels, None for all of them, and the checks that the targets still need.
    """
    if target_map is None:
        return _flat(valid), []
    check = LabelCheck("target", target_map.reshape(-1), num_classes, ignore_label)
    return _both(_flat(valid), check.is_class), [check]


def _both(usable: Tensor | None, mask: Tensor) -> Tensor:
    return mask if usable is None else usable & mask


def _segment_keys(classes: Tensor, batch: int, keep: Tensor | None, num_classes: int) -> Tensor:
    """Number the (class, image) pair of each pixel: ``class * batch + image``.

    Args:
        classes: (B*N,) or (B*N, 2) int64.
        batch: B.
        keep: mask of the same shape; None for everything.
        num_classes: M; entries outside ``keep`` get the key M * B, which means "no node".
    """
    by_image = classes.reshape(batch, classes.numel() // max(1, batch))
    image = torch.arange(batch, device=classes.device)[:, None]
    keys = torch.add(image, by_image, alpha=batch).view_as(classes)
    return keys if keep is None else torch.where(keep, keys, num_classes * batch)


def _narrow(keys: Tensor, groups: int) -> Tensor:
    """Keys up to ``groups`` in the smallest dtype: CUDA sorts them in one pass per byte."""
    for dtype in (torch.uint8, torch.int16, torch.int32):
        if groups <= torch.iinfo(dtype).max:
            return keys.to(dtype)
    return keys


def _random_subset(
    keys: Tensor, groups: int, ratio: float, generator: torch.Generator | None
) -> Tensor:
    """Choose round(ratio*n) of the n entries of each group at random.

    Args:
        keys: (T,), the group of each entry; entries >= ``groups`` are never chosen.
        groups: number of groups.
        ratio: fraction to choose, within [0, 1].
        generator: source of randomness.

    Returns:
        (T,) bool.
    """
    keys = _narrow(keys, groups)
    noise = torch.rand(keys.shape, generator=generator, device=keys.device)
    shuffled = noise.argsort()
    order = shuffled[keys[shuffled].argsort(stable=True)]
    sorted_keys = keys[order]
    bounds = torch.arange(groups + 1, device=keys.device, dtype=keys.dtype)
    start = torch.searchsorted(sorted_keys, bounds)
    quota = (ratio * (start[1:] - start[:-1]).double()).round().long()
    group = sorted_keys.long().clamp(max=groups - 1)
    rank = torch.arange(len(keys), device=keys.device) - start[group]
    chosen = torch.zeros_like(keys, dtype=torch.bool)
    chosen[order] = (rank < quota[group]) & (sorted_keys < groups)
    return chosen


def _sort_nodes(
    keys: Tensor, num_classes: int, batch: int, checks: Sequence[LabelCheck]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sort the nodes by class, image and pixel.

    This is the only place where the host waits for the device, so the label checks, whose counts
    travel in the same transfer, raise here too.

    Args:
        keys: (B*N, 1 or 2), see :func:`_segment_keys`.
        num_classes, batch: M and B.
        checks: labels to check.

    Returns:
        ``pixel``, ``counts`` and ``node_index`` of :class:`NodeSet`, and the position of each node
        in the flattened ``keys``.

    Raises:
        ValueError: if a check fails.
    """
    groups, width, device = num_classes * batch, keys.shape[1], keys.device
    # The keys of one pixel are adjacent, so a stable sort keeps the pixels of a segment ascending.
    sorted_keys, order = _narrow(keys.reshape(-1), groups).sort(stable=True)
    every_key = torch.arange(groups + 1, device=device, dtype=sorted_keys.dtype)
    bounds = torch.searchsorted(sorted_keys, every_key)
    wrong = [check.wrong.sum()[None] for check in checks]
    bounds, found = (
        (torch.cat([bounds, *wrong]) if wrong else bounds).cpu().tensor_split([groups + 1])
    )
    for check, labels in zip(checks, found.tolist(), strict=True):
        if labels:
            check.refuse()
    counts = bounds.diff().view(num_classes, batch)
    order = order[: int(bounds[groups])]
    node_index = torch.full((len(keys), 2), -1, device=device)
    entries = node_index.view(-1) if width == 2 else node_index[:, 0]
    entries[order] = torch.arange(len(order), device=device)
    return order if width == 1 else order // width, counts, node_index, order


@dataclass(frozen=True)
class NodeSet:
    """The nodes of all class graphs of a batch, sorted by class, then image, then pixel.

    Attributes:
        pixel: (K,) int64, the pixel of each node as an index into the flattened (B*N) batch.
        counts: (M, B) int64 on the CPU, where segment lengths are needed: the number of nodes of
            each class in each image. Sums to K.
        node_index: (B*N, 2) int64, the two nodes of each pixel as indices into ``pixel``: the node
            of its coarse class, and its hard-positive node in its true class (for soft nodes, the
            nodes of its most and second most probable class); -1 for no node.
        disjoint: True if no pixel has two nodes; the second column of ``node_index`` is then -1.
        log_weight: (K,), the logarithm of each node's membership in its class; None for hard class
            maps, where every membership is 1.
        valid: (B*N,) bool, False for batch padding; None without padding.
        class_weight: (B*N, M), the weight of each class's message to each pixel for
            receivers="all"; None for 1.
        parts: for each of :data:`SAMPLES` the mask of its pixels and the class in whose graph they
            are nodes, (B*N,) each; None without ground truth. The classes may be views of the
            selected maps.
    """

    pixel: Tensor
    counts: Tensor
    node_index: Tensor
    disjoint: bool = False
    log_weight: Tensor | None = None
    valid: Tensor | None = None
    class_weight: Tensor | None = None
    parts: Mapping[str, tuple[Tensor, Tensor]] | None = None

    @property
    def easy_positive(self) -> Tensor | None:
        """The number of easy positives of each class in each image, (M, B) int64 on the device.

        Counted when asked for, like the other two; None without ground truth.
        """
        return self._count("easy_positive")

    @property
    def hard_positive(self) -> Tensor | None:
        """The number of hard positives, see :attr:`easy_positive`."""
        return self._count("hard_positive")

    @property
    def hard_negative(self) -> Tensor | None:
        """The number of hard negatives, see :attr:`easy_positive`."""
        return self._count("hard_negative")

    def _count(self, part: str) -> Tensor | None:
        if self.parts is None:
            return None
        mask, classes = self.parts[part]
        num_classes, batch = self.counts.shape
        keys = _segment_keys(classes, batch, mask, num_classes)
        # bincount would synchronize to find its length; the length is known here.
        found = torch.zeros(num_classes * batch + 1, dtype=torch.long, device=keys.device)
        return found.scatter_add_(0, keys, torch.ones_like(keys))[:-1].view(num_classes, batch)


def select_nodes(
    coarse_map: Tensor,
    target_map: Tensor | None = None,
    *,
    num_classes: int,
    nodes: str = "coarse",
    samples: Collection[str] = SAMPLES,
    easy_ratio: float = 1.0,
    ignore_label: int = 255,
    valid: Tensor | None = None,
    generator: torch.Generator | None = None,
    known_classes: bool = False,
) -> NodeSet:
    """Choose the nodes S_m of every class graph (Eq. 4).

    Args:
        coarse_map: (B, h, w) integers, the class of each pixel in the coarse prediction (C).
        target_map: (B, h, w) integers, the class of each pixel in the ground truth (G). Pixels
            labeled ``ignore_label`` leave both sets. Pass it in training only.
        num_classes: M.
        nodes: "coarse": S_m = C_m. "dynamic": the union of the ``samples``.
        samples: which of easy_positive, hard_positive and hard_negative are used (Table 5); only
            for "dynamic".
        easy_ratio: fraction of the easy positives to keep, round(ratio*n) at random per image and
            class (Table 3, "ds"); only for "dynamic".
        ignore_label: see ``target_map``.
        valid: (B, h, w) bool, False for batch padding, which is never selected.
        generator: source of the random choice; torch's default generator if None.
        known_classes: whether ``coarse_map`` is known to hold classes alone, as the result of
            :func:`class_map` does; it is not checked then.

    Raises:
        ValueError: if shapes or devices differ, a mode or sample name is unknown, the ratio is
            outside [0, 1], a class is outside [0, M), or "dynamic" is used without targets.
    """
    check_options(nodes, samples, easy_ratio)
    if nodes == "soft":
        raise ValueError("nodes='soft' needs logits, not a class map; use soft_nodes")
    _check_maps(coarse_map, target_map, valid, "coarse_map")
    check_integers(coarse_map, "coarse_map")
    if target_map is None and nodes == "dynamic":
        raise ValueError("nodes='dynamic' needs targets (Eq. 4); use nodes='coarse' without them")
    batch, groups = coarse_map.shape[0], num_classes * coarse_map.shape[0]
    coarse = coarse_map.reshape(-1).long()
    usable, checks = _usable_pixels(target_map, valid, num_classes, ignore_label)
    if not known_classes:
        checks.insert(0, LabelCheck("coarse_map", coarse, num_classes, None))
        usable = _both(usable, checks[0].is_class)

    def keys_of(classes: Tensor, mask: Tensor | None) -> Tensor:
        return _segment_keys(classes, batch, mask, num_classes)

    if target_map is None:
        keys = keys_of(coarse, usable)
        pixel, counts, node_index, _ = _sort_nodes(keys[:, None], num_classes, batch, checks)
        return NodeSet(pixel, counts, node_index, disjoint=True, valid=_flat(valid))

    target = checks[-1].labels
    right, wrong = _both(usable, coarse == target), _both(usable, coarse != target)
    # A wrong pixel is a hard positive of its true class and a hard negative of its coarse one.
    masks = dict(zip(SAMPLES, (right, wrong, wrong), strict=True))
    used = samples if nodes == "dynamic" else ("easy_positive", "hard_negative")
    masks = {name: m if name in used else torch.zeros_like(m) for name, m in masks.items()}
    if nodes == "dynamic" and easy_ratio < 1.0:
        easy = keys_of(coarse, masks["easy_positive"])
        masks["easy_positive"] = _random_subset(easy, groups, easy_ratio, generator)
    columns = [keys_of(coarse, masks["easy_positive"] | masks["hard_negative"])]
    if "hard_positive" in used:
        columns.append(keys_of(target, masks["hard_positive"]))
    pixel, counts, node_index, _ = _sort_nodes(
        torch.stack(columns, dim=1), num_classes, batch, checks
    )
    return NodeSet(
        pixel,
        counts,
        node_index,
        disjoint=len(columns) == 1,
        valid=_flat(valid),
        parts={n: (m, target if n == "hard_positive" else coarse) for n, m in masks.items()},
    )


def soft_nodes(
    logits: Tensor,
    target_map: Tensor | None = None,
    *,
    ignore_label: int = 255,
    valid: Tensor | None = None,
) -> NodeSet:
    """Put every pixel into the graphs of its two most probable classes.

    This soft assignment extends the paper. The hard class maps of Sec. 3.3 are the special case of
    memberships 1 and 0, and a membership of 0 is no node. A misclassified pixel whose true class
    comes second also joins the graph of its true class, in training and at inference alike, without
    using its label.

    Args:
        logits: (B, M, h, w) of the coarse prediction; used without gradient.
        target_map: (B, h, w) integers; pixels labeled ``ignore_label`` are left out. It is used for
            nothing else.
        ignore_label: see ``target_map``.
        valid: (B, h, w) bool, False for batch padding, which is never selected.

    Returns:
        Nodes with ``log_weight``: the two probabilities, divided by their sum.

    Raises:
        ValueError: if shapes or devices differ, or a target is not a class.
    """
    check_shape("logits", logits, ("B", "M", "h", "w"))
    batch, num_classes = logits.shape[:2]
    best = logits.detach().topk(min(2, num_classes), dim=1)
    _check_maps(best.indices[:, 0], target_map, valid, "the map of logits")
    width = best.indices.shape[1]
    classes = best.indices.permute(0, 2, 3, 1).reshape(-1, width)
    usable, checks = _usable_pixels(target_map, valid, num_classes, ignore_label)
    values = best.values if logits.dtype == torch.float64 else best.values.float()
    probability = values.softmax(1).permute(0, 2, 3, 1).reshape(-1, width)
    keep = probability > 0
    if usable is not None:
        keep = keep & usable[:, None]
    keys = _segment_keys(classes, batch, keep, num_classes)
    pixel, counts, node_index, order = _sort_nodes(keys, num_classes, batch, checks)
    log_weight = values.log_softmax(1).permute(0, 2, 3, 1).reshape(-1)[order]
    return NodeSet(
        pixel,
        counts,
        node_index,
        disjoint=width == 1,
        log_weight=log_weight,
        valid=_flat(valid),
    )
