"""Where a number comes from (cdgcnet.engine.run_metadata)."""

import pytest

from cdgcnet.engine import run_metadata


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """The files of the project without their Git repository."""
    (tmp_path / "projects" / "CDGCNet").mkdir(parents=True)
    monkeypatch.setattr(run_metadata, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.delenv("CDGCNET_COMMIT", raising=False)


@pytest.mark.parametrize("git_is_installed", [True, False])
def test_a_copy_has_the_commit_of_the_environment(copy, git_is_installed, tmp_path, monkeypatch):
    if not git_is_installed:
        monkeypatch.setenv("PATH", str(tmp_path))
    assert run_metadata.commit() == run_metadata.UNKNOWN
    monkeypatch.setenv("CDGCNET_COMMIT", "abc1234")
    assert run_metadata.commit() == "abc1234"


def test_a_commit_that_is_named_wins_over_that_of_the_repository(monkeypatch):
    monkeypatch.setenv("CDGCNET_COMMIT", "abc1234")
    assert run_metadata.commit() == "abc1234"
