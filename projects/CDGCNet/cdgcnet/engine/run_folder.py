"""The folder of a run: what it holds, whether a run may start in it, and how it is written.

Files::

    config.yaml, log.txt                 of the training, or of the evaluation if there is none
    metrics.json                         of the training, one line every 20 iterations
    model_0000999.pth, model_final.pth   checkpoints, which the run can be resumed from
    last_checkpoint                      the name of the newest one
    model_best.pth                       the weights with the best score
    results.json, inference/             of the last evaluation
    run.lock                             while a run works here

Every file is written under another name first and then renamed, so that a kill or a full disk
leaves either the new file or the old one.
"""

import json
import logging
import math
import re
import shutil
import zipfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from detectron2.config import CfgNode

from cdgcnet.checkpoint.reading import load_torch
from cdgcnet.config.identity import complete_config, identifies
from cdgcnet.evaluation.testing import TTA_SUFFIX
from cdgcnet.utils.io import atomic_write, backup_existing, free_name

WANDB_RUN_ID = "wandb_run_id"  # a file with the name of the run there
_NUMBERED = re.compile(r"model_(\d+)\.pth")


class Checkpoint(NamedTuple):
    """An intact checkpoint.

    Attributes:
        path: of the file.
        iterations: number of iterations it was trained for.
    """

    path: Path
    iterations: int


@lru_cache(maxsize=64)
def _read_iterations(path: Path, size: int, mtime: int) -> int | str:
    """The iterations of a checkpoint, or what is wrong with it; size and time are for the cache."""
    if size == 0:
        return "empty"
    try:
        state = load_torch(path, in_place=True)
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        return f"not written completely ({error})"
    except Exception as error:  # torch raises many types
        return f"not readable ({str(error).splitlines()[0]})"
    if not isinstance(state, dict) or not {"model", "trainer", "iteration"} <= state.keys():
        return "not a checkpoint of a training run"
    return int(state["iteration"]) + 1


def _iterations(path: Path) -> int | str:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return "not there"
    return _read_iterations(path, stat.st_size, stat.st_mtime_ns)


