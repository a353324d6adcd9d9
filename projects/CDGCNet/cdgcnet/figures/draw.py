"""Figs. 4, 5 and 6 of the paper with matplotlib, as pixels (PNG) or vectors (PDF, SVG)."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from detectron2.data import Metadata
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from ..files import replacing
from ..visualize import class_colors, label_image
from .observe import EASY, HARD_NEGATIVE, HARD_POSITIVE, Observation, sampled_nodes

FORMATS = (".png", ".pdf", ".svg")
WIDTH = 7.0  # inches, a page's text
# Told apart also by eyes that do not tell red from green; each kind has a mark of its own too.
NODE_STYLE = {
    EASY: {"color": "#3ddc5b", "marker": "o"},
    HARD_POSITIVE: {"color": "#ff2a2a", "marker": "s"},
    HARD_NEGATIVE: {"color": "#ffb000", "marker": "^"},
}
FIXED, BROKEN, STILL_WRONG = (0, 158, 60), (214, 39, 40), (60, 60, 60)
BOX = "#ffffff"


def _figure(rows: int, columns: int, aspect: float, legend: float) -> tuple[Figure, np.ndarray]:
    """An empty grid of pictures of one aspect (height / width); ``legend`` inches below it."""
    gap, title = 0.03, 0.2
    across = (WIDTH - (columns + 1) * gap) / columns
    down = across * aspect
    height = title + rows * down + (rows - 1) * gap + legend
    figure = Figure(figsize=(WIDTH, height), dpi=220)
    FigureCanvasAgg(figure)  # no global pyplot state, no window system
    axes = figure.subplots(
        rows,
        columns,
        squeeze=False,
        gridspec_kw={
            "left": gap / WIDTH,
            "right": 1 - gap / WIDTH,
            "top": 1 - title / height,
            "bottom": legend / height,
            "wspace": gap / across,
            "hspace": gap / down,
        },
    )
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set_visible(False)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    with rc_context({"pdf.fonttype": 42, "svg.fonttype": "none"}), replacing(path) as beside:
        figure.savefig(beside)


def _show(axis: Axes, picture: np.ndarray) -> None:
    axis.imshow(picture, interpolation="nearest" if picture.ndim == 2 else "antialiased")
    axis.set_xlim(-0.5, picture.shape[1] - 0.5)
    axis.set_ylim(picture.shape[0] - 0.5, -0.5)


def _unit(color: tuple[int, int, int]) -> tuple[float, float, float]:
    red, green, blue = color
    return red / 255, green / 255, blue / 255


def _outline(axis: Axes, mask: np.ndarray, widths: tuple[float, float]) -> None:
    """The outline of a mask (H, W), white on black of two widths in points."""
    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    for outline in found:
        x, y = np.vstack([outline[:, 0], outline[:1, 0]]).T
        for color, width in zip(("black", "white"), widths, strict=True):
            axis.plot(x, y, color=color, lw=width)


def _frame(axis: Axes, box: tuple[int, int, int, int], color: str) -> None:
    """A rectangle (left, top, width, height) around pixels; white gets a black edge."""
    left, top, width, height = box
    for edge, line in (("black", 1.6), (color, 0.8)) if color == BOX else ((color, 1.0),):
        axis.add_patch(
            Rectangle(
                (left - 0.5, top - 0.5), width, height, fill=False, edgecolor=edge, linewidth=line
            )
        )


def _colored(labels: np.ndarray, metadata: Metadata) -> np.ndarray:
    return np.asarray(label_image(labels, class_colors(metadata)).convert("RGB"))


def _note(axis: Axes, text: str, columns: int) -> None:
    """A small line of text in the lower left corner of one of ``columns`` pictures."""
    fits = int(WIDTH / columns * 72 / (6 * 0.58)) - 2  # a letter of 6 points is 0.58 as wide
    axis.text(
        0.012,
        0.02,
        text if len(text) <= fits else text[: fits - 1] + "…",
        transform=axis.transAxes,
        fontsize=6,
        color="white",
        parse_math=False,  # names may hold "$"
        bbox={"facecolor": "black", "alpha": 0.6, "linewidth": 0, "pad": 1.5},
    )


def _grey(image: np.ndarray) -> np.ndarray:
    """Grey values as an RGB image."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def _aspect(seen: Sequence[Observation]) -> float:
    return max(o.image.shape[0] / o.image.shape[1] for o in seen)


