"""Install Detectron2 v0.6 as pure Python, without a compiler.

    %(prog)s                  # source archive from the package index
    %(prog)s --sdist FILE     # the same archive, already downloaded
    %(prog)s --source PATH    # an official checkout; PATH is not changed
    %(prog)s --wheel-dir DIR  # only put the wheel into DIR, to be installed on another machine

Run it after installing PyTorch. Detectron2 offers no package that installs on current Python,
and its own build needs a C++ compiler. CDGCNet uses no compiled operator, so this takes the Python
files, applies the few edits that current NumPy, Pillow, setuptools and PyTorch need, and installs
them with a stub for the operators. A Detectron2 that is already importable is never touched.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

SDIST = "pb1-detectron2==0.6"  # its Python files are those of the official tag v0.6
SDIST_SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
WAY_OUT = """\
Instead you can build the official source, with a C++ compiler:
    python -m pip install 'git+https://github.com/facebookresearch/detectron2.git'
or name files that you have: --source PATH (a checkout) or --sdist FILE (pb1-detectron2-0.6.tar.gz)\
"""
PROJECTS = {  # under projects/: under detectron2/projects/, where Detectron2's setup.py puts them
    "DeepLab/deeplab": "deeplab",
    "PointRend/point_rend": "point_rend",
    "Panoptic-DeepLab/panoptic_deeplab": "panoptic_deeplab",
}
NEEDED = ("detectron2", "detectron2.engine", "detectron2.projects.deeplab")


class InstallError(OSError):
    """Something the user can act on; the message says what and how."""


class Edit(NamedTuple):
    reason: str
    pattern: str
    replacement: str
    expected: int  # how many places the v0.6 archive has


RESOURCE_CALL = r"\bpkg_resources\.resource_filename\(\s*([^,]+),\s*(os\.path\.join\([^()]*\))\s*\)"
AUTOCAST = r"\btorch\.cuda\.amp( import autocast\b[^#]*?\b)with autocast\(\):"
EDITS = (
    Edit("Image.LINEAR left Pillow", r"\bImage\.LINEAR\b", "Image.BILINEAR", 1),
    # np.bool_ and np.int64 are single words, so \b keeps them
    Edit("aliases of builtins left NumPy", r"\bnp\.(bool|int|float|object|str)\b", r"\1", 19),
    Edit("copy=False can raise", r"\bnp\.array\((\w+), copy=False\)", r"np.asarray(\1)", 1),
    Edit("pkg_resources left setuptools", RESOURCE_CALL, r"str(resources.files(\1) / \2)", 1),
    Edit("its import", r"(?m)^import pkg_resources$", "from importlib import resources", 1),
    # only a warning, but at every start of a mixed-precision training run
    Edit(
        "torch.cuda.amp is deprecated",
        r"\btorch\.cuda\.amp( import GradScaler)\b",
        r"torch.amp\1",
        1,
    ),
    Edit("so is its autocast", AUTOCAST, r'torch.amp\1with autocast("cuda"):', 1),
)
FORBIDDEN = (*(edit.pattern for edit in EDITS), r"\bpkg_resources\b")

C_STUB = '''\
"""Stand-in for Detectron2's compiled operators: this is a pure-Python install."""


def get_compiler_version():  # default_setup() logs these three
    return "none (pure-Python install)"


get_cuda_version = get_compiler_version


def has_cuda():
    return False


def __getattr__(name):
    if name.startswith("_"):  # inspect, pickle and the import system probe for such names
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def missing_op(*args, **kwargs):
        raise NotImplementedError(
            f"detectron2._C.{name} is a compiled operator, but this Detectron2 is a pure-Python "
            "install. Uninstall it, then build the official source with a C++ compiler: python -m "
            "pip install 'git+https://github.com/facebookresearch/detectron2.git'"
        )

    return missing_op
