"""Progress bars on terminals, and lines in log files."""

import io
import sys

import pytest

from cdgcnet.utils import progress as module
from cdgcnet.utils.progress import AboveBars, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show_on_terminal(monkeypatch, delay: float = 0) -> Terminal:
    """A terminal as stderr and stdout (not a fixture: pytest's capture would replace it)."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(module, "_DELAY", delay)
    return screen


def test_a_terminal_gets_a_bar_with_the_time_left(monkeypatch):
    terminal = show_on_terminal(monkeypatch)
    assert list(progress("ab", "drawing", "image")) == ["a", "b"]
    assert "drawing:   0%" in terminal.getvalue() and "0/2 [00:00<" in terminal.getvalue()


def test_what_takes_less_than_two_seconds_needs_no_bar(monkeypatch):
    terminal = show_on_terminal(monkeypatch, delay=2)
    list(progress("ab", "drawing", "image"))
    assert terminal.getvalue().strip() == ""


def test_a_bar_that_stays_appears_at_once(monkeypatch):
    terminal = show_on_terminal(monkeypatch, delay=2)
    with progress(desc="training", total=2, leave=True) as bar:
        assert "training:   0%" in terminal.getvalue()
        bar.update(2)
    assert "training: 100%" in terminal.getvalue() and terminal.getvalue().endswith("\n")


def test_other_processes_get_no_bar(monkeypatch):
    terminal = show_on_terminal(monkeypatch)
    list(progress("ab", "drawing", "image", shown=False))
    assert terminal.getvalue() == ""


# ---------------------------------------------------------------- log files


class Log(io.StringIO):
    """A log file as stderr, with a clock."""

    now = 1000.0


@pytest.fixture
def log(monkeypatch) -> Log:
    log = Log()
    monkeypatch.setattr("tqdm.std.time", lambda: log.now)
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)
    return log


def show_in_log(monkeypatch, log: Log, seconds: float, **options) -> list[str]:
    """The log of 10 images that take a time each."""
    monkeypatch.setattr(sys, "stderr", log)
    for _ in progress(range(10), "drawing", "image", **options):
        log.now += seconds
    text = log.getvalue()
    assert text.endswith("\n") or not text
    return text.split("\n")[:-1]


@pytest.mark.parametrize("position", [None, 1])
def test_a_log_gets_a_whole_line_every_30_seconds(monkeypatch, log, position):
    # tqdm counts an image as done when the next one is asked for.
    assert show_in_log(monkeypatch, log, 12, leave=True, position=position) == [
        "drawing:  30% 3/10 [00:36<01:24, 12.00s/image]",
        "drawing:  60% 6/10 [01:12<00:48, 12.00s/image]",
        "drawing:  90% 9/10 [01:48<00:12, 12.00s/image]",
        "drawing: 100% 10/10 [02:00<00:00, 12.00s/image]",
    ]


def test_a_log_gets_no_last_line_of_a_bar_that_does_not_stay(monkeypatch, log):
    lines = show_in_log(monkeypatch, log, 19)
    assert [line.split()[2] for line in lines] == ["2/10", "4/10", "6/10", "8/10", "10/10"]


@pytest.mark.parametrize("leave", [False, True])
def test_a_log_gets_nothing_about_what_is_done_in_30_seconds(monkeypatch, log, leave):
    assert show_in_log(monkeypatch, log, 2.9, leave=leave) == []


def test_messages_and_an_unknown_total_in_a_log(monkeypatch, log):
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setattr(sys, "stdout", log)
    with progress(desc="camera", unit="frame", leave=True) as bar:
        log.now += 40
        bar.update(400)
        bar.write("a message")
        AboveBars(sys.stdout).write("another\n")
        log.now += 10
    first = "camera: 400frame [00:40, 10.00frame/s]\n"
    last = "camera: 400frame [00:50,  8.00frame/s]\n"
    assert log.getvalue() == f"{first}a message\nanother\n{last}"


def test_messages_are_written_above_a_bar(monkeypatch):
    terminal = show_on_terminal(monkeypatch)
    stream = AboveBars(sys.stdout)
    for _ in progress("ab", "drawing", "image"):
        before = terminal.getvalue()
        stream.write("a message\n")
        added = terminal.getvalue()[len(before) :]
        # The bar's line is cleared, the message takes it, and the bar follows.
        assert added.startswith("\r") and "\ra message\n" in added
        assert added.rindex("drawing") > added.index("a message")
    stream.write("afterwards\n")
    stream.flush()
    assert terminal.getvalue().endswith("afterwards\n")
