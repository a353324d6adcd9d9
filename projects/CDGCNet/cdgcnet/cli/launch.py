"""Starts one process per GPU."""

import argparse
import sys
from collections.abc import Callable

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


def launch_processes(
    function: Callable[[argparse.Namespace], None], args: argparse.Namespace
) -> int:
    """Call ``function(args)`` in one process per GPU, or here if there is only one process.

    Processes that torchrun has started work together as they are.

    Args:
        function: importable, since the processes import it by name.
        args: with the arguments of :func:`add_launch_arguments`.

    Returns:
        The exit code. A process that fails has already said why.

    Raises:
        UsageError: if the number of machines and the other arguments do not go together.
        ValueError: if there are fewer GPUs than asked for.
    """
    if args.machine_rank >= args.num_machines:
        raise UsageError(
            f"--machine-rank {args.machine_rank}: expected less than --num-machines, "
            f"which is {args.num_machines}"
        )
    if args.num_machines > 1 and args.dist_url == "auto":
        raise UsageError(
            "--num-machines: give the address of machine 0, --dist-url tcp://HOST:PORT"
        )

    import torch
    from detectron2.engine import launch

    from cdgcnet.engine.distributed import started_by_torchrun, torchrun_process_group

    if started_by_torchrun():
        if args.num_gpus * args.num_machines > 1:
            raise UsageError("torchrun starts the processes; leave out --num-gpus, --num-machines")
        with torchrun_process_group():
            return run_guarded(function, args)
    available = torch.cuda.device_count()
    if args.num_gpus > max(available, 1):
        raise ValueError(f"--num-gpus {args.num_gpus}, but {available} are available")
    try:
        if args.num_gpus * args.num_machines == 1:
            function(args)
        else:
            launch(
                _run_in_process,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(function, args),
            )
    except torch.multiprocessing.ProcessExitedException as error:
        return error.exit_code
    return 0


def _run_in_process(
    function: Callable[[argparse.Namespace], None], args: argparse.Namespace
) -> None:
    code = run_guarded(function, args)
    if code:
        sys.exit(code)
