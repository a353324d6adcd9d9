"""Which nodes form the graph of each class (Sec. 3.3, Eq. 4).

Shape shorthand: B images, M classes, h x w feature map, N = h*w nodes of one image, K selected
nodes of the whole batch. C is the set of nodes the coarse prediction gives to a class, G the set
the ground truth gives to it; C∩G are easy positives, G-C hard positives, C-G hard negatives.

A node list is *ragged*: each pixel belongs to at most two classes (its coarse one and its true
one, or its two most probable ones), so K <= 2*B*N and an absent class costs nothing.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .validation import check_integers, outside, refuse

NODE_MODES = ("coarse", "dynamic", "soft")
SAMPLES = ("easy_positive", "hard_positive", "hard_negative")


@dataclass(frozen=True)
class NodeSet:
    """The nodes of all class graphs of a batch, sorted by (class, image, pixel).

    Attributes:
        pixel: (K,) int64, index of each node's pixel in the flattened (B*N) batch.
        counts: (M, B) int64 on the CPU, where the lengths of the segments are needed: how many
            nodes each class has in each image; sums to K.
        slots: (B*N, 2) int64, where in ``pixel`` a pixel stands as a node of its coarse class
            and as a hard positive of its true class (of its second class, for soft nodes); -1
            where it does not.
        easy_positive, hard_positive, hard_negative: (M, B) int64, the nodes by difficulty;
            None where no ground truth was given.
        single: no pixel has two nodes; the second column of ``slots`` then is -1 throughout.
        log_weight: (K,) logarithm of each node's share in its class; None for hard class maps,
            where every share is 1.
    """

    pixel: Tensor
    counts: Tensor
    slots: Tensor
    easy_positive: Tensor | None = None
    hard_positive: Tensor | None = None
    hard_negative: Tensor | None = None
    single: bool = False
    log_weight: Tensor | None = None


def class_map(logits: Tensor) -> Tensor:
    """The class of each node: logits (B, M, h, w) -> (B, h, w) int64, without gradient."""
    if logits.dim() != 4:
        raise ValueError(f"expected logits (B, M, h, w), got {tuple(logits.shape)}")
    return logits.detach().max(dim=1).indices  # faster than argmax over a strided dimension


def _random_share(
    key: Tensor, groups: int, ratio: float, generator: torch.Generator | None
) -> Tensor:
    """A random round(ratio*n) of the n entries of each group, as a mask.

    ``key`` (T,) holds each entry's group; entries >= ``groups`` are never chosen.
    """
    noise = torch.rand(key.shape, generator=generator, device=key.device)
    shuffled = noise.argsort()
    order = shuffled[key[shuffled].argsort(stable=True)]
    sorted_key = key[order]
    bounds = torch.arange(groups + 1, device=key.device)
    start = torch.searchsorted(sorted_key, bounds)
    quota = (ratio * (start[1:] - start[:-1]).double()).round().long()
    group = sorted_key.clamp(max=groups - 1)
    rank = torch.arange(len(key), device=key.device) - start[group]
    chosen = torch.zeros_like(key, dtype=torch.bool)
    chosen[order] = (rank < quota[group]) & (sorted_key < groups)
    return chosen


def check_options(nodes: str, samples: Collection[str], easy_ratio: float) -> None:
    if nodes not in NODE_MODES:
        raise ValueError(f"nodes must be one of {NODE_MODES}, got {nodes!r}")
    if not samples or not set(samples) <= set(SAMPLES):
        raise ValueError(f"samples must be a non-empty subset of {SAMPLES}, got {tuple(samples)}")
    if not 0.0 <= easy_ratio <= 1.0:
        raise ValueError(f"easy_ratio must be within [0, 1], got {easy_ratio}")


def _check_maps(
    coarse: Tensor, target: Tensor | None, valid: Tensor | None, name_of_map: str = "coarse_map"
) -> None:
    if coarse.dim() != 3:
        raise ValueError(f"coarse_map must be (B, h, w), got {tuple(coarse.shape)}")
    for name, other in (("target_map", target), ("valid", valid)):
        if other is not None and other.shape != coarse.shape:
            raise ValueError(
                f"{name} must have the shape of {name_of_map} {tuple(coarse.shape)}, "
                f"got {tuple(other.shape)}"
            )
        if other is not None and other.device != coarse.device:
            raise ValueError(
                f"{name} is on {other.device}, {name_of_map} on {coarse.device}; both must be on "
                "one device"
            )
    if valid is not None and valid.dtype != torch.bool:
        raise ValueError(f"valid must be bool, got {valid.dtype}")


def _pack(
    keys: Tensor, num_classes: int, batch: int, also: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[int]]:
    """Sort the nodes by key.

    Args:
        keys: (P, 1 or 2), the (class, image) pair ``class * batch + image`` of each pixel's nodes;
            ``num_classes * batch`` for no node.
        num_classes, batch: M and B.
        also: numbers to read in the one place where the host waits for the device.

    Returns:
        ``pixel``, ``counts`` and ``slots`` of :class:`NodeSet`, the place of each node in the
        flattened ``keys``, and ``also``.
    """
    groups, width, device = num_classes * batch, keys.shape[1], keys.device
    # Interleaved by pixel, the stable sort leaves the pixels of a segment ascending.
    flat = keys.reshape(-1)
    sorted_key, order = flat.sort(stable=True)
    start = torch.searchsorted(sorted_key, torch.arange(groups + 1, device=device))
    numbers = torch.cat([start[1:] - start[:-1], *[x[None] for x in also]]).tolist()
    lengths = numbers[:groups]
    order = order[: sum(lengths)]
    slots = torch.full_like(flat, -1)
    slots[order] = torch.arange(len(order), device=device)
    slots = slots.view(-1, width)
    if width == 1:
        slots = torch.cat([slots, torch.full_like(slots, -1)], dim=1)
    counts = torch.tensor(lengths, dtype=torch.long).view(num_classes, batch)
    return order // width, counts, slots, order, numbers[groups:]


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
) -> NodeSet:
    """Choose the nodes S_m of every class graph (Eq. 4).

    Args:
        coarse_map: (B, h, w) int64, class of each node in the coarse prediction (C).
        target_map: (B, h, w) int64, class of each node in the ground truth (G). Nodes with
            ``ignore_label`` leave both sets. Give it in training only.
        num_classes: M.
        nodes: "coarse": S_m = C_m. "dynamic": the union of the ``samples``.
        samples: which of easy_positive, hard_positive, hard_negative enter (Table 5); only for
            "dynamic".
        easy_ratio: share of the easy positives kept, round(ratio*n) at random per image and
            class (Table 3, "ds"); only for "dynamic".
        valid: (B, h, w) bool, False where a node is batch padding, which is never selected.
        generator: source of the random choice; torch's default generator if None.

    Raises:
        ValueError: on shapes or devices that differ, an unknown mode or sample name, a ratio
            outside [0, 1], a class outside [0, M), or "dynamic" without targets.
    """
    check_options(nodes, samples, easy_ratio)
    if nodes == "soft":
        raise ValueError("nodes='soft' needs logits, not a class map; use soft_nodes")
    _check_maps(coarse_map, target_map, valid)
    check_integers(coarse_map, "coarse_map")
    if target_map is not None:
        check_integers(target_map, "target")
    elif nodes == "dynamic":
        raise ValueError("nodes='dynamic' needs targets (Eq. 4); use nodes='coarse' without them")
    batch, per_image = coarse_map.shape[0], coarse_map[0].numel()
    groups = num_classes * batch
    device = coarse_map.device
    coarse = coarse_map.reshape(-1).long()
    pixels = torch.arange(batch * per_image, device=device)
    image = pixels // per_image
    # Labels out of range are no nodes, and refused below, where the host waits anyway.
    wrong = [outside(coarse, num_classes, None)]
    usable = ~wrong[0] if valid is None else valid.reshape(-1) & ~wrong[0]

    # A key names a (class, image) pair; `groups` means "no node".
    nowhere = torch.full_like(pixels, groups)
    coarse_key = coarse * batch + image
    hard_positive = torch.zeros_like(usable)
    true_key = nowhere
    if target_map is None:
        keep, agrees = usable, None
    else:
        target = target_map.reshape(-1).long()
        wrong.append(outside(target, num_classes, ignore_label))
        usable = usable & (target != ignore_label) & ~wrong[1]
        agrees = usable & (coarse == target)
        keep = usable
        if nodes == "dynamic":
            easy = agrees if "easy_positive" in samples else torch.zeros_like(agrees)
            if easy_ratio < 1.0:
                easy = _random_share(
                    torch.where(easy, coarse_key, nowhere), groups, easy_ratio, generator
                )
            keep = easy
            if "hard_negative" in samples:
                keep = keep | (usable & ~agrees)
            if "hard_positive" in samples:
                hard_positive = usable & ~agrees
                true_key = torch.where(hard_positive, target * batch + image, nowhere)

    single = nodes == "coarse" or "hard_positive" not in samples
    key = torch.where(keep, coarse_key, nowhere)
    keys = key[:, None] if single else torch.stack([key, true_key], dim=1)
    # Without targets the last of `wrong` is the first.
    pixel, counts, slots, _, (bad_coarse, bad_target) = _pack(
        keys, num_classes, batch, [wrong[0].sum(), wrong[-1].sum()]
    )
    if bad_coarse:
        refuse(coarse, wrong[0], num_classes, None, "coarse_map")
    if bad_target:
        refuse(target, wrong[1], num_classes, ignore_label, "target")
    if agrees is None:
        return NodeSet(pixel, counts, slots, single=True)

    def count(mask: Tensor, keys: Tensor) -> Tensor:
        # bincount would synchronize to find its length; the length is known here.
        return (
            torch.zeros(groups + 1, dtype=torch.long, device=device)
            .scatter_add_(0, torch.where(mask, keys, nowhere), torch.ones_like(keys))[:groups]
            .view(num_classes, batch)
        )

    return NodeSet(
        pixel,
        counts,
        slots,
        easy_positive=count(keep & agrees, coarse_key),
        hard_positive=count(hard_positive, true_key),
        hard_negative=count(keep & ~agrees, coarse_key),
        single=single,
    )


def soft_nodes(
    logits: Tensor,
    target_map: Tensor | None = None,
    *,
    ignore_label: int = 255,
    valid: Tensor | None = None,
) -> NodeSet:
    """Every node in the graphs of its two most probable classes, with its share of each.

    An extension of ours, a soft assignment: the hard class maps of Sec. 3.3 are the case of shares
    1 and 0, and a share of 0 is no node. A wrong pixel whose true class comes second stands in its
    true class's graph too, in training and at inference alike, and its label has no part in it.

    Args:
        logits: (B, M, h, w) of the coarse prediction; used without gradient.
        target_map: (B, h, w) int64; nodes with ``ignore_label`` are left out. Nothing else of it
            is used.
        ignore_label: see above.
        valid: (B, h, w) bool, False where a node is batch padding, which is never selected.

    Returns:
        Nodes with ``log_weight``: the two probabilities, divided by their sum.

    Raises:
        ValueError: on shapes or devices that differ, or a target that is no class.
    """
    if logits.dim() != 4:
        raise ValueError(f"expected logits (B, M, h, w), got {tuple(logits.shape)}")
    batch, num_classes = logits.shape[:2]
    logits = logits.detach()
    best = logits.topk(min(2, num_classes), dim=1)
    _check_maps(best.indices[:, 0], target_map, valid, "the map of logits")
    width = best.indices.shape[1]
    classes = best.indices.permute(0, 2, 3, 1).reshape(-1, width)
    usable = torch.ones_like(classes[:, 0], dtype=torch.bool)
    if valid is not None:
        usable = valid.reshape(-1)
    target, wrong = None, torch.zeros_like(usable)
    if target_map is not None:
        check_integers(target_map, "target")
        target = target_map.reshape(-1).long()
        wrong = outside(target, num_classes, ignore_label)
        usable = usable & (target != ignore_label)
    pixels = torch.arange(len(classes), device=logits.device)
    image = pixels // max(1, logits[0, 0].numel())
    values = best.values if logits.dtype == torch.float64 else best.values.float()
    held = (values.softmax(1) > 0).permute(0, 2, 3, 1).reshape(-1, width) & usable[:, None]
    keys = torch.where(held, classes * batch + image[:, None], num_classes * batch)
    pixel, counts, slots, order, (bad_target,) = _pack(keys, num_classes, batch, [wrong.sum()])
    if bad_target:
        assert target is not None
        refuse(target, wrong, num_classes, ignore_label, "target")
    log_weight = values.log_softmax(1).permute(0, 2, 3, 1).reshape(-1)[order]
    return NodeSet(pixel, counts, slots, single=width == 1, log_weight=log_weight)
