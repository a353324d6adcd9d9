"""Parses the command line, runs one subcommand, and turns errors into messages and exit codes."""

import argparse
import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

import cdgcnet
from cdgcnet.cli.errors import UsageError, deliver_lost_interrupts, report_interrupt, run_guarded

COMMANDS = (
    "train",
    "eval",
    "predict",
    "serve",
    "prepare",
    "audit",
    "visualize",
    "convert",
    "export",
    "submit",
    "figures",
    "experiments",
    "demo",
    "compare",
    "report",
    "install-detectron2",
)


def load_command(name: str) -> ModuleType:
    return importlib.import_module(f"cdgcnet.cli.{name.replace('-', '_')}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``cdgcnet COMMAND …``.

    Args:
        argv: the arguments; None means those of the process.

    Returns:
        The exit code: 0, 1 after an error of the user's, 130 after Ctrl-C.

    Raises:
        SystemExit: from argparse, with code 0 after ``--help`` and 2 after a usage error.
    """
    if argv is None:
        _set_up_process()
    try:
        return _run(*_parse(argv))
    except KeyboardInterrupt:  # while the commands are imported
        return report_interrupt("cdgcnet")


def _parse(
    argv: Sequence[str] | None,
) -> tuple[ModuleType, argparse.ArgumentParser, argparse.Namespace]:
    """The command, its parser and its arguments."""
    parser = argparse.ArgumentParser(prog="cdgcnet", description=cdgcnet.__doc__.splitlines()[0])
    parser.add_argument("--version", action="version", version=f"%(prog)s {cdgcnet.__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parsers = {}
    for name in COMMANDS:
        module = load_command(name)
        assert module.__doc__
        parsers[name] = subparsers.add_parser(
            name,
            help=module.__doc__.splitlines()[0],
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(parsers[name])
    args, unknown = parser.parse_known_args(argv)
    _refuse(unknown, parsers[args.command], args)
    return load_command(args.command), parsers[args.command], args


def run_tool(name: str, argv: Sequence[str] | None = None) -> int:
    """Run one subcommand under the name of the script that calls this; see :func:`main`."""
    if argv is None:
        _set_up_process()
    prog = os.path.basename(sys.argv[0])
    try:
        module = load_command(name)
        parser = argparse.ArgumentParser(
            prog=prog,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(parser)
        args, unknown = parser.parse_known_args(argv)
        _refuse(unknown, parser, args)
        return _run(module, parser, args)
    except KeyboardInterrupt:  # while the command is imported
        return report_interrupt(prog)


def _refuse(
    unknown: Sequence[str], parser: argparse.ArgumentParser, args: argparse.Namespace
) -> None:
    if unknown:
        hint = "; overrides of config keys come after --opts" if hasattr(args, "opts") else ""
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")


def _run(module: ModuleType, parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    args.prog = parser.prog
    try:
        return run_guarded(module.run, args)
    except UsageError as error:
        parser.error(str(error))


def _set_up_process() -> None:
    """Prepare a process that runs a command.

    It gets every Ctrl-C. The FutureWarnings of Detectron2's imports are hidden, also in the
    processes that it starts.
    """
    deliver_lost_interrupts()
    if not sys.warnoptions:  # neither -W nor PYTHONWARNINGS asks for them
        warnings.simplefilter("ignore", FutureWarning)
        os.environ["PYTHONWARNINGS"] = "ignore::FutureWarning"
