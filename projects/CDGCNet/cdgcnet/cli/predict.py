"""Predict label maps and overlays for images, folders, videos and cameras.

    %(prog)s --config-file CONFIG --weights FILE --input PATH … --output DIR
    %(prog)s --onnx FILE --input PATH … --output DIR

PATH is an image, a folder of images with its subfolders, a video, or the number of a camera, which
is predicted until Ctrl-C. For each image NAME.* the output folder gets NAME.png, a palette PNG
whose values are the class ids, and NAME_overlay.jpg; for each video a folder NAME of such PNGs and
NAME_overlay.mp4. An input that cannot be read is reported, and the others are still predicted.
After an interruption the same command skips what is finished.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cdgcnet.cli.errors import UsageError
from cdgcnet.cli.options import (
    add_model_arguments,
    check_model_arguments,
    integer_from,
    load_predictor,
)

if TYPE_CHECKING:
    from cdgcnet.engine.prediction_record import Source


def is_camera(path: Path) -> bool:
    return str(path).isdecimal() and not path.exists()


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path is a folder, or something below it, links resolved."""
    # Unlike resolve, realpath accepts a loop of links.
    real, outer = os.path.realpath(path), os.path.realpath(folder)
    return real == outer or real.startswith(os.path.join(outer, ""))


def find_sources(inputs: Sequence[Path], output: Path) -> tuple[list["Source"], list["Source"]]:
    """Images and videos, named by their path below the given folder.

    Args:
        inputs: files, folders, and numbers of cameras.
        output: left out of the folders.

    Raises:
        FileNotFoundError, ValueError: for a path that is not there, a folder without images, or
            two inputs whose predictions would share a name.
    """
    from cdgcnet.data.decoding import IMAGE_SUFFIXES
    from cdgcnet.data.image_folder import images_in
    from cdgcnet.engine.prediction_record import Source
    from cdgcnet.engine.video import VIDEO_SUFFIXES

    images: list[Source] = []
    videos: list[Source] = []
    for path in inputs:
        if is_camera(path):
            videos.append(Source(path, f"camera{path}"))
        elif path.is_dir():
            if os.path.realpath(path) == os.path.realpath(output):
                raise ValueError(f"--output {output} is the input folder; choose another one")
            inside = images_in(path, recursive=True)
            if is_inside(output, path):  # earlier predictions are not images to predict
                inside = [x for x in inside if not is_inside(x, output)]
            if not inside:
                raise ValueError(
                    f"--input {path}: the folder holds no image ({', '.join(IMAGE_SUFFIXES)})"
                )
            images += [Source(x, x.relative_to(path).with_suffix("").as_posix()) for x in inside]
        elif path.is_file():
            found = videos if path.suffix.lower() in VIDEO_SUFFIXES else images
            found.append(Source(path, path.stem))
        else:
            raise FileNotFoundError(f"--input {path}: there is no such file or folder")
    by_name: dict[str, Source] = {}
    for source in (*images, *videos):
        other = by_name.setdefault(source.name, source)
        if other.path != source.path:
            raise ValueError(
                f"{other.path} and {source.path} would both be written to {source.name}.png; "
                "predict them into different folders"
            )
    for video in videos:  # whose label maps are in a folder
        for source in (*images, *videos):
            if source.name.startswith(f"{video.name}/"):
                raise ValueError(
                    f"the frames of {video.path} would be written to the folder {video.name}, as "
                    f"the prediction of {source.path} would; predict them into different folders"
                )
    # A file that is given twice is predicted once.
    return list(dict.fromkeys(images)), list(dict.fromkeys(videos))


