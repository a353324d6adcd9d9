"""The protocol of the benchmarks: ratios, verdicts, kept cells, memory of one call."""

import json

import pytest
import torch
from protocol import (
    Cells,
    Times,
    Unsteady,
    attempt,
    claim,
    exit_code,
    heading,
    measure,
    no_tf32,
    peak_memory,
    report,
)


@pytest.fixture
def default_tf32():
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    convolutions.allow_tf32, products.allow_tf32 = True, False
    yield
    convolutions.allow_tf32, products.allow_tf32 = before


def test_a_table_says_where_fp32_is_tf32(monkeypatch, default_tf32):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert heading("Graph") == "# Graph"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert heading("Graph") == "# Graph; TF32 in fp32 layers on the GPU: convolutions"
    no_tf32()
    assert heading("Graph") == "# Graph; TF32 in fp32 layers on the GPU: none"


def test_ratio_is_the_median_of_paired_ratios():
    # Paired: 2/1, 4/4, 9/3 = 2, 1, 3. Of the medians it would be 4/3.
    times = Times({"a": [2.0, 4.0, 9.0], "b": [1.0, 4.0, 3.0]})
    assert times.ratio("a", "b") == 2.0


def test_claims_say_what_was_missed():
    assert claim("x", 0.2, 0.2) == ["x", "0.2", "≤ 0.2", "met"]
    assert claim("x", 0.21, 0.2)[3] == "**missed**"
    assert claim("x", 90, 80, at_least=True) == ["x", "90", "≥ 80", "met"]
    assert claim("x", 79, 80, at_least=True)[3] == "**missed**"


def test_an_unsteady_machine_is_no_result(monkeypatch):
    # Two halves of two rounds each, the second twice as slow, in both attempts.
    seconds = iter([1.0, 1.0, 2.0, 2.0] * 2)
    monkeypatch.setattr("protocol._seconds", lambda function, device, calls=1: next(seconds))
    with pytest.raises(Unsteady, match="100%"):
        measure({"a": lambda: None}, rounds=4, attempts=2)


def test_contestants_take_turns(monkeypatch):
    order = []
    monkeypatch.setattr("protocol._seconds", lambda function, device, calls=1: function())
    runs = {name: lambda name=name: order.append(name) or 1.0 for name in "ab"}
    assert measure(runs, rounds=2).ratio("a", "b") == 1.0
    assert order == ["a", "b", "a", "b", "a", "b"]  # the first two warm up


def test_a_sample_on_a_gpu_is_as_many_calls_as_take_20_ms(monkeypatch):
    calls_of = {"slow": [], "fast": []}

    def seconds(name, device, calls=1):
        assert device == "cuda"
        calls_of[name].append(calls)
        return {"slow": 0.1, "fast": 0.003}[name]

    monkeypatch.setattr("protocol._seconds", seconds)
    measure({name: name for name in calls_of}, rounds=2, device="cuda", warm=True)
    assert calls_of == {"slow": [1, 1, 1], "fast": [1, 7, 7]}


def test_cells_go_on_where_they_stopped(tmp_path):
    path = tmp_path / "cells" / "x.json"
    assert Cells(path).get("one", lambda: [1, 2]) == [1, 2]
    again = Cells(path)
    assert again.get("one", lambda: pytest.fail("measured twice")) == [1, 2]
    assert again.get("two", lambda: "b") == "b"
    assert set(json.loads(path.read_text())) == {"one", "two"}
    assert again.commits()  # of both cells, one commit


def test_a_cell_that_fails_is_not_kept(tmp_path):
    cells = Cells(tmp_path / "x.json")
    with pytest.raises(ZeroDivisionError):
        cells.get("one", lambda: 1 / 0)
    assert cells.get("one", lambda: 3) == 3


def test_a_part_that_fails_leaves_a_row_and_ends_no_other(monkeypatch, capsys):
    monkeypatch.setattr("protocol.FAILED", [])

    def busy():
        raise Unsteady("a: 30%")

    assert attempt("one", lambda: [["one", "1", "", ""]]) == [["one", "1", "", ""]]
    assert attempt("two", busy) == [["two", "not reported: a: 30%", "", ""]]
    assert exit_code() == 0
    [row] = attempt("three", lambda: 1 / 0)
    assert row == ["three", "failed: ZeroDivisionError: division by zero", "", ""]
    assert exit_code() == 1
    assert "division by zero" in capsys.readouterr().err


def test_report_has_the_circumstances(tmp_path, capsys):
    report("x", "Title", ["cell", "found"], [["a", "1"], ["b"]], tmp_path)
    text = (tmp_path / "x.md").read_text()
    assert text in capsys.readouterr().out
    assert "| a | 1 |\n| b |  |\n" in text
    content = json.loads((tmp_path / "x.json").read_text())
    assert content["rows"] == [["a", "1"], ["b"]]
    for key in ("command", "commit", "hardware", "versions"):
        assert content[key]
        assert f"- {key}: {content[key]}" in text


def allocate(megabytes):
    return lambda: torch.ones(megabytes << 18).sum()


@pytest.mark.slow
def test_memory_of_one_call():
    # 64 MiB of float32 ones; a MiB or two more for the first use of the library.
    assert 64 <= peak_memory(allocate, 64) / 2**20 < 80
