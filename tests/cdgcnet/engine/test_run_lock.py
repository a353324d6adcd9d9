"""What the lock of a run's folder says when the file system cannot lock.

How it keeps runs apart is tested in test_run_folder.py.
"""

import errno
import os

import pytest

from cdgcnet.engine import run_lock
from cdgcnet.engine.run_lock import check_free, hold_folder


@pytest.fixture
def lock_fails(monkeypatch):
    """``lock_fails(CODE)`` lets every lock fail with that error."""

    def fail(code: int) -> None:
        def lockf(descriptor: int, operation: int) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(run_lock.fcntl, "lockf", lockf)

    return fail


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named(tmp_path, lock_fails, code):
    # Waiting, as for another run, would be in vain.
    lock_fails(code)
    folder = tmp_path / "run"
    with pytest.raises(OSError, match="cannot lock files") as caught, hold_folder(folder):
        pass
    message = str(caught.value)
    assert str(folder) in message and os.strerror(code) in message
    assert "in use" not in message and "on a local disk" in message
    assert not folder.exists()  # neither the folder nor a lock file is left behind
    folder.mkdir()
    (folder / "run.lock").write_text("{}")  # of a run that was killed
    with pytest.raises(OSError, match="cannot lock files"):
        check_free(folder)


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EACCES])
def test_a_lock_of_another_run_is_in_use(tmp_path, lock_fails, code):
    lock_fails(code)
    (tmp_path / "run.lock").write_text("{}")
    with pytest.raises(BlockingIOError, match="is in use by another run"):
        check_free(tmp_path)
    with pytest.raises(BlockingIOError, match="is in use by another run"), hold_folder(tmp_path):
        pass
    assert (tmp_path / "run.lock").exists()
