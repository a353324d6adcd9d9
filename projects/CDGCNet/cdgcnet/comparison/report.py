"""What the records of a comparison say: a table, and whether it may be read at all."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from tabulate import tabulate

from cdgcnet.comparison.records import Record, same_instrument
from cdgcnet.comparison.rows import CONTEXTS, CONTROL, HEADS, PEERS
from cdgcnet.config.identity import changed_keys
from cdgcnet.evaluation.estimates import Estimate, estimate, paired_difference, verdict
from cdgcnet.utils.digests import digest_of
from cdgcnet.utils.io import atomic_write

HEADER = (
    "head",
    "mIoU",
    "coarse",
    "over plain",
    f"over {CONTROL}",
    "over best peer",
    "parameters",
    "CPU s",
    "memory",
)
EXPLAINED = f"""\
mIoU in percent, mean ± standard error over the seeds (their number). *coarse*: the prediction that
the context module starts from. Gains are means over paired seeds, within the same context (only
the row aspp is compared with the plain head without ASPP): over the plain head, over the {CONTROL}
control, which has the graph's parameters but looks at one pixel at a time, and for graphs over the
best peer, which is a high bar: it was chosen on the same images. *CPU s*: processor seconds of the
training; *memory*: what it takes at most on top of a process that is ready to start."""


@dataclass(frozen=True)
class Line:
    """All seeds of a row."""

    label: str
    kind: str
    context: str
    records: Mapping[int, Record]

    @property
    def scores(self) -> dict[int, float]:
        """Seed -> mIoU."""
        return {seed: record.score for seed, record in self.records.items()}

    @property
    def mean(self) -> float:
        return fmean(self.scores.values())


def make_lines(records: Sequence[Record]) -> list[Line]:
    """One line per row, by context and then by kind of head."""
    grouped: dict[tuple[str, str], dict[int, Record]] = {}
    for record in records:
        key = (record.label, digest_of(changed_keys(record.settings)))
        grouped.setdefault(key, {})[record.seed] = record
    labels = [label for label, _ in grouped]
    lines = []
    for (label, settings), by_seed in grouped.items():
        first = next(iter(by_seed.values()))
        # The same words may have meant another network, before a default changed.
        name = label if labels.count(label) == 1 else f"{label} ({settings[:6]})"
        lines.append(Line(name, first.kind, first.context, dict(sorted(by_seed.items()))))
    lines.sort(key=lambda x: (CONTEXTS.index(x.context), HEADS.index(x.kind), x.label))
    return lines


def _find(lines: Sequence[Line], context: str, *kinds: str) -> list[Line]:
    return [x for x in lines if x.context == context and x.kind in kinds]


def best_peer(lines: Sequence[Line], line: Line) -> Line | None:
    """The peer of the same context with the highest mean over the seeds that both have."""

    def level(peer: Line) -> float:
        shared = peer.scores.keys() & line.scores.keys()
        return fmean(peer.scores[seed] for seed in shared) if shared else float("-inf")

    best = max(_find(lines, line.context, *PEERS), key=level, default=None)
    return best if best is not None and level(best) > float("-inf") else None


def _against(line: Line, other: Line | None) -> str:
    """The cell of a difference; "" for a line against itself."""
    if other is None or other is line:
        return ""
    difference = paired_difference(line.scores, other.scores)
    return "" if difference is None else difference.signed()


def positive_controls(lines: Sequence[Line]) -> list[tuple[Line, Estimate]]:
    """Context modules that are known to help elsewhere, with their gain over the plain head."""
    plain = next(iter(_find(lines, "none", "plain")), None)
    if plain is None:
        return []
    known = [*_find(lines, "aspp", "plain"), *_find(lines, "none", *PEERS)]
    gains = [(line, paired_difference(line.scores, plain.scores)) for line in known]
    return [(line, gain) for line, gain in gains if gain is not None]


def sensitivity(lines: Sequence[Line]) -> tuple[bool, str]:
    """Whether a gain of context can be seen on this data, and one line that says so.

    It can if a positive control is above the plain head by more than 2 standard errors of their
    paired difference. Where it cannot, a graph without a gain means nothing.
    """
    gains = sorted(positive_controls(lines), key=lambda x: -x[1].mean)
    if not gains:
        return False, (
            "No verdict: whether context can be seen here needs the heads plain and at least one "
            f"of aspp, {', '.join(PEERS)} without ASPP."
        )
    best, gain = gains[0]
    if all(g.error is None for _, g in gains):
        return False, (
            f"No verdict: one seed has no standard error (largest gain over the plain head: "
            f"{best.label}, {gain.signed()}); use --seeds 2 or more."
        )
    seen = [
        f"{x.label} {g.signed()}" for x, g in gains if g.error is not None and g.mean > 2 * g.error
    ]
    if seen:
        return True, (
            "The instrument sees context on this data: above the plain head by more than 2 "
            f"standard errors are {', '.join(seen)}."
        )
    return False, (
        "No verdict: the instrument sees no context on this data. No positive control is above "
        f"the plain head by more than 2 standard errors (largest gain: {best.label}, "
        f"{gain.signed()}), so a graph without a gain means nothing here."
    )


def verdicts(lines: Sequence[Line]) -> list[str]:
    """What Student's t test says of every graph at 5 %, one line each."""
    said = []
    for line in (x for x in lines if x.kind == "graph"):
        others = [*_find(lines, line.context, "plain"), *_find(lines, line.context, CONTROL)]
        if (best := best_peer(lines, line)) is not None:
            others.append(best)
        differences = [(x, paired_difference(line.scores, x.scores)) for x in others]
        parts = [f"{d.signed()} over {x.label} ({verdict(d)})" for x, d in differences if d]
        if parts:
            said.append(f"{line.label}: {'; '.join(parts)}.")
    return said


