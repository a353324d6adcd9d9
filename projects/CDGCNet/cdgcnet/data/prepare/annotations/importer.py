"""Imports annotations as label PNGs, a class list and a split file: ``cdgcnet prepare import``."""

import argparse
import hashlib
import json
import re
import sys
from collections import Counter
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path

from cdgcnet.data.datasets.catalog import IGNORE_LABEL
from cdgcnet.data.datasets.pairing import PairingRule
from cdgcnet.data.decoding import image_size, read_bytes
from cdgcnet.data.prepare.annotations import formats
from cdgcnet.data.prepare.annotations.class_table import IGNORE, ClassTable, build_class_table
from cdgcnet.data.prepare.annotations.color_masks import color_table, count_colors, labels_of_mask
from cdgcnet.data.prepare.annotations.shapes import (
    AnnotatedImage,
    Overlaps,
    Shape,
    draw_labels,
)
from cdgcnet.data.prepare.archives import Content, File
from cdgcnet.data.prepare.conversion import Job, Runner
from cdgcnet.data.prepare.label_formats import save_labels
from cdgcnet.utils.io import atomic_write, read_json

_RECORD = "import.json"
# By format: the ends of image and annotation names that are no part of their stem, the class of
# unlabeled pixels, and which of two overlapping shapes shows.
_SUFFIXES = {
    "labelme": ("", ".json"),
    "rgb": ("", ".png"),
    "cityscapes-json": ("_leftImg8bit.png", "_gtFine_polygons.json"),
}
_UNLABELED = {"cityscapes-json": IGNORE, "rgb": IGNORE}
_OVERLAPS: dict[str, Overlaps] = {"coco-json": "smaller"}


def convert(
    annotated: AnnotatedImage,
    shapes: list[tuple[int, Shape]],
    table: ClassTable,
    unlabeled: int,
    overlaps: Overlaps,
    max_pixels: int,
    image: Content,
    target: Path,
) -> None:
    """Write the label PNG of one image."""
    height, width = image_size(annotated.image, max_pixels)
    if annotated.size not in (None, (height, width)):
        raise ValueError(
            f"{annotated.image}: it is {height} x {width}, but the annotations are for "
            f"{annotated.size[0]} x {annotated.size[1]} (height x width)"
        )
    labels = draw_labels(shapes, height, width, unlabeled, overlaps)
    save_labels(labels, table.colors, annotated.image, target, max_pixels)


def convert_mask(
    image: Path, table: ClassTable, unlabeled: int, max_pixels: int, mask: Content, target: Path
) -> None:
    """Write the label PNG of one color mask."""
    assert isinstance(mask, Path)  # not from an archive
    labels = labels_of_mask(mask, table, unlabeled, max_pixels)
    save_labels(labels, table.colors, image, target, max_pixels)


def _rule(args: argparse.Namespace) -> PairingRule:
    image_suffix, label_suffix = _SUFFIXES[args.format]
    return PairingRule(
        args.images,
        args.annotations,
        image_suffix if args.image_suffix is None else args.image_suffix,
        label_suffix if args.annotation_suffix is None else args.annotation_suffix,
        recursive=True,
    )


def _shape_jobs(
    args: argparse.Namespace, unlabeled: str, overlaps: Overlaps
) -> tuple[ClassTable, dict[str, Path], list[Job]]:
    """Class table, image of each stem, and the jobs for formats with shapes."""
    if args.format == "coco-json":
        annotated, names = formats.read_coco(args.annotations, args.images, args.crowd == "ignore")
    elif args.format == "cvat":
        annotated, names = formats.read_cvat(args.annotations, args.images)
    elif args.format == "labelme":
        annotated, names = formats.read_labelme(args.annotations, _rule(args))
    else:
        annotated, names = formats.read_cityscapes(args.annotations, _rule(args))
    table = build_class_table(args.classes, args.mapping, names, unlabeled)
    table.require(Counter(s.name for one in annotated for s in one.shapes), "shapes")
    unlabeled_id = table.label(unlabeled)
    assert unlabeled_id is not None
    jobs = []
    for one in annotated:
        shapes = []
        for shape in one.shapes:
            label = IGNORE_LABEL if shape.ignored else table.label(shape.name)
            if label is not None:
                shapes.append((label, shape))
        bare = AnnotatedImage(one.image, one.stem, (), one.size)
        work = partial(convert, bare, shapes, table, unlabeled_id, overlaps, args.max_pixels)
        jobs.append(Job(File(str(one.image)), _target(args, one.stem), work))
    return table, {one.stem: one.image for one in annotated}, jobs


