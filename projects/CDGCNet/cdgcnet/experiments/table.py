"""A table of rows as Markdown, from records alone: nothing is typed by hand."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from cdgcnet.evaluation.estimates import Estimate, estimate, paired_difference, verdict
from cdgcnet.experiments.record import Record
from cdgcnet.experiments.rows import Row
from cdgcnet.utils.io import atomic_write

HEADER = (
    "row",
    "paper",
    "mIoU",
    "coarse",
    "refined",
    "oracle",
    "TTA",
    "− best control",
    "parameters",
    "GFLOPs",
    "peak memory",
    "s/iter ÷ ASPP",
)


@dataclass(frozen=True)
class Line:
    """A row with what was measured of it.

    Attributes:
        row: name, label, the paper's value.
        hash: of its config.
        records: seed -> record of exactly this row.
        tta: seed -> record of the row with test-time augmentation; the same for a row of Table 4
            or 6 that has it.
        evaluation: scales and flip that the row itself is evaluated with; () for none.
    """

    row: Row
    hash: str
    records: Mapping[int, Record] = field(default_factory=dict)
    tta: Mapping[int, Record] = field(default_factory=dict)
    evaluation: tuple = ()

    def values(self, task: str = "") -> dict[int, float]:
        """mIoU in percent by seed; of the row's own evaluation if no task is named."""
        records = self.tta if task == "sem_seg_TTA" else self.records
        task = task or ("sem_seg_TTA" if self.evaluation else "sem_seg")
        found = {seed: r.miou(task) for seed, r in sorted(records.items())}
        return {seed: value for seed, value in found.items() if value is not None}

    @property
    def mean(self) -> Estimate | None:
        return estimate(list(self.values().values()))


def comparable(line: Line, controls: Sequence[Line]) -> list[Line]:
    """The controls that have all seeds of a line."""
    return [c for c in controls if line.values().keys() <= c.values().keys()]


def best_control(line: Line, controls: Sequence[Line]) -> tuple[Line, Estimate] | None:
    """The control with the highest mean over the seeds it shares with a line, and the difference.

    A control that lacks some of the line's seeds counts only where all do: means over different
    seeds say more about the seeds than about the controls.

    Args:
        line: compared.
        controls: measured as the line is.

    Returns:
        None if no control has a seed in common.
    """
    ours = line.values()

    def level(control: Line) -> float:
        theirs = control.values()
        shared = ours.keys() & theirs.keys()
        return fmean(theirs[seed] for seed in shared) if shared else float("-inf")

    best = max(comparable(line, controls) or controls, key=level, default=None)
    if best is None:
        return None
    difference = paired_difference(ours, best.values())
    return None if difference is None else (best, difference)


def _size(value: float) -> str:
    return f"{value / 1e6:.2f} M"


def _costs(records: Mapping[int, Record], key: str) -> list[float]:
    """One cost of all records that have it."""
    costs: list[Mapping[str, Any]] = [record.cost for record in records.values()]
    return [float(cost[key]) for cost in costs if key in cost]


def relative_time(line: Line, aspp: Line | None) -> float | None:
    """Seconds per iteration over those of the ASPP row on the same hardware, mean over seeds."""
    if aspp is None:
        return None
    ratios = []
    for seed, record in line.records.items():
        other = aspp.records.get(seed)
        if other is None or record.run_metadata["hardware"] != other.run_metadata["hardware"]:
            continue
        ours = record.cost.get("seconds_per_iteration")
        theirs = other.cost.get("seconds_per_iteration")
        if ours is not None and theirs is not None:
            ratios.append(ours / theirs)
    return fmean(ratios) if ratios else None


def cells(line: Line, controls: Sequence[Line], aspp: Line | None) -> list[str]:
    """The cells of a line, in the order of :data:`HEADER`; "" where nothing was measured."""

    mean = line.mean

    def score(task: str) -> str:
        found = estimate(list(line.values(task).values()))
        if found is None:
            return ""
        # Only some of the row's seeds: say of how many.
        same = mean is not None and found.count == mean.count
        return str(found) if same else f"{found} ({found.count})"

    coarse = score("sem_seg_coarse")
    own = "" if mean is None else f"{mean} ({mean.count})"
    against = ""
    if line.hash in {c.hash for c in controls}:
        against = "control" if line.records else ""
    elif (found := best_control(line, controls)) is not None:
        measured = len(comparable(line, controls))
        complete = measured == len(controls)
        result = verdict(found[1]) if complete else f"{measured} of {len(controls)} controls"
        against = f"{found[1].signed()}, {result}"
    parameters = _costs(line.records, "parameters")
    flops = _costs(line.records, "gflops")
    memory = _costs(line.records, "peak_memory")
    kinds = {r.cost["peak_memory_of"] for r in line.records.values() if "peak_memory" in r.cost}
    time = relative_time(line, aspp)
    return [
        line.row.label,
        "" if line.row.paper is None else f"{line.row.paper:.1f}",
        own,
        coarse,
        score("sem_seg") if coarse else "",  # without one there is nothing refined
        score("sem_seg_oracle"),
        score("sem_seg_TTA"),
        against,
        _size(parameters[0]) if parameters else "",
        f"{fmean(flops):.2f}" if flops else "",
        f"{max(memory) / 2**30:.2f} GiB ({' and '.join(sorted(kinds))})" if memory else "",
        "" if time is None else f"{time:.2f}",
    ]


