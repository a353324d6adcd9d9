"""Finds the config files that come with the project, in a checkout and in an installed package."""

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def configs_folder() -> Path:
    """The folder of the shipped configs.

    Raises:
        FileNotFoundError: if the installation has lost it.
    """
    # A wheel holds the configs inside the package; a checkout has them in its root.
    for folder in (_PACKAGE / "configs", _PACKAGE.parents[2] / "configs"):
        if (folder / "Base-CDGCNet-R101-OS8.yaml").is_file():
            return folder
    raise FileNotFoundError(f"{_PACKAGE}: the config files are missing; install cdgcnet again")


def config_path(name: str) -> str:
    """The path of a shipped config, like Detectron2's ``model_zoo.get_config_file``.

    Args:
        name: relative to ``configs/``, for instance
            "Cityscapes-SemanticSegmentation/cdgcnet_r101_os8_769_30k.yaml".

    Raises:
        FileNotFoundError: naming the configs of the same folder, or the folders.

    Example:
        >>> from cdgcnet import config_path, load_cfg
        >>> cfg = load_cfg(config_path("VOC-SemanticSegmentation/cdgcnet_r50_os8_cpu.yaml"))
        >>> cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        21
    """
    folder = configs_folder()
    path = folder / name
    if path.is_file():
        return str(path)
    near = next(p for p in (path, path.parent, folder) if p.is_dir())
    known = sorted(
        str(p.relative_to(folder)) for p in near.iterdir() if p.is_dir() or p.suffix == ".yaml"
    )
    raise FileNotFoundError(f"no shipped config is named {name!r}; there are {', '.join(known)}")


def find_config(name: str | os.PathLike) -> Path:
    """The file ``name``, or else the shipped config of that name.

    Args:
        name: a path; or a name as :func:`config_path` takes it, which may begin with "configs/",
            so that the same command works in a checkout and with an installed package.

    Raises:
        FileNotFoundError: naming the path.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if not path.is_absolute():
        shipped = configs_folder() / os.fspath(name).removeprefix("configs/")
        if shipped.is_file():
            return shipped
    raise FileNotFoundError(
        f"--config-file {name}: there is no such file, nor a config of that name"
    )
