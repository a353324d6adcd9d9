"""Training augmentations: base size -> scale jitter -> crop with padding -> flip (spec).

Detectron2's own augmentations are used where they fit. ``FixedSizeCrop`` does not: it uses one
random number for both axes, and in version 0.6 it pads labels with class 0.
"""

from collections.abc import Callable, Sequence

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from fvcore.transforms.transform import CropTransform, Transform, TransformList

from cdgcnet.data.transforms import ResizeCropTransform
from cdgcnet.utils.image_size import shortest_edge_size

# Ratios are multiples of 1/64. Steps this fine make no difference to training, and the resized
# sides share a large divisor with the original ones, which makes cropping before resizing cheap.
RATIO_STEPS = 64


class ScaleJitter(T.Augmentation):
    """Resize to a base size times a random ratio, in one interpolation."""

    def __init__(self, ratios: Sequence[float], short_edge: Sequence[int] = (0,)):
        """
        Args:
            ratios: lowest and highest ratio; drawn uniformly, in steps of 1/64.
            short_edge: shortest edge in pixels at ratio 1, one drawn from the list; 0 keeps the
                image's own size.
        """
        super().__init__()
        self._init(locals())

    def draw(self, shape: tuple[int, ...]) -> T.ResizeTransform:
        """For an image of shape (H, W, …)."""
        height, width = shape[:2]
        edge = int(np.random.choice(list(self.short_edge)))
        low, high = self.ratios
        ratio = low
        if low < high:
            ratio = round(np.random.uniform(low, high) * RATIO_STEPS) / RATIO_STEPS
            ratio = min(max(ratio, low), high)
        if edge:
            ratio *= edge / min(height, width)
        new_height = max(1, round(height * ratio))
        new_width = max(1, round(width * ratio))
        return T.ResizeTransform(height, width, new_height, new_width)

    def get_transform(self, image: np.ndarray) -> Transform:
        return self.draw(image.shape)


class PadTransform(Transform):
    """Pad at the right and bottom: images with a color, labels with the ignore label."""

    def __init__(self, bottom: int, right: int, color: Sequence[float], ignore_label: int):
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        if not (self.bottom or self.right):
            return img
        padded = np.empty(
            (img.shape[0] + self.bottom, img.shape[1] + self.right, *img.shape[2:]), img.dtype
        )
        color = np.asarray(self.color) if img.ndim == 3 else np.mean(self.color)
        # With the rounded mean, padding is almost zero after normalization, like batch padding.
        padded[:] = np.round(color)
        padded[: img.shape[0], : img.shape[1]] = img
        return padded

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        if not (self.bottom or self.right):
            return segmentation
        padding = ((0, self.bottom), (0, self.right))
        return np.pad(segmentation, padding, constant_values=self.ignore_label)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords


class PaddedCrop(T.Augmentation):
    """A random crop of exactly the given size; smaller images are padded.

    With ``max_category_area`` below 1, up to ten crops are drawn until no single category covers
    more than that fraction of the labeled pixels.
    """

    input_args = ("image", "sem_seg")
    attempts = 10

    def __init__(
        self,
        size: Sequence[int],
        color: Sequence[float],
        ignore_label: int,
        max_category_area: float = 1.0,
    ):
        super().__init__()
        self._init(locals())

    def _category_area(self, labels: np.ndarray) -> float:
        counts = np.bincount(labels.ravel(), minlength=self.ignore_label + 1)
        counts[self.ignore_label] = 0
        return counts.max() / max(counts.sum(), 1)

    def window(
        self, height: int, width: int, labels: Callable[[int, int, int, int], np.ndarray]
    ) -> tuple[int, int, int, int]:
        """Draw (y, x, h, w) inside an image; ``labels`` gives the labels of such a window."""
        h, w = min(height, self.size[0]), min(width, self.size[1])
        for _ in range(self.attempts):
            y = np.random.randint(height - h + 1)
            x = np.random.randint(width - w + 1)
            if self.max_category_area >= 1:
                break
            if self._category_area(labels(y, x, h, w)) <= self.max_category_area:
                break
        return y, x, h, w

    def padding(self, h: int, w: int) -> PadTransform:
        """From a window's size to the crop's."""
        return PadTransform(self.size[0] - h, self.size[1] - w, self.color, self.ignore_label)

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray) -> Transform:
        def labels(y: int, x: int, h: int, w: int) -> np.ndarray:
            return sem_seg[y : y + h, x : x + w]

        y, x, h, w = self.window(image.shape[0], image.shape[1], labels)
        return TransformList([CropTransform(x, y, w, h), self.padding(h, w)])


class ScaledCrop(T.Augmentation):
    """:class:`ScaleJitter`, then :class:`PaddedCrop`: the same draws and pixels, in one step."""

    input_args = ("image", "sem_seg")

    def __init__(self, jitter: ScaleJitter, crop: PaddedCrop):
        super().__init__()
        self._init(locals())

    def draw(self, shape: tuple[int, ...], sem_seg: np.ndarray) -> TransformList:
        """For an image of shape (H, W, …) that need not be decoded yet."""
        resize = self.jitter.draw(shape)

        def labels(y: int, x: int, h: int, w: int) -> np.ndarray:
            return ResizeCropTransform(resize, y, x, h, w).apply_segmentation(sem_seg)

        y, x, h, w = self.crop.window(resize.new_h, resize.new_w, labels)
        return TransformList([ResizeCropTransform(resize, y, x, h, w), self.crop.padding(h, w)])

    def get_transform(self, image: np.ndarray, sem_seg: np.ndarray) -> Transform:
        return self.draw(image.shape, sem_seg)


class ResizeForTest(T.Augmentation):
    """Detectron2's ``ResizeShortestEdge``, except that the upper limit always holds.

    Detectron2 ignores ``max_size`` where ``min_size`` is 0, so a photo of any size would go
    through the network as it is.
    """

    def __init__(self, min_size: int, max_size: int):
        """
        Args:
            min_size: the shorter edge in pixels; 0 keeps the image's own size.
            max_size: the longer edge at most, in pixels.
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        new_height, new_width = shortest_edge_size((height, width), self.min_size, self.max_size)
        if (new_height, new_width) == (height, width):
            return T.NoOpTransform()
        return T.ResizeTransform(height, width, new_height, new_width)


def build_train_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """The training augmentations of a config."""
    jitter = ScaleJitter(cfg.INPUT.SCALE_JITTER, cfg.INPUT.MIN_SIZE_TRAIN)
    augmentations: list[T.Augmentation] = [jitter]
    if cfg.INPUT.CROP.ENABLED:
        crop = PaddedCrop(
            cfg.INPUT.CROP.SIZE,
            cfg.MODEL.PIXEL_MEAN,
            cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA,
        )
        augmentations = [ScaledCrop(jitter, crop)]
    if cfg.INPUT.COLOR_JITTER:
        augmentations += [
            T.RandomBrightness(0.75, 1.25),
            T.RandomContrast(0.75, 1.25),
            T.RandomSaturation(0.75, 1.25),
        ]
    if cfg.INPUT.RANDOM_FLIP == "horizontal":
        augmentations.append(T.RandomFlip(horizontal=True))
    return augmentations


def build_test_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """The resize before inference, INPUT.MIN_SIZE_TEST and INPUT.MAX_SIZE_TEST."""
    return [ResizeForTest(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)]