def _mask_jobs(
    args: argparse.Namespace, unlabeled: str
) -> tuple[ClassTable, dict[str, Path], list[Job]]:
    """The same for color masks."""
    if args.classes is None:
        raise ValueError("rgb needs --classes, a file of lines NAME R G B")
    rule = _rule(args)
    if not args.annotations.is_dir():
        raise FileNotFoundError(f"--annotations {args.annotations}: there is no such folder")
    found = {i: label for i, label in rule.find_labels(rule.image_names()).items() if label}
    if not found:
        images = rule.image_names()
        raise FileNotFoundError(
            f"--annotations {args.annotations}: no mask fits an image in {args.images}. "
            + rule.hint(images[0], images)
        )
    table = color_table(build_class_table(args.classes, args.mapping, [], unlabeled))
    unlabeled_id = table.label(unlabeled)
    assert unlabeled_id is not None
    with ThreadPool(max(args.workers, 1)) as pool:
        count = partial(count_colors, max_pixels=args.max_pixels)
        counts = pool.map(count, [args.annotations / label for label in found.values()])
    table.require(sum(counts, Counter()), "pixels")
    jobs = []
    for image, label in found.items():
        work = partial(convert_mask, rule.images / image, table, unlabeled_id, args.max_pixels)
        jobs.append(Job(File(str(args.annotations / label)), _target(args, rule.stem(image)), work))
    return table, {rule.stem(image): rule.images / image for image in found}, jobs


def _target(args: argparse.Namespace, stem: str) -> Path:
    return args.output / "labels" / f"{stem}.png"


def _check_record(args: argparse.Namespace, table: ClassTable, options: dict[str, str]) -> None:
    """Refuse to continue an import of other annotations or with other options.

    Raises:
        ValueError: naming what differs.
    """
    digest = hashlib.sha256()
    for path in formats.annotation_files(args.annotations):
        content = read_bytes(path, "annotation file")
        digest.update(path.name.encode() + hashlib.sha256(content).digest())
    wanted = {
        "format": args.format,
        "classes": table.names,
        "mapping": table.mapping,
        **options,
        "annotations": digest.hexdigest(),
    }
    path = args.output / _RECORD
    if path.exists() and not args.overwrite:
        found = read_json(path, "the record of an import")
        different = [key for key in wanted if found.get(key) != wanted[key]]
        if different:
            raise ValueError(
                f"--output {args.output} holds an import that differs in {', '.join(different)}; "
                "choose another folder, or add --overwrite to make all labels again"
            )
    with atomic_write(path) as tmp_path:
        tmp_path.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")


def _write_lists(args: argparse.Namespace, table: ClassTable, images: dict[str, Path]) -> None:
    lines = [
        f"{name} {' '.join(map(str, color))}"
        for name, color in zip(table.names, table.colors, strict=True)
    ]
    pairs = [f"{p.relative_to(args.images).as_posix()} {stem}.png" for stem, p in images.items()]
    for name, content in (("classes.txt", lines), ("split.txt", pairs)):
        with atomic_write(args.output / name) as tmp_path:
            tmp_path.write_text("".join(f"{line}\n" for line in content), encoding="utf-8")


def import_annotations(args: argparse.Namespace) -> int:
    """Import annotations; the exit code is 1 if a label could not be made.

    Raises:
        ValueError, OSError: for annotations that cannot be used as they are.
    """
    if not args.images.is_dir():
        raise FileNotFoundError(f"--images {args.images}: there is no such folder")
    unlabeled = args.unlabeled or _UNLABELED.get(args.format, "background")
    overlaps = args.overlaps or _OVERLAPS.get(args.format, "later")
    if args.format == "rgb":
        table, images, jobs = _mask_jobs(args, unlabeled)
    else:
        table, images, jobs = _shape_jobs(args, unlabeled, overlaps)
    if len(images) < len(jobs):
        raise ValueError(f"--images {args.images}: several images share a stem; rename them")
    options = {"unlabeled": unlabeled, "overlaps": overlaps, "crowd": args.crowd}
    _check_record(args, table, options)
    _write_lists(args, table, images)
    runner = Runner(args.workers, args.overwrite)
    try:
        runner.run(jobs, "labels")
    finally:
        print(f"{args.output}: {runner.made} labels made, {runner.kept} were there")
        for problem in runner.failures:
            print(f"failed: {problem}", file=sys.stderr)
    print(
        f"Pixels outside all shapes: {unlabeled}. Where shapes overlap, the {overlaps} one shows."
        if args.format != "rgb"
        else f"{len(table.names)} classes by color."
    )
    output, source = args.output.absolute(), args.images.absolute()
    name = re.sub(r"[^\w.-]", "_", f"my_{output.name}")
    print(
        "DATASETS:\n  FOLDERS:\n"
        f"    - {{NAME: {name}, IMAGES: {source}, LABELS: {output / 'labels'},\n"
        f"       SPLIT: {output / 'split.txt'}, CLASSES: {output / 'classes.txt'}}}"
    )
    return 1 if runner.failures else 0
