"""Workers of a pool end with the process that started them, and on Ctrl-C without a message."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = """
import os, time
from cdgcnet.utils.worker import WorkerPool

if __name__ == "__main__":
    with WorkerPool(1) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        time.sleep(600)
"""


# Its worker needs a moment to import this file.
INTERRUPTED_PROGRAM = """
import signal, sys, time
from cdgcnet.utils.worker import WorkerPool, start_worker

if __name__ == "__mp_main__":
    print("importing", flush=True)
    time.sleep(0.3)
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    pool = WorkerPool(1, start_worker, (signal.Handlers[sys.argv[1]],))
    try:
        future = pool.submit(abs, -42)
        future.result()
    except KeyboardInterrupt:
        pool.shutdown()
        print("interrupted,", type(future.exception()).__name__)
"""


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        # Where nobody collects orphans, an ended one remains as a zombie.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:  # it has just ended, or the system has no /proc
        return not Path("/proc/self").exists()


@pytest.mark.skipif(os.name != "posix", reason="kills processes by signals")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "terminate"])
def test_a_worker_ends_with_its_parent(tmp_path, how):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    parent = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    assert is_running(worker)
    parent.send_signal(how)
    parent.wait()
    end = time.monotonic() + 120  # it takes milliseconds on an idle machine
    while is_running(worker) and time.monotonic() < end:
        time.sleep(0.05)
    assert not is_running(worker)
    parent.stdout.close()


@pytest.mark.skipif(os.name != "posix", reason="interrupts processes by signals")
@pytest.mark.parametrize(
    ("handler", "outcome"), [("SIG_DFL", "BrokenProcessPool"), ("SIG_IGN", "NoneType")]
)
def test_a_worker_that_is_interrupted_in_its_imports_prints_nothing(tmp_path, handler, outcome):
    program = tmp_path / "program.py"
    program.write_text(INTERRUPTED_PROGRAM)
    with subprocess.Popen(
        [sys.executable, str(program), handler],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "importing\n"
        os.killpg(parent.pid, signal.SIGINT)  # as a terminal does
        out, err = parent.communicate(timeout=60)
    assert (out, err) == (f"interrupted, {outcome}\n", "")
