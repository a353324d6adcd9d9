"""Small downloads in the official formats, for the tests of the preparation.

Fixtures return functions: under pytest's importlib mode test files cannot import each other.
"""

import tarfile
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
from PIL import Image

from cdgcnet.data.prepare.archives import find
from cdgcnet.data.prepare.conversion import Runner

HEIGHT, WIDTH = 4, 6


@pytest.fixture(scope="session")
def image():
    """``image(path)`` writes an image of 4 x 6 pixels, JPEG or PNG."""

    def write(path: Path, height: int = HEIGHT, width: int = WIDTH) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(path)
        return path

    return write


@pytest.fixture(scope="session")
def png():
    """``png(path, labels)`` writes a label PNG; with ``palette``, as VOC's are."""

    def write(path: Path, labels, palette: bool = False) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        out = Image.fromarray(np.broadcast_to(np.uint8(labels), (HEIGHT, WIDTH)))
        if palette:
            out.putpalette([i * 7 % 256 for i in range(768)])
        out.save(path)
        return path

    return write


@pytest.fixture(scope="session")
def mat():
    """``mat(path, name=array, …)`` writes a MATLAB file of version 5."""

    def write(path: Path, **variables) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        scipy.io.savemat(path, variables, do_compression=True)
        return path

    return write


@pytest.fixture(scope="session")
def mat73():
    """``mat73(path, name=array, …)`` writes MATLAB 7.3: HDF5, transposed, behind 512 bytes."""

    def write(path: Path, **variables) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w", userblock_size=512) as file:
            for name, value in variables.items():
                file[name] = np.asarray(value).T
        with path.open("r+b") as file:
            file.write(b"MATLAB 7.3 MAT-file".ljust(512))
        return path

    return write


@pytest.fixture(scope="session")
def read():
    """``read(path)``: raw values of a label PNG and its mode."""

    def values(path: Path):
        with Image.open(path) as labels:
            return np.asarray(labels), labels.mode

    return values


@pytest.fixture(scope="session")
def pack():
    """``pack(folder, archive)``: all below ``folder`` as zip, tar or tgz; returns the archive."""

    def write(folder: Path, archive: Path) -> Path:
        archive.parent.mkdir(parents=True, exist_ok=True)
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
                for file in files:
                    out.write(file, file.relative_to(folder))
        else:
            mode = "w" if archive.suffix == ".tar" else "w:gz"
            with tarfile.open(archive, mode, format=tarfile.GNU_FORMAT) as out:
                for file in files:
                    out.add(file, file.relative_to(folder))
        return archive

    return write


@pytest.fixture
def prepare(tmp_path):
    """``prepare(module, *src)`` into tmp_path/root: the splits by name, and the runner."""

    def call(module, *src: Path, overwrite: bool = False, workers: int = 0):
        root = tmp_path / "root"
        folder = root / module.FOLDER
        runner = Runner(workers, overwrite)
        here = [folder] if folder.is_dir() else []
        sources = find([*src, *here], module.WANTED, module.OFFICIAL)
        try:
            splits = module.prepare(sources, root, runner)
        finally:
            sources.close()
        runner.failures[:0] = sources.problems
        return {split.name: split for split in splits}, runner

    return call


@pytest.fixture(scope="session")
def tree():
    """``tree(folder)``: {path: bytes} of all files below, to compare whole trees."""

    def files(folder: Path) -> dict[str, bytes]:
        return {
            p.relative_to(folder).as_posix(): p.read_bytes()
            for p in sorted(folder.rglob("*"))
            if p.is_file()
        }

    return files
