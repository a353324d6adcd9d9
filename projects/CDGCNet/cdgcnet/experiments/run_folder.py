"""Reads the folder of a training run: how far it got and what it measured.

``WORK/PROFILE/SPLIT/TRAININGHASH-seedS`` holds one training run. Every row that shares it is
measured there: by the run's own evaluation, or by ``--eval-only`` into ``eval-HASH`` inside.
"""

from pathlib import Path
from typing import Any

from cdgcnet.engine.run_folder import RunFolder
from cdgcnet.experiments.model_cost import read_metrics
from cdgcnet.experiments.record import name_weights, select_scores
from cdgcnet.experiments.rows import config_hash, flat_text
from cdgcnet.utils.io import read_json

Scores = dict[str, dict[str, float]]


def trained_iterations(folder: Path) -> int:
    """Iterations that ``metrics.json`` shows; lines written by an evaluation do not count."""
    lines = [line for line in read_metrics(folder) if "total_loss" in line]
    return int(lines[-1].get("iteration", -1)) + 1 if lines else 0


def resumed_iteration(folder: Path) -> int:
    """The iteration at which a training run would resume; 0 without an intact checkpoint."""
    newest = RunFolder(folder).newest_checkpoint()
    return newest.iterations if newest else 0


def stored_config(folder: Path) -> dict[str, Any] | None:
    """The flat config of a run folder, and its text under "yaml"; None without a config."""
    path = folder / "config.yaml"
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    return {**flat_text(text), "yaml": text}


def starting_weights(config: dict[str, Any]) -> str:
    """What a training run with this flat config started from."""
    return name_weights(config["MODEL.WEIGHTS"], config["MODEL.RESNETS.STRIDE_IN_1X1"])


def has_final_weights(folder: Path) -> bool:
    """Whether a training run finished and left an intact ``model_final.pth``."""
    if not (folder / "config.yaml").is_file():
        return False
    newest = RunFolder(folder).newest_checkpoint()
    return newest is not None and newest.path.name == "model_final.pth"


def measured_scores(folder: Path) -> dict[str, Scores]:
    """Config hash -> scores that a finished run wrote to its folder."""
    config = stored_config(folder)
    path = folder / "results.json"
    if config is None or not path.is_file():
        return {}
    is_training = (folder / "metrics.json").is_file()
    if is_training and trained_iterations(folder) < config["SOLVER.MAX_ITER"]:
        return {}
    results = read_json(path, "the scores that an evaluation writes")
    found = {}
    for tta in (False, True) if config.get("TEST.AUG.ENABLED") else (False,):
        scores = select_scores(results, tta=tta)
        if scores or not results:  # a test set without labels has no results at all
            found[config_hash(config["yaml"], tta=tta)] = scores
    return found


def find_measurement(folder: Path, row_hash: str) -> tuple[Path, Scores] | None:
    """Where the config with this hash was measured, and its scores; None if it was not."""
    for place in (folder, *sorted(folder.glob("eval-*"))):
        scores = measured_scores(place)
        if row_hash in scores:
            return place, scores[row_hash]
    return None