class RunFolder:
    """Reads, judges and writes the files of a run, except those of its evaluations."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.json"
        self.results = self.path / "results.json"
        self.tag = self.path / "last_checkpoint"

    # ------------------------------------------------------------ checkpoints
    def weight_files(self) -> list[Path]:
        """All checkpoints and other weights, whole or not; no unfinished temporary files."""
        return sorted(p for p in self.path.glob("*.pth") if ".part." not in p.name)

    def holds_training(self) -> bool:
        """Whether a training run has saved something here."""
        return bool(self.weight_files()) or self.tag.exists()

    def tagged(self) -> Path | None:
        """The file that ``last_checkpoint`` names, which need not exist."""
        try:
            name = self.tag.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return None
        return self.path / Path(name).name if name else None

    def _by_age(self) -> Iterator[Path]:
        """The tagged checkpoint, then all others from the newest to the oldest."""
        tagged = self.tagged()
        if tagged is not None:
            yield tagged
        numbers: list[tuple[int, Path]] = []
        for path in self.weight_files():
            found = _NUMBERED.fullmatch(path.name)
            if found:
                numbers.append((int(found[1]) + 1, path))
            elif path.name == "model_final.pth":
                iterations = _iterations(path)
                numbers.append((iterations if isinstance(iterations, int) else 0, path))
        yield from (path for _, path in sorted(numbers, reverse=True) if path != tagged)

    def newest_checkpoint(self, *, say: bool = False) -> Checkpoint | None:
        """The checkpoint to resume from: the tagged one or, if damaged, the newest intact one.

        Args:
            say: log why the tagged checkpoint is not used.
        """
        problems: list[str] = []
        for path in self._by_age():
            iterations = _iterations(path)
            if isinstance(iterations, int):
                if say and (problems or self.tagged() != path):
                    reasons = "; ".join(problems) or f"{self.tag.name} is missing or empty"
                    logging.getLogger(__name__).warning(
                        f"OUTPUT_DIR {self.path}: {reasons}. Using {path.name}, the newest intact "
                        f"checkpoint, of {iterations} iterations."
                    )
                return Checkpoint(path, iterations)
            problems.append(self._problem(path))
        return None

    def _problem(self, path: Path) -> str:
        tagged = ", which last_checkpoint names," if path == self.tagged() else ""
        return f"{path.name}{tagged} is {_iterations(path)}"

    # ------------------------------------------------------------ judging
    def check_start(self, cfg: CfgNode, resume: bool) -> None:
        """Refuse a training run that would overwrite another one.

        A folder without checkpoints is free: a start that failed leaves nothing to protect.

        Raises:
            ValueError: naming the folder and what was found in it, or the keys that differ.
        """
        if not self.holds_training():
            return
        found = [p.name for p in (self.config, self.tag, *self.weight_files()) if p.exists()]
        names = ", ".join(found[:4]) + (", …" if len(found) > 4 else "")
        if not resume:
            raise ValueError(
                f"OUTPUT_DIR {self.path} holds another run ({names}); nothing was changed. "
                "Continue that run with --resume, or choose another OUTPUT_DIR."
            )
        if self.newest_checkpoint() is None:
            problems = "; ".join(self._problem(path) for path in self._by_age())
            raise ValueError(
                f"--resume: OUTPUT_DIR {self.path} holds no intact checkpoint of a training run "
                f"({problems or names}); nothing was changed. Move these files away to start from "
                "the beginning, or choose another OUTPUT_DIR."
            )
        if not self.config.is_file():
            raise ValueError(
                f"--resume: OUTPUT_DIR {self.path} has {names} but no config.yaml, so nobody can "
                "tell whether they belong to this run. Choose another OUTPUT_DIR, with "
                "MODEL.WEIGHTS set to one of these checkpoints."
            )
        self._check_config(cfg)

    def _check_config(self, cfg: CfgNode) -> None:
        different = {
            key: values
            for key, values in self.config_differences(cfg).items()
            if identifies(key, "run")
        }
        longer = different.pop("SOLVER.MAX_ITER", None)
        if longer is not None:
            before, now = longer
            if now < before:
                different["SOLVER.MAX_ITER"] = longer
            elif not cfg.SOLVER.EXTEND_SCHEDULE:
                raise ValueError(
                    f"--resume: SOLVER.MAX_ITER is {now}, but the run in OUTPUT_DIR {self.path} "
                    f"was planned for {before}; nothing was changed. Continue it as it was planned "
                    f"with --config-file {self.config}, or add SOLVER.EXTEND_SCHEDULE True to "
                    "train it longer; the learning rates then differ from those of a run planned "
                    f"for {now} iterations."
                )
        if different:
            lines = [f"{k}: {a!r} there, {b!r} now" for k, (a, b) in different.items()]
            raise ValueError(
                f"--resume: OUTPUT_DIR {self.path} holds a run with another config; nothing was "
                "changed:\n  " + "\n  ".join(lines[:10]) + "\nContinue that run with --config-file "
                f"{self.config}, or choose another OUTPUT_DIR with MODEL.WEIGHTS set to one of its "
                "checkpoints."
            )

    def config_differences(self, cfg: CfgNode) -> dict[str, tuple[Any, Any]]:
        """Key -> values of the stored run and of a config, where they differ.

        Raises:
            ValueError: naming a stored config that cannot be read.
        """
        try:
            stored = complete_config(self.config.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError, AttributeError, TypeError) as error:
            problem = str(error).splitlines()[0]
            raise ValueError(
                f"{self.config}: not a readable config ({problem}), so nobody can tell whether "
                "this run may be resumed. Write the config again (log.txt next to it holds the "
                "command line), or choose another OUTPUT_DIR with MODEL.WEIGHTS set to a "
                "checkpoint of this run."
            ) from error
        now = complete_config(cfg)
        return {
            key: (stored.get(key), now.get(key))
            for key in sorted(stored.keys() | now.keys())
            if stored.get(key) != now.get(key)
        }

    def _holds_config(self, cfg: CfgNode) -> bool:
        """Whether ``config.yaml`` is what :meth:`write_config` would write."""
        return self.config.is_file() and self.config.read_bytes() == cfg.dump().encode()

    def stored_results(self, cfg: CfgNode) -> dict | None:
        """The scores in ``results.json``; None if they are not all that ``cfg`` asks for."""
        try:
            results = json.loads(self.results.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if self.config.is_file() and any(
            identifies(key, "evaluation")
            and key != "TEST.AUG.ENABLED"  # the tasks of the results tell
            and (cfg.TEST.AUG.ENABLED or not key.startswith("TEST.AUG."))
            for key in self.config_differences(cfg)
        ):
            return None
        names = list(cfg.DATASETS.TEST)
        by_dataset = {names[0]: results} if len(names) == 1 else results
        for name in names:
            tasks = by_dataset.get(name)
            augmented = tasks and any(task.endswith(TTA_SUFFIX) for task in tasks)
            if tasks is None or (tasks and cfg.TEST.AUG.ENABLED and not augmented):
                return None
        return _null_to_nan(results)

    # ------------------------------------------------------------ writing
    def prepare_training(self, newest: Checkpoint | None, cfg: CfgNode) -> None:
        """Make the folder ready for a training run that :meth:`check_start` has allowed.

        Args:
            newest: the checkpoint that the training continues from.
            cfg: of the training.
        """
        for unfinished in self.path.glob("*.part.pth"):  # a killed run was writing these
            unfinished.unlink()
        if newest is None:
            (self.path / WANDB_RUN_ID).unlink(missing_ok=True)  # the run itself stays there
        # The scores of a training run that is not finished yet must not pass for its own.
        if newest is None and self.results.is_file():
            backup_existing(self.config)
        backup_existing(self.results)
        if newest is None:
            if self.metrics.is_file() and self.metrics.stat().st_size:
                backup_existing(self.metrics)
            return
        # With another length or evaluation period, not all lines are written again.
        different = self.config_differences(cfg).keys() - {"OUTPUT_DIR"}
        self._rewind_metrics(newest.iterations, keep=bool(different))
        kept = self.path / f"model_{newest.iterations - 1:07d}.pth"
        replaced = newest.path.name == "model_final.pth" and newest.iterations < cfg.SOLVER.MAX_ITER
        if replaced and not kept.exists():
            with atomic_write(kept) as tmp_path:
                shutil.copyfile(newest.path, tmp_path)

    def complete_training(self, newest: Checkpoint) -> None:
        """Write ``model_final.pth`` from the last checkpoint of a finished training run.

        The two hold the same; a training run that was killed between them has only the first.
        """
        final = self.path / "model_final.pth"
        if _iterations(final) != newest.iterations:
            with atomic_write(final) as tmp_path:
                shutil.copyfile(newest.path, tmp_path)

    def _rewind_metrics(self, iterations: int, keep: bool) -> None:
        """Remove from ``metrics.json`` what a resumed training run writes again, and half lines.

        Args:
            iterations: how many the training does not repeat.
            keep: copy the file first, because the new lines may be others.
        """
        if not self.metrics.is_file():
            return
        lines = self.metrics.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if _is_metric_before(line, iterations)]
        if kept == lines:
            return
        message = (
            f"{self.metrics}: lines removed: {len(lines) - len(kept)}, of iterations that are "
            f"repeated ({iterations} and later) or not complete"
        )
        if keep:
            backup = free_name(self.metrics)
            with atomic_write(backup) as tmp_path:
                shutil.copyfile(self.metrics, tmp_path)
            message += f"; all lines are kept in {backup.name}"
        with atomic_write(self.metrics) as tmp_path:
            tmp_path.write_bytes(b"".join(kept))
        logging.getLogger(__name__).warning(message)

    def write_config(self, cfg: CfgNode) -> None:
        """Write ``config.yaml``, which makes the folder that of a run with this config.

        The config of an evaluation whose results are still there is kept under another name.
        """
        if self._holds_config(cfg):
            return
        if self.results.is_file() and not self.holds_training():
            backup_existing(self.config)
        with atomic_write(self.config) as tmp_path:
            tmp_path.write_text(cfg.dump(), encoding="utf-8")
        logging.getLogger(__name__).info(f"Full config: {self.config}")

    def evaluation_folder(self, resume: bool) -> Path:
        """Where an evaluation goes that must not touch the training: ``evaluation-1``, …

        Args:
            resume: the last one, if it is not complete.
        """
        number = 1
        while (place := self.path / f"evaluation-{number}").exists():
            complete = (place / "results.json").exists()  # there since the first dataset
            if resume and (not complete or any(place.glob("inference/*/finished"))):
                break
            number += 1
        return place


def _is_metric_before(line: bytes, iterations: int) -> bool:
    """Whether a line of ``metrics.json`` is complete and of one of the first iterations."""
    try:
        return line.endswith(b"\n") and json.loads(line)["iteration"] < iterations
    except (ValueError, KeyError, TypeError):
        return False


def _null_to_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _null_to_nan(item) for key, item in value.items()}
    return math.nan if value is None else value
