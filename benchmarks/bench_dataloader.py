#!/usr/bin/env python
"""CPU time of one training sample: our mapper beside Detectron2's with its DeepLab augmentations.

    python benchmarks/bench_dataloader.py [--output benchmarks/results]

Both read the same 1024 x 2048 PNG pairs (generated street scenes with photo-like noise) and draw
the same augmentations from the same seeds: shortest edge one of 512, 768, …, 2048, crop 512 x 1024
(and 769 x 769), flip. The samples are compared first, value by value; the labels of ours are uint8,
as CDGCSegmentor takes them, Detectron2's int64. Two floors: "decoding alone" stops when the rows
that a crop needs are decoded, and "resizing alone" resizes the crop's part of the cached image with
Pillow, as equal samples ask for, and nothing else.

The second table is the only one in seconds of the clock: samples per second of two worker processes
beside one, on a machine with two idle cores.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from protocol import Unsteady, arguments, claim, measure, one_thread, report
from torch.utils.data import DataLoader, Dataset

from cdgcnet.data.augmentation import PaddedCrop, ScaledCrop, ScaleJitter
from cdgcnet.data.dataset_mapper import SemSegMapper
from cdgcnet.data.datasets.cityscapes import load_tree
from cdgcnet.data.image_io import ImageFile
from cdgcnet.data.label_spec import LabelSpec
from cdgcnet.data.synthetic.writer import write_street_scenes
from cdgcnet.data.train_loader import seeded

IGNORE = 255
EDGES = (512, 768, 1024, 1280, 1536, 1792, 2048)
PIXEL_MEAN = (123.675, 116.28, 103.53)
TARGET, TARGET_CACHED, TARGET_WORKERS = 0.50, 0.08, 1.8
EPOCHS = 6  # of the scenes, for the workers


def detectron2_mapper(crop: tuple[int, int]) -> DatasetMapper:
    """As projects/DeepLab/train_net.py of Detectron2 builds it for Cityscapes."""
    return DatasetMapper(
        is_train=True,
        augmentations=[
            T.ResizeShortestEdge(list(EDGES), 4096, "choice"),
            T.RandomCrop_CategoryAreaConstraint("absolute", crop, 1.0, IGNORE),
            T.RandomFlip(),
        ],
        image_format="RGB",
    )


def our_mapper(crop: tuple[int, int], cache: str = "") -> SemSegMapper:
    jitter = ScaleJitter((1.0, 1.0), EDGES)
    return SemSegMapper(
        augmentations=[
            ScaledCrop(jitter, PaddedCrop(crop, PIXEL_MEAN, IGNORE)),
            T.RandomFlip(),
        ],
        image_format="RGB",
        label_spec=LabelSpec(19, IGNORE),
        is_train=True,
        cache=cache,
        uint8_labels=True,
    )


def samples(mapper: Callable[[dict], dict], dicts: list[dict]) -> list[dict]:
    """One sample per scene; the seeds are the same for every mapper."""
    out = []
    for seed, dataset_dict in enumerate(dicts):
        with seeded(seed):
            out.append(mapper(dict(dataset_dict)))
    return out


def decode_samples(mapper: SemSegMapper, dicts: list[dict]) -> None:
    """What :func:`samples` does until it has the rows of each image that its crop needs."""
    assert mapper.crop is not None
    for seed, dataset_dict in enumerate(dicts):
        with seeded(seed):
            image = mapper._image(dataset_dict["file_name"])
            assert isinstance(image, ImageFile)
            size = (image.height, image.width)
            crop = mapper.crop.draw(size, mapper._labels(dataset_dict, size))
            image.rows(crop.transforms[0].rows_needed)


def prepare_resizes(mapper: SemSegMapper, dicts: list[dict]) -> Callable[[], list]:
    """The resizes of :func:`samples` from cached images, everything else done beforehand."""
    assert mapper.crop is not None
    pairs = []
    for seed, dataset_dict in enumerate(dicts):
        with seeded(seed):
            image = mapper._image(dataset_dict["file_name"])
            assert isinstance(image, np.ndarray)
            labels = mapper._labels(dataset_dict, image.shape[:2])
            pairs.append((mapper.crop.draw(image.shape, labels).transforms[0], image))
    return lambda: [transform.apply_image(image) for transform, image in pairs]


class _Samples(Dataset):
    def __init__(self, mapper: SemSegMapper, dicts: list[dict]) -> None:
        self.mapper, self.dicts = mapper, dicts

    def __len__(self) -> int:
        return EPOCHS * len(self.dicts)

    def __getitem__(self, index: int) -> dict:
        with seeded(index):
            return self.mapper(self.dicts[index % len(self.dicts)])


def nothing(sample: dict) -> None:
    """Sent to the main process instead of a sample."""


def seconds_per_sample(dataset: _Samples, workers: int, sent: Callable | None) -> float:
    """Seconds of the clock between samples, from the first one on."""
    batches = iter(DataLoader(dataset, batch_size=None, num_workers=workers, collate_fn=sent))
    next(batches)
    begin = time.perf_counter()
    count = sum(1 for _ in batches)
    return (time.perf_counter() - begin) / count


def measure_workers(dataset: _Samples, rounds: int, sent: Callable | None = None) -> float:
    """Samples per second of two workers / of one: the median over rounds."""
    return statistics.median(
        seconds_per_sample(dataset, 1, sent) / seconds_per_sample(dataset, 2, sent)
        for _ in range(rounds)
    )


def check_equal(expected: list[dict], found: list[dict]) -> int:
    """Number of values compared; all are equal, or this stops the benchmark."""
    for a, b in zip(expected, found, strict=True):
        for key in ("image", "sem_seg"):
            if not torch.equal(torch.as_tensor(a[key]).long(), torch.as_tensor(b[key]).long()):
                sys.exit(
                    f"bench_dataloader.py: error: samples differ in {key!r} ({a['file_name']})"
                )
    return sum(a[key].numel() for a in found for key in ("image", "sem_seg"))


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--scenes", type=int, default=12, help="pairs per timed call")
    args = parser.parse_args()
    one_thread()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_street_scenes(
            root / "scenes", num_train=args.scenes, num_val=1, height=1024, width=2048
        )
        dicts = load_tree(root / "scenes", "train", "scenes")
        for crop in ((512, 1024), (769, 769)):
            mappers = {
                "Detectron2": detectron2_mapper(crop),
                "ours": our_mapper(crop),
                "ours, cached": our_mapper(crop, str(root / "cache")),
            }
            # 769 rows do not fit a 512-row image: there Detectron2's crop is smaller, ours padded.
            usable = dicts if crop[0] <= min(EDGES) else []
            values = 0
            if usable:
                expected = samples(mappers["Detectron2"], usable)
                values = sum(
                    check_equal(expected, samples(mappers[n], usable)) for n in list(mappers)[1:]
                )
            try:
                plain = our_mapper(crop)
                times = measure(
                    {
                        **{n: (lambda m=m: samples(m, dicts)) for n, m in mappers.items()},
                        "decoding": lambda m=plain: decode_samples(m, dicts),
                        "resizing": prepare_resizes(mappers["ours, cached"], dicts),
                    },
                    rounds=args.rounds,
                )
            except Unsteady as error:
                rows.append([f"{crop[0]} x {crop[1]}", *["unsteady"] * 4, str(error)])
                continue
            rows.append(
                [
                    f"{crop[0]} x {crop[1]}",
                    f"{times.ratio('ours', 'Detectron2'):.2f}",
                    f"{times.ratio('decoding', 'Detectron2'):.2f}",
                    f"{times.ratio('ours, cached', 'Detectron2'):.3f}",
                    f"{times.ratio('resizing', 'Detectron2'):.3f}",
                    f"{values} values, 0 differ" if values else "not compared (padding differs)",
                ]
            )
        drawn, rounds = _Samples(our_mapper((512, 1024)), dicts), min(3, args.rounds)
        found = measure_workers(drawn, rounds)
        bound = f"{measure_workers(drawn, rounds, nothing):.2f}"
        workers = [
            claim("512 x 1024", found, TARGET_WORKERS, at_least=True),
            ["512 x 1024, samples made but not sent", bound, "", ""],
        ]
    size = np.prod((1024, 2048))
    report(
        "bench_dataloader",
        f"Training samples from 1024 x 2048 PNGs ({size} pixels), CPU time relative to Detectron2",
        [
            "crop",
            f"ours (target {TARGET:g})",
            "decoding alone",
            f"ours, decoded images cached (target {TARGET_CACHED:g})",
            "resizing alone",
            "outputs",
        ],
        rows,
        args.output,
    )
    report(
        "bench_dataloader_workers",
        "Training samples per second of two worker processes, relative to one",
        ["crop", "two workers / one", "target", "verdict"],
        workers,
        args.output,
    )


if __name__ == "__main__":
    main()