def hardest_class(seen: Observation, num_classes: int, ignore_label: int) -> int:
    """The class of the image that has most hard nodes for its size; one of eight easy nodes first.

    Raises:
        ValueError: for an image without ground truth.
    """
    if seen.truth_map is None:
        raise ValueError(f"{seen.name}: which nodes are hard needs ground truth")
    kept = seen.truth_map != ignore_label
    coarse, true = seen.coarse_map[kept], seen.truth_map[kept]

    def score(label: int) -> tuple[bool, bool, float]:
        c, g = coarse == label, true == label
        easy, hard = int((c & g).sum()), int((c ^ g).sum())
        # 20: a handful of nodes is no subject, however wrong.
        return bool(g.any()), easy >= 8, hard / (easy + 20)

    return max(range(num_classes), key=score)


def draw_sampling(
    path: Path,
    pairs: Sequence[tuple[Observation, int]],
    metadata: Metadata,
    ignore_label: int,
    easy_ratio: float = 1.0,
) -> None:
    """Fig. 4: easy and hard nodes of one class on the image.

    Args:
        path: PNG, PDF or SVG to write.
        pairs: an observation with ground truth, and the class, per row.
        metadata: gives class names and colours.
        ignore_label: nodes with it are in no set.
        easy_ratio: share of the easy positives shown, as training would sample it.
    """
    figure, axes = _figure(len(pairs), 2, _aspect([o for o, _ in pairs]), legend=0.26)
    axes[0, 0].set_title("image, true outline of the class", fontsize=8, pad=3)
    axes[0, 1].set_title("its nodes in training", fontsize=8, pad=3)
    names = list(metadata.stuff_classes)
    for (seen, label), (left, right) in zip(pairs, axes, strict=True):
        assert seen.truth is not None
        _show(left, seen.image)
        mask = seen.truth == label
        _outline(left, mask, (1.6, 0.8))
        _note(left, f"{names[label]}, {seen.name}", 2)
        # Paler, so that the marks stand out from a picture that has all colours.
        _show(right, cv2.addWeighted(seen.image, 0.25, _grey(seen.image), 0.4, 55))
        _outline(right, mask, (0.0, 0.6))
        rows, columns = seen.node_positions()
        spacing = seen.image.shape[1] / len(columns)
        # Marks of 0.62 of a node's width, in points; area for scatter.
        points = 0.62 * spacing / seen.image.shape[1] * (WIDTH / 2) * 72
        found = sampled_nodes(seen, label, len(names), ignore_label, easy_ratio)
        for kind, places in found.items():
            right.scatter(
                columns[places[:, 1]],
                rows[places[:, 0]],
                s=points**2 * 0.8,
                edgecolors="black",
                linewidths=0.08 * points,
                zorder=3,
                **NODE_STYLE[kind],
            )
        counts = ", ".join(f"{len(places)} {kind}" for kind, places in found.items())
        _note(right, counts, 2)
    said = {EASY: "both agree", HARD_POSITIVE: "missed", HARD_NEGATIVE: "taken for the class"}
    handles = [
        Line2D(
            [],
            [],
            linestyle="",
            markersize=5,
            markeredgecolor="black",
            markeredgewidth=0.4,
            label=f"{kind}: {said[kind]}",
            marker=style["marker"],
            color=style["color"],
        )
        for kind, style in NODE_STYLE.items()
    ]
    figure.legend(handles=handles, loc="lower center", ncols=3, fontsize=7, frameon=False)
    _save(figure, path)


