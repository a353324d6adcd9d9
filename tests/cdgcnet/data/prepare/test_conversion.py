"""Jobs: each file whole or not at all, failures collected, runs that go on."""

import errno
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cdgcnet.data.prepare import conversion as jobs
from cdgcnet.data.prepare.archives import File, find
from cdgcnet.data.prepare.conversion import Job, Runner, place, remove_leftovers
from cdgcnet.utils.io import atomic_write


def source(folder: Path, name: str, text: str = "text") -> File:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return File(str(folder / name))


def upper(content, target: Path) -> None:
    """A conversion; refuses digits."""
    text = content.read_text() if isinstance(content, Path) else content.decode()
    if text.isdigit():
        raise ValueError("digits")
    with atomic_write(target) as tmp_path:
        tmp_path.write_text(text.upper())


@pytest.fixture
def three(tmp_path):
    """Conversions of a, 1 and c: the second fails."""
    return [
        Job(source(tmp_path / "src", f"{i}.txt", text), tmp_path / "out" / f"{i}.txt", upper)
        for i, text in enumerate(["a", "1", "c"])
    ]


def made(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in sorted(folder.iterdir())} if folder.exists() else {}


def test_failures_name_the_source_and_do_not_stop_the_others(three, tmp_path):
    runner = Runner(0)
    runner.run(three, "x")
    assert made(tmp_path / "out") == {"0.txt": "A", "2.txt": "C"}
    assert runner.failures == [f"{tmp_path}/src/1.txt: digits"]
    assert (runner.made, runner.kept) == (2, 0)


def test_what_is_there_is_kept_unless_overwrite(three, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "0.txt").write_text("mine")
    runner = Runner(0)
    runner.run(three, "x")
    assert made(tmp_path / "out")["0.txt"] == "mine"
    assert (runner.made, runner.kept) == (1, 1)
    again = Runner(0, overwrite=True)
    again.run(three, "x")
    assert made(tmp_path / "out")["0.txt"] == "A"
    assert (again.made, again.kept) == (2, 0)


def test_files_are_linked_and_the_source_is_never_changed(tmp_path):
    file = source(tmp_path / "src", "a.txt")
    job = Job(file, tmp_path / "out" / "a.txt")
    Runner(0).run([job], "x")
    assert job.target.samefile(file.name)
    job.target.unlink()
    assert Path(file.name).read_text() == "text"
    # A link in the source is resolved: the target is a file of its own name.
    (tmp_path / "src" / "link.txt").symlink_to(file.name)
    Runner(0).run([Job(File(f"{tmp_path}/src/link.txt"), job.target)], "x")
    assert not job.target.is_symlink() and job.target.read_text() == "text"


