"""Jobs brought to their records: trained, evaluated, noted; what is there is never made again."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdgcnet.experiments.jobs import Job
from cdgcnet.experiments.model_cost import noted_cost
from cdgcnet.experiments.process import (
    combined,
    holding,
    launch,
    read_launches,
    tail,
    train_command,
)
from cdgcnet.experiments.record import (
    Record,
    load_record,
    load_records,
    name_weights,
    record_path,
    save_record,
    weights_identity,
)
from cdgcnet.experiments.run_folder import (
    Found,
    find_measurement,
    find_trainings,
    finished_scores,
    has_final_weights,
    resumed_iteration,
    starting_weights,
    stored_config,
)
from cdgcnet.experiments.run_metadata import run_metadata_from_log
from cdgcnet.utils.io import atomic_write


def _told(overrides: Sequence[str]) -> list[str]:
    """Overrides without the paths of a machine."""
    told = list(overrides)
    for i in range(0, len(told), 2):
        if told[i] == "MODEL.WEIGHTS" and "://" not in told[i + 1]:
            told[i + 1] = Path(told[i + 1]).name
    return told


@dataclass
class Runner:
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
        """Whether a job has its record, of this process or of another one beside it."""
        key = (job.hash, job.seed)
        if key not in self.records and (path := record_path(self.results, *key)).is_file():
            self.records[key] = load_record(path)
        return key in self.records

    def home(self, job: Job) -> Path:
        """Where a job's training goes on or begins."""
        return find_trainings(self.work).get((job.training, job.seed)) or (
            self.work / f"{job.training}-seed{job.seed}"
        )

    def state(self, job: Job) -> str:
        """What :meth:`do` would do with a job, in words."""
        if self.done(job):
            return "finished"
        folder = self.home(job)
        if find_measurement(folder, job.hash) is not None:
            return "measured, to be recorded"
        if has_final_weights(folder):
            return "trained, to be evaluated"
        if done := resumed_iteration(folder):
            return f"to go on at iteration {done} of {job.cfg.SOLVER.MAX_ITER}"
        return "to be trained"

    def missing_iterations(self, jobs: Sequence[Job]) -> int:
        """Training iterations that jobs need, each training counted once."""
        left: dict[Path, int] = {}
        for job in jobs:
            if not self.done(job):
                folder = self.home(job)
                left[folder] = max(job.cfg.SOLVER.MAX_ITER - resumed_iteration(folder), 0)
        return sum(left.values())

    def check_weights(self, jobs: Sequence[Job]) -> None:
        """Refuse weights that the records there did not start from, before anything runs.

        Raises:
            FileNotFoundError, ValueError: naming MODEL.WEIGHTS, the file and what was expected.
        """
        asked = {
            (job.cfg.MODEL.WEIGHTS, job.cfg.MODEL.RESNETS.STRIDE_IN_1X1)
            for job in jobs
            if job.cfg.MODEL.WEIGHTS
        }
        for weights, stride_in_1x1 in sorted(asked):
            self._compare_weights(name_weights(weights, stride_in_1x1))

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
                f"{folder}: the run ended well, but results.json, config.yaml or metrics.json "
                f"there do not belong to {job.row.name} (hash {job.hash})"
            )
        self._record(job, folder, found)

    def _check_weights(self, job: Job, folder: Path) -> None:
        """Refuse a run that the records there could not be compared with."""
        begun = stored_config(folder)
        name = starting_weights(begun) if begun else None
        if not has_final_weights(folder):
            model = job.cfg.MODEL
            asked = name_weights(model.WEIGHTS, model.RESNETS.STRIDE_IN_1X1)
            if name is not None and weights_identity(name) != weights_identity(asked):
                raise ValueError(
                    f"MODEL.WEIGHTS: {asked}, but the training in {folder} began with {name}"
                )
            name = asked
        assert name is not None  # a finished training has a config.yaml
        self._compare_weights(name)

    def _compare_weights(self, name: str) -> None:
        for record in self.records.values():
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
        self.say(f"{job.row.name}, seed {job.seed}: evaluation")
        place = folder / f"eval-{job.hash}"
        placed = ["SEED", str(job.seed), "OUTPUT_DIR", str(place.absolute())]
        weights = ["MODEL.WEIGHTS", str((folder / "model_final.pth").absolute())]
        options = ["--eval-only", *job.overrides, *weights, *placed]
        with holding(folder):  # its training may be in its last evaluation
            self._run(job, place, options, deadline, poll)
        (place / "config.yaml").write_text(job.cfg.dump(), encoding="utf-8")
        return finished_scores(place)

    def _record(self, job: Job, folder: Path, found: Found) -> None:
        config = stored_config(folder)
        assert config is not None
        weights = starting_weights(config)
        self.records |= load_records(self.results)  # of other processes, in the meantime
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
        if self.done(job):
            return
        save_record(self.results, record)
        self.records[record.hash, record.seed] = record
        # Only in a folder of the runner's own, and the last one stays.
        if launches and has_final_weights(folder):
            for checkpoint in folder.glob("model_[0-9]*.pth"):
                checkpoint.unlink()

    def _circumstances(self, folder: Path, evaluated: Path) -> dict[str, str]:
        launches = read_launches(folder)
        if not launches:
            return run_metadata_from_log(folder)
        return combined([*launches, *(read_launches(evaluated) if evaluated != folder else [])])

    def _cost(self, folder: Path) -> dict[str, Any]:
        """Costs of a training, counted once; a network that cannot be counted is no failure."""
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
                self.say(f"{folder.name}: parameters and GFLOPs not counted: {last[0]}")
                return noted_cost(folder)
            with atomic_write(path) as tmp_path:
                tmp_path.write_text(done.stdout.strip().splitlines()[-1], encoding="utf-8")
        return {**json.loads(path.read_text(encoding="utf-8")), **noted_cost(folder)}
