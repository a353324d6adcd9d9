"""The outcome file of a chaos run: nothing is lost, and a run resumes where it stopped."""

import pytest
from chaos.outcomes import REFUSED, RIGHT, VERSION, WRONG, OutcomeFile, Tried, table


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results" / "chaos.jsonl"


def tried(number, verdict, kind="images", **changes):
    return Tried(kind, number, verdict, "why", 0.5, "abc", **changes)


def test_a_run_goes_on_with_what_is_missing_or_went_wrong(path):
    file = OutcomeFile(path)
    assert file.missing("images", 4) == [0, 1, 2, 3]
    for outcome in (
        tried(0, RIGHT),
        tried(1, WRONG),
        tried(3, REFUSED),
        tried(0, RIGHT, "configs"),
    ):
        file.add(outcome)
    assert OutcomeFile(path.with_name("b.jsonl")).missing("images", 2) == [0, 1]
    del file
    again = OutcomeFile(path)
    assert again.missing("images", 4) == [1, 2]
    assert again.missing("configs", 2) == [1]
    again.add(tried(1, RIGHT))
    assert again.missing("images", 4) == [2]
    assert path.read_text().count("\n") == 5  # every outcome is kept


def test_a_half_line_of_a_killed_run_is_removed(path):
    file = OutcomeFile(path)
    file.add(tried(0, RIGHT))
    whole = path.read_bytes()
    del file
    path.write_bytes(whole + b'{"kind": "images", "num')
    file = OutcomeFile(path)
    file.add(tried(1, RIGHT))
    assert path.read_bytes().startswith(whole)
    assert path.read_bytes().count(b"\n") == 2 and file.missing("images", 2) == []


def test_only_one_process_writes_to_the_file(path):
    file = OutcomeFile(path)
    with pytest.raises(BlockingIOError):
        OutcomeFile(path)
    file.add(tried(0, RIGHT))


def test_outcomes_of_other_cases_do_not_count(path):
    file = OutcomeFile(path)
    file.add(tried(0, RIGHT, version=VERSION - 1))
    del file
    assert OutcomeFile(path).missing("images", 1) == [0]


def test_a_line_that_is_no_outcome_is_named(path):
    path.parent.mkdir()
    path.write_text('{"kind": "images"}\n')
    with pytest.raises(ValueError, match=r"chaos\.jsonl, line 1: no outcome"):
        OutcomeFile(path)


def test_summary_and_table_count_by_kind(path):
    file = OutcomeFile(path)
    for outcome in (
        tried(0, RIGHT),
        tried(1, REFUSED),
        tried(2, WRONG),
        tried(0, RIGHT, "configs"),
    ):
        file.add(outcome)
    summary = file.summary()
    assert summary["kinds"]["images"] == {
        "tried": 3,
        "right": 1,
        "refused": 1,
        "wrong": 1,
        "seconds": 1.5,
    }
    assert summary["cases by commit"] == {"abc": 4}
    assert summary["wrong"] == {"images 2": "why"}
    assert table(summary).splitlines()[1].split() == ["images", "3", "1", "1", "1", "2"]
