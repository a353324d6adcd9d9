"""Which runs a table needs, which of them are there, and doing the others.

A work folder ``WORK/PROFILE/SPLIT/TRAININGHASH-seedS`` holds one training. All rows of that
training are measured from it: by the training's own evaluation, or by ``--eval-only`` into
``eval-HASH`` inside it. A measurement becomes a record (:mod:`.record`) and is never made again.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from .cost import noted_cost, read_metrics
from .launch import combined, launch, read_launches, tail, train_command
from .record import (
    Record,
    circumstances_from_log,
    load_records,
    name_weights,
    save_record,
    select_scores,
)
from .rows import Row, config_hash, flat_text, row_config, row_text

DEV = ("DATASETS.TRAIN", '("cdgc_camvid_fit",)', "DATASETS.TEST", '("cdgc_camvid_dev",)')
TTA = ("TEST.AUG.ENABLED", "True")


@dataclass(frozen=True)
class Job:
    """One row with one seed.

    Attributes:
        row: of the table.
        cfg: resolved.
        overrides: KEY VALUE pairs on top of the row's file, the seed not among them.
        hash, training: of the config, and of its training alone.
        seed: of the run.
    """

    row: Row
    cfg: CfgNode
    overrides: tuple[str, ...]
    hash: str
    training: str
    seed: int

    @property
    def hash_without_tta(self) -> str:
        return config_hash(row_text(self.row, self.overrides), tta=False)


@dataclass
class Found:
    """Finished measurements of a folder: scores by config hash."""

    folder: Path
    scores: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)


def split_overrides(row: Row, split: str, overrides: Sequence[str]) -> tuple[str, ...]:
    """The pairs that make a row train and test on a split.

    Raises:
        ValueError: for "dev" of a row that is not trained on CamVid.
    """
    if split == "val":
        return tuple(overrides)
    trained_on = tuple(row_config(row, overrides).DATASETS.TRAIN)
    if trained_on != ("cdgc_camvid_train",):
        raise ValueError(
            f"--split dev: {row.path.name} is trained on {', '.join(trained_on)}; only "
            "cdgc_camvid_train has a held-out part"
        )
    return (*overrides, *DEV)


def make_jobs(
    rows: Sequence[Row], seeds: int, split: str, overrides: Sequence[str], tta: bool = False
) -> list[Job]:
    """All rows of seed 1, then of seed 2, …; a configuration that several rows share once.

    Args:
        rows: of a table.
        seeds: how many, from 1 up.
        split: "val" or "dev".
        overrides: KEY VALUE pairs.
        tta: each row with test-time augmentation too.

    Raises:
        ValueError: naming what is wrong in a row's config or the overrides.
    """
    plain = []
    for row in rows:
        pairs = split_overrides(row, split, overrides)
        for extra in ((), TTA) if tta else ((),):
            changed = (*pairs, *extra)
            text = row_text(row, changed)
            hashes = config_hash(text), config_hash(text, training=True)
            plain.append((row, row_config(row, changed), changed, *hashes))
    jobs: dict[tuple[str, int], Job] = {}
    for seed in range(1, seeds + 1):
        for row, cfg, pairs, row_hash, training in plain:
            jobs.setdefault((row_hash, seed), Job(row, cfg, tuple(pairs), row_hash, training, seed))
    return list(jobs.values())


# ---------------------------------------------------------------- what is there
def trained_iterations(folder: Path) -> int:
    """Where a training stands by its metrics; lines of an evaluation count no iteration."""
    lines = [line for line in read_metrics(folder) if "total_loss" in line]
    return int(lines[-1].get("iteration", -1)) + 1 if lines else 0


def stored_config(folder: Path) -> dict[str, Any] | None:
    """The flat config of a training's folder, with its text as "yaml"; None without one."""
    path = folder / "config.yaml"
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    return {**flat_text(text), "yaml": text}


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


