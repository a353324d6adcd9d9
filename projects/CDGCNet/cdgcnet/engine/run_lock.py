"""Keeps a run's folder to one run at a time."""

import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HEARTBEAT = 30.0  # seconds between two signs of life
# After this many seconds without a sign of life a run on another host counts as dead.
DEAD_AFTER = 600.0

# Lock files of this process. A record lock ends as soon as its process closes the file anywhere,
# so these files must not be opened a second time.
_held: set[Path] = set()


def _holder(path: Path) -> dict:
    """What a lock file says about its run; {} if it says nothing."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _in_use(path: Path) -> BlockingIOError:
    holder = _holder(path)
    who = "another run"
    if holder:
        who = f"process {holder.get('pid')} on {holder.get('host')}, started {holder.get('start')}"
    return BlockingIOError(
        f"OUTPUT_DIR {path.parent} is in use by {who}. Wait for it, stop it, or choose another "
        "OUTPUT_DIR."
    )


def _lock(descriptor: int, path: Path) -> None:
    """Lock an open file at once, or not at all.

    Raises:
        BlockingIOError: naming the folder and the run that holds it.
        OSError: naming the folder, if its file system has no locks.
    """
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):  # POSIX allows either
            raise _in_use(path) from error
        raise OSError(
            f"OUTPUT_DIR {path.parent}: its file system cannot lock files ({error.strerror}), so "
            "nothing would keep a second run out. Choose an OUTPUT_DIR on a local disk, or have "
            "file locks turned on for this file system."
        ) from error


def _elastic_job() -> dict:
    """The job and the number of its restarts, if torchrun has started this process."""
    job = os.environ.get("TORCHELASTIC_RUN_ID", "none")  # torchrun's word for no name
    if job == "none":
        return {}
    return {"job": job, "restarts": int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))}


def _beats_elsewhere(path: Path) -> bool:
    """Whether a run on another host has given a sign of life lately.

    The processes of a job that torchrun has restarted since are dead.
    """
    holder, job = _holder(path), _elastic_job()
    host = holder.get("host")
    if not host or host == socket.gethostname():
        return False
    if job and holder.get("job") == job["job"] and holder.get("restarts", 0) < job["restarts"]:
        return False
    return time.time() - path.stat().st_mtime < DEAD_AFTER


def _acquire(path: Path) -> int:
    """The descriptor of the locked file.

    A POSIX record lock ends with its process, however that ends, and the workers of a data loader
    do not inherit it. Network file systems may not carry it to other hosts: between hosts the age
    of the file counts.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(descriptor, path)
        except BlockingIOError:
            os.close(descriptor)
            raise
        except OSError:
            if os.fstat(descriptor).st_size == 0:  # the file that this call has made
                path.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        try:
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)  # its last holder has removed this file in the meantime


def _keep_alive(path: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT):
        try:
            os.utime(path)
        except OSError:  # removed by hand, or the disk is away: the next beat may succeed
            continue


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Hold a folder while the block runs; it is made for the block, and removed if still empty.

    Raises:
        BlockingIOError: naming the folder and the run that holds it.
        ValueError: if the folder cannot be made.
        OSError: naming the lock file, if it cannot be written, or the folder, if its file system
            has no locks.
    """
    made = _make(folder)
    try:
        check_free(folder)
        with _hold(folder.resolve() / "run.lock"):
            yield
    finally:
        for path in made:
            try:
                path.rmdir()
            except OSError:  # not empty
                break


@contextmanager
def _hold(path: Path) -> Iterator[None]:
    """Hold a lock file while the block runs."""
    descriptor = _acquire(path)
    _held.add(path)
    stop = threading.Event()
    beat = threading.Thread(target=_keep_alive, args=(path, stop), daemon=True)
    try:
        start = time.strftime("%Y-%m-%d %H:%M:%S")
        holder = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "start": start,
            **_elastic_job(),
        }
        os.truncate(descriptor, 0)
        os.write(descriptor, json.dumps(holder).encode())
        beat.start()
        yield
    finally:
        stop.set()
        _held.discard(path)
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _make(folder: Path) -> list[Path]:
    """Make a folder; returns it and its parents as far as they were missing, itself first.

    Raises:
        ValueError: if it cannot be made.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"OUTPUT_DIR {folder}: the folder cannot be made ({error.strerror}); choose another one"
        ) from error
    return missing


def check_free(folder: Path) -> None:
    """
    Raises:
        BlockingIOError: if another run holds the folder.
        OSError: naming the folder, if its file system has no locks.
    """
    path = folder.resolve() / "run.lock"
    if path in _held:
        raise BlockingIOError(f"OUTPUT_DIR {folder} is in use by another run of this process")
    if not path.is_file():
        return
    if _beats_elsewhere(path):
        raise _in_use(path)
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return
    try:
        _lock(descriptor, path)
    finally:
        os.close(descriptor)
