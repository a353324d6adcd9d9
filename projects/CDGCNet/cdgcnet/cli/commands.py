"""Parses the command line, runs one subcommand, and turns errors into messages and exit codes."""

import argparse
import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

import cdgcnet
from cdgcnet.cli.errors import UsageError, deliver_lost_interrupts, run_guarded
from cdgcnet.cli.interrupts import raise_on_interrupt

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


def run_command(argv: Sequence[str] | None) -> int:
    """Run the subcommand that the arguments name; see :func:`cdgcnet.cli.main.main`."""
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
    if argv is None:
        _set_up_process(parsers[args.command].prog)
    return _run(load_command(args.command), parsers[args.command], args)


def run_single(name: str, prog: str, argv: Sequence[str] | None) -> int:
    """Run one subcommand under the name ``prog``; see :func:`cdgcnet.cli.main.run_tool`."""
    module = load_command(name)
    parser = argparse.ArgumentParser(
        prog=prog,
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    args, unknown = parser.parse_known_args(argv)
    _refuse(unknown, parser, args)
    if argv is None:
        _set_up_process(prog)
    return _run(module, parser, args)


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


def _set_up_process(prog: str) -> None:
    """Prepare a process that runs a command.

    It gets every Ctrl-C. The FutureWarnings of Detectron2's imports are hidden, also in the
    processes that it starts.
    """
    deliver_lost_interrupts()
    raise_on_interrupt(prog)
    if not sys.warnoptions:  # neither -W nor PYTHONWARNINGS asks for them
        warnings.simplefilter("ignore", FutureWarning)
        os.environ["PYTHONWARNINGS"] = "ignore::FutureWarning"
