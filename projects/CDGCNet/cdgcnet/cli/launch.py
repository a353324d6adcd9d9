"""Starts one process per GPU."""

import argparse
import re
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from functools import partial

from cdgcnet.cli.errors import UsageError, run_guarded
from cdgcnet.cli.options import integer_from


def add_launch_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num-gpus", type=integer_from(1), default=1, help="on this machine")
    parser.add_argument("--num-machines", type=integer_from(1), default=1)
    parser.add_argument(
        "--machine-rank", type=integer_from(0), default=0, help="of this machine, counted from 0"
    )
    parser.add_argument(
        "--dist-url", default="auto", help="tcp://HOST:PORT of machine 0, if there are several"
    )
    parser.add_argument(
        "--dist-timeout",
        type=integer_from(1),
        default=1800,
        metavar="SECONDS",
        help="how long a process waits for the others, at the start and later (default: 1800)",
    )


def launch_processes(
    function: Callable[[argparse.Namespace], None], args: argparse.Namespace
) -> int:
    """Call ``function(args)`` in one process per GPU, or here if there is only one process.

    Processes that torchrun has started work together as they are. An error of one process ends
    all of them.

    Args:
        function: importable, since the processes import it by name.
        args: with the arguments of :func:`add_launch_arguments`.

    Returns:
        The exit code. A process that fails has already said why.

    Raises:
        UsageError: if the number of machines and the other arguments do not go together.
        ValueError: if there are fewer GPUs than asked for.
        OSError: if a process was killed, or the other machines have not started in time.
    """
    _check_arguments(args)

    import torch

    from cdgcnet.engine.distributed import (
        join_torchrun_processes,
        leave_processes,
        started_by_torchrun,
    )

    processes = args.num_gpus * args.num_machines
    if started_by_torchrun():
        if processes > 1:
            raise UsageError("torchrun starts the processes; leave out --num-gpus, --num-machines")
        join_torchrun_processes(timedelta(seconds=args.dist_timeout))
        code = run_guarded(partial(_with_others, function), args)
        if code == 0:  # after an error the end of the process tells the others
            leave_processes()
        return code
    if processes == 1:
        function(args)
        return 0
    available = torch.cuda.device_count()
    if available == 0:
        raise ValueError(
            f"--num-gpus {args.num_gpus} --num-machines {args.num_machines}: this machine has no "
            "CUDA GPU; start processes on CPUs with torchrun --nproc-per-node N"
        )
    if args.num_gpus > available:
        raise ValueError(f"--num-gpus {args.num_gpus}, but {available} are available")
    return _launch(function, args)


def _check_arguments(args: argparse.Namespace) -> None:
    """
    Raises:
        UsageError: if the number of machines and the other arguments do not go together.
    """
    if args.machine_rank >= args.num_machines:
        raise UsageError(
            f"--machine-rank {args.machine_rank}: expected less than --num-machines, "
            f"which is {args.num_machines}"
        )
    if args.dist_url == "auto":
        if args.num_machines > 1:
            raise UsageError(
                "--num-machines: give the address of machine 0, --dist-url tcp://HOST:PORT"
            )
    elif not re.fullmatch(r"tcp://\S+:\d+", args.dist_url):
        raise UsageError(f"--dist-url {args.dist_url}: expected tcp://HOST:PORT")


def _launch(function: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
    """Start the processes of this machine with Detectron2's launcher."""
    import torch
    from detectron2.engine import launch

    try:
        launch(
            _run_in_process,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(function, args),
            timeout=timedelta(seconds=args.dist_timeout),
        )
    except torch.multiprocessing.ProcessExitedException as error:
        if error.signal_name:
            raise ChildProcessError(
                f"process {error.error_index} of this machine was ended by {error.signal_name}"
            ) from error
        return error.exit_code
    except torch.multiprocessing.ProcessRaisedException as error:
        if "DistNetworkError" not in str(error) and "DistStoreError" not in str(error):
            raise
        raise TimeoutError(
            f"not all machines have met at {args.dist_url} after {args.dist_timeout} seconds "
            "(--dist-timeout); check that all of them have started and reach this address"
        ) from error
    return 0


def _with_others(function: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Call ``function(args)`` in a process that works with others.

    Raises:
        ConnectionError: if another process has ended.
    """
    from cdgcnet.engine.distributed import is_lost_connection, may_report_error

    # Detectron2 v0.6 gathers objects this way; the warning tells a user nothing.
    warnings.filterwarnings("ignore", "TypedStorage is deprecated")
    try:
        function(args)
    except (ValueError, OSError, MemoryError, ModuleNotFoundError):
        raise  # reported in one line
    except Exception as error:
        if is_lost_connection(error):
            raise ConnectionError(
                "another process of this run has ended without an error message, or has not "
                "answered in time; it may have been killed, for example for its memory"
            ) from error
        may_report_error()  # Python prints this one; the others have nothing to add
        raise


def _run_in_process(
    function: Callable[[argparse.Namespace], None], args: argparse.Namespace
) -> None:
    code = run_guarded(partial(_with_others, function), args)
    if code:
        sys.exit(code)
