"""Processes that work together: how they start, agree and end, and what only one of them does."""

import os
import socket
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from detectron2.utils import comm

T = TypeVar("T")
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_LONGEST_VALUE = 80  # characters of a value in a message


def started_by_torchrun() -> bool:
    """Whether torchrun, or a launcher that sets the same variables, has started this process."""
    return all(name in os.environ for name in _TORCHRUN)


def join_torchrun_processes(timeout: timedelta) -> None:
    """Form a group of the processes that torchrun has started: by NCCL on GPUs, by Gloo on CPUs.

    Args:
        timeout: how long to wait for the other processes, now and in every later exchange.

    Raises:
        ValueError: if there are fewer GPUs than processes on this machine.
        TimeoutError: naming the processes that are missing.
        ConnectionError: if the processes cannot reach each other.
    """
    rank, world, local_rank, local_world = (int(os.environ[name]) for name in _TORCHRUN[:4])
    if world == 1:
        return
    on_gpus = torch.cuda.is_available()
    if on_gpus:
        if local_world > torch.cuda.device_count():
            raise ValueError(
                f"torchrun has started {local_world} processes on this machine, which has "
                f"{torch.cuda.device_count()} GPUs; expected --nproc-per-node of at most that"
            )
        torch.cuda.set_device(local_rank)
    store = _meet(rank, world, timeout)
    backend = "nccl" if on_gpus else "gloo"
    try:
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timeout)
        # Detectron2 v0.6 can only make this group of the processes of a machine in its launch().
        for first in range(0, world, local_world):
            ranks = list(range(first, first + local_world))
            group = dist.new_group(ranks)
            if rank in ranks:
                comm._LOCAL_PROCESS_GROUP = group
    except RuntimeError as error:
        raise ConnectionError(
            f"process {rank} of {world} cannot connect to the others: {str(error).splitlines()[0]}"
        ) from error


def _meet(rank: int, world: int, timeout: timedelta) -> dist.Store:
    """The store that all processes share, after all of them have reached it.

    Raises:
        TimeoutError: naming the processes that are missing.
    """
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    waited = f"after {timeout.total_seconds():g} seconds (--dist-timeout)"
    try:
        store, _, _ = next(iter(dist.rendezvous("env://", timeout=timeout)))
    except RuntimeError as error:
        raise TimeoutError(
            f"process {rank} of {world} has not met the others at {address} {waited}; check that "
            "all machines of the job have started and reach this address"
        ) from error
    # torchrun keeps one store for all restarts, and what ended processes have left there must not
    # count. On several machines the restarts are counted differently; see docs/clusters.md.
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    keys = [f"started/{i}" for i in range(world)]
    store.set(keys[rank], socket.gethostname())
    try:
        store.wait(keys, timeout)
    except RuntimeError as error:
        missing = [str(i) for i, key in enumerate(keys) if not store.check([key])]
        raise TimeoutError(
            f"{len(missing)} of {world} processes have not started {waited}: rank "
            f"{', '.join(missing)}; check that all machines of the job have started"
        ) from error
    return store


def leave_processes() -> None:
    """End the group of this process, if it has one."""
    comm._LOCAL_PROCESS_GROUP = None
    if dist.is_initialized():
        dist.destroy_process_group()


# ---------------------------------------------------------------- errors


def may_report_error() -> bool:
    """Whether this is the first process of the run that reports an error.

    An error that all processes make is reported once, and so is that of one process, which the
    others notice as a lost connection.
    """
    if not dist.is_initialized():
        return not started_by_torchrun() or os.environ["LOCAL_RANK"] == "0"
    try:
        return dist.distributed_c10d._get_default_store().add("reported_errors", 1) == 1
    except RuntimeError:  # the store has ended with the process that kept it
        return False


def process_name() -> str:
    """Which process this is, for the end of a message; "" for the main process."""
    if comm.is_main_process():
        return ""
    return (
        f" (reported by process {comm.get_rank()} of {comm.get_world_size()} on "
        f"{socket.gethostname()})"
    )


def is_lost_connection(error: BaseException | None) -> bool:
    """Whether an error says that another process of the run has ended or does not answer."""
    return dist.is_initialized() and (
        isinstance(error, dist.DistError)
        or (isinstance(error, RuntimeError) and "gloo" in str(error))
    )


def is_dead_worker(error: BaseException | None) -> bool:
    """Whether an error comes from the death of one of a data loader's worker processes.

    torch says so, unless the worker dies while it hands over a batch. It says so wherever the
    program is, so that a file which is being written may fail, too.
    """
    if isinstance(error, (ConnectionError, EOFError, FileNotFoundError)):
        frames = traceback.extract_tb(error.__traceback__)
        return any(frame.name == "_try_get_data" for frame in frames)  # of torch's data loader
    while isinstance(error, RuntimeError):
        if str(error).startswith("DataLoader worker (pid"):
            return True
        error = error.__context__
    return False


# ---------------------------------------------------------------- agreement


def check_agreement(facts: Mapping[str, object]) -> None:
    """Compare what every process knows of a run, such as its config and data.

    Raises:
        ValueError: on all processes, naming the first entry in which one differs from process 0.
    """

    def short(value: object) -> str:
        text = repr(value)
        return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"

    (first_host, first), *others = comm.all_gather((socket.gethostname(), dict(facts)))
    for rank, (host, other) in enumerate(others, start=1):
        for name in sorted(first.keys() | other.keys()):
            if first.get(name) != other.get(name):
                raise ValueError(
                    f"the processes of this run differ in {name}: {short(first.get(name))} in "
                    f"process 0 on {first_host}, {short(other.get(name))} in process {rank} on "
                    f"{host}; start all of them with the same command, data and code"
                )


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
