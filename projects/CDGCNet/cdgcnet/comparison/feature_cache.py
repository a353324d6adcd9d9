"""Feature maps on disk: half precision, memory-mapped, continued after a kill.

A cache folder is named after a digest of everything that decides its contents: the backbone's
weights, the preprocessing, the projection and the contents of every image and label file. So a
cache of anything else is another folder, and none is used by mistake.

    KEY/identity.json   what the key is the digest of
    KEY/features.npy    (nodes of all images, C) float16, image after image, row by row
    KEY/labels.npy      (labels of all images,) uint8
    KEY/finished        the number of images that are complete
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cdgcnet.comparison.features import FeatureExtractor, Projection, grid_size, label_size
from cdgcnet.data.decoding import image_size
from cdgcnet.utils.digests import digest, digest_of
from cdgcnet.utils.io import atomic_write, read_json
from cdgcnet.utils.progress import progress

PROJECTION_IMAGES = 150  # that the principal components are computed from
_FLUSH = 50  # images after which finished ones are written down
_FILES = ("identity.json", "features.npy", "labels.npy", "finished")


@dataclass(frozen=True)
class Plan:
    """The images of one cache, before any of them is read.

    Attributes:
        entries: Detectron2 dicts.
        digests: of image and label contents, one per entry.
        nodes: (h, w) of each image's feature map.
    """

    entries: Sequence[dict]
    digests: list[str]
    nodes: list[tuple[int, int]]

    @classmethod
    def read(cls, entries: Sequence[dict], extractor: FeatureExtractor) -> "Plan":
        """Read all files for their digests and sizes.

        Raises:
            FileNotFoundError, ValueError: naming the file.
        """
        digests, nodes = [], []
        for entry in progress(entries, "checking files", "image"):
            contents = [Path(entry[key]).read_bytes() for key in ("file_name", "sem_seg_file_name")]
            digests.append(digest([*contents, entry.get("sem_seg_lut") or b""]))
            size = image_size(entry["file_name"], extractor.max_pixels)
            nodes.append(grid_size(*size, extractor.shorter_side, extractor.stride))
        return cls(entries, digests, nodes)

    def bytes(self, channels: int, stride: int) -> int:
        """Of the cache's files."""
        labels = sum(math.prod(label_size(h, w, stride)) for h, w in self.nodes)
        return 2 * channels * sum(h * w for h, w in self.nodes) + labels


def _open_maps(folder: Path, mode: Literal["r", "r+"]) -> tuple[np.memmap, np.memmap]:
    open_map = np.lib.format.open_memmap
    try:
        return open_map(folder / "features.npy", mode), open_map(folder / "labels.npy", mode)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"feature cache {folder} is damaged ({error}); delete this folder and run the same "
            "command again"
        ) from error


def _allocate(path: Path, dtype: type, shape: tuple[int, ...]) -> None:
    """An array file whose blocks exist: a full disk is an error now, not a crash later."""
    np.lib.format.open_memmap(path, "w+", dtype, shape).flush()
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


class FeatureStore:
    """A complete cache, read through memory maps.

    Attributes:
        names: file names of the images.
        nodes: (h, w) of each image.
        stride: pixels per node.
        channels: C.
    """

    def __init__(self, folder: Path):
        """
        Raises:
            ValueError: naming the folder, if it is incomplete or a file is cut off.
        """
        self.folder = folder
        self.features, self.labels = _open_maps(folder, "r")
        identity = read_json(folder / "identity.json", "what a feature cache was made from")
        finished = int((folder / "finished").read_text(encoding="utf-8"))
        self.names: list[str] = [name for name, _, _ in identity["images"]]
        self.nodes: list[tuple[int, int]] = [(h, w) for _, _, (h, w) in identity["images"]]
        self.stride: int = identity["extractor"]["stride"]
        self.channels: int = self.features.shape[1]
        if finished != len(self.names):
            raise ValueError(f"feature cache {folder} holds {finished} of {len(self.names)} images")
        label_counts = [math.prod(label_size(h, w, self.stride)) for h, w in self.nodes]
        self._feature_starts = np.cumsum([0, *(h * w for h, w in self.nodes)])
        self._label_starts = np.cumsum([0, *label_counts])

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Features (h, w, C) float16 and labels uint8 (:func:`label_size`), as memory maps."""
        h, w = self.nodes[index]
        rows = self.features[self._feature_starts[index] : self._feature_starts[index + 1]]
        labels = self.labels[self._label_starts[index] : self._label_starts[index + 1]]
        return rows.reshape(h, w, -1), labels.reshape(label_size(h, w, self.stride))


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most ``count`` items at equal distances."""
    return list(items[:: max(1, math.ceil(len(items) / count))])


