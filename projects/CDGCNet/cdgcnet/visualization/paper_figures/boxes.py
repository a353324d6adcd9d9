"""Rectangles around the parts of an image that a figure points at."""

import cv2
import numpy as np

Box = tuple[int, int, int, int]  # left, top, width, height


def _meet(a: Box, b: Box) -> bool:
    across = a[0] < b[0] + b[2] and b[0] < a[0] + a[2]
    return across and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]


def _union(a: Box, b: Box) -> Box:
    left, top = min(a[0], b[0]), min(a[1], b[1])
    return left, top, max(a[0] + a[2], b[0] + b[2]) - left, max(a[1] + a[3], b[1] + b[3]) - top


def group_boxes(marked: np.ndarray, count: int = 2) -> list[Box]:
    """Rectangles around the largest groups of marked pixels.

    Args:
        marked: (H, W) bool.
        count: of rectangles at most.

    Returns:
        Largest group first. Groups closer than a fiftieth of the image's width are one, and so are
        rectangles that overlap. A rectangle over more than a third of the image is left out.
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
    chosen: list[Box] = []
    for _, box in sorted(boxes, reverse=True)[:count]:
        overlapping = [other for other in chosen if _meet(box, other)]
        for other in overlapping:
            chosen.remove(other)
            box = _union(box, other)
        chosen.append(box)
    return [box for box in chosen if 3 * box[2] * box[3] <= marked.size]


def densest_boxes(marked: np.ndarray, count: int = 3, side: int | None = None) -> list[Box]:
    """Squares with the most marked pixels, none touching another.

    A change along outlines is one thin group through the whole image; a frame around that would
    say nothing.

    Args:
        marked: (H, W) bool.
        count: of squares at most.
        side: of a square in pixels; a sixth of the image's shorter side by default.

    Returns:
        Fullest first; none less than half as full as the first.
    """
    height, width = marked.shape
    side = side or max(min(height, width) // 6, 1)
    # sums[i, j]: marked pixels of the square whose upper left corner is (i, j).
    table = np.pad(marked.astype(np.int64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    sums = table[side:, side:] - table[:-side, side:] - table[side:, :-side] + table[:-side, :-side]
    boxes: list[Box] = []
    least = max(sums.max() // 2, 1)
    while len(boxes) < count and sums.max() >= least:
        # The middle of all equally full squares, so that what it holds lies in its middle.
        places = np.argwhere(sums == sums.max())
        top, left = places[np.abs(places - places.mean(axis=0)).sum(axis=1).argmin()]
        boxes.append((int(left), int(top), side, side))
        apart = side + side // 4 + 1
        sums[max(top - apart, 0) : top + apart + 1, max(left - apart, 0) : left + apart + 1] = -1
    return boxes
