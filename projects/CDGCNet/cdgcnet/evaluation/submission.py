"""Makes and verifies packages for the test servers of Cityscapes and PASCAL VOC.

Formats: https://www.cityscapes-dataset.com/submit (one zip of label-id PNGs, found by the name
``CITY_SEQUENCE_FRAME*.png``) and the VOC2012 development kit (a tar of palette PNGs below
``results/VOC2012/Segmentation/comp6_test_cls``).
"""

import io
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from cdgcnet.data.datasets import cityscapes_classes, voc
from cdgcnet.data.decoding import UnusableImageError, image_size, open_image
from cdgcnet.data.label_io import read_labels
from cdgcnet.utils.io import atomic_write
from cdgcnet.utils.progress import progress
from cdgcnet.visualization.colors import palette_of

_MAX_MEMBER = 1 << 28  # bytes in a package that one label map may take


@dataclass(frozen=True)
class Server:
    """What a test server expects.

    Attributes:
        dataset: registered name of its test set.
        suffixes: of a package.
        values: train id -> value in the package's PNGs.
        mode: Pillow's name of the PNGs' pixel format.
        palette: of the PNGs, 256 RGB colors in sequence; None for PNGs without a palette.
        entry: image file -> name in the package.
    """

    dataset: str
    suffixes: tuple[str, ...]
    values: Sequence[int]
    mode: str
    palette: list[int] | None
    entry: Callable[[Path], str]


def _cityscapes_entry(image: Path) -> str:
    stem = image.stem.removesuffix("_leftImg8bit")
    if len(stem.split("_")) != 3:
        raise ValueError(
            f"{image}: not named as an image of Cityscapes; expected "
            "CITY_SEQUENCE_FRAME_leftImg8bit.png"
        )
    return f"{stem}_labelIds.png"


def voc_folder(competition: str) -> str:
    """Folder in a package; competition "comp5" (VOC data only) or "comp6" (any data)."""
    return f"results/VOC2012/Segmentation/{competition}_test_cls"


def server_of(benchmark: str, competition: str = "comp6") -> Server:
    """The server of "cityscapes" or "voc"."""
    if benchmark == "cityscapes":
        return Server(
            "cdgc_cityscapes_test",
            (".zip",),
            cityscapes_classes.LABEL_IDS,
            "L",
            None,
            _cityscapes_entry,
        )
    return Server(
        "cdgc_voc_test",
        (".tgz", ".tar.gz"),
        range(len(voc.NAMES)),
        "P",
        palette_of(voc.COLORS),
        lambda image: f"{voc_folder(competition)}/{image.stem}.png",
    )


def _png(server: Server, path: Path, size: tuple[int, int]) -> bytes:
    """A predicted label map of train ids in the format of the server."""
    labels = read_labels(path)
    if labels.shape != size:
        raise ValueError(
            f"{path}: label map is {labels.shape[0]} x {labels.shape[1]}, but the image is "
            f"{size[0]} x {size[1]} (height x width)"
        )
    largest = int(labels.max())
    if largest >= len(server.values):
        raise ValueError(
            f"{path}: value {largest} is no class; expected 0 to {len(server.values) - 1}"
        )
    values = np.zeros(256, np.uint8)
    values[: len(server.values)] = server.values
    image = Image.fromarray(values[labels])
    if server.palette is not None:
        image.putpalette(server.palette)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def pack(server: Server, images: Sequence[str], label_maps: Sequence[Path], package: Path) -> None:
    """Write a package under a temporary name, verify it, and only then rename it.

    Args:
        server: see :func:`server_of`.
        images: files of the test set.
        label_maps: one PNG of train ids per image.
        package: a file that does not exist yet.

    Raises:
        FileExistsError: if the package exists.
        FileNotFoundError, ValueError: naming a label map that is missing or wrong, or the reasons
            why the written package would be refused.
        OSError: if it cannot be written.
    """
    check_package_name(server, package)
    if package.exists():
        raise FileExistsError(f"{package} exists; choose another --output")
    missing = [p for p in label_maps if not p.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(label_maps)} label maps are missing, the first is {missing[0]}"
        )
    pairs = list(zip(images, label_maps, strict=True))
    with atomic_write(package) as tmp_path:
        entries = (
            (server.entry(Path(image)), _png(server, labels, image_size(image)))
            for image, labels in progress(pairs, "packing", "image", leave=True)
        )
        if server.suffixes == (".zip",):
            with zipfile.ZipFile(tmp_path, "w", zipfile.ZIP_STORED) as archive:  # PNGs are deflated
                for name, data in entries:
                    archive.writestr(name, data)
        else:
            with tarfile.open(tmp_path, "w:gz") as tar:
                for name, data in entries:
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        reasons = verify(server, images, tmp_path)
        if reasons:
            raise ValueError(
                f"{package}: not written, because a server would refuse it:\n  "
                + "\n  ".join(reasons)
            )


