"""Damaged and malicious weight files: read as finite arrays, or refused; never executed."""

import ctypes
import io
import os
import pickle
import random
import runpy
import shutil
import socket
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import in_child, refusal
from outcomes import REFUSED, RIGHT, WRONG, Outcome

from cdgcnet.checkpoint import reading

FORBIDDEN = (
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty"),
    *("subprocess.Popen", "socket.connect", "socket.bind", "ctypes.dlopen", "os.remove"),
    *("os.rename", "os.rmdir", "os.mkdir", "shutil.rmtree", "os.chmod", "webbrowser.open"),
)


class _Call:
    """Pickles to a call of a function."""

    def __init__(self, function: Any, *arguments: Any):
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple:
        return self.function, self.arguments


def payloads(marker: Path) -> list[Any]:
    """Objects that do harm when they are unpickled; ``marker`` would be a trace of it."""
    import subprocess

    return [
        _Call(os.system, f"touch {marker}"),
        _Call(subprocess.getoutput, f"touch {marker}"),
        _Call(eval, f"open({str(marker)!r}, 'w')"),
        _Call(exec, f"open({str(marker)!r}, 'w').close()"),
        _Call(open, str(marker), "w"),
        _Call(os.mkdir, str(marker)),
        _Call(getattr, _Call(__import__, "os"), "system"),
        _Call(__import__, "antigravity"),
        _Call(torch.load, str(marker)),
        _Call(np.load, str(marker)),
        _Call(sys.exit, 0),
        _Call(socket.create_connection, ("127.0.0.1", 9)),
        _Call(runpy.run_path, str(marker)),
        _Call(ctypes.CDLL, "libc.so.6"),
        _Call(shutil.rmtree, str(marker.parent)),
        _Call(Path.unlink, marker.parent / "log.txt"),
        _Call(np.fromfile, "/etc/passwd", np.uint8),
        _Call(np.ndarray, (1 << 33,), np.dtype("f4")),  # 32 GiB
        _Call(torch.empty, 1 << 33),
        _Call(bytearray, 1 << 35),
    ]


def sound_state(rng: random.Random) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(rng.randrange(1 << 30))
    return {f"layer{i}.weight": torch.randn(3, 4, generator=generator) for i in range(4)}


def save(content: Any, path: Path, rng: random.Random) -> None:
    """In one of the forms in which people have weights."""
    way = rng.randrange(4)
    if way == 0:
        torch.save(content, path, _use_new_zipfile_serialization=False)
    elif way == 1:
        path.write_bytes(pickle.dumps(content, protocol=rng.randrange(2, 6)))
    else:
        torch.save(content, path)


def malicious(rng: random.Random, path: Path, marker: Path) -> None:
    payload = rng.choice(payloads(marker))
    state = sound_state(rng)
    content = rng.choice(
        (
            payload,
            {"model": payload},
            {"model": {**state, "x": payload}},
            {**state, "x": [payload]},
            [state, payload],
        )
    )
    save(content, path, rng)


def damaged(rng: random.Random, path: Path) -> None:
    save({"model": sound_state(rng)}, path, rng)
    data = bytearray(path.read_bytes())
    way = rng.randrange(4)
    if way == 0:
        del data[rng.randrange(len(data)) :]
    elif way == 1:
        for _ in range(rng.choice((1, 4, 30))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif way == 2:
        begin = rng.randrange(len(data))
        data[begin : begin + 30] = rng.randbytes(rng.randrange(60))
    else:
        data = bytearray(
            rng.choice((b"", b"hello\n", rng.randbytes(500), b"PK\x03\x04", b"\x80\x02."))
        )
    path.write_bytes(bytes(data))


def whole(rng: random.Random, path: Path) -> str:
    """A file that torch or NumPy wrote, and whether it holds usable arrays."""
    state = sound_state(rng)
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    choices: tuple[tuple[Any, str], ...] = (
        (state, RIGHT),
        ({"state_dict": {"model": {"state_dict": state}}}, RIGHT),
        ({"model": {f"module.{k}": v for k, v in state.items()}}, RIGHT),
        ({**state, "a": torch.zeros(2, 0)}, RIGHT),
        ({**state, "a": state["layer0.weight"]}, RIGHT),
        ({**state, "a": torch.tensor([float("nan")])}, REFUSED),
        ({**state, "a": torch.tensor([float("inf"), 1])}, REFUSED),
        ({**state, "a": torch.zeros(1).expand(1 << 30)}, REFUSED),
        ({**state, "a": torch.zeros(2, device="meta")}, REFUSED),
        ({**state, "a": torch.eye(2).to_sparse()}, REFUSED),
        ({**state, "a": "text"}, REFUSED),
        ({**state, 3: torch.zeros(1)}, REFUSED),
        ({}, REFUSED),
        ([], REFUSED),
        (None, REFUSED),
        ({"model": {}}, REFUSED),
        (arrays, RIGHT),
        ({"model": arrays, "epoch": 3}, RIGHT),
        ({**arrays, "a": np.array([float("nan")])}, REFUSED),
        ({**arrays, "a": np.array(["x"])}, REFUSED),
        ({**arrays, "a": np.array([object()], dtype=object)}, REFUSED),
    )
    content, expected = rng.choice(choices)
    if "array" in repr(content):
        path.write_bytes(pickle.dumps(content, protocol=rng.randrange(2, 6)))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=rng.random() < 0.7)
    return expected


