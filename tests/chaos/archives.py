"""Hostile archives: nothing is written outside the target folder, and damage is named."""

import io
import random
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from cases import in_child, refusal
from outcomes import RIGHT, WRONG, Outcome
from PIL import Image

from cdgcnet.data.prepare.archives import find
from cdgcnet.data.prepare.conversion import Job, Runner

NAMES = (
    "masks/a.png",
    "../masks/a.png",
    "../../../masks/a.png",
    "/masks/a.png",
    "masks/../../a/masks/a.png",
    "masks\\..\\..\\a.png",
    "C:/masks/a.png",
    "./masks/./a.png",
    "masks/" + "é" * 100 + ".png",
    "__MACOSX/masks/._a.png",
)


def _png(rng: random.Random) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 5), rng.randrange(256), np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def write_zip(path: Path, rng: random.Random) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in rng.sample(NAMES, 4):
            archive.writestr(name, _png(rng))
        if rng.random() < 0.3:
            archive.writestr("masks/bomb.png", bytes(64 << 20))
        if rng.random() < 0.3:
            link = zipfile.ZipInfo("masks/link.png")
            link.external_attr = 0o120777 << 16  # a symbolic link
            archive.writestr(link, "/etc/passwd")


def write_tar(path: Path, rng: random.Random) -> None:
    with tarfile.open(path, rng.choice(("w", "w:gz", "w:bz2"))) as archive:
        for name in rng.sample(NAMES, 4):
            info, data = tarfile.TarInfo(name), _png(rng)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            if rng.random() < 0.4:
                info = tarfile.TarInfo("masks/special.png")
                info.type, info.linkname = (
                    kind,
                    rng.choice(("/etc/passwd", "../../x", "masks/a.png")),
                )
                archive.addfile(info)


def case(rng: random.Random, folder: Path) -> Outcome:
    inside, source = folder / "target", folder / "source"
    inside.mkdir()
    source.mkdir()
    is_zip = rng.random() < 0.5
    path = source / ("set.zip" if is_zip else "set.tar")
    (write_zip if is_zip else write_tar)(path, rng)
    if rng.random() < 0.4:
        data = bytearray(path.read_bytes())
        if rng.random() < 0.5:
            del data[rng.randrange(len(data)) :]
        else:
            for _ in range(10):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(data))
    before = {p for p in folder.rglob("*") if inside not in p.parents} | {folder / "log.txt"}

    def work() -> Outcome:
        try:
            sources = find([source], [r"masks/(?P<name>[^/]+)\.png"], [])
            pairs = sources.first(r"masks/(?P<name>[^/]+)\.png", "name").items()
            runner = Runner(workers=0)
            runner.run([Job(file, inside / f"{name}.png") for name, file in pairs], "chaos")
            sources.close()
        except (ValueError, OSError) as error:
            return refusal(error, [path.name, "target", "masks"])
        return Outcome(RIGHT, f"{runner.made} files, {len(sources.problems)} problems named")

    outcome = in_child(work, folder / "log.txt")
    outside = {p for p in folder.rglob("*") if inside not in p.parents} - before
    if outside:
        return Outcome(WRONG, f"written outside of the target: {sorted(map(str, outside))[:3]}")
    if any(p.is_symlink() for p in inside.rglob("*")):
        return Outcome(WRONG, "a link was unpacked")
    return outcome
