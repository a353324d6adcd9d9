"""Means over seeds, their standard errors, and differences of paired seeds."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: of the values.
        error: standard error of the mean, s / √n with s from n − 1; None for one value.
        count: n.
    """

    mean: float
    error: float | None
    count: int

    def __str__(self) -> str:
        spread = "" if self.error is None else f" ± {self.error:.2f}"
        return f"{self.mean:.2f}{spread}"


def estimate(values: Sequence[float]) -> Estimate | None:
    """None for no values."""
    if not values:
        return None
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return Estimate(statistics.fmean(values), error, len(values))


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Estimate | None:
    """Mean of ours − theirs over the seeds both have; None without any.

    Args:
        ours, theirs: seed -> value.
    """
    return estimate([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])


def verdict(difference: Estimate) -> str:
    """ "beats" or "falls behind" beyond two standard errors, else "no difference shown".

    With fewer than three seeds none: of two values alone, the difference exceeds two standard
    errors by chance in three of ten cases.
    """
    if difference.count < 3 or difference.error is None:
        return {1: "one seed", 2: "two seeds"}[difference.count]
    if difference.mean > 2 * difference.error and difference.mean > 0:
        return "beats"
    if difference.mean < -2 * difference.error and difference.mean < 0:
        return "falls behind"
    return "no difference shown"