class FeatureCache:
    """Makes caches below one folder, or finds them there."""

    def __init__(self, root: Path, extractor: FeatureExtractor, channels: int):
        """
        Args:
            root: folder of all caches.
            extractor: gives features and labels.
            channels: of the projection; the backbone's width or more keeps all.
        """
        self.root = root
        self.extractor = extractor
        self.channels = min(channels, extractor.channels)

    def _identity(self, plan: Plan, train: Plan) -> dict[str, Any]:
        names = [Path(entry["file_name"]).name for entry in plan.entries]
        return {
            "weights": self.extractor.weights,
            "extractor": self.extractor.describe(),
            "channels": self.channels,
            "projection_of": digest_of(_spread(train.digests, PROJECTION_IMAGES)),
            "images": [list(x) for x in zip(names, plan.digests, plan.nodes, strict=True)],
        }

    def folder(self, plan: Plan, train: Plan) -> Path:
        """The cache of a plan's images, whose projection comes from the training images."""
        return self.root / digest_of(self._identity(plan, train))

    def missing_bytes(self, plan: Plan, train: Plan) -> int:
        """What is still to be written; 0 for a cache that is there."""
        if (self.folder(plan, train) / "finished").is_file():
            return 0
        return plan.bytes(self.channels, self.extractor.stride)

    def check_space(self, plans: Sequence[Plan], train: Plan, say: Callable[[str], None]) -> None:
        """Print the sizes of all caches, and refuse what the disk cannot hold.

        Raises:
            OSError: naming the folder, what is needed and what is free.
        """
        need = sum(self.missing_bytes(plan, train) for plan in plans)
        size = sum(plan.bytes(self.channels, self.extractor.stride) for plan in plans)
        self.root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.root).free
        images = sum(len(plan.entries) for plan in plans)
        say(
            f"Features: {images} images, {self.channels} of {self.extractor.channels} channels, "
            f"{size / 2**20:.0f} MiB in {self.root} ({need / 2**20:.0f} MiB to write, "
            f"{free / 2**30:.1f} GiB free)"
        )
        if need > free:
            raise OSError(
                f"--cache {self.root}: {need / 2**20:.0f} MiB are needed, {free / 2**20:.0f} MiB "
                "are free; choose another folder, or fewer --train-images or --channels"
            )

    def projection(self, train: Plan) -> Projection:
        """Of the training images, computed once and kept."""
        identity = self._identity(train, train)
        del identity["images"]
        path = self.root / f"projection-{digest_of(identity)}.npz"
        if not path.is_file():
            chosen = _spread(train.entries, PROJECTION_IMAGES)
            bar = progress(chosen, "principal components", "image", leave=True)
            fitted = Projection.fit((self.extractor(entry)[0] for entry in bar), self.channels)
            with atomic_write(path) as tmp_path, tmp_path.open("wb") as file:
                np.savez(file, **vars(fitted))
        try:
            with np.load(path) as kept:
                return Projection(kept["mean"], kept["basis"], float(kept["explained"]))
        except Exception as error:  # zipfile and NumPy raise many types for broken files
            raise ValueError(
                f"{path} is damaged ({error}); delete it and run the same command again"
            ) from error

    def open(self, plan: Plan, train: Plan, what: str) -> FeatureStore:
        """The complete cache of a plan's images; images that it lacks are computed now.

        Args:
            plan: the images.
            train: the training images, which the projection comes from.
            what: for the progress bar.

        Raises:
            ValueError: naming an image whose features are not finite, or a damaged cache.
        """
        identity = self._identity(plan, train)
        folder = self.folder(plan, train)
        count = len(plan.entries)
        done = self._begin(folder, identity, plan)
        if done < count:
            projection = self.projection(train)
            features, labels = _open_maps(folder, "r+")
            stride = self.extractor.stride
            row = sum(h * w for h, w in plan.nodes[:done])
            pixel = sum(math.prod(label_size(h, w, stride)) for h, w in plan.nodes[:done])
            bar = progress(
                desc=f"features, {what}", unit="image", total=count, leave=True, initial=done
            )
            for index in range(done, count):
                rows, kept = self.extractor(plan.entries[index])
                projected = projection(rows)
                if not np.isfinite(projected).all():
                    raise ValueError(
                        f"{plan.entries[index]['file_name']}: projected features leave half "
                        "precision's range; the projection's images do not represent the set"
                    )
                features[row : row + len(rows)] = projected
                labels[pixel : pixel + kept.size] = kept.ravel()
                row, pixel = row + len(rows), pixel + kept.size
                bar.update()
                if (index + 1) % _FLUSH == 0 or index + 1 == count:
                    features.flush()
                    labels.flush()
                    _write_text(folder / "finished", str(index + 1))
            bar.close()
        return FeatureStore(folder)

    def _begin(self, folder: Path, identity: dict[str, Any], plan: Plan) -> int:
        """Make a cache's files, or check those that are there; returns the finished images."""
        if all((folder / name).is_file() for name in _FILES):
            kept = read_json(folder / "identity.json", "what a feature cache was made from")
            if kept != json.loads(json.dumps(identity)):
                raise ValueError(
                    f"feature cache {folder} was made from something else than its name says; "
                    "delete this folder and run the same command again"
                )
            return int((folder / "finished").read_text(encoding="utf-8"))
        folder.mkdir(parents=True, exist_ok=True)
        nodes = sum(h * w for h, w in plan.nodes)
        pixels = sum(math.prod(label_size(h, w, self.extractor.stride)) for h, w in plan.nodes)
        _allocate(folder / "features.npy", np.float16, (nodes, self.channels))
        _allocate(folder / "labels.npy", np.uint8, (pixels,))
        _write_text(folder / "identity.json", json.dumps(identity))
        _write_text(folder / "finished", "0")
        return 0


def _write_text(path: Path, text: str) -> None:
    with atomic_write(path) as tmp_path:
        tmp_path.write_text(text, encoding="utf-8")
