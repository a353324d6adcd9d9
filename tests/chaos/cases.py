"""What a chaos case is, and how it runs: in a forked process, watched, judged by its outcome."""

import json
import os
import random
import resource
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from threading import RLock

from outcomes import REFUSED, WRONG, Outcome
from tqdm import tqdm

SECONDS = 600  # a case that takes longer hangs, even on a busy machine
MEMORY = 2 << 30  # bytes that a case may allocate; one that asks for more is wrong
OUT_OF_MEMORY = ("MemoryError", "Unable to allocate", "can't allocate memory", "bad_alloc")

Case = Callable[[random.Random, Path], Outcome]


def refusal(error: Exception, names: list[str]) -> Outcome:
    """A refusal is clear if its message names the file or key and fits a terminal.

    Args:
        error: what was raised.
        names: one of them must occur in the message.
    """
    message = str(error)
    if not any(name in message for name in names):
        return Outcome(WRONG, f"the message names none of {names}: {message[:300]}")
    if len(message) > 3000:
        return Outcome(WRONG, f"a message of {len(message)} characters: {message[:300]}")
    if any(words in message for words in OUT_OF_MEMORY):
        return Outcome(WRONG, f"asks for more than {MEMORY >> 20} MiB: {message[:300]}")
    return Outcome(REFUSED, message[:200])


def in_child(work: Callable[[], Outcome], log: Path) -> Outcome:
    """Run ``work`` in a forked process and return its outcome.

    A crash, a traceback, too much time or too much memory is wrong, whatever the case expected.

    Args:
        work: returns the outcome.
        log: standard output and error of the process go here.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
        try:
            outcome = work()
        except BaseException as error:  # whatever it is, the parent must hear of it
            where = traceback.format_exc().strip().splitlines()[-3:]
            outcome = Outcome(WRONG, f"{type(error).__name__}: {error} | {' | '.join(where)}"[:600])
        os.write(writer, json.dumps([outcome.verdict, outcome.detail]).encode()[:60000])
        os._exit(0)
    os.close(writer)
    status = wait(pid, SECONDS)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    if status is None:
        return Outcome(WRONG, f"no end after {SECONDS} seconds")
    if not answer:
        return Outcome(WRONG, f"the process ended with status {status}")
    return Outcome(*json.loads(answer))


def wait(pid: int, seconds: float) -> int | None:
    """The exit status of a child, or None if it had to be killed after some seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def start(work: Callable[[], int], log: Path) -> int:
    """Fork a process that runs ``work`` and exits with its result; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    # tqdm's own lock is shared between forked processes: one that is killed would keep it forever.
    tqdm.set_lock(RLock())
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    try:
        code = work()
    except (OSError, ValueError) as error:  # what a command turns into one line and exit status 1
        print(f"error: {error}")
        code = 1
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 70  # a traceback is never right
    os._exit(code or 0)