def check_package_name(server: Server, package: Path) -> None:
    """
    Raises:
        ValueError: for a suffix that the server does not take.
    """
    if not package.name.endswith(server.suffixes):
        raise ValueError(f"--output {package}: expected a name with {' or '.join(server.suffixes)}")


def _members(package: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files in a zip or tar; b"" for what cannot be a label map."""
    try:
        if zipfile.is_zipfile(package):
            with zipfile.ZipFile(package) as archive:
                for info in archive.infolist():
                    if not info.is_dir():
                        small = info.file_size <= _MAX_MEMBER
                        yield info.filename, archive.read(info) if small else b""
            return
        with tarfile.open(package) as tar:
            for member in tar:
                small = member.isfile() and member.size <= _MAX_MEMBER
                file = tar.extractfile(member) if small else None
                if file is not None:
                    yield member.name, file.read()
                elif not member.isdir():
                    yield member.name, b""  # a link: no image
    # RuntimeError: of zipfile, for encrypted members and unknown kinds of compression
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, RuntimeError) as error:
        raise ValueError(f"{package}: not a readable package ({error})") from error


def _wrong(server: Server, name: str, data: bytes, size: tuple[int, int]) -> str | None:
    """Why a server would refuse one file of a package; None if it would accept it."""
    try:
        with open_image(io.BytesIO(data), name) as image:
            if image.format != "PNG":
                return f"a {image.format} file; expected PNG"
            if image.mode != server.mode:
                return f"pixel format {image.mode}; expected {server.mode}"
            if (image.height, image.width) != size:
                return (
                    f"{image.height} x {image.width}; the image is {size[0]} x {size[1]} "
                    "(height x width)"
                )
            palette, values = image.getpalette(), set(np.unique(np.asarray(image)).tolist())
    except UnusableImageError as error:
        return str(error).removeprefix(f"{name}: ")
    unknown = sorted(values - set(server.values))
    if unknown:
        return f"holds the values {unknown[:8]}; expected {list(server.values)}"
    colors = 3 * (max(values) + 1)
    if server.palette is not None and (palette or [])[:colors] != server.palette[:colors]:
        return "its palette is not that of the dataset"
    return None


def verify(server: Server, images: Sequence[str], package: Path, limit: int = 20) -> list[str]:
    """Why a server would refuse a package; empty if it would accept it.

    Args:
        server: see :func:`server_of`.
        images: files of the test set.
        package: a zip or tar.
        limit: number of reasons to list; a last line counts the others.

    Raises:
        FileNotFoundError, ValueError: for a file that is not a package.
    """
    if not package.is_file():
        raise FileNotFoundError(f"{package}: no such file")
    expected = {server.entry(Path(image)): image for image in images}
    flat = server.mode == "L"  # Cityscapes looks for names anywhere in the package
    prefixes = {name.removesuffix("_labelIds.png"): name for name in expected}
    reasons = []
    seen: Counter[str] = Counter()
    members = progress(_members(package), "verifying", "file", len(images), leave=True)
    for name, data in members:
        path = PurePosixPath(name)
        key = str(path)
        if flat:
            key = prefixes.get("_".join(path.stem.split("_")[:3]), key)
        if key not in expected or path.suffix != ".png":
            reasons.append(f"{name}: belongs to no image of the test set")
            continue
        seen[key] += 1
        problem = _wrong(server, name, data, image_size(expected[key]))
        if problem:
            reasons.append(f"{name}: {problem}")
    reasons += [f"{name}: {count} files for one image" for name, count in seen.items() if count > 1]
    reasons += [f"{name}: missing" for name in expected if not seen[name]]
    if len(reasons) > limit:
        reasons = [*reasons[:limit], f"… and {len(reasons) - limit} more"]
    return reasons
