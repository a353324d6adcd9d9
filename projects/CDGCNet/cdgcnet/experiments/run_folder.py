"""What the folder of a training says of it: how far it came, what was measured.

A work folder ``WORK/PROFILE/SPLIT/TRAININGHASH-seedS`` holds one training. All rows of that
training are measured from it: by the training's own evaluation, or by ``--eval-only`` into
``eval-HASH`` inside it.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cdgcnet.experiments.model_cost import read_metrics
from cdgcnet.experiments.record import name_weights, select_scores
from cdgcnet.experiments.rows import config_hash, flat_text


@dataclass
class Found:
    """Finished measurements of a folder: scores by config hash."""

    folder: Path
    scores: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)


def trained_iterations(folder: Path) -> int:
    """Where a training stands by its metrics; lines of an evaluation count no iteration."""
    lines = [line for line in read_metrics(folder) if "total_loss" in line]
    return int(lines[-1].get("iteration", -1)) + 1 if lines else 0


def resumed_iteration(folder: Path) -> int:
    """Where a training would go on: after its last checkpoint; 0 without one."""
    last = folder / "last_checkpoint"
    if not last.is_file():
        return 0
    name = last.read_text(encoding="utf-8").strip()
    found = re.fullmatch(r"model_(\d+)\.pth", name)
    return int(found[1]) + 1 if found else trained_iterations(folder)


def stored_config(folder: Path) -> dict[str, Any] | None:
    """The flat config of a training's folder, with its text as "yaml"; None without one."""
    path = folder / "config.yaml"
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    return {**flat_text(text), "yaml": text}


def starting_weights(config: dict[str, Any]) -> str:
    """What a training with this flat config started from, by name."""
    return name_weights(config["MODEL.WEIGHTS"], config["MODEL.RESNETS.STRIDE_IN_1X1"])


def _last_command_evaluates(folder: Path) -> bool:
    log = folder / "log.txt"
    if not log.is_file():
        return False
    text = log.read_text(encoding="utf-8", errors="replace")
    found = re.findall(r"Command line: Namespace\(.*?eval_only=(True|False)", text)
    return bool(found) and found[-1] == "True"


def is_trained(folder: Path, config: dict[str, Any]) -> bool:
    """Whether a training came to its end, by its metrics."""
    return trained_iterations(folder) >= config["SOLVER.MAX_ITER"]


def has_final_weights(folder: Path) -> bool:
    """Whether a training left its ``model_final.pth``, to be evaluated."""
    last = folder / "last_checkpoint"
    if not last.is_file() or not (folder / "config.yaml").is_file():
        return False
    final = last.read_text(encoding="utf-8").strip() == "model_final.pth"
    return final and (folder / "model_final.pth").is_file()


def find_trainings(work: Path) -> dict[tuple[str, int], Path]:
    """(hash of the training, seed) -> its folder in WORK/PROFILE/SPLIT, of whatever name.

    A finished one counts before the others of its key.
    """
    found: dict[tuple[str, int], Path] = {}
    for path in sorted(work.glob("*/config.yaml")):
        config = stored_config(path.parent)
        assert config is not None
        key = (config_hash(config["yaml"], training=True), config["SEED"])
        if key not in found or is_trained(path.parent, config):
            found[key] = path.parent
    return found


def finished_scores(folder: Path) -> Found:
    """What the folder of a training, or of an evaluation inside it, has measured."""
    found = Found(folder)
    config = stored_config(folder)
    path = folder / "results.json"
    if config is None or not path.is_file():
        return found
    of_training = (folder / "metrics.json").is_file()
    # A hand-made evaluation into the training's own folder need not have config.yaml's settings.
    if of_training and (not is_trained(folder, config) or _last_command_evaluates(folder)):
        return found
    results = json.loads(path.read_text(encoding="utf-8"))
    for tta in (False, True) if config.get("TEST.AUG.ENABLED") else (False,):
        scores = select_scores(results, tta=tta)
        if scores or not results:  # a test set without labels has no results at all
            found.scores[config_hash(config["yaml"], tta=tta)] = scores
    return found


def find_measurement(folder: Path, row_hash: str) -> Found | None:
    """What a training's folder has measured of the config with a hash; None if nothing."""
    for place in (folder, *sorted(folder.glob("eval-*"))):
        found = finished_scores(place)
        if row_hash in found.scores:
            return found
    return None