def check_inputs_are_safe(sources: Sequence["Source"], targets: Sequence[Path]) -> None:
    """
    Raises:
        ValueError: naming a file to write that is one of the inputs, or a folder to write that
            holds one.
    """
    inputs = {os.path.realpath(source.path) for source in sources}
    folders = {str(folder) for path in inputs for folder in Path(path).parents}
    for target in targets:
        if os.path.realpath(target) in inputs:
            raise ValueError(f"--output: {target} is one of the input files")
        # The output folder itself is above its targets, so this is a video's folder.
        if os.path.realpath(target) in folders:
            raise ValueError(f"--output: the folder {target} holds input files")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument(
        "--input",
        nargs="+",
        type=Path,
        required=True,
        metavar="PATH",
        help="images, folders, videos, or camera numbers",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the predictions")
    parser.add_argument("--no-overlay", action="store_true", help="write label maps only")
    parser.add_argument(
        "--probabilities",
        action="store_true",
        help="also write NAME_probabilities.npz for each image: float16 (classes, H, W)",
    )
    parser.add_argument(
        "--batch-size",
        type=integer_from(1),
        default=1,
        metavar="N",
        help="consecutive images of the same size that share a forward pass; default: 1",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace earlier predictions")


def run(args: argparse.Namespace) -> int:
    check_model_arguments(args)

    from cdgcnet.engine.prediction import OutputFiles, predict_images
    from cdgcnet.engine.prediction_record import (
        PredictionRecord,
        Source,
        unfinished,
    )
    from cdgcnet.engine.video import (
        VideoReader,
        check_replaceable,
        ended_early,
        predict_video,
        video_paths,
    )
    from cdgcnet.utils.progress import progress

    images, videos = find_sources(args.input, args.output)
    if videos and args.probabilities:
        raise UsageError("--probabilities: not for videos, whose files would be enormous")
    if args.output.exists() and not args.output.is_dir():
        raise ValueError(f"--output {args.output} is a file; expected a folder")
    files = OutputFiles(args.output, not args.no_overlay, args.probabilities)
    targets = [path for x in images for path in files.paths(x.name)]
    targets += [path for x in videos for path in video_paths(x, files)]
    check_inputs_are_safe([*images, *videos], targets)
    record = PredictionRecord(args.output, args.overwrite)
    new_images = unfinished(images, record, lambda x: files.paths(x.name), args.overwrite)
    new_videos = unfinished(videos, record, lambda x: video_paths(x, files), args.overwrite)
    for video in new_videos:
        is_known = record.knows(video.name) or is_camera(video.path)
        check_replaceable(args.output / video.name, is_known)
    readers = [VideoReader(x.path, is_camera(x.path)) for x in new_videos]
    predictor, metadata = load_predictor(args)
    record.start(predictor.identity())
    failures = []

    def report(source: Source, error: Exception | str) -> None:
        message = str(error) or type(error).__name__
        known = str(source.path) in message
        failures.append(message if known else f"{source.path}: {message}")

    results = predict_images(predictor, new_images, files, record, metadata, args.batch_size)
    total = len(new_images)
    with progress(
        desc="images", unit="image", total=total, shown=bool(new_images), leave=True
    ) as bar:
        for source, error in results:
            bar.update()
            if error is not None:
                report(source, error)
    predicted = len(new_images) - len(failures)
    frames = 0
    for source, reader in zip(new_videos, readers, strict=True):
        if not reader.camera:
            record.add(source)
        with progress(desc=source.name, unit="frame", total=reader.count, leave=True) as bar:
            try:
                done = predict_video(
                    predictor, reader, source, files, metadata, args.batch_size, bar.update
                )
            except (ValueError, OSError, MemoryError) as error:
                report(source, error)
                continue
        frames += done
        if message := ended_early(reader, done):
            report(source, message)
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    parts = []
    if new_images:
        parts.append(f"{predicted} of {len(new_images)} images")
    if new_videos:
        parts.append(f"{frames} video frames")
    print(f"{' and '.join(parts) or 'nothing new'} predicted into {args.output}")
    if skipped := len(images) + len(videos) - len(new_images) - len(new_videos):
        print(f"{skipped} inputs were finished before and are skipped")
    return 1 if failures else 0
