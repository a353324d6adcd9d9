#!/usr/bin/env python
"""Run the missing rows of one of the paper's tables, and write the table.

    python tools/run_experiments.py all --profile tiny
    python tools/run_experiments.py table3 --profile camvid --seeds 3 \\
        --opts MODEL.WEIGHTS resnet50.pth

A finished row is a small JSON file in RESULTS/PROFILE/SPLIT and is never run again; an interrupted
one resumes from its checkpoint. RESULTS/PROFILE/TABLE.md and TABLE.png are made from the JSON files
alone.
"""

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cdgcnet.engine.run_metadata import ROOT
from cdgcnet.experiments.jobs import Job, make_jobs
from cdgcnet.experiments.record import load_records
from cdgcnet.experiments.render import render
from cdgcnet.experiments.rows import GROUPS, find_rows
from cdgcnet.experiments.run_folder import resumed_iteration, trained_iterations
from cdgcnet.experiments.runner import Runner

PROFILES = ROOT / "configs" / "experiments" / "profiles"


class Progress:
    """A progress bar over all missing iterations, fed from the runs' ``metrics.json``."""

    def __init__(self, total: int):
        pause = 1 if sys.stderr.isatty() else 30  # keep log files short
        # smoothing 0: the ETA follows the average, which includes evaluations.
        self.bar = tqdm(total=total, unit="it", smoothing=0, mininterval=pause)
        self.seen: dict[Path, int] = {}
        self.looked = 0.0

    def begin(self, job: Job, folder: Path) -> None:
        self.bar.set_description(f"{job.row.name}, seed {job.seed}")
        self.seen.setdefault(folder, resumed_iteration(folder))

    def look(self, folder: Path, now: bool = False) -> None:
        if not now and time.monotonic() - self.looked < 2:
            return
        self.looked = time.monotonic()
        if folder in self.seen:
            # A resumed run repeats the iterations after its checkpoint; the bar waits for it.
            reached = max(trained_iterations(folder), self.seen[folder])
            self.bar.update(reached - self.seen[folder])
            self.seen[folder] = reached


def _stop(number: int, frame: Any) -> None:
    sys.exit(128 + number)


def run_jobs(runner: Runner, jobs: Sequence[Job], deadline: float | None) -> list[str]:
    """Run all missing jobs; returns one message per job that failed."""
    failures = []
    progress = Progress(runner.missing_iterations(jobs))
    runner.log = progress.bar.write
    with progress.bar:
        for i, job in enumerate(jobs):
            if runner.done(job):
                continue
            if deadline is not None and time.monotonic() > deadline:
                progress.bar.write(
                    "--time-budget is used up; run the same command again to continue"
                )
                break
            folder = runner.run_dir(job)
            progress.begin(job, folder)
            try:
                runner.run_job(job, jobs[i:], deadline=deadline, poll=progress.look)
            except TimeoutError:
                progress.bar.write(
                    f"{job.row.name}, seed {job.seed}: stopped, --time-budget is used up; the "
                    "same command resumes from the last checkpoint"
                )
                break
            except (OSError, RuntimeError, ValueError) as error:
                failures.append(str(error))
                first = str(error).splitlines()[0]
                progress.bar.write(f"failed, continuing with the others: {first}")
            progress.look(folder, now=True)
    return failures


def parse(argv: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=(*GROUPS, "all"), metavar="TABLE", help=", ".join(GROUPS))
    profiles = sorted(path.stem for path in PROFILES.glob("*.yaml"))
    parser.add_argument("--profile", choices=profiles, default="camvid")
    parser.add_argument(
        "--seeds", type=int, default=1, help="run seeds 1 to N; all rows of seed 1 come first"
    )
    parser.add_argument("--rows", nargs="+", default=[], help="only rows whose name contains this")
    parser.add_argument(
        "--split",
        choices=("dev", "val"),
        default="val",
        help="dev: a held-out part of CamVid train",
    )
    parser.add_argument("--tta", action="store_true", help="also evaluate with scales and flip")
    parser.add_argument("--num-gpus", type=int, default=1, help="of a training")
    parser.add_argument("--time-budget", type=float, metavar="MIN", help="stop after this time")
    parser.add_argument("--dry-run", action="store_true", help="print what is missing; run nothing")
    parser.add_argument("--render", action="store_true", help="write the tables; run nothing")
    parser.add_argument("--work", type=Path, default=ROOT / "output" / "experiments")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE", help="overrides")
    return parser, parser.parse_args(argv)