def zipped(rng: random.Random, path: Path) -> None:
    """Zip files that are not what torch writes: bombs, traversal, foreign members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        way = rng.randrange(3)
        if way == 0:
            archive.writestr("archive/data.pkl", bytes(200 << 20))  # 200 KiB on disk
        elif way == 1:
            archive.writestr("../../outside", b"x")
        else:
            archive.writestr("archive/data.pkl", pickle.dumps(rng.choice(payloads(path))))
            archive.writestr("archive/version", "3")
    path.write_bytes(buffer.getvalue())


def safetensors(rng: random.Random, path: Path) -> None:
    header = rng.choice(
        (
            b"{}",
            b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
            b'{"a":{"dtype":"F32","shape":[99999999],"data_offsets":[0,8]}}',
            b'{"a":{"dtype":"X","shape":[],"data_offsets":[0,0]}}',
            b"not json",
        )
    )
    length = rng.choice((len(header), len(header), 0, 1 << 40, 3))
    path.write_bytes(length.to_bytes(8, "little") + header + bytes(rng.choice((0, 8, 3))))


def watch(allowed: Path, broken: list[str]) -> None:
    """Note, from here on, every forbidden event and every file but one that is opened."""
    libraries = tuple({os.path.realpath(p) for p in (*sys.path, *sysconfig.get_paths().values())})
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def note(event: str, arguments: tuple) -> None:
        if event.startswith(FORBIDDEN):
            broken.append(f"{event} {arguments!r}"[:200])
        elif event == "open" and not isinstance(arguments[0], int):
            path, _, flags = arguments
            place = os.path.realpath(os.fsdecode(path))
            foreign = place != os.path.realpath(allowed) and not place.startswith(libraries)
            if foreign or (flags or 0) & writing:
                broken.append(f"open {arguments!r}"[:200])

    sys.addaudithook(note)


def case(rng: random.Random, folder: Path) -> Outcome:
    suffix = rng.choice((".pth", ".pkl", ".pt", ".bin"))
    marker = folder / "harm"
    kind = rng.choice((malicious, malicious, damaged, damaged, whole, zipped, safetensors))
    path = folder / f"weights{'.safetensors' if kind is safetensors else suffix}"
    expected = None
    if kind is malicious:
        malicious(rng, path, marker)
        expected = REFUSED
    elif kind is whole:
        expected = whole(rng, path)
    else:
        kind(rng, path)

    def work() -> Outcome:
        broken: list[str] = []
        watch(path, broken)
        try:
            found = reading.read_weights(path)
        except (ValueError, FileNotFoundError) as error:
            outcome = refusal(error, [path.name])
        else:
            tensors = found.state.values()
            finite = all(not t.is_floating_point() or bool(t.isfinite().all()) for t in tensors)
            outcome = Outcome(RIGHT) if finite else Outcome(WRONG, "a tensor is not finite")
        if broken or marker.exists():
            return Outcome(WRONG, f"executed: {broken[:2]}")
        if expected not in (None, outcome.verdict) and outcome.verdict != WRONG:
            return Outcome(WRONG, f"expected {expected}, was {outcome.verdict}: {outcome.detail}")
        return outcome

    return in_child(work, folder / "log.txt")
