"""Shared by the tests of the graph."""

import pytest

from cdgc import attention, grouped_linear, kernels, packed_attention


@pytest.fixture
def kernels_on_cpu(monkeypatch):
    """Choose kernels on the CPU as on a GPU, with nothing chosen yet."""
    monkeypatch.setattr(kernels, "DEVICES", ("cpu",))
    monkeypatch.setattr("cdgc.propagation.DEVICES", ("cpu",))
    choices = (attention._segment_kernel, grouped_linear._kernel, packed_attention._choice)
    for choice in choices:
        monkeypatch.setattr(choice, "_chosen", {})
