"""Means over seeds, their standard errors, and differences of paired seeds."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Student's t, two-sided 5 %, for 1 degree of freedom and more; from 10 on the last, which is above
# two standard errors for any number of seeds.
_STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)


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
    """ "beats" or "falls behind" where Student's t test says so at 5 %, else "no difference shown".

    Two standard errors are enough for many seeds only: of two seeds the difference exceeds that by
    chance in three of ten cases, of three in two of ten.
    """
    if difference.error is None:
        return "one seed"
    bound = _STUDENT[min(difference.count - 1, len(_STUDENT)) - 1] * difference.error
    if difference.mean > bound:
        return "beats"
    if difference.mean < -bound:
        return "falls behind"
    return "no difference shown"
