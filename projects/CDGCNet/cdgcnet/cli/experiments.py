"""Run the missing rows of one of the paper's tables, and write the table. Needs a checkout.

    %(prog)s all --profile tiny
    %(prog)s table3 --profile camvid --seeds 3 --opts MODEL.WEIGHTS resnet50.pth

A finished row is a small JSON file in RESULTS/PROFILE/SPLIT and is never run again; an interrupted
one resumes from its checkpoint. RESULTS/PROFILE/TABLE.md and TABLE.png are made from the JSON files
alone.
"""

import argparse
import importlib.util
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdgcnet.cli.errors import UsageError
from cdgcnet.cli.options import check_overrides, integer_from

if TYPE_CHECKING:
    from cdgcnet.experiments.jobs import Job
    from cdgcnet.experiments.runner import Runner

ROOT = Path(__file__).resolve().parents[4]  # of the checkout
CONFIGS = ROOT / "configs" / "experiments"
PROFILES = CONFIGS / "profiles"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    tables = sorted({path.stem.partition("_")[0] for path in (CONFIGS / "rows").glob("*.yaml")})
    profiles = sorted(path.stem for path in PROFILES.glob("*.yaml"))
    parser.add_argument(
        "table",
        choices=[*tables, "all"] if tables else None,
        metavar="TABLE",
        help=", ".join(tables),
    )
    parser.add_argument("--profile", choices=profiles or None, default="camvid")
    parser.add_argument(
        "--seeds",
        type=integer_from(1),
        default=1,
        help="run seeds 1 to N; all rows of seed 1 come first",
    )
    parser.add_argument("--rows", nargs="+", default=[], help="only rows whose name contains this")
    parser.add_argument(
        "--split",
        choices=("dev", "val"),
        default="val",
        help="dev: a held-out part of CamVid train",
    )
    parser.add_argument("--tta", action="store_true", help="also evaluate with scales and flip")
    parser.add_argument("--num-gpus", type=integer_from(1), default=1, help="per training run")
    parser.add_argument(
        "--jobs",
        type=integer_from(1),
        default=1,
        help="training runs at the same time, for small networks on a large GPU",
    )
    parser.add_argument("--time-budget", type=float, metavar="MIN", help="stop after this time")
    parser.add_argument("--dry-run", action="store_true", help="print what is missing; run nothing")
    parser.add_argument("--render", action="store_true", help="write the tables; run nothing")
    parser.add_argument("--work", type=Path, default=ROOT / "output" / "experiments")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE", help="overrides")


def check_arguments(args: argparse.Namespace) -> None:
    """
    Raises:
        UsageError: naming the argument, the value and what was expected.
    """
    if args.time_budget is not None and not args.time_budget > 0:
        raise UsageError(f"--time-budget is {args.time_budget}; expected minutes above 0")
    check_overrides(args.opts)
    for key in ("SEED", "OUTPUT_DIR", "DATASETS.TRAIN", "DATASETS.TEST", "TEST.AUG.ENABLED"):
        if key in args.opts[::2]:
            raise UsageError(
                f"--opts {key}: this key is set by --seeds, --work, --split, --tta or the row"
            )


def with_whole_paths(opts: Sequence[str]) -> list[str]:
    """KEY VALUE pairs with absolute paths of weights, because runs have another folder."""
    found = list(opts)
    for i, key in enumerate(opts[::2]):
        value = opts[2 * i + 1]
        if key == "MODEL.WEIGHTS" and value not in ("", "from_scratch") and "://" not in value:
            found[2 * i + 1] = str(Path(opts[2 * i + 1]).absolute())
    return found


def check_start(runner: "Runner", jobs: "Sequence[Job]", profile: str) -> None:
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


def run(args: argparse.Namespace) -> int:
    if importlib.util.find_spec("cdgcnet.experiments") is None:
        raise ValueError(
            "experiments need a checkout of the project: their rows and records are not part of "
            "the installed package"
        )
    started = time.monotonic()
    check_arguments(args)

    from cdgcnet.experiments.jobs import make_jobs
    from cdgcnet.experiments.progress import run_jobs
    from cdgcnet.experiments.record import load_records
    from cdgcnet.experiments.render import render
    from cdgcnet.experiments.rows import find_rows
    from cdgcnet.experiments.runner import Runner

    for number in (signal.SIGTERM, signal.SIGHUP):  # like Ctrl-C: end the training too
        signal.signal(number, _stop)
    args.opts = with_whole_paths(args.opts)
    profile = PROFILES / f"{args.profile}.yaml"
    rows = find_rows(profile, args.table, args.rows)
    groups = {row.group for row in rows}
    jobs = make_jobs(rows, args.seeds, args.split, args.opts, args.tta)
    work, results = (base / args.profile / args.split for base in (args.work, args.results))
    runner = Runner(work, results, args.num_gpus)
    if args.render:
        written = render(profile, args.results, runner.records, groups, args.split, args.opts)
        print(*written, sep="\n")
        return 0
    runner.check_weights(jobs)
    if args.dry_run:
        print_missing(runner, jobs)
        return 0
    check_start(runner, jobs, args.profile)
    deadline = None if args.time_budget is None else started + 60 * args.time_budget
    failures = run_jobs(runner, jobs, deadline, args.jobs)
    records = load_records(runner.results)
    written = render(profile, args.results, records, groups, args.split, args.opts)
    for failure in failures:
        print(f"\nfailed: {failure}", file=sys.stderr)
    done = sum(runner.done(job) for job in jobs)
    print(f"{done} of {len(jobs)} rows finished; " + ", ".join(map(str, written)))
    return 1 if failures else 0


def print_missing(runner: "Runner", jobs: "Sequence[Job]") -> None:
    """One line per job with its state, and how much there is to do."""
    for job in jobs:
        print(f"{job.row.name:36} seed {job.seed}  {job.hash}  {runner.state(job)}")
    missing = sum(not runner.done(job) for job in jobs)
    print(
        f"{missing} of {len(jobs)} rows missing, "
        f"{runner.missing_iterations(jobs)} iterations to train"
    )


def _stop(number: int, frame: Any) -> None:
    sys.exit(128 + number)