def _cells(lines: Sequence[Line], line: Line) -> list[str]:
    costs = [record.cost for record in line.records.values()]
    coarse = estimate(
        [
            r.metrics["sem_seg_coarse"]["mIoU"]
            for r in line.records.values()
            if "sem_seg_coarse" in r.metrics
        ]
    )
    plain, control = (
        next(iter(_find(lines, line.context, kind)), None) for kind in ("plain", CONTROL)
    )
    if line.context == "aspp" and line.kind == "plain":
        plain = next(iter(_find(lines, "none", "plain")), None)
    return [
        line.label,
        f"{estimate(list(line.scores.values()))} ({len(line.records)})",
        str(coarse or ""),
        _against(line, plain),
        "" if line.kind == "plain" else _against(line, control),
        _against(line, best_peer(lines, line)) if line.kind == "graph" else "",
        f"{costs[0]['parameters'] / 1e6:.2f} M",
        f"{fmean(c['cpu_seconds'] for c in costs):.0f}",
        f"{max(c['peak_memory'] for c in costs) / 2**20:.0f} MiB",
    ]


def table(lines: Sequence[Line]) -> list[list[str]]:
    """Cells of all lines, in the order of :data:`HEADER`."""
    return [_cells(lines, line) for line in lines]


def format_table(lines: Sequence[Line], style: str = "simple") -> str:
    """All lines in one of tabulate's styles."""
    align = ["left", *["right"] * (len(HEADER) - 1)]
    return tabulate(table(lines), HEADER, style, disable_numparse=True, colalign=align)


def _conditions(records: Sequence[Record]) -> list[str]:
    about = same_instrument(records)
    data = about["evaluated_on"]
    metadata = [record.metadata for record in records]

    def different(key: str) -> list[str]:
        return list(dict.fromkeys(m[key] for m in metadata))

    def all_of(key: str) -> str:
        return "; ".join(different(key))

    commands = [f"`{shlex.join(shlex.split(command))}`" for command in different("command")]

    return [
        f"{about['train_images']} images of {about['trained_on']}, scored on "
        f"{about['eval_images']} of {data}; shorter side {about['shorter_side']}, features "
        f"{about['feature']} at stride {about['stride']} of {about['weights_file']}, "
        f"{about['channels']} channels with {100 * about['explained']:.0f} % of their variance; "
        f"{about['steps']} steps of {about['batch']} crops of {about['crop']} × {about['crop']} "
        f"nodes, AdamW {about['learning_rate']:g}, {about['precision']}.",
        "",
        f"Commit {all_of('commit')}; {all_of('date')}; {all_of('versions')}; {all_of('hardware')}.",
        "",
        f"Command{'s' if len(commands) > 1 else ''}:",
        "",
        *(f"- {command}" for command in commands),
    ]


def render(records: Sequence[Record]) -> str:
    """Sensitivity, verdicts, table and where its numbers come from, as Markdown.

    Raises:
        ValueError: if the records do not belong to one table.
    """
    lines = make_lines(records)
    conditions = _conditions(records)
    sees, said = sensitivity(lines)
    text = [f"**{said}**", ""]
    if sees and (found := verdicts(lines)):
        text += [*(f"- {line}" for line in found), ""]
    text += [format_table(lines, "pipe"), "", EXPLAINED, "", *conditions]
    return "\n".join(text) + "\n"


def _markers(name: str) -> tuple[str, str]:
    return f"<!-- compare {name} -->", f"<!-- end of compare {name} -->"


def write_between(path: Path, name: str, text: str) -> None:
    """Replace what stands between the two markers of a name in a Markdown file.

    Raises:
        ValueError: naming the file and the markers, if it does not hold each of them once.
    """
    begin, end = _markers(name)
    content = path.read_text(encoding="utf-8")
    if content.count(begin) != 1 or content.count(end) != 1:
        raise ValueError(f"{path}: expected the lines {begin!r} and {end!r}, once each")
    before, _, rest = content.partition(begin)
    _, _, after = rest.partition(end)
    with atomic_write(path) as tmp_path:
        tmp_path.write_text(f"{before}{begin}\n\n{text}\n{end}{after}", encoding="utf-8")
