#!/usr/bin/env python
"""Break things on purpose, and count what happens: right, refused clearly, or wrong.

    python tests/chaos/run.py --output benchmarks/results/chaos.json

Kills processes at random moments, fills the disk, and feeds hostile configs, images, checkpoints,
archives and annotation files. A case is known by its kind and number, which are also its seed:
--kind images --only 17 tries one again.

Every outcome is appended at once to a file of JSON lines beside the output (chaos.jsonl). The same
command resumes where it stopped: it tries what is missing and, again, what went wrong. Outcomes
hold for a version of the cases (VERSION in outcomes.py), not for a commit, so that a mended fault
does not cost the whole run; the output counts the cases of each commit. Remove the .jsonl file to
start from the beginning.

The output is a summary of the .jsonl file. Exits with status 1 if any case went wrong.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

warnings.simplefilter("ignore")
sys.path[:0] = [str(Path(__file__).resolve().parent)]

import annotations  # noqa: E402
import archives  # noqa: E402
import checkpoints  # noqa: E402
import full_disk  # noqa: E402
import images  # noqa: E402
import kills  # noqa: E402
import torch  # noqa: E402
from cases import Case  # noqa: E402
from jobs import make_jobs  # noqa: E402
from outcomes import WRONG, Outcome, OutcomeFile, Tried, table  # noqa: E402

import configs  # noqa: E402
from cdgcnet.engine.run_metadata import commit, run_metadata  # noqa: E402
from cdgcnet.utils.io import atomic_write  # noqa: E402

# Cases of a full run.
COUNTS = {
    "kill training": 60,
    "kill evaluation": 40,
    "kill preparation": 60,
    "kill packaging": 60,
    "worker training": 10,
    "worker evaluation": 10,
    "disk training": 15,
    "disk evaluation": 15,
    "disk preparation": 15,
    "disk packaging": 15,
    "configs": 1000,
    "images": 1000,
    "checkpoints": 500,
    "archives": 100,
    "annotations": 300,
}
INPUTS: dict[str, Case] = {
    "configs": configs.case,
    "images": images.case,
    "checkpoints": checkpoints.case,
    "archives": archives.case,
    "annotations": annotations.case,
}
JOBS: dict[str, Callable[..., Case]] = {
    "kill": kills.kill_job,
    "worker": kills.kill_worker,
    "disk": full_disk.fill_disk,
}


def make_cases(kinds: list[str], root: Path) -> dict[str, Case]:
    """Kind -> case; the jobs that are needed run once undisturbed, for their results."""
    wanted = {kind.split()[1] for kind in kinds if kind not in INPUTS}
    jobs = make_jobs(root) if wanted else {}
    references = {
        name: kills.undisturbed(jobs[name], root / f"reference-{name}") for name in wanted
    }
    cases = {}
    for kind in kinds:
        if kind in INPUTS:
            cases[kind] = INPUTS[kind]
        else:
            way, name = kind.split()
            cases[kind] = JOBS[way](name, jobs[name], references[name])
    return cases


def run_case(case: Case, kind: str, number: int, root: Path) -> Outcome:
    folder = root / f"{kind}-{number}".replace(" ", "-")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        outcome = case(random.Random(f"{kind} {number}"), folder)
    except Exception as error:
        outcome = Outcome(WRONG, f"{type(error).__name__}: {error}"[:500])
    if outcome.verdict != WRONG:
        shutil.rmtree(folder, ignore_errors=True)
    return outcome


def run(counts: dict[str, int], root: Path, file: OutcomeFile) -> None:
    """Try the cases that are missing in a file."""
    here = commit()
    missing = {kind: file.missing(kind, count) for kind, count in counts.items()}
    cases = make_cases([kind for kind, numbers in missing.items() if numbers], root)
    for kind, case in cases.items():
        begin = said = time.monotonic()
        for done, number in enumerate(missing[kind], 1):
            start = time.monotonic()
            outcome = run_case(case, kind, number, root)
            now = time.monotonic()
            file.add(
                Tried(kind, number, outcome.verdict, outcome.detail, round(now - start, 3), here)
            )
            if outcome.verdict == WRONG or now - said > 30 or done == len(missing[kind]):
                said = now
                print(f"{kind}: {done} of {len(missing[kind])}, {now - begin:.0f} s", flush=True)
            if outcome.verdict == WRONG:
                print(f"wrong: {kind} {number}: {outcome.detail}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", nargs="+", choices=COUNTS, default=list(COUNTS), metavar="KIND")
    parser.add_argument("--scale", type=float, default=1.0, help="fraction of the full number")
    parser.add_argument("--only", type=int, metavar="N", help="one case, by number")
    parser.add_argument("--output", type=Path, help="JSON file for the summary")
    args = parser.parse_args()
    torch.set_num_threads(1)
    root = Path(tempfile.mkdtemp(prefix="chaos-"))
    if args.only is not None:
        for kind, case in make_cases(args.kind, root).items():
            print(f"{kind} {args.only}: {run_case(case, kind, args.only, root)} in {root}")
        return 0
    outcomes = (args.output or root / "chaos.json").with_suffix(".jsonl")
    try:
        file = OutcomeFile(outcomes)
    except BlockingIOError:
        print(f"{outcomes}: another chaos run is writing to it", file=sys.stderr)
        return 1
    metadata = run_metadata(["python", *sys.argv])
    counts = {kind: max(1, round(args.scale * COUNTS[kind])) for kind in args.kind}
    try:
        run(counts, root, file)
    finally:
        summary = file.summary()
        if args.output:
            content = {
                "source": f"summary of {outcomes.name}, to which every case is appended",
                "run": metadata,
                **summary,
            }
            with atomic_write(args.output) as tmp_path:
                tmp_path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(table(summary))
    if summary["wrong"]:
        print(f"the files of wrong cases are in {root}")
        return 1
    shutil.rmtree(root, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
