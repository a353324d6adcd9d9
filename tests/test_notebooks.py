"""The notebooks run from the first to the last cell, and hold no outputs."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOUR = ROOT / "notebooks" / "tour.ipynb"


@pytest.fixture
def notebook():
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed (extra: test)")
    return nbformat.read(TOUR, as_version=4)


def test_outputs_are_stripped(notebook):
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.slow
def test_tour_runs(notebook, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed (extra: test)")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed (extra: test)")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "projects" / "CDGCNet"))
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    [settings] = [c for c in notebook.cells if "ITERATIONS = 200" in c.source]
    settings.source = settings.source.replace("ITERATIONS = 200", "ITERATIONS = 3")
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 4  # loss, predictions, features, own image
    assert (tmp_path / "output" / "tour" / "run" / "model_final.pth").is_file()