@dataclass
class Workshop:
    """The work folders and the records of one profile and split.

    Attributes:
        work: ``WORK/PROFILE/SPLIT``.
        results: ``results/PROFILE/SPLIT``.
        num_gpus: of a training.
        say: prints a line.
    """

    work: Path
    results: Path
    num_gpus: int = 1
    say: Callable[[str], None] = print

    def __post_init__(self) -> None:
        self.records = load_records(self.results)

    def done(self, job: Job) -> bool:
        return (job.hash, job.seed) in self.records

    def home(self, job: Job) -> Path:
        """Where a job's training goes on or begins."""
        return self._trainings().get((job.training, job.seed)) or (
            self.work / f"{job.training}-seed{job.seed}"
        )

    def _trainings(self) -> dict[tuple[str, int], Path]:
        """(hash of the training, seed) -> its folder, of whatever name; a finished one first."""
        found: dict[tuple[str, int], Path] = {}
        for path in sorted(self.work.glob("*/config.yaml")):
            config = stored_config(path.parent)
            assert config is not None
            key = (config_hash(config["yaml"], training=True), config["SEED"])
            if key not in found or is_trained(path.parent, config):
                found[key] = path.parent
        return found

    def state(self, job: Job) -> str:
        """What :meth:`do` would do with a job, in words."""
        if self.done(job):
            return "finished"
        folder = self.home(job)
        if self._measured(job, folder) is not None:
            return "measured, to be recorded"
        if self._trained(folder):
            return "trained, to be evaluated"
        done = trained_iterations(folder)
        if (folder / "last_checkpoint").is_file():
            return f"to go on near iteration {done} of {job.cfg.SOLVER.MAX_ITER}"
        return "to be trained"

    def missing_iterations(self, jobs: Sequence[Job]) -> int:
        """Training iterations that jobs need, each training counted once."""
        left: dict[Path, int] = {}
        for job in jobs:
            if not self.done(job):
                folder = self.home(job)
                left[folder] = max(job.cfg.SOLVER.MAX_ITER - trained_iterations(folder), 0)
        return sum(left.values())

    def _trained(self, folder: Path) -> bool:
        last = folder / "last_checkpoint"
        if not last.is_file() or not (folder / "config.yaml").is_file():
            return False
        final = last.read_text(encoding="utf-8").strip() == "model_final.pth"
        return final and (folder / "model_final.pth").is_file()

    def _measured(self, job: Job, folder: Path) -> Found | None:
        for place in (folder, *sorted(folder.glob("eval-*"))):
            found = finished_scores(place)
            if job.hash in found.scores:
                return found
        return None

    # ------------------------------------------------------------ doing it
    def do(
        self,
        job: Job,
        pending: Sequence[Job],
        *,
        deadline: float | None = None,
        poll: Callable[[Path], None] = lambda folder: None,
    ) -> None:
        """Bring a job to its record.

        Args:
            job: not done yet.
            pending: jobs that the same training could serve.
            deadline: ``time.monotonic()`` at which a process is ended.
            poll: called with the work folder while a process runs.

        Raises:
            RuntimeError: if a process failed; with the end of its output.
            TimeoutError: if it was ended at the deadline.
            OSError, ValueError: on files that are not what they should be.
        """
        folder = self.home(job)
        found = self._measured(job, folder)
        if found is None:
            self._check_weights(job, folder)
            if self._trained(folder):
                found = self._evaluate(job, folder, deadline, poll)
            else:
                self._train(job, folder, pending, deadline, poll)
                found = self._measured(job, folder)
        if found is None:
            raise RuntimeError(
                f"{folder}: the run ended well, but results.json, config.yaml or metrics.json "
                f"there do not belong to {job.row.name} (hash {job.hash})"
            )
        self._record(job, folder, found)

    def _check_weights(self, job: Job, folder: Path) -> None:
        """Refuse a run that the records there could not be compared with."""
        begun = stored_config(folder)
        name = _weights_of(begun) if begun else None
        if not self._trained(folder):
            model = job.cfg.MODEL
            asked = name_weights(model.WEIGHTS, model.RESNETS.STRIDE_IN_1X1)
            if name not in (None, asked):
                raise ValueError(
                    f"MODEL.WEIGHTS: {asked}, but the training in {folder} began with {name}"
                )
            name = asked
        assert name is not None  # a finished training has a config.yaml
        self._compare_weights(name)

    def _compare_weights(self, name: str) -> None:
        for record in self.records.values():
            if record.weights != name:
                raise ValueError(
                    f"MODEL.WEIGHTS: {name}, but the records in {self.results} started from "
                    f"{record.weights}; use the same, or another --results folder"
                )

    def _run(
        self,
        job: Job,
        folder: Path,
        options: Sequence[str],
        deadline: float | None,
        poll: Callable[[Path], None],
    ) -> None:
        command = train_command(job.row.path, options, self.num_gpus)
        outcome = launch(command, folder, deadline=deadline, poll=lambda: poll(folder))
        if outcome.timed_out:
            raise TimeoutError(f"{job.row.name}, seed {job.seed}: time is up")
        if outcome.status:
            raise RuntimeError(
                f"{job.row.name}, seed {job.seed}: exit status {outcome.status}; "
                f"{folder / 'run.txt'} ends with\n{tail(folder / 'run.txt')}"
            )

    def _train(
        self,
        job: Job,
        folder: Path,
        pending: Sequence[Job],
        deadline: float | None,
        poll: Callable[[Path], None],
    ) -> None:
        # The training's own evaluation may as well be the one that serves two rows.
        single = job.hash_without_tta
        both = [
            other
            for other in pending
            if (other.training, other.seed) == (job.training, job.seed)
            and other.cfg.TEST.AUG.ENABLED
            and other.hash_without_tta == single
        ]
        job = job if job.cfg.TEST.AUG.ENABLED or not both else both[-1]
        # Without a checkpoint --resume begins anew in a folder that a killed run began to fill.
        resume = ["--resume"] if (folder / "config.yaml").is_file() else []
        placed = ["SEED", str(job.seed), "OUTPUT_DIR", str(folder.absolute())]
        self._run(job, folder, [*resume, *job.overrides, *placed], deadline, poll)

    def _evaluate(
        self, job: Job, folder: Path, deadline: float | None, poll: Callable[[Path], None]
    ) -> Found:
        place = folder / f"eval-{job.hash}"
        placed = ["SEED", str(job.seed), "OUTPUT_DIR", str(place.absolute())]
        weights = ["MODEL.WEIGHTS", str((folder / "model_final.pth").absolute())]
        self._run(job, place, ["--eval-only", *job.overrides, *weights, *placed], deadline, poll)
        (place / "config.yaml").write_text(job.cfg.dump(), encoding="utf-8")
        return finished_scores(place)

    def _record(self, job: Job, folder: Path, found: Found) -> None:
        config = stored_config(folder)
        assert config is not None
        weights = _weights_of(config)
        self._compare_weights(weights)
        launches = read_launches(folder)
        cost = self._cost(folder)
        peaks = [n["peak_memory"] for n in launches if "peak_memory" in n]
        if peaks and "peak_memory" not in cost:
            cost |= {"peak_memory": max(peaks), "peak_memory_of": "process"}
        record = Record(
            row=job.row.name,
            label=job.row.label,
            hash=job.hash,
            seed=job.seed,
            overrides=_told(job.overrides),
            weights=weights,
            scores=found.scores[job.hash],
            cost=cost,
            circumstances=self._circumstances(folder, found.folder),
        )
        save_record(self.results, record)
        self.records[record.hash, record.seed] = record
        if launches and self._trained(folder):  # a folder of the runner's own: the last one stays
            for checkpoint in folder.glob("model_[0-9]*.pth"):
                checkpoint.unlink()

    def _circumstances(self, folder: Path, evaluated: Path) -> dict[str, str]:
        launches = read_launches(folder)
        if not launches:
            return circumstances_from_log(folder)
        return combined([*launches, *(read_launches(evaluated) if evaluated != folder else [])])

    def _cost(self, folder: Path) -> dict[str, Any]:
        """Costs of a training, counted once; a network that cannot be counted is no failure."""
        path = folder / "cost.json"
        if not path.is_file():
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-m", "cdgcnet.experiments.cost", str(folder)],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                last = done.stderr.strip().splitlines()[-1:] or ["no output"]
                self.say(f"{folder.name}: parameters and GFLOPs not counted: {last[0]}")
                return noted_cost(folder)
            path.write_text(done.stdout.strip().splitlines()[-1], encoding="utf-8")
        return {**json.loads(path.read_text(encoding="utf-8")), **noted_cost(folder)}


def _weights_of(config: dict[str, Any]) -> str:
    return name_weights(config["MODEL.WEIGHTS"], config["MODEL.RESNETS.STRIDE_IN_1X1"])


def _told(overrides: Sequence[str]) -> list[str]:
    """Overrides without the paths of a machine."""
    told = list(overrides)
    for i in range(0, len(told), 2):
        if told[i] == "MODEL.WEIGHTS" and "://" not in told[i + 1]:
            told[i + 1] = Path(told[i + 1]).name
    return told
