"""Runs subcommands in this process."""

import pytest

from cdgcnet.cli.main import main


@pytest.fixture
def command():
    """``command("predict", …)``: the exit code of ``cdgcnet predict …``."""

    def call(*argv) -> int:
        try:
            return main([str(word) for word in argv])
        except SystemExit as stop:  # argparse: a usage error, or --help
            return stop.code

    return call


@pytest.fixture
def refusal(command, capsys):
    """``refusal(…)``: the one line on stderr of a command that must end with exit code 1."""

    def call(*argv) -> str:
        assert command(*argv) == 1
        error = capsys.readouterr().err
        [line] = [line for line in error.splitlines() if ": error: " in line]
        assert line.startswith(f"cdgcnet {argv[0]}: error: ") and len(line) > 35, error
        assert "Traceback" not in error
        return error

    return call
