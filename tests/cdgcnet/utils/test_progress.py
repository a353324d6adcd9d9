"""Progress bars on terminals."""

import io
import sys

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


def test_files_and_other_processes_get_no_bar(monkeypatch):
    terminal = show_on_terminal(monkeypatch)
    list(progress("ab", "drawing", "image", shown=False))
    assert terminal.getvalue() == ""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert list(progress("ab", "drawing", "image")) == ["a", "b"]
    assert sys.stderr.getvalue() == ""


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
