"""check_machine.py: what is missing is named before any minute is spent."""

import sys

import pytest
from check_machine import main, problems


def test_what_cannot_be_imported_is_named():
    assert problems(["json", "math"]) == []
    [line] = problems(["json", "no_such_module"])
    assert line == "no_such_module: No module named 'no_such_module'"


def test_a_missing_module_or_gpu_ends_with_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "--device", "cuda", "--output", str(tmp_path)])
    monkeypatch.setattr("check_machine.NEEDED", ["no_such_module"])
    with pytest.raises(SystemExit, match="no_such_module"):
        main()
    monkeypatch.setattr("check_machine.NEEDED", [])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device"):
        main()
    assert not list(tmp_path.iterdir())


def test_each_session_adds_its_circumstances(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "--output", str(tmp_path)])
    main()
    main()
    text = (tmp_path / "machine.txt").read_text()
    for key in ("commit", "versions", "hardware", "date"):
        assert text.count(f"{key}: ") == 2