def test_files_are_copied_where_linking_fails(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    file = source(tmp_path / "src", "a.txt")
    target = tmp_path / "out" / "a.txt"
    place(Path(file.name), target)
    assert target.read_text() == "text" and not target.samefile(file.name)


def test_in_place_files_are_kept_even_with_overwrite(tmp_path):
    file = source(tmp_path / "out", "a.txt")
    runner = Runner(0, overwrite=True)
    runner.run([Job(file, tmp_path / "out" / "a.txt")], "x")
    assert (runner.made, runner.kept) == (0, 1)


# ---------------------------------------------------------------- interruption and full disks


def test_an_interrupted_run_resumes(three, tmp_path):
    calls = []

    def interrupt_second(content, target):
        calls.append(target.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        upper(content, target)

    todo = [Job(job.source, job.target, interrupt_second) for job in (three[0], three[2])]
    with pytest.raises(KeyboardInterrupt):
        Runner(0).run(todo, "x")
    assert made(tmp_path / "out") == {"0.txt": "A"}  # no half, no .part
    runner = Runner(0)
    runner.run(todo, "x")
    assert (runner.made, runner.kept) == (1, 1)
    assert made(tmp_path / "out") == {"0.txt": "A", "2.txt": "C"}


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only"), (errno.EACCES, "no permission")],
)
def test_a_target_that_cannot_be_written_stops_the_run(
    three, tmp_path, monkeypatch, number, advice
):
    real = Path.replace
    calls = []

    def fail_second(self, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(number, os.strerror(number))
        return real(self, target)

    monkeypatch.setattr(Path, "replace", fail_second)
    runner = Runner(0)
    with pytest.raises(OSError, match=advice) as caught:
        runner.run([three[0], three[2]], "x")
    # The name says that it is the target; it comes through from a worker process.
    error = pickle.loads(pickle.dumps(caught.value))
    assert error.filename == str(tmp_path / "out" / "2.txt")
    # What was finished is there, and nothing else.
    assert made(tmp_path / "out") == {"0.txt": "A"}
    assert runner.made == 1


def test_a_source_that_cannot_be_read_does_not_stop_the_run(three, tmp_path):
    os.unlink(three[0].source.name)
    runner = Runner(0)
    runner.run(three, "x")
    assert made(tmp_path / "out") == {"2.txt": "C"}
    assert len(runner.failures) == 2 and "0.txt" in runner.failures[0]


def test_only_old_leftovers_of_killed_runs_are_removed(tmp_path, monkeypatch):
    for name in ("a.123.part.png", "b.9.part", "mine.part.png", "a.png"):
        (tmp_path / name).write_text("x")
    remove_leftovers([tmp_path, tmp_path / "absent"])
    assert len(made(tmp_path)) == 4  # just written: perhaps by a run at the same time
    later = time.time() + 2 * 3600
    monkeypatch.setattr(time, "time", lambda: later)
    remove_leftovers([tmp_path])
    assert sorted(made(tmp_path)) == ["a.png", "mine.part.png"]


# ---------------------------------------------------------------- worker processes


@pytest.fixture
def importable(tmp_path, monkeypatch):
    """A module that worker processes can import, unlike this file."""
    (tmp_path / "job_functions.py").write_text(
        "import os\n"
        "from pathlib import Path\n"
        "from cdgcnet.utils.io import atomic_write\n"
        "def upper(content, target):\n"
        "    text = content.read_text() if isinstance(content, Path) else content.decode()\n"
        "    if text.isdigit():\n"
        "        raise ValueError('digits')\n"
        "    with atomic_write(target) as tmp_path:\n"
        "        tmp_path.write_text(text.upper())\n"
        "def die(content, target):\n"
        "    os._exit(1)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import job_functions

    yield job_functions
    del sys.modules["job_functions"]


def test_worker_processes_do_the_same(importable, pack, tmp_path, monkeypatch):
    """Loose, packed, damaged and failing files; the source of each failure is named."""
    monkeypatch.setattr(jobs, "_PENDING_PER_WORKER", 1)  # several rounds of waiting
    for i, text in enumerate(["packed", "7", "damaged"]):
        source(tmp_path / "unpacked", f"{i}.txt", text)
    archive = pack(tmp_path / "unpacked", tmp_path / "src.tar")
    # A header and one block of content are 512 bytes each: of 2.txt only the header is left.
    archive.write_bytes(archive.read_bytes()[: 5 * 512])
    found = find([archive], (r"\d\.txt",), ())
    out = tmp_path / "out"
    todo = [Job(file, out / file.name, importable.upper) for file in found.files]
    todo.append(Job(source(tmp_path / "loose", "a.txt", "loose"), out / "a.txt", importable.upper))
    todo.append(Job(todo[-1].source, out / "b.txt"))
    assert len(found.problems) == 1 and "src.tar" in found.problems[0]
    runner = Runner(1)
    runner.run(todo, "x")
    found.close()
    assert made(out) == {"0.txt": "PACKED", "a.txt": "LOOSE", "b.txt": "loose"}
    assert runner.made == 3
    digits, damaged = sorted(runner.failures)
    assert digits == f"{archive}: 1.txt: digits"
    assert damaged.startswith(f"{archive}: 2.txt: ") and "download it again" in damaged


@pytest.mark.slow
def test_a_killed_worker_is_said(importable, tmp_path):
    # As the kernel does when memory runs out.
    job = Job(source(tmp_path / "src", "a.txt"), tmp_path / "a.txt", importable.die)
    with pytest.raises(ChildProcessError, match="fewer --workers"):
        Runner(1).run([job], "x")


WORKER_SCRIPT = """
import sys
from pathlib import Path

from cdgcnet.data.prepare import camvid, cityscapes, coco_stuff, pascal_context, voc
from cdgcnet.data.prepare.archives import File
from cdgcnet.data.prepare.conversion import Job, Runner


def list_modules(content, target):
    target.write_text(" ".join(sys.modules))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    runner = Runner(workers=1)
    runner.run([Job(File(sys.argv[0]), folder / "modules.txt", list_modules)], "modules")
    assert not runner.failures, runner.failures
"""


def test_workers_import_neither_torch_nor_detectron2(tmp_path):
    # Torch takes seconds to import, in each worker again: longer than most preparations.
    script = tmp_path / "prepare.py"
    script.write_text(WORKER_SCRIPT)
    command = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = (tmp_path / "modules.txt").read_text().split()
    assert "cdgcnet.data.prepare.voc" in loaded
    assert not {"torch", "detectron2", "matplotlib"} & set(loaded)