def group_boxes(marked: np.ndarray, count: int = 2) -> list[tuple[int, int, int, int]]:
    """Rectangles around the largest groups of marked pixels.

    Args:
        marked: (H, W) bool.
        count: of rectangles at most.

    Returns:
        (left, top, width, height), largest group first; groups closer than a fiftieth of the
        image's width are one, and so are rectangles that overlap.
    """
    height, width = marked.shape
    reach = max(3, width // 50) | 1
    joined = cv2.dilate(marked.astype(np.uint8), np.ones((reach, reach), np.uint8))
    number, groups = cv2.connectedComponents(joined)
    boxes = []
    for group in range(1, number):
        rows, columns = np.nonzero((groups == group) & marked)
        if len(rows) < max(8, marked.size // 4000):
            continue
        left, top = max(int(columns.min()) - reach, 0), max(int(rows.min()) - reach, 0)
        right = min(int(columns.max()) + reach + 1, width)
        bottom = min(int(rows.max()) + reach + 1, height)
        boxes.append((len(rows), (left, top, right - left, bottom - top)))
    chosen: list[tuple[int, int, int, int]] = []
    for _, box in sorted(boxes, reverse=True)[:count]:
        overlapping = [other for other in chosen if _meet(box, other)]
        for other in overlapping:
            chosen.remove(other)
            box = _union(box, other)
        chosen.append(box)
    return chosen


def _meet(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    across = a[0] < b[0] + b[2] and b[0] < a[0] + a[2]
    return across and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]


def _union(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    left, top = min(a[0], b[0]), min(a[1], b[1])
    return left, top, max(a[0] + a[2], b[0] + b[2]) - left, max(a[1] + a[3], b[1] + b[3]) - top


def densest_boxes(marked: np.ndarray, count: int = 3) -> list[tuple[int, int, int, int]]:
    """Squares of a sixth of the shorter side with the most marked pixels, none touching another.

    A change along outlines is one thin group through the whole image; a frame around that would
    say nothing.

    Args:
        marked: (H, W) bool.
        count: of squares at most.

    Returns:
        (left, top, width, height), fullest first; none less than half as full as the first.
    """
    height, width = marked.shape
    side = max(min(height, width) // 6, 1)
    # sums[i, j]: marked pixels of the square whose upper left corner is (i, j).
    table = np.pad(marked.astype(np.int64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    sums = table[side:, side:] - table[:-side, side:] - table[side:, :-side] + table[:-side, :-side]
    boxes: list[tuple[int, int, int, int]] = []
    least = max(sums.max() // 2, 1)
    while len(boxes) < count and sums.max() >= least:
        # The middle of all equally full squares, so that what it holds lies in its middle.
        places = np.argwhere(sums == sums.max())
        top, left = places[np.abs(places - places.mean(axis=0)).sum(axis=1).argmin()]
        boxes.append((int(left), int(top), side, side))
        apart = side + side // 4 + 1
        sums[max(top - apart, 0) : top + apart + 1, max(left - apart, 0) : left + apart + 1] = -1
    return boxes


def draw_comparison(
    path: Path, seen: Sequence[Observation], metadata: Metadata, ignore_label: int
) -> None:
    """Fig. 5: image, ground truth, coarse and refined prediction, and their differences.

    Where most pixels changed is framed. Without ground truth that column is left
    out, and a difference is neither right nor wrong.

    Args:
        path: PNG, PDF or SVG to write.
        seen: one per row, all with ground truth or all without.
        metadata: gives class names and colours.
        ignore_label: pixels with it are black in the ground truth and no difference.
    """
    labelled = all(o.truth is not None for o in seen)
    titles = ["image", *(["ground truth"] if labelled else []), "coarse", "refined", "difference"]
    classes = sorted(
        {
            int(v)
            for o in seen
            for labels in (o.truth if labelled else None, o.coarse, o.refined)
            if labels is not None
            for v in np.unique(labels)
        }
        - {ignore_label}
    )
    kinds = {"changed": FIXED}
    if labelled:
        kinds = {"fixed": FIXED, "broken": BROKEN, "wrong before and after": STILL_WRONG}
    handles = [
        Patch(facecolor=_unit(class_colors(metadata)[i]), label=name)
        for i, name in enumerate(metadata.stuff_classes)
        if i in classes
    ]
    handles += [Patch(facecolor=_unit(color), label=kind) for kind, color in kinds.items()]
    across = min(len(handles), 9)
    legend = 0.16 * -(-len(handles) // across) + 0.1
    figure, axes = _figure(len(seen), len(titles), _aspect(seen), legend)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=8, pad=3)
    for o, row in zip(seen, axes, strict=True):
        changed = o.coarse != o.refined
        painted = _grey(o.image) // 2 + 112
        if o.truth is not None and labelled:
            changed &= o.truth != ignore_label
            fixed, broken = (changed & (p == o.truth) for p in (o.refined, o.coarse))
            painted[changed] = STILL_WRONG
            painted[fixed], painted[broken] = FIXED, BROKEN
        else:
            painted[changed] = FIXED
        pictures = [o.image]
        if labelled and o.truth is not None:
            pictures.append(_colored(o.truth, metadata))
        pictures += [_colored(o.coarse, metadata), _colored(o.refined, metadata), painted]
        boxes = densest_boxes(changed)
        for i, (axis, picture) in enumerate(zip(row, pictures, strict=True)):
            _show(axis, picture)
            for box in boxes:
                _frame(axis, box, "black" if i == len(pictures) - 1 else BOX)
    figure.legend(
        handles=handles,
        loc="lower center",
        ncols=across,
        fontsize=6.5,
        frameon=False,
        handlelength=1.0,
        columnspacing=1.0,
        handletextpad=0.4,
    )
    _save(figure, path)


def class_affinity(features: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
    """Cosine of each node's feature with the mean feature of a class's nodes.

    Channels are standardised first: after a ReLU all features point into one octant and any two are
    similar, and a few strong channels would hide the others.

    Args:
        features: (C, h, w).
        members: (h, w) bool, at least one.

    Returns:
        (h, w) in [-1, 1].
    """
    spread, mean = torch.std_mean(features, dim=(1, 2), keepdim=True, correction=0)
    standard = (features - mean) / spread.clamp_min(1e-6)
    center = standard[:, members].mean(dim=1)
    return F.cosine_similarity(standard, center[:, None, None], dim=0)


def draw_features(
    path: Path,
    pairs: Sequence[tuple[Observation, int]],
    metadata: Metadata,
    ignore_label: int,
) -> None:
    """Fig. 6: a class's features before and after the graph, and where they should be.

    The paper does not say how it turns features into a picture; here it is
    :func:`class_affinity` to the class's nodes, of X and of X̂.

    Args:
        path: PNG, PDF or SVG to write.
        pairs: an observation and the class, per row; all with ground truth or all without.
        metadata: gives class names.
        ignore_label: pixels with it are grey in the ground truth.

    Raises:
        ValueError: for a network that refines nothing, or an image without a node of the class.
    """
    labelled = all(o.truth is not None for o, _ in pairs)
    titles = [
        "image",
        "before the graph, X",
        "after it, X̂",
        *(["ground truth"] if labelled else []),
    ]
    names = list(metadata.stuff_classes)
    figure, axes = _figure(len(pairs), len(titles), _aspect([o for o, _ in pairs]), legend=0.36)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=8, pad=3)
    shown = None
    for (o, label), row in zip(pairs, axes, strict=True):
        if o.after is None:
            raise ValueError(
                "the network has no graph (MODEL.CDGC.ENABLED False): nothing is before or after it"
            )
        map_ = o.truth_map if labelled and o.truth_map is not None else o.coarse_map
        members = map_ == label
        if not members.any():
            raise ValueError(f"{o.name}: no node of class {names[label]}; choose another class")
        _show(row[0], o.image)
        _note(row[0], f"{names[label]}, {o.name}", len(titles))
        height, width = o.image.shape[:2]
        for axis, features in zip(row[1:3], (o.before, o.after), strict=True):
            affinity = F.interpolate(
                class_affinity(features, members)[None, None],
                size=(height, width),
                mode="bilinear",
                align_corners=o.align_corners,
            )[0, 0]
            shown = axis.imshow(affinity.numpy(), cmap="RdYlBu_r", vmin=-1, vmax=1)
        hard = np.zeros((height, width), bool)
        if labelled and o.truth is not None:
            valid = o.truth != ignore_label
            hard = ((o.coarse == label) ^ (o.truth == label)) & valid
            mask = np.full((*o.truth.shape, 3), 255, np.uint8)
            mask[o.truth == label] = (30, 30, 30)
            mask[~valid] = 190
            _show(row[3], mask)
        for box in group_boxes(hard):
            for i, axis in enumerate(row):
                _frame(axis, box, "#d62728" if i == 3 else BOX)
    assert shown is not None
    inches = figure.get_size_inches()[1]
    bar = figure.add_axes((0.3, 0.2 / inches, 0.4, 0.07 / inches))
    figure.colorbar(shown, cax=bar, orientation="horizontal")
    bar.tick_params(labelsize=6, length=2, pad=1)
    figure.text(
        0.295,
        0.205 / inches,
        "cosine with the class's mean feature",
        fontsize=6.5,
        ha="right",
    )
    if labelled:
        figure.text(0.705, 0.205 / inches, "frames: hard pixels of the class", fontsize=6.5)
    _save(figure, path)
