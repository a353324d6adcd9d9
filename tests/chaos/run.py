#!/usr/bin/env python
"""Break things on purpose, and count what happens: right, refused clearly, or wrong.

    python tests/chaos/run.py --output benchmarks/results/chaos.json

Kills processes at random moments, fills the disk, and feeds hostile configs, images, checkpoints
and archives. Every case is numbered and reproducible: --kind images --only 17 runs one. Cases that
the output file holds already are not run again. Exits with status 1 if any case went wrong.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

warnings.simplefilter("ignore")
sys.path[:0] = [str(Path(__file__).resolve().parent)]

import archives  # noqa: E402
import checkpoints  # noqa: E402
import full_disk  # noqa: E402
import images  # noqa: E402
import kills  # noqa: E402
import torch  # noqa: E402
from cases import REFUSED, RIGHT, WRONG, Case, Outcome  # noqa: E402
from jobs import make_jobs  # noqa: E402
from tqdm import tqdm  # noqa: E402

import cdgcnet.modeling  # noqa: E402, F401  registers the network
import configs  # noqa: E402
from cdgcnet.engine.run_metadata import run_metadata  # noqa: E402
from cdgcnet.utils.io import atomic_write  # noqa: E402

# Cases of a full run.
COUNTS = {
    "configs": 1000,
    "images": 1000,
    "checkpoints": 500,
    "archives": 100,
    "kill training": 80,
    "kill evaluation": 40,
    "kill preparation": 60,
    "kill packaging": 60,
    "disk training": 15,
    "disk evaluation": 15,
    "disk preparation": 15,
    "disk packaging": 15,
}


def make_cases(kinds: list[str], root: Path) -> dict[str, Case]:
    """Kind -> case; the jobs that are needed run once undisturbed, for their results."""
    simple: dict[str, Case] = {
        "configs": configs.case,
        "images": images.case,
        "checkpoints": checkpoints.case,
        "archives": archives.case,
    }
    cases = {kind: simple[kind] for kind in kinds if kind in simple}
    wanted = {kind.split()[1] for kind in kinds if kind not in simple}
    if not wanted:
        return cases
    for name, job in make_jobs(root).items():
        if name not in wanted:
            continue
        reference = root / f"reference-{name}"
        shutil.rmtree(reference, ignore_errors=True)
        result, seconds = kills.undisturbed(job, reference)
        needed = sum(p.stat().st_size for p in reference.rglob("*") if p.is_file())
        if f"kill {name}" in kinds:
            cases[f"kill {name}"] = kills.make_case(name, job, result, seconds)
        if f"disk {name}" in kinds:
            cases[f"disk {name}"] = full_disk.make_case(name, job, result, needed)
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


def run(counts: dict[str, int], root: Path, found: dict[str, dict[str, list]]) -> None:
    """Run the cases that are missing in ``found``: kind -> number -> verdict and detail."""
    torch.set_num_threads(1)
    missing = {
        k: [n for n in range(c) if str(n) not in found.get(k, {})] for k, c in counts.items()
    }
    cases = make_cases([kind for kind, numbers in missing.items() if numbers], root)
    for kind, case in cases.items():
        for number in tqdm(missing[kind], desc=kind, unit="case", mininterval=5):
            outcome = run_case(case, kind, number, root)
            found.setdefault(kind, {})[str(number)] = [outcome.verdict, outcome.detail]


def table(found: dict[str, dict[str, list]]) -> str:
    lines = [f"{'kind':20}{'tried':>8}{'right':>8}{'refused':>9}{'wrong':>7}"]
    for kind, outcomes in found.items():
        verdicts = Counter(verdict for verdict, _ in outcomes.values())
        lines.append(
            f"{kind:20}{len(outcomes):8}{verdicts[RIGHT]:8}{verdicts[REFUSED]:9}{verdicts[WRONG]:7}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", nargs="+", choices=COUNTS, default=list(COUNTS), metavar="KIND")
    parser.add_argument("--scale", type=float, default=1.0, help="fraction of the full number")
    parser.add_argument("--only", type=int, metavar="N", help="one case, by number")
    parser.add_argument("--output", type=Path, help="JSON file that keeps the outcomes")
    args = parser.parse_args()
    found: dict[str, dict[str, list]] = {}
    if args.output and args.output.is_file():
        found = json.loads(args.output.read_text(encoding="utf-8"))["outcomes"]
    root = Path(tempfile.mkdtemp(prefix="chaos-"))
    if args.only is not None:
        for kind, case in make_cases(args.kind, root).items():
            print(f"{kind} {args.only}: {run_case(case, kind, args.only, root)} in {root}")
        return 0
    counts = {kind: max(1, round(args.scale * COUNTS[kind])) for kind in args.kind}
    try:
        run(counts, root, found)
    finally:
        if args.output:
            content = {"run": run_metadata(["python", *sys.argv]), "outcomes": found}
            with atomic_write(args.output) as tmp_path:
                tmp_path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(table(found))
    wrong = [
        f"{kind} {number}: {detail}"
        for kind, outcomes in found.items()
        for number, (verdict, detail) in outcomes.items()
        if verdict == WRONG
    ]
    print("\n".join(wrong))
    if not wrong:
        shutil.rmtree(root, ignore_errors=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
