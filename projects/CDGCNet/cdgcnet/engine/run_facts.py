"""What all processes of a run must have in common: command, config, data, weights and code."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import detectron2
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

import cdgc
import cdgcnet
from cdgcnet.config.identity import flat_config
from cdgcnet.config.validation import weights_file
from cdgcnet.utils.digests import digest


def _size(path: str) -> int:
    """In bytes; -1 for a file that is not there."""
    try:
        return Path(path).stat().st_size
    except OSError:
        return -1


def _files(dicts: list[dict]) -> Iterable[bytes]:
    """Names and sizes: a machine may keep its copy of the data in another folder."""
    for entry in dicts:
        for key in ("file_name", "sem_seg_file_name"):
            if key in entry:
                yield f"{Path(entry[key]).name} {_size(entry[key])}".encode()


def _sources() -> Iterable[bytes]:
    for package in (cdgc, cdgcnet):
        assert package.__file__
        folder = Path(package.__file__).parent
        for path in sorted(folder.rglob("*.py")):
            yield str(path.relative_to(folder)).encode()
            yield path.read_bytes()


def run_facts(cfg: CfgNode, args: argparse.Namespace) -> dict[str, Any]:
    """What a process knows of its run, by what a message calls it.

    Args:
        cfg: with its datasets registered.
        args: "resume" and "eval_only".
    """
    facts: dict[str, Any] = {
        "--resume": args.resume,
        "--eval-only": args.eval_only,
        "the source code of cdgcnet": f"{cdgcnet.__version__}, digest {digest(_sources())}",
        "the version of torch": torch.__version__,
        "the version of detectron2": detectron2.__version__,
        **flat_config(cfg),
    }
    for name in {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST}:
        dicts = DatasetCatalog.get(name)
        facts[f"the files of dataset {name}"] = (
            f"{len(dicts)} images, digest of names and sizes {digest(_files(dicts))}"
        )
    weights = weights_file(cfg)
    if weights and "://" not in weights:
        facts[f"the size of MODEL.WEIGHTS {weights}"] = _size(weights)
    return facts
