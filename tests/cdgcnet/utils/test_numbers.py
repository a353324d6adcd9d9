"""Numbers in tables, by hand."""

import math

import pytest

from cdgcnet.evaluation.estimates import Estimate
from cdgcnet.evaluation.report import format_graph_table
from cdgcnet.utils.numbers import fixed, signed


@pytest.mark.parametrize(
    ("value", "plain", "difference"),
    [
        (0.0, "0.00", "+0.00"),
        (-0.0, "0.00", "+0.00"),
        (-0.004, "0.00", "+0.00"),
        (0.004, "0.00", "+0.00"),
        (-0.006, "-0.01", "−0.01"),
        (0.125, "0.12", "+0.12"),  # a tie goes to the even digit, as in Python's own format
        (-12.5, "-12.50", "−12.50"),
    ],
)
def test_no_negative_zero(value, plain, difference):
    assert fixed(value) == plain
    assert signed(value) == difference


def test_digits():
    assert (fixed(-0.04, 1), fixed(-0.04, 3)) == ("0.0", "-0.040")
    assert fixed(math.nan) == "nan"


def test_estimates():
    estimate = Estimate(-0.001, 0.25, 4)
    assert (str(estimate), estimate.signed()) == ("0.00 ± 0.25", "+0.00 ± 0.25")
    assert Estimate(-0.5, None, 1).signed() == "−0.50"


def test_the_table_of_the_graph():
    scores = {"mIoU": 50.0, "IoU-a": 50.0, "ACC-a": 60.0}
    graph = {f"{key}{end}": -0.001 for key in ("fixed", "broken", "net") for end in ("", "-a")}
    table = format_graph_table({"graph": graph, "sem_seg": scores, "sem_seg_coarse": scores})
    assert "-0.00" not in table and table.count(" 0.00") == 6