'''

PYPROJECT = """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "detectron2"
version = "{version}"
[tool.setuptools.packages.find]
include = ["detectron2*"]
namespaces = false
[tool.setuptools.package-data]
"detectron2.model_zoo" = ["configs/**/*.yaml", "configs/**/*.py"]
"""

VERIFY = """\
import importlib, sys
for name in ["cv2", *sys.argv[1:]]:
    try:
        importlib.import_module(name)
    except Exception as error:
        sys.exit(f"import {name}: {type(error).__name__}: {error}")
import detectron2
print(f"detectron2 {detectron2.__version__} at {detectron2.__path__[0]}")
"""


def find_installed() -> Path | None:
    """Folder of the importable detectron2, or None; a folder without __init__.py is none."""
    spec = importlib.util.find_spec("detectron2")
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def read_version(package: Path) -> str:
    """`__version__` as written in the package's __init__.py, without importing it."""
    init = package / "__init__.py"
    found = re.search(r'(?m)^__version__ = "([^"]+)"', init.read_text(encoding="utf-8"))
    if found is None:
        raise InstallError(f'{init}: no line `__version__ = "..."`; is this Detectron2?')
    return found[1]


def check_prerequisites() -> None:
    """Torch and setuptools (to build a wheel) must be there before any download."""
    for name, package in (("torch", "torch torchvision"), ("setuptools", "'setuptools>=77'")):
        try:
            importlib.import_module(name)
        except (ImportError, OSError) as error:
            raise InstallError(
                f"cannot import {name} in {sys.executable} ({error}).\n"
                f"Install it first: python -m pip install {package}"
            ) from error


def check_hash(archive: Path) -> None:
    """Refuse any archive but the one these edits were written for."""
    if not archive.is_file():
        raise InstallError(f"{archive}: no such file")
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != SDIST_SHA256:
        raise InstallError(
            f"{archive}: sha256 is {found}, expected {SDIST_SHA256} ({SDIST}): a damaged or "
            f"different file. Nothing was installed; download it again.\n{WAY_OUT}"
        )


def run_python(*command: str) -> subprocess.CompletedProcess[str]:
    """Run this Python, quietly; for pip that means under the user's own configuration."""
    whole = [sys.executable, *command]
    return subprocess.run(whole, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def run_pip(*arguments: str) -> None:
    result = run_python("-m", "pip", *arguments, "--no-input")
    if result.returncode != 0:
        reason = "\n".join((result.stdout + result.stderr).strip().splitlines()[-8:])
        raise InstallError(f"pip {arguments[0]} failed:\n{reason}\n{WAY_OUT}")


def download_sdist(folder: Path) -> Path:
    """Download the archive; pip checks the hash as well, before it runs the setup.py inside."""
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{SDIST} --hash=sha256:{SDIST_SHA256}\n", encoding="utf-8")
    options = ["--no-deps", "--no-build-isolation", "--no-binary", ":all:", "--dest", str(folder)]
    run_pip("download", *options, "--requirement", str(wanted))
    return next(folder.glob("*.tar.gz"))


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack without letting a member write outside `folder`; return the archive's top folder."""
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, "data_filter"):
            tar.extractall(folder, filter="data")
        else:  # Python 3.10 before 3.10.12, 3.11 before 3.11.4; the hash vouches for the content
            tar.extractall(folder)
    return next(path for path in folder.iterdir() if path.is_dir())


def collect_tree(source: Path, build: Path) -> Path:
    """Copy to `build` what an installed Detectron2 has; return the package's folder there."""
    if not (source / "detectron2" / "__init__.py").is_file():
        raise InstallError(f"{source}: expected a Detectron2 checkout, found no detectron2 package")
    package, configs = build / "detectron2", source / "configs"
    ignore = shutil.ignore_patterns("__pycache__", "csrc", "*.so", "*.pyd")
    folders = {source / "projects" / path: f"projects/{name}" for path, name in PROJECTS.items()}
    if configs.is_dir():  # where a checkout keeps them; the sdist has them in model_zoo already
        folders[configs] = "model_zoo/configs"
    shutil.copytree(source / "detectron2", package, ignore=ignore, ignore_dangling_symlinks=True)
    for folder, name in folders.items():
        shutil.copytree(folder, package / name, ignore=ignore, dirs_exist_ok=True)
    if (source / "LICENSE").is_file():
        shutil.copy(source / "LICENSE", build)
    return package


def apply_edit(edit: Edit, package: Path, exact: bool) -> int:
    """Apply one edit to every Python file; with `exact` the number of places must be right."""
    places = 0
    for path in sorted(package.rglob("*.py")):
        text, count = re.subn(edit.pattern, edit.replacement, path.read_text(encoding="utf-8"))
        if count:
            path.write_text(text, encoding="utf-8")
            places += count
    if exact and places != edit.expected:
        raise InstallError(
            f"{edit.reason}: {places} places match, expected {edit.expected}; is this {SDIST}?"
        )
    return places


def check_no_leftovers(package: Path) -> None:
    """Whatever the version: nothing that current libraries have removed may remain."""
    for path in sorted(package.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for found in filter(None, (re.search(pattern, text) for pattern in FORBIDDEN)):
            place = (
                f"{path.relative_to(package.parent)}:{text.count(chr(10), 0, found.start()) + 1}"
            )
            raise InstallError(f"{place}: {found[0]!r} has no edit here.\n{WAY_OUT}")


def prepare(source: Path, build: Path, exact: bool) -> str:
    """Make the tree to build the wheel from; return its version."""
    package = collect_tree(source, build)
    for edit in EDITS:
        print(f"  {edit.reason}: {apply_edit(edit, package, exact)} places edited")
    check_no_leftovers(package)
    (package / "_C.py").write_text(C_STUB, encoding="utf-8")
    version = read_version(package).split("+")[0] + "+purepython"
    (build / "pyproject.toml").write_text(PYPROJECT.format(version=version), encoding="utf-8")
    return version


def explain_import_failure(reason: str) -> str:
    """The reason of a failed import, with what to do about it."""
    library = re.search(r"lib[\w.+-]+\.so[\w.]*", reason)
    if reason.startswith("import cv2") and library:
        package = {"libGL.so.1": " (libgl1 on Debian and Ubuntu)"}.get(library[0], "")
        return (
            f"{reason}\nOpenCV needs the system library {library[0]}{package}. Install it, or "
            "use the OpenCV without a display:\n"
            "    python -m pip uninstall -y opencv-python opencv-python-headless\n"
            "    python -m pip install opencv-python-headless"
        )
    if "No module named" in reason:
        reason += "\nInstall what is missing with pip; the dependencies of CDGCNet are enough"
    return reason


def verify(*modules: str) -> str:
    """Import `modules` in a fresh process; return Detectron2's version and place."""
    result = run_python("-W", "ignore", "-c", VERIFY, *modules)
    if result.returncode != 0:
        reason = explain_import_failure(result.stderr.strip())
        raise InstallError(
            f"Detectron2 is installed, but does not work:\n{reason}\n"
            "To install it anew: python -m pip uninstall detectron2 (or delete its folder), then "
            "call this again"
        )
    return result.stdout.strip().splitlines()[-1]


def install(source: Path | None, sdist: Path | None, wheel_dir: Path | None = None) -> None:
    """The whole way from an archive or a checkout to an importable Detectron2.

    Args:
        source, sdist: the checkout or the archive; the package index if both are None.
        wheel_dir: where the wheel goes instead of being installed.
    """
    check_prerequisites()
    with tempfile.TemporaryDirectory(prefix="detectron2-") as work:
        download, unpacked, build = (Path(work, name) for name in ("download", "unpacked", "build"))
        for folder in (download, unpacked, build):
            folder.mkdir()
        if source is None:
            print(f"{sdist or f'downloading {SDIST}'}", flush=True)
            archive = sdist or download_sdist(download)
            check_hash(archive)
        version = prepare(source or unpack(archive, unpacked), build, exact=source is None)
        print(f"building and installing {version}", flush=True)
        run_pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", work, str(build))
        wheel = str(next(Path(work).glob("*.whl")))
        if wheel_dir is not None:
            wheel_dir.mkdir(parents=True, exist_ok=True)
            print(shutil.copy(wheel, wheel_dir))
            return
        # metadata left over from a half-removed copy must not make pip skip the files
        run_pip("install", "--no-deps", "--force-reinstall", wheel)
    print(f"works: {verify(*NEEDED, 'detectron2.model_zoo')}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    origin = parser.add_mutually_exclusive_group()
    origin.add_argument("--source", type=Path, help="Detectron2 checkout or unpacked archive")
    origin.add_argument("--sdist", type=Path, help="pb1-detectron2-0.6.tar.gz, already downloaded")
    parser.add_argument("--wheel-dir", type=Path, metavar="DIR", help="put the wheel here instead")


def run(args: argparse.Namespace) -> None:
    if args.wheel_dir is not None:
        install(args.source, args.sdist, args.wheel_dir)
    elif package := find_installed():
        print(f"already installed, not changed: detectron2 {read_version(package)} at {package}")
        verify(*NEEDED)
    else:
        install(args.source, args.sdist)
