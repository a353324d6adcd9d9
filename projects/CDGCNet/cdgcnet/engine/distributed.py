"""Processes that work together: those that torchrun has started, and what only one of them does."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm

T = TypeVar("T")
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def started_by_torchrun() -> bool:
    """Whether torchrun, or a launcher that sets the same variables, has started this process."""
    return all(name in os.environ for name in _TORCHRUN)


@contextmanager
def torchrun_process_group() -> Iterator[None]:
    """Join the processes of torchrun while the block runs: by NCCL on GPUs, by Gloo on CPUs.

    Raises:
        ValueError: if there are fewer GPUs than processes on this machine.
    """
    rank, world, local_rank, local_world = (int(os.environ[name]) for name in _TORCHRUN[:4])
    if world == 1:
        yield
        return
    on_gpus = torch.cuda.is_available()
    if on_gpus:
        if local_world > torch.cuda.device_count():
            raise ValueError(
                f"torchrun has started {local_world} processes on this machine, which has "
                f"{torch.cuda.device_count()} GPUs; expected --nproc-per-node of at most that"
            )
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if on_gpus else "gloo", timeout=DEFAULT_TIMEOUT)
    try:
        # Detectron2 v0.6 can only make this group of the processes of a machine in its launch().
        for first in range(0, world, local_world):
            ranks = list(range(first, first + local_world))
            group = dist.new_group(ranks)
            if rank in ranks:
                comm._LOCAL_PROCESS_GROUP = group
        yield
    finally:
        comm._LOCAL_PROCESS_GROUP = None
        dist.destroy_process_group()


def on_main_process(function: Callable[[], T]) -> T:
    """What a function returns that only the main process calls; picklable, for all processes.

    Raises:
        ValueError, OSError: of the function, on all processes, so that none waits for another.
    """
    problem, result = None, None
    if comm.is_main_process():
        try:
            result = function()
        except (ValueError, OSError) as error:
            problem = error
    failed, result = comm.all_gather((str(problem) if problem else None, result))[0]
    if problem is not None:
        raise problem
    if failed:
        raise ValueError(failed)
    return result
