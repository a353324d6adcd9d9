"""How everything here is measured: contestants in one process, in turn, ratios in one run.

Round robin, so that a busy machine slows all contestants alike; CPU time of one thread (CUDA:
synchronized wall time); the median of the rounds' paired ratios. A contestant whose first and
second half of rounds differ by more than 20 % makes the comparison void.
"""

import argparse
import gc
import json
import math
import multiprocessing
import os
import platform
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import detectron2
import numpy as np
import PIL
import torch

from cdgcnet.engine.run_metadata import commit, hardware
from cdgcnet.engine.subnormals import flush_subnormals

# Divides the sides of maps and images: a rehearsal, whose numbers mean nothing.
SHRINK = int(os.environ.get("CDGC_BENCH_SHRINK", "1"))
MAX_DRIFT = 0.2
_SAMPLE = 0.02 / SHRINK  # seconds of one sample on a GPU, at least
ROOT = Path(__file__).resolve().parent.parent
FAILED: list[str] = []  # parts of this process that failed


class Unsteady(Exception):
    """The machine was too busy for a number to be reported."""


def shrunk(size: int) -> int:
    """The side of a map or an image, divided by SHRINK."""
    return size if SHRINK == 1 else max(9, size // SHRINK)


def one_thread() -> None:
    """All libraries on one thread: CPU time then is the work done. Subnormal numbers are 0, as in
    all commands of the project, for all contestants."""
    torch.set_num_threads(1)
    flush_subnormals()
    cv2.setNumThreads(1)


def no_tf32() -> None:
    """Make fp32 mean the same in all layers of all contestants, which differ in their layers.

    By default PyTorch allows TF32 in cuDNN's convolutions, but not in matrix products.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def _seconds(function: Callable[[], Any], device: str, calls: int = 1) -> float:
    """Seconds per call."""
    if device == "cuda":
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(calls):
            function()
        torch.cuda.synchronize()
        return (time.perf_counter() - begin) / calls
    begin = time.process_time()
    function()
    return time.process_time() - begin


@dataclass
class Times:
    """Seconds per contestant and round; only ratios of them are reported."""

    seconds: dict[str, list[float]]

    def ratio(self, name: str, baseline: str) -> float:
        """Median of the rounds' ratios."""
        pairs = zip(self.seconds[name], self.seconds[baseline], strict=True)
        return statistics.median(a / b for a, b in pairs)


def measure(
    contestants: dict[str, Callable[[], Any]],
    *,
    rounds: int = 6,
    device: str = "cpu",
    attempts: int = 3,
    warm: bool = False,
) -> Times:
    """Time contestants in turn, after one call of each to warm up (none if they are ``warm``).

    On a GPU a sample is as many calls as take 20 ms, which one more call of each finds out.

    Raises:
        Unsteady: if in every attempt some contestant's two halves of rounds differed by > 20 %.
    """
    if not warm:
        for function in contestants.values():
            function()
    calls = dict.fromkeys(contestants, 1)
    if device == "cuda":  # a call of milliseconds alone would show the host's hiccups
        for name, function in contestants.items():
            calls[name] = max(1, math.ceil(_SAMPLE / _seconds(function, device)))
    for _ in range(attempts):
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        gc.collect()
        for _ in range(rounds):
            for name, function in contestants.items():
                seconds[name].append(_seconds(function, device, calls[name]))
        drift = {}
        for name, values in seconds.items():
            first, second = (
                statistics.median(half) for half in (values[: rounds // 2], values[rounds // 2 :])
            )
            drift[name] = abs(first - second) / min(first, second)
        worst = max(drift, key=lambda name: drift[name])
        if drift[worst] <= MAX_DRIFT or SHRINK > 1:
            return Times(seconds)
    raise Unsteady(f"{worst}: its two halves differ by {drift[worst]:.0%}; try a quieter machine")


def _resident(field: str) -> int:
    """Bytes of VmRSS (now) or VmHWM (peak) of this process."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    [line] = [line for line in status.splitlines() if line.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024


def _child(function: Callable[..., Any], args: tuple, connection: Any) -> None:
    one_thread()
    run = function(*args)  # setup is not counted
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak starts from here
    before = _resident("VmRSS")
    run()
    connection.send(_resident("VmHWM") - before)


def peak_memory(prepare: Callable[..., Callable[[], Any]], *args: Any) -> int:
    """Bytes by which one call raises the peak of a fresh process (resident memory; Linux only).

    Args:
        prepare: importable; called in the child with ``args``, returns the function to measure.
    """
    if SHRINK > 1:
        prepare(*args)()
        return 1
    # Large blocks go back to the system when they are freed: the peak then is what was in use, not
    # what glibc kept or could not reuse, which varies by some percent from run to run.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(1 << 16)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(prepare, args, theirs))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        raise RuntimeError(f"{prepare} {args} did not finish: see its message above") from None
    finally:
        process.join()
        del os.environ["MALLOC_MMAP_THRESHOLD_"]


def peak_device_memory(function: Callable[[], Any]) -> int:
    """Bytes by which one call raises the peak of the CUDA allocator, after a call to warm up."""
    function()
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@dataclass(frozen=True)
class Kernels:
    """What one call runs on the CUDA device."""

    milliseconds: float  # of the kernels and copies alone, whatever the host takes to launch them
    launches: int


def kernels(function: Callable[[], Any], calls: int = 3) -> Kernels:
    """What a call that has been warmed up runs on the CUDA device, by torch's profiler."""
    function()
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the profiler's remark on cycles, of which this has one
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            for _ in range(calls):
                function()
            torch.cuda.synchronize()
    on_device = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    total = sum(e.time_range.elapsed_us() for e in on_device)
    return Kernels(total / 1000 / calls, round(len(on_device) / calls))


def host_syncs(function: Callable[[], Any]) -> int:
    """How often one call makes the host wait for the CUDA device."""
    function()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            function()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(w.message) for w in caught)


def attempt(what: str, part: Callable[[], list[list[str]]]) -> list[list[str]]:
    """The rows of a part, or one row that says why there are none; the next parts then still run.

    The process ends with exit code 1 if a part failed for another reason than a busy machine.
    """
    begin = time.monotonic()
    try:
        return part()
    except Unsteady as reason:
        return [[what, f"not reported: {reason}", "", ""]]
    except Exception as error:
        traceback.print_exc()
        FAILED.append(what)
        reason = f"failed: {type(error).__name__}: {error}".splitlines()[0]
        return [[what, reason, "", ""]]
    finally:
        print(f"{what}: {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)


def exit_code() -> int:
    """Of a benchmark: 1 if a part of it failed."""
    return 1 if FAILED else 0


def claim(cell: str, found: float, limit: float, *, at_least: bool = False) -> list[str]:
    """A row (cell, found, target, verdict) of a table of claims."""
    met = found >= limit if at_least else found <= limit
    sign = "≥" if at_least else "≤"
    return [cell, f"{found:.3g}", f"{sign} {limit:g}", "met" if met else "**missed**"]


class Cells:
    """Results kept in a JSON file cell by cell, so that an interrupted run can resume."""

    def __init__(self, path: Path):
        self.path = path
        self.kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def get(self, name: str, make: Callable[[], Any]) -> Any:
        """The stored result of a cell, or that of ``make()``, stored at once with its commit."""
        if name not in self.kept:
            print(f"{name} …", flush=True)
            self.kept[name] = {"commit": circumstances()["commit"], "result": make()}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            draft = self.path.with_suffix(".part")
            draft.write_text(json.dumps(self.kept, indent=1) + "\n", encoding="utf-8")
            draft.replace(self.path)
        return self.kept[name]["result"]

    def commits(self) -> str:
        """The commits that the cells were measured at."""
        return ", ".join(sorted({cell["commit"] for cell in self.kept.values()}))


def mebibytes(number: int) -> str:
    return f"{number / 2**20:.0f} MiB"


def circumstances() -> dict[str, str]:
    """Hardware, commit, versions and command: what a number needs beside it."""
    return {
        "command": " ".join(["python", *sys.argv]),
        "commit": commit(),
        "hardware": hardware(),
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, detectron2 "
        f"{detectron2.__version__}, NumPy {np.__version__}, OpenCV {cv2.__version__}, Pillow "
        f"{PIL.__version__}",
    }


def heading(title: str) -> str:
    """The first line of a table; with a GPU it says where fp32 layers use TF32."""
    if not torch.cuda.is_available():
        return f"# {title}"
    layers = {
        "convolutions": torch.backends.cudnn.allow_tf32,
        "matrix products": torch.backends.cuda.matmul.allow_tf32,
    }
    used = " and ".join(name for name, allowed in layers.items() if allowed)
    return f"# {title}; TF32 in fp32 layers on the GPU: {used or 'none'}"


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=6, help="samples per contestant")
    parser.add_argument("--output", type=Path, help="folder for NAME.md and NAME.json")
    return parser


def report(
    name: str, title: str, header: Sequence[str], rows: Sequence[Sequence[Any]], output: Path | None
) -> None:
    """Print a Markdown table and write it with the circumstances, as Markdown and JSON."""
    print(save(name, title, header, rows, output))


def save(
    name: str, title: str, header: Sequence[str], rows: Sequence[Sequence[Any]], output: Path | None
) -> str:
    """Write a table, whole or as far as it is measured; return its Markdown."""
    facts = circumstances()
    whole = [[*row, *[""] * (len(header) - len(row))] for row in rows]
    table = [header, ["---"] * len(header), *whole]
    lines = [heading(title), ""]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in table]
    lines += ["", *(f"- {key}: {value}" for key, value in facts.items())]
    text = "\n".join(lines) + "\n"
    if output:
        output.mkdir(parents=True, exist_ok=True)
        (output / f"{name}.md").write_text(text, encoding="utf-8")
        content = {**facts, "header": list(header), "rows": [list(row) for row in rows]}
        (output / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return text
