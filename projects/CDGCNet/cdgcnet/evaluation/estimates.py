"""Means over seeds, their standard errors, and paired differences."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

from cdgcnet.utils.numbers import fixed, signed

SIGNIFICANCE = 0.05  # of the two-sided test


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: of the values.
        error: standard error of the mean, s / √n with s from n - 1; None for a single value.
        count: n.
    """

    mean: float
    error: float | None
    count: int

    def __str__(self) -> str:
        return fixed(self.mean) + self._spread()

    def signed(self) -> str:
        """The estimate of a difference, "+0.50 ± 0.25" or "−0.50 ± 0.25"."""
        return signed(self.mean) + self._spread()

    def _spread(self) -> str:
        return "" if self.error is None else f" ± {fixed(self.error)}"


def estimate(values: Sequence[float]) -> Estimate | None:
    """The mean of some values with its standard error; None without values."""
    if not values:
        return None
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return Estimate(statistics.fmean(values), error, len(values))


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Estimate | None:
    """The mean of ours - theirs over the seeds that both have; None if they share none.

    Args:
        ours, theirs: seed -> value.
    """
    return estimate([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])


def verdict(difference: Estimate) -> str:
    """ "beats" or "falls behind" if Student's t test says so at 5 %, else "no difference shown".

    Two standard errors are a valid bound for many seeds only: by chance alone, two seeds exceed it
    in three of ten cases and three seeds in two of ten.
    """
    if difference.error is None:
        return "one seed"
    bound = stats.t.ppf(1 - SIGNIFICANCE / 2, difference.count - 1) * difference.error
    if difference.mean > bound:
        return "beats"
    if difference.mean < -bound:
        return "falls behind"
    return "no difference shown"
