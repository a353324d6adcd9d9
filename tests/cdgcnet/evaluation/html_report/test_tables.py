"""The numbers of a page, by hand."""

import math

import numpy as np

from cdgcnet.evaluation.html_report.tables import (
    MAX_CLASSES,
    Pair,
    config_differences,
    graph_table,
    largest_pairs,
    percent_matrix,
    score_table,
)


def test_scores_side_by_side():
    one = {"mIoU": 50.0, "pACC": 60.0, "IoU-a": 50.0, "IoU-b": math.nan, "ACC-a": 1.0}
    two = {"mIoU": 40.0, "IoU-a": 30.0, "IoU-c": 50.0}
    table = score_table("title", {"one": one, "two": two})
    assert table.columns == ["one", "two"]
    assert [row.key for row in table.means] == ["mIoU", "pACC"]
    assert table.means[0].values == [50, 40]
    assert [row.name for row in table.rows] == ["a", "c"]  # b is defined nowhere
    assert table.rows[0].values == [50, 30]
    assert math.isnan(table.rows[1].values[0]) and table.rows[1].values[1] == 50


def test_effect_of_the_graph():
    table = graph_table({"fixed": 1.0, "broken": 2.0, "net": -1.0, "fixed-a": 3.0, "broken-a": 4.0})
    assert table.columns == ["fixed", "broken"]  # no class has a net effect or nodes
    assert table.means[0].values == [1, 2]
    assert [(row.name, row.values) for row in table.rows] == [("a", [3, 4])]


def test_matrix_in_percent_of_the_true_class():
    counts = np.array([[6, 2, 0], [0, 4, 0], [0, 0, 0]])
    matrix = percent_matrix("title", "predicted", counts, counts.sum(axis=1), ["a", "b", "c"])
    assert matrix.names == ["a", "b"]  # c does not occur
    assert matrix.percent == [[75, 25], [0, 100]]
    assert matrix.left_out == 0


def test_matrix_of_the_classes_with_the_most_wrong_pixels():
    size = MAX_CLASSES + 2
    counts = np.eye(size, dtype=int) * 1000
    counts[0, 1:] = np.arange(size - 1)  # class i + 1 is wrongly predicted i times
    names = [str(i) for i in range(size)]
    matrix = percent_matrix("", "", counts, counts.sum(axis=1), names)
    assert matrix.left_out == 2 and matrix.names == ["0", *names[3:]]


def test_largest_pairs():
    counts = np.array([[6, 2, 0], [5, 5, 0], [0, 0, 9]])
    truth = counts.sum(axis=1)
    assert largest_pairs(counts, truth, ["a", "b", "c"]) == [
        Pair("b", "a", 5, 50.0),
        Pair("a", "b", 2, 25.0),
    ]


def test_config_differences_name_runs_without_a_config():
    configs = [{"A": 1, "B": [1], "OUTPUT_DIR": "x"}, {}, {"A": 1, "B": [2], "OUTPUT_DIR": "y"}]
    assert config_differences(configs) == [("B", ["[1]", "not recorded", "[2]"])]
