#!/usr/bin/env python
"""Run the missing rows of one of the paper's tables, and write the table.

    python tools/run_experiments.py all --profile tiny
    python tools/run_experiments.py table3 --profile camvid --seeds 3 \\
        --opts MODEL.WEIGHTS resnet50.pth

A finished row is a small JSON in RESULTS/PROFILE/SPLIT and is never run again; a half-finished one
goes on from its checkpoint. RESULTS/PROFILE/TABLE.md and TABLE.png are made from the JSON alone. A
training made by hand with train_net.py in a folder of WORK/PROFILE/SPLIT counts too if its config
is a row's (its commit is read from a commit.txt beside it).
"""

import argparse
import hashlib
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cdgcnet.experiments.jobs import TTA, Job, make_jobs, split_overrides
from cdgcnet.experiments.plot import write_picture
from cdgcnet.experiments.record import load_records
from cdgcnet.experiments.rows import (
    GROUPS,
    Row,
    changes_measurement,
    config_hash,
    find_rows,
    row_config,
    row_text,
)
from cdgcnet.experiments.run_folder import resumed_iteration, trained_iterations
from cdgcnet.experiments.run_metadata import ROOT
from cdgcnet.experiments.runner import Runner
from cdgcnet.experiments.table import Line, write_markdown

CONFIGS = ROOT / "configs" / "experiments"
PROFILES = ("paper", "camvid", "camvid_cpu", "tiny")
ASPP = "control_03_aspp"
_TITLES = {"control": "Controls", "peer": "Peers", "ext": "Extensions"}


class Progress:
    """A bar over all missing iterations, fed from the runs' ``metrics.json``."""

    def __init__(self, total: int):
        pause = 1 if sys.stderr.isatty() else 30  # a log file need not hold every step
        # smoothing 0: the ETA goes by the average, evaluations included.
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
            # A resumed run repeats what came after its checkpoint; the bar waits for it.
            reached = max(trained_iterations(folder), self.seen[folder])
            self.bar.update(reached - self.seen[folder])
            self.seen[folder] = reached


def _stop(number: int, frame: Any) -> None:
    sys.exit(128 + number)


def run_jobs(workshop: Runner, jobs: Sequence[Job], deadline: float | None) -> list[str]:
    """Bring all jobs to their records; returns one message per job that failed."""
    failures = []
    progress = Progress(workshop.missing_iterations(jobs))
    workshop.say = progress.bar.write
    with progress.bar:
        for i, job in enumerate(jobs):
            if workshop.done(job):
                continue
            if deadline is not None and time.monotonic() > deadline:
                progress.bar.write("--time-budget is used up; the same command goes on later")
                break
            folder = workshop.home(job)
            progress.begin(job, folder)
            try:
                workshop.do(job, jobs[i:], deadline=deadline, poll=progress.look)
            except TimeoutError:
                progress.bar.write(
                    f"{job.row.name}, seed {job.seed}: stopped, --time-budget is used up; the "
                    "same command goes on from the last checkpoint"
                )
                break
            except (OSError, RuntimeError, ValueError) as error:
                failures.append(str(error))
                first = str(error).splitlines()[0]
                progress.bar.write(f"failed, the others go on: {first}")
            progress.look(folder, now=True)
    return failures


# ---------------------------------------------------------------- the table
def make_line(row: Row, pairs: Sequence[str], records: dict) -> Line:
    """A row, changed by KEY VALUE pairs, with its records of all seeds."""
    cfg = row_config(row, pairs)
    aug = cfg.TEST.AUG
    text = row_text(row, tuple(pairs))
    own, with_tta = config_hash(text), config_hash(text, tta=True)

    def of(wanted: str) -> dict:
        return {seed: r for (h, seed), r in records.items() if h == wanted}

    evaluation = (tuple(aug.SCALES), aug.FLIP) if aug.ENABLED else ()
    return Line(row, own, of(own), of(with_tta), evaluation)


def make_controls(
    rows: Sequence[Row], lines: Sequence[Line], pairs: Sequence[str], records: dict
) -> list[Line]:
    """The controls, evaluated in every way that a line is."""
    controls = []
    for evaluation in dict.fromkeys([(), *(line.evaluation for line in lines)]):
        way: tuple[str, ...] = ()
        if evaluation:
            scales, flip = str(list(evaluation[0])), str(evaluation[1])
            way = (*TTA, "TEST.AUG.SCALES", scales, "TEST.AUG.FLIP", flip)
        controls += [make_line(row, (*pairs, *way), records) for row in rows]
    return controls


def name_changes(changed: Sequence[str]) -> str:
    """KEY VALUE pairs as a part of a file's name, told apart by a hash: MAX_ITER-1350-fc2f75."""
    words = [key.split(".")[-1] if i % 2 == 0 else key for i, key in enumerate(changed)]
    told = re.sub(r"[^A-Za-z0-9._]+", "-", "-".join(words)).strip("-")[:40]
    return f"{told}-{hashlib.blake2b(repr(list(changed)).encode(), digest_size=3).hexdigest()}"


