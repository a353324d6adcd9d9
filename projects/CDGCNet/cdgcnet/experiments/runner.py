"""Trains and evaluates missing rows and saves one record each; finished rows never run again."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from cdgcnet.experiments.jobs import Job
from cdgcnet.experiments.model_cost import logged_cost
from cdgcnet.experiments.process import (
    combined,
    launch,
    locked,
    read_launches,
    tail,
    train_command,
)
from cdgcnet.experiments.record import (
    Cost,
    Record,
    RunMetadata,
    load_record,
    load_records,
    name_weights,
    record_path,
    save_record,
    weights_identity,
)
from cdgcnet.experiments.run_folder import (
    Scores,
    find_measurement,
    has_final_weights,
    resumed_iteration,
    starting_weights,
    stored_config,
)
from cdgcnet.utils.io import atomic_write, read_json


def _portable(overrides: Sequence[str]) -> list[str]:
    """Overrides without the folders of this machine."""
    found = list(overrides)
    for i in range(0, len(found), 2):
        if found[i] == "MODEL.WEIGHTS" and "://" not in found[i + 1]:
            found[i + 1] = Path(found[i + 1]).name
    return found


@dataclass
class Runner:
    """Runs the jobs of one profile and split.

    Attributes:
        work: ``WORK/PROFILE/SPLIT``, holds the run folders.
        results: ``RESULTS/PROFILE/SPLIT``, holds the records.
        num_gpus: of a training run.
        log: prints a line.
    """

    work: Path
    results: Path
    num_gpus: int = 1
    log: Callable[[str], None] = print

    def __post_init__(self) -> None:
        self.records = load_records(self.results)

    def done(self, job: Job) -> bool:
        """Whether a job has a record, written by this process or by another one."""
        key = (job.hash, job.seed)
        if key not in self.records and (path := record_path(self.results, *key)).is_file():
            self.records[key] = load_record(path)
        return key in self.records

    def run_dir(self, job: Job) -> Path:
        """The folder of a job's training."""
        return self.work / f"{job.training}-seed{job.seed}"

    def state(self, job: Job) -> str:
        """What :meth:`run_job` would do, in words."""
        if self.done(job):
            return "finished"
        folder = self.run_dir(job)
        if find_measurement(folder, job.hash) is not None:
            return "measured, not recorded yet"
        if has_final_weights(folder):
            return "trained, not evaluated yet"
        if done := resumed_iteration(folder):
            return f"resumes at iteration {done} of {job.cfg.SOLVER.MAX_ITER}"
        return "not trained yet"

    def missing_iterations(self, jobs: Sequence[Job]) -> int:
        """Training iterations still to do; a run shared by several jobs counts once."""
        left: dict[Path, int] = {}
        for job in jobs:
            if not self.done(job):
                folder = self.run_dir(job)
                left[folder] = max(job.cfg.SOLVER.MAX_ITER - resumed_iteration(folder), 0)
        return sum(left.values())

    def check_weights(self, jobs: Sequence[Job]) -> None:
        """Refuse weights other than those the existing records started from.

        Raises:
            FileNotFoundError, ValueError: naming MODEL.WEIGHTS, the file and what was expected.
        """
        requested = {
            (job.cfg.MODEL.WEIGHTS, job.cfg.MODEL.RESNETS.STRIDE_IN_1X1)
            for job in jobs
            if job.cfg.MODEL.WEIGHTS
        }
        for weights, stride_in_1x1 in sorted(requested):
            self._compare_weights(name_weights(weights, stride_in_1x1))

    def run_job(
        self,
        job: Job,
        pending: Sequence[Job],
        *,
        deadline: float | None = None,
        poll: Callable[[Path], None] = lambda folder: None,
    ) -> None:
        """Train and evaluate a job as far as needed, then save its record.

        Args:
            job: not done yet.
            pending: other jobs, which the same training run may serve too.
            deadline: value of ``time.monotonic()`` at which a process is ended.
            poll: called with the run folder while a process runs.

        Raises:
            RuntimeError: if a process failed, with the end of its output.
            TimeoutError: if a process was ended at the deadline.
            OSError, ValueError: if a file is not what it should be.
        """
        folder = self.run_dir(job)
        found = find_measurement(folder, job.hash)
        if found is None:
            self._check_weights(job, folder)
            if has_final_weights(folder):
                found = self._evaluate(job, folder, deadline, poll)
            else:
                self._train(job, folder, pending, deadline, poll)
                found = find_measurement(folder, job.hash)
        if found is None:
            raise RuntimeError(
                f"{folder}: the run succeeded, but its results.json, config.yaml or metrics.json "
                f"do not belong to {job.row.name} (hash {job.hash})"
            )
        self._record(job, folder, *found)

    def _check_weights(self, job: Job, folder: Path) -> None:
        """Refuse a run that could not be compared with the existing records."""
        begun = stored_config(folder)
        name = starting_weights(begun) if begun else None
        if not has_final_weights(folder):
            model = job.cfg.MODEL
            requested = name_weights(model.WEIGHTS, model.RESNETS.STRIDE_IN_1X1)
            if name is not None and weights_identity(name) != weights_identity(requested):
                raise ValueError(
                    f"MODEL.WEIGHTS: {requested}, but the training in {folder} started from {name}"
                )
            name = requested
        assert name is not None  # a finished training run has a config.yaml
        self._compare_weights(name)

    def _compare_weights(self, name: str) -> None:
        for record in tuple(self.records.values()):  # other threads add some
            if weights_identity(record.weights) != weights_identity(name):
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
        command = train_command(job.row.config_files, options, self.num_gpus)
        outcome = launch(command, folder, deadline=deadline, poll=lambda: poll(folder))
        if outcome.timed_out:
            raise TimeoutError(f"{job.row.name}, seed {job.seed}: stopped at the deadline")
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
        # Prefer the variant with TTA: the evaluation after its training serves both rows.
        single = job.hash_without_tta
        both = [
            other
            for other in pending
            if (other.training, other.seed) == (job.training, job.seed)
            and other.cfg.TEST.AUG.ENABLED
            and other.hash_without_tta == single
        ]
        job = job if job.cfg.TEST.AUG.ENABLED or not both else both[-1]
        resume = ["--resume"] if (folder / "config.yaml").is_file() else []
        placed = ["SEED", str(job.seed), "OUTPUT_DIR", str(folder.absolute())]
        self._run(job, folder, [*resume, *job.overrides, *placed], deadline, poll)

    def _evaluate(
        self, job: Job, folder: Path, deadline: float | None, poll: Callable[[Path], None]
    ) -> tuple[Path, Scores] | None:
        self.log(f"{job.row.name}, seed {job.seed}: evaluation")
        place = folder / f"eval-{job.hash}"
        placed = ["SEED", str(job.seed), "OUTPUT_DIR", str(place.absolute())]
        weights = ["MODEL.WEIGHTS", str((folder / "model_final.pth").absolute())]
        options = ["--eval-only", *job.overrides, *weights, *placed]
        with locked(folder):  # its training may still be evaluating
            self._run(job, place, options, deadline, poll)
        (place / "config.yaml").write_text(job.cfg.dump(), encoding="utf-8")
        return find_measurement(folder, job.hash)

    def _record(self, job: Job, folder: Path, evaluated: Path, scores: Scores) -> None:
        config = stored_config(folder)
        assert config is not None
        weights = starting_weights(config)
        self.records |= load_records(self.results)  # other processes may have added some
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
            overrides=_portable(job.overrides),
            weights=weights,
            scores=scores,
            cost=cast(Cost, cost),
            run_metadata=self._run_metadata(folder, evaluated),
        )
        if self.done(job):
            return
        save_record(self.results, record)
        self.records[record.hash, record.seed] = record
        if has_final_weights(folder):  # the final checkpoint is kept
            for checkpoint in folder.glob("model_[0-9]*.pth"):
                checkpoint.unlink()

    def _run_metadata(self, folder: Path, evaluated: Path) -> RunMetadata:
        launches = read_launches(folder)
        return combined([*launches, *(read_launches(evaluated) if evaluated != folder else [])])

    def _cost(self, folder: Path) -> dict[str, Any]:
        """Costs of a run, counted once. A network that cannot be counted is not an error."""
        path = folder / "cost.json"
        if not path.is_file():
            done = subprocess.run(
                [
                    sys.executable,
                    "-W",
                    "ignore",
                    "-m",
                    "cdgcnet.experiments.model_cost",
                    str(folder),
                ],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                last = done.stderr.strip().splitlines()[-1:] or ["no output"]
                self.log(f"{folder.name}: parameters and GFLOPs not counted: {last[0]}")
                return logged_cost(folder)
            with atomic_write(path) as tmp_path:
                tmp_path.write_text(done.stdout.strip().splitlines()[-1], encoding="utf-8")
        return {**read_json(path, "parameters and GFLOPs"), **logged_cost(folder)}