def _markdown(
    header: Sequence[str], rows: Sequence[Sequence[str]], align: str = "---:"
) -> list[str]:
    def line(fields: Sequence[str]) -> str:
        return "| " + " | ".join(f.replace("|", "\\|") for f in fields) + " |"

    ruler = line(["---", *[align] * (len(header) - 1)])
    return [line(header), ruler, *(line(row) for row in rows)]


def footnotes(lines: Sequence[Line]) -> list[str]:
    """Where each number comes from: a line per run, and what they ran on."""
    records: dict[tuple[str, int], Record] = {}
    for line in lines:
        for record in (*line.records.values(), *line.tta.values()):
            records[record.hash, record.seed] = record
    if not records:
        return []
    grounds: dict[tuple[str, str, str], int] = {}
    rows = []
    for (config_hash, seed), record in sorted(records.items(), key=lambda x: (x[1].row, x[0][1])):
        about = record.run_metadata
        ground = (about["versions"], about["hardware"], record.weights)
        number = grounds.setdefault(ground, len(grounds) + 1)
        origin = (f"`{config_hash}`", about["commit"], about["date"], str(number))
        rows.append([record.row, str(seed), *origin, f"`{about['command']}`"])
    header = ("run", "seed", "config hash", "commit", "date", "on", "command")
    notes = ["", "Each run:", "", *_markdown(header, rows, "---"), ""]
    return notes + [
        f"{number}. {versions}; {hardware}; from {weights}."
        for (versions, hardware, weights), number in grounds.items()
    ]


_EXPLAINED = """\
mIoU in percent, mean ± standard error over the seeds (their number). *paper*: what the paper
reports, on its own data. *mIoU* is the row's own evaluation; *coarse* and *refined* come from one
pass, *oracle* is refined with the ground truth's classes in the graph, *TTA* the same network with
scales and flip. *− best control*: mean ± standard error of the differences to the best control at
the same seeds; "beats" and "falls behind" by Student's t test at 5 %, given where all controls are
there; the best of three controls is a high bar. GFLOPs: multiply-adds for one real image of the
crop's size. s/iter is a ratio to the ASPP row's run on the same hardware; a busy machine shows in
it. Empty: not measured."""


def write_markdown(
    path: Path,
    title: str,
    lines: Sequence[Line],
    controls: Sequence[Line],
    aspp: Line | None,
    overrides: Sequence[str] = (),
    picture: str = "",
) -> None:
    """The table with its footnotes.

    Args:
        path: file to write; an earlier one is replaced, it is made from the same records.
        title: heading.
        lines: the rows.
        controls: for the differences; each line's are those evaluated as it is.
        aspp: whose time is 1.
        overrides: KEY VALUE pairs that all rows were changed by.
        picture: file name of the picture next to it.
    """
    with_controls = [cells(line, matching(controls, line), aspp) for line in lines]
    text = [f"# {title}", "", _EXPLAINED]
    if overrides:
        text += ["", f"Changed in all rows: `{shlex.join(overrides)}`."]
    text += ["", *_markdown(HEADER, with_controls)]
    best = set()
    for line in lines:
        others = matching(controls, line)
        found = best_control(line, others)
        if found is not None and line.hash not in {c.hash for c in others}:
            count = len(comparable(line, others))
            part = "" if count == len(others) else f" (of {count} of {len(others)} controls)"
            theirs = found[0].values()
            shared = estimate([theirs[seed] for seed in line.values() if seed in theirs])
            best.add(f"{line.row.label}: {found[0].row.label}, {shared}{part}")
    if best:
        text += ["", "Best control of each row: " + "; ".join(sorted(best)) + "."]
    text += footnotes([*lines, *controls])
    if picture:
        text += ["", f"![{title}]({picture})"]
    with atomic_write(path) as tmp_path:
        tmp_path.write_text("\n".join(text) + "\n", encoding="utf-8")


def matching(controls: Sequence[Line], line: Line) -> list[Line]:
    """Controls that are evaluated as a line is."""
    return [c for c in controls if c.evaluation == line.evaluation]
