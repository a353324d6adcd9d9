"""Configs drawn from the table of rules and beyond it: accepted, or refused in one line."""

import importlib.util
import random
from pathlib import Path

from cases import in_child
from outcomes import REFUSED, RIGHT, WRONG, Outcome

_DRAWN = Path(__file__).resolve().parents[1] / "cdgcnet" / "config" / "test_hostile_configs.py"
_spec = importlib.util.spec_from_file_location("hostile_configs", _DRAWN)
assert _spec is not None and _spec.loader is not None
_hostile = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_hostile)


def case(rng: random.Random, folder: Path) -> Outcome:
    def work() -> Outcome:
        changes = _hostile.draw(rng)
        try:
            cfg = _hostile.check(changes, folder / "a.yaml" if rng.random() < 0.5 else None)
        except AssertionError as error:
            return Outcome(WRONG, str(error)[:300])
        if cfg is None:
            return Outcome(REFUSED)
        _hostile.builds(cfg, changes)
        return Outcome(RIGHT)

    return in_child(work, folder / "log.txt")