def with_whole_paths(opts: Sequence[str]) -> list[str]:
    """KEY VALUE pairs with absolute paths of weights, because trainings run in another folder."""
    found = list(opts)
    for i, key in enumerate(opts[::2]):
        if key == "MODEL.WEIGHTS" and opts[2 * i + 1] and "://" not in opts[2 * i + 1]:
            found[2 * i + 1] = str(Path(opts[2 * i + 1]).absolute())
    return found


def check_arguments(args: argparse.Namespace) -> None:
    """
    Raises:
        ValueError: naming the argument, the value and what was expected.
    """
    if args.seeds < 1:
        raise ValueError(f"--seeds is {args.seeds}; expected 1 or more")
    if args.num_gpus < 1:
        raise ValueError(f"--num-gpus is {args.num_gpus}; expected 1 or more")
    if args.time_budget is not None and not args.time_budget > 0:
        raise ValueError(f"--time-budget is {args.time_budget}; expected minutes above 0")
    if len(args.opts) % 2:
        raise ValueError(f"--opts come in pairs KEY VALUE; found {' '.join(args.opts)}")
    for key in ("SEED", "OUTPUT_DIR", "DATASETS.TRAIN", "DATASETS.TEST", "TEST.AUG.ENABLED"):
        if key in args.opts[::2]:
            raise ValueError(
                f"--opts {key}: this key is set by --seeds, --work, --split, --tta or the row"
            )


def check_start(runner: Runner, jobs: Sequence[Job], profile: str) -> None:
    """Refuse to train a row of a recipe from random weights.

    Raises:
        ValueError: naming the key.
    """
    for job in jobs:
        starts = runner.state(job) == "not trained yet"
        if profile != "tiny" and starts and not job.cfg.MODEL.WEIGHTS:
            raise ValueError(
                f"{job.row.name}: MODEL.WEIGHTS is empty, but profile {profile} starts from "
                "ImageNet weights; add --opts MODEL.WEIGHTS FILE"
            )


def main(argv: Sequence[str] | None = None) -> int:
    parser, args = parse(argv)
    started = time.monotonic()
    for number in (signal.SIGTERM, signal.SIGHUP):  # like Ctrl-C: end the training too
        signal.signal(number, _stop)
    try:
        check_arguments(args)
        args.opts = with_whole_paths(args.opts)
        profile = PROFILES / f"{args.profile}.yaml"
        rows = find_rows(profile, args.table, args.rows)
        groups = {row.group for row in rows}
        jobs = make_jobs(rows, args.seeds, args.split, args.opts, args.tta)
        work, results = (b / args.profile / args.split for b in (args.work, args.results))
        runner = Runner(work, results, args.num_gpus)
        if args.render:
            written = render(profile, args.results, runner.records, groups, args.split, args.opts)
            print(*written, sep="\n")
            return 0
        runner.check_weights(jobs)
        if args.dry_run:
            for job in jobs:
                print(f"{job.row.name:36} seed {job.seed}  {job.hash}  {runner.state(job)}")
            missing = sum(not runner.done(job) for job in jobs)
            print(
                f"{missing} of {len(jobs)} rows missing, "
                f"{runner.missing_iterations(jobs)} iterations to train"
            )
            return 0
        check_start(runner, jobs, args.profile)
        deadline = None if args.time_budget is None else started + 60 * args.time_budget
        failures = run_jobs(runner, jobs, deadline)
        records = load_records(runner.results)
        written = render(profile, args.results, records, groups, args.split, args.opts)
    except (OSError, ValueError) as error:
        parser.exit(1, f"run_experiments.py: error: {error}\n")
    for failure in failures:
        print(f"\nfailed: {failure}", file=sys.stderr)
    done = sum(runner.done(job) for job in jobs)
    print(f"{done} of {len(jobs)} rows finished; " + ", ".join(map(str, written)))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
