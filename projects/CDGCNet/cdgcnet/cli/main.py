"""The entry points. They import little before they take care of Ctrl-C."""

import os
import sys

from cdgcnet.cli.interrupts import exit_on_interrupt

TYPE_CHECKING = False  # as a plain name it means the same to type checkers
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: "Sequence[str] | None" = None) -> int:
    """Run ``cdgcnet COMMAND …``.

    Args:
        argv: the arguments; None means those of the process, whose Ctrl-C is handled then.

    Returns:
        The exit code: 0, 1 after an error of the user's, 130 after Ctrl-C.

    Raises:
        SystemExit: from argparse, with code 0 after ``--help`` and 2 after a usage error.
    """
    if argv is None:
        exit_on_interrupt("cdgcnet")

    from cdgcnet.cli.commands import run_command

    return run_command(argv)


def run_tool(name: str, argv: "Sequence[str] | None" = None) -> int:
    """Run one subcommand under the name of the script that calls this; see :func:`main`."""
    prog = os.path.basename(sys.argv[0])
    if argv is None:
        exit_on_interrupt(prog)

    from cdgcnet.cli.commands import run_single

    return run_single(name, prog, argv)