def render(args: argparse.Namespace, records: dict) -> list[Path]:
    """Write the table of every group asked for, and those there are, which share runs with them.

    Returns:
        The Markdown files.
    """
    folder = CONFIGS / args.profile
    rows = find_rows(folder, "all")
    base = args.results / args.profile
    pairs = list(zip(args.opts[::2], args.opts[1::2], strict=True))
    changed = [x for key, value in pairs if changes_measurement(key) for x in (key, value)]
    suffix = "" if args.split == "val" else f"-{args.split}"
    if changed:
        suffix += f"-{name_changes(changed)}"
    asked = {row.group for row in find_rows(folder, args.table, args.rows)}
    there = {group for group in GROUPS if (base / f"{group}{suffix}.md").is_file()}
    written = []
    for group in sorted(asked | there, key=GROUPS.index):
        chosen = [row for row in rows if row.group == group]
        opts = split_overrides(chosen[0], args.split, args.opts)
        lines = [make_line(row, opts, records) for row in chosen]
        controls = make_controls(find_rows(folder, "control"), lines, opts, records)
        aspp = next(c for c in controls if c.row.name == ASPP)
        title = f"{_TITLES.get(group, f'Table {group[-1]}')}, profile {args.profile}"
        title += "" if args.split == "val" else f", split {args.split}"
        name = f"{group}{suffix}"
        write_picture(base / f"{name}.png", title, lines, controls)
        write_markdown(base / f"{name}.md", title, lines, controls, aspp, changed, f"{name}.png")
        written.append(base / f"{name}.md")
    return written


# ---------------------------------------------------------------- command line
def parse(argv: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=(*GROUPS, "all"), metavar="TABLE", help=", ".join(GROUPS))
    parser.add_argument("--profile", choices=PROFILES, default="camvid")
    parser.add_argument("--seeds", type=int, default=1, help="seeds 1 to N, all rows of one first")
    parser.add_argument("--rows", nargs="+", default=[], help="only rows with this in their name")
    parser.add_argument(
        "--split", choices=("dev", "val"), default="val", help="dev: held-out part of CamVid train"
    )
    parser.add_argument("--tta", action="store_true", help="every row with scales and flip too")
    parser.add_argument("--num-gpus", type=int, default=1, help="of a training")
    parser.add_argument("--time-budget", type=float, metavar="MIN", help="stop after so long")
    parser.add_argument("--dry-run", action="store_true", help="say what is missing; run nothing")
    parser.add_argument("--render", action="store_true", help="write the tables; run nothing")
    parser.add_argument("--work", type=Path, default=ROOT / "output" / "experiments")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE", help="overrides")
    return parser, parser.parse_args(argv)


def with_whole_paths(opts: Sequence[str]) -> list[str]:
    """KEY VALUE pairs whose weights do not depend on the folder a training starts in."""
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
                f"--opts {key}: it is set by --seeds, --work, --split, --tta or the row itself"
            )


def check_start(workshop: Runner, jobs: Sequence[Job], profile: str) -> None:
    """Refuse to train a row of a recipe from random weights.

    Raises:
        ValueError: naming the key.
    """
    for job in jobs:
        starts = workshop.state(job) == "to be trained"
        if profile != "tiny" and starts and not job.cfg.MODEL.WEIGHTS:
            raise ValueError(
                f"{job.row.name} is to be trained, and MODEL.WEIGHTS is empty; the profile "
                f"{profile} starts from ImageNet weights: add --opts MODEL.WEIGHTS FILE"
            )


def main(argv: Sequence[str] | None = None) -> int:
    parser, args = parse(argv)
    started = time.monotonic()
    for number in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: the training is ended too
        signal.signal(number, _stop)
    try:
        check_arguments(args)
        args.opts = with_whole_paths(args.opts)
        rows = find_rows(CONFIGS / args.profile, args.table, args.rows)
        jobs = make_jobs(rows, args.seeds, args.split, args.opts, args.tta)
        work, results = (b / args.profile / args.split for b in (args.work, args.results))
        workshop = Runner(work, results, args.num_gpus)
        if args.render:
            print(*render(args, workshop.records), sep="\n")
            return 0
        workshop.check_weights(jobs)
        if args.dry_run:
            for job in jobs:
                print(f"{job.row.name:36} seed {job.seed}  {job.hash}  {workshop.state(job)}")
            missing = sum(not workshop.done(job) for job in jobs)
            print(
                f"{missing} of {len(jobs)} rows missing, "
                f"{workshop.missing_iterations(jobs)} iterations to train"
            )
            return 0
        check_start(workshop, jobs, args.profile)
        deadline = None if args.time_budget is None else started + 60 * args.time_budget
        failures = run_jobs(workshop, jobs, deadline)
        written = render(args, load_records(workshop.results))
    except (OSError, ValueError) as error:
        parser.exit(1, f"run_experiments.py: error: {error}\n")
    for failure in failures:
        print(f"\nfailed: {failure}", file=sys.stderr)
    done = sum(workshop.done(job) for job in jobs)
    print(f"{done} of {len(jobs)} rows finished; " + ", ".join(map(str, written)))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
