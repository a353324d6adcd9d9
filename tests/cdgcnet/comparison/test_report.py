"""The verdict on given scores, worked out by hand."""

import re
from pathlib import Path

import pytest

from cdgcnet.comparison.plot import draw
from cdgcnet.comparison.records import load_records
from cdgcnet.comparison.report import (
    best_peer,
    make_lines,
    render,
    sensitivity,
    table,
    verdicts,
    write_between,
)
from cdgcnet.config.defaults import default_cfg

ROOT = Path(__file__).resolve().parents[3]
# Gains over plain: ocr 7, 8, 9 (mean 8, error 1/√3 = 0.58); graph over pixelwise 4, 5, 6.
SCORES = {
    "plain": [57.0, 57.0, 57.0],
    "pixelwise": [58.0, 57.5, 57.0],
    "ocr": [64.0, 65.0, 66.0],
    "non_local": [64.0, 64.0, 64.0],
    "graph": [62.0, 62.5, 63.0],
}


def test_lines_come_by_context_and_kind(make_records):
    records = make_records({"aspp + graph": [1.0], "graph": [1.0], "aspp": [1.0], "plain": [1.0]})
    assert [x.label for x in make_lines(records)] == ["plain", "graph", "aspp", "aspp + graph"]


def test_a_seen_gain_allows_verdicts(make_records):
    lines = make_lines(make_records(SCORES))
    sees, said = sensitivity(lines)
    assert sees
    assert "above the plain head by more than 2 standard errors are ocr +8.00 ± 0.58" in said
    [verdict] = verdicts(lines)
    # Differences to ocr -2, -2.5, -3: mean -2.5, error 0.29, t = 8.7 > 4.30 for 2 degrees.
    assert "−2.50 ± 0.29 over ocr (falls behind)" in verdict
    assert "+5.00 ± 0.58 over pixelwise (beats)" in verdict
    assert best_peer(lines, lines[-1]).label == "ocr"


def test_no_gain_means_no_verdict(make_records):
    # The best positive control gains 0.5 ± 0.5: one standard error.
    records = make_records({**SCORES, "ocr": [57.0, 58.0], "non_local": [57.0, 57.0]})
    sees, said = sensitivity(make_lines(records))
    assert not sees
    assert said.startswith("No verdict: the instrument sees no context on this data")
    assert "ocr, +0.50 ± 0.50" in said
    assert "beats" not in render(records)


def test_one_seed_means_no_verdict(make_records):
    records = make_records({label: values[:1] for label, values in SCORES.items()})
    sees, said = sensitivity(make_lines(records))
    assert not sees
    assert "one seed has no standard error" in said and "--seeds 2" in said


@pytest.mark.parametrize("missing", [["plain"], ["ocr", "non_local"]])
def test_without_positive_controls_there_is_no_verdict(make_records, missing):
    scores = {label: v for label, v in SCORES.items() if label not in missing}
    sees, said = sensitivity(make_lines(make_records(scores)))
    assert not sees
    assert "needs the heads plain and at least one of aspp" in said


def test_differences_are_of_shared_seeds(make_records):
    # Seed 1 alone has both: 62 - 58, though the graph's mean is 63.
    records = make_records({"plain": [57.0], "pixelwise": [58.0], "graph": [62.0, 64.0]})
    [_, _, graph] = table(make_lines(records))
    assert graph[:6] == ["graph", "63.00 ± 1.00 (2)", "", "+5.00", "+4.00", ""]


def test_the_aspp_row_is_compared_with_the_plain_head(make_records):
    cells = table(
        make_lines(make_records({"plain": [57.0], "aspp": [66.0], "aspp + graph": [66.5]}))
    )
    assert cells[1][3] == "+9.00"
    assert cells[2][3] == "+0.50"  # in the context of the ASPP


@pytest.mark.parametrize(
    ("labels", "legend", "levels"),
    [
        (SCORES, ["plain and control", "peers", "graph"], "plain head (solid), control (dashed)"),
        (["plain", "graph"], ["plain", "graph"], "plain head (solid)"),
        (["pixelwise", "ocr"], ["control", "peers"], "control (dashed)"),
        (["aspp", "aspp + graph"], ["plain", "graph"], None),
    ],
)
def test_a_picture_explains_what_it_shows(make_records, labels, legend, levels):
    records = make_records({label: [57.0, 58.0] for label in labels})
    [axis] = draw("title", make_lines(records)).axes
    assert [text.get_text() for text in axis.get_legend().get_texts()] == legend
    explained = f"; vertical lines: {levels}" if levels else ""
    assert axis.get_xlabel() == f"mIoU in percent{explained}"


def test_one_name_with_two_networks_makes_two_lines(make_records):
    records = make_records({"graph": [62.0]})
    records[0].settings["EDGES"] = "uniform"
    lines = make_lines(records + make_records({"graph": [64.0]}))
    assert len({x.label for x in lines}) == 2
    assert all(x.label.startswith("graph (") for x in lines)


def test_a_record_from_before_a_key_was_new_is_of_the_same_line(make_records):
    old, new = make_records({"graph": [62.0, 63.0]})
    new.settings["MODEL.CDGC.LOSS.REFINED"] = default_cfg().MODEL.CDGC.LOSS.REFINED
    [line] = make_lines([old, new])
    assert line.label == "graph" and len(line.scores) == 2


def test_other_instruments_do_not_share_a_table(make_records):
    records = make_records({"plain": [57.0]}) + make_records({"graph": [62.0]}, steps=20)
    with pytest.raises(ValueError, match="steps is 10 in plain, seed 1, and 20 in graph, seed 1"):
        render(records)


def test_only_the_marked_part_of_a_file_is_replaced(tmp_path):
    path = tmp_path / "compare.md"
    path.write_text("above\n<!-- compare a -->\nold\n<!-- end of compare a -->\nbelow\n")
    write_between(path, "a", "new")
    write_between(path, "a", "newer")
    expected = "above\n<!-- compare a -->\n\nnewer\n<!-- end of compare a -->\nbelow\n"
    assert path.read_text() == expected
    with pytest.raises(ValueError, match="<!-- compare b -->"):
        write_between(path, "b", "new")
    assert path.read_text() == expected


def test_the_guide_shows_what_the_records_say():
    guide = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
    names = re.findall(r"<!-- compare (\w+) -->", guide)
    assert names
    for name in names:
        shown = guide.split(f"<!-- compare {name} -->")[1].split(f"<!-- end of compare {name} -->")
        folder = ROOT / "results" / "compare" / name
        expected = render(load_records(folder)) if folder.is_dir() else ""
        assert shown[0].strip() == expected.strip(), f"cdgcnet compare --render {folder} --into …"
