"""What the outcome of a case is, and how outcomes are kept while a run goes on."""

import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

RIGHT, REFUSED, WRONG = "right", "refused", "wrong"
# Raise it when a case number draws something else than before: older outcomes then no longer count.
VERSION = 1


@dataclass(frozen=True)
class Outcome:
    """How one case ended.

    Attributes:
        verdict: "right", "refused" (with a clear message) or "wrong".
        detail: the message, or what was wrong.
    """

    verdict: str
    detail: str = ""


@dataclass(frozen=True)
class Tried:
    """A line of the outcome file.

    Attributes:
        kind, number: of the case; together they are its seed.
        verdict, detail: its outcome.
        seconds: it took.
        commit: of the program that was tried.
        version: of the cases.
    """

    kind: str
    number: int
    verdict: str
    detail: str
    seconds: float
    commit: str
    version: int = VERSION


class OutcomeFile:
    """Outcomes in a file of JSON lines; each is on the disk before the next case starts.

    A case that went wrong may be tried again: its last line counts.
    """

    def __init__(self, path: Path):
        """
        Raises:
            BlockingIOError: if another process writes to the file.
            ValueError: naming a line that is no outcome.
        """
        self.path = path
        self.tried: dict[tuple[str, int], Tried] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab+")
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for outcome in self._read():
            if outcome.version == VERSION:
                self.tried[outcome.kind, outcome.number] = outcome

    def _read(self) -> Iterator[Tried]:
        self._file.seek(0)
        whole, _, half = self._file.read().rpartition(b"\n")
        if half:  # of a run that was killed while it wrote
            self._file.truncate(len(whole) + 1 if whole else 0)
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                yield Tried(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{self.path}, line {number}: no outcome ({error})") from error

    def add(self, outcome: Tried) -> None:
        self._file.write(json.dumps(asdict(outcome)).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.tried[outcome.kind, outcome.number] = outcome

    def missing(self, kind: str, count: int) -> list[int]:
        """The numbers below ``count`` that were never tried or went wrong."""
        done = {n for (k, n), t in self.tried.items() if k == kind and t.verdict != WRONG}
        return [number for number in range(count) if number not in done]

    def summary(self) -> dict:
        """Counts and seconds per kind, cases per commit, and every case that went wrong."""
        kinds: dict[str, dict] = {}
        for outcome in self.tried.values():
            counts = kinds.setdefault(
                outcome.kind, {"tried": 0, RIGHT: 0, REFUSED: 0, WRONG: 0, "seconds": 0.0}
            )
            counts["tried"] += 1
            counts[outcome.verdict] += 1
            counts["seconds"] = round(counts["seconds"] + outcome.seconds, 1)
        return {
            "version": VERSION,
            "kinds": kinds,
            "cases by commit": dict(Counter(t.commit for t in self.tried.values())),
            "wrong": {
                f"{t.kind} {t.number}": t.detail for t in self.tried.values() if t.verdict == WRONG
            },
        }


def table(summary: dict) -> str:
    lines = [f"{'kind':20}{'tried':>8}{'right':>8}{'refused':>9}{'wrong':>7}{'seconds':>9}"]
    for kind, counts in summary["kinds"].items():
        numbers = [counts[key] for key in ("tried", RIGHT, REFUSED, WRONG)]
        lines.append("{:20}{:8}{:8}{:9}{:7}{:9.0f}".format(kind, *numbers, counts["seconds"]))
    return "\n".join(lines + [f"wrong: {case}: {why}" for case, why in summary["wrong"].items()])
