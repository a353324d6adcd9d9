"""Sums of probabilities over views and windows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cdgcnet.modeling import postprocessing as postprocess
from cdgcnet.modeling.postprocessing import ResizeGeometry, full_size_logits
from cdgcnet.modeling.probability_accumulator import AccumulatorOptions, ProbabilityAccumulator

CPU = torch.device("cpu")


def test_by_hand():
    # Logits 0 and ln 3 are the probabilities 1/4 and 3/4; the other prediction says 1/2 each.
    first = torch.tensor([0.0, torch.tensor(3.0).log()]).view(2, 1, 1)
    size = (1, 1)
    total = ProbabilityAccumulator(2, size, CPU, AccumulatorOptions())
    total.add(first, ResizeGeometry(size, size, size, True))
    total.add(torch.zeros(2, 1, 1), ResizeGeometry(size, size, size, True))
    # (1/4 + 1/2) / 2 and (3/4 + 1/2) / 2
    assert total.labels().tolist() == [[1]]
    assert total.mean(2).flatten().tolist() == pytest.approx([0.375, 0.625])


def test_probabilities_are_not_softmaxed_again():
    size = (1, 1)
    total = ProbabilityAccumulator(2, size, CPU, AccumulatorOptions())
    total.add(
        torch.tensor([0.25, 0.75]).view(2, 1, 1),
        ResizeGeometry(size, size, size, True),
        logits=False,
    )
    assert total.total.flatten().tolist() == [0.25, 0.75]


@given(st.integers(0, 99), st.booleans(), st.sampled_from([1, 300, 1 << 19]))
def test_equals_softmax_of_full_size_logits(seed, flip, numbers):
    logits = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(seed))
    geometry = ResizeGeometry((30, 38), (29, 38), (41, 23), False)
    total = ProbabilityAccumulator(3, geometry.output, CPU, AccumulatorOptions())
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(postprocess._BAND_VALUES, "cpu", numbers)
        total.add(logits, geometry, flip=flip)
    expected = full_size_logits(logits, geometry).softmax(dim=0)
    expected = expected.flip(-1) if flip else expected
    torch.testing.assert_close(total.total, expected, rtol=0, atol=1e-6)


def test_a_window_lands_at_its_corner():
    total = ProbabilityAccumulator(2, (4, 5), CPU, AccumulatorOptions())
    size = (2, 3)
    total.add(torch.zeros(2, 1, 1), ResizeGeometry(size, size, size, False), corner=(1, 2))
    expected = torch.zeros(4, 5)
    expected[1:3, 2:5] = 0.5
    assert torch.equal(total.total, expected.expand(2, 4, 5))


def test_half_precision_sum():
    size = (8, 8)
    total = ProbabilityAccumulator(
        3, size, CPU, AccumulatorOptions(torch.device("cpu"), torch.float16)
    )
    logits = torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(0))
    for _ in range(12):
        total.add(logits, ResizeGeometry(size, size, size, True))
    assert total.total.dtype == torch.float16
    expected = full_size_logits(logits, ResizeGeometry(size, size, size, True)).softmax(dim=0)
    # 11 bits of mantissa; sums up to 12 are rounded to 2^-8 at worst, a dozen times.
    torch.testing.assert_close(total.mean(12).float(), expected, rtol=0, atol=12 * 2**-8 / 12)


def test_place_from_config(tiny_cfg):
    assert AccumulatorOptions.from_config(tiny_cfg()) == AccumulatorOptions(None, torch.float32)
    changes = {"TEST.ACCUMULATE.DEVICE": "cpu", "TEST.ACCUMULATE.DTYPE": "fp16"}
    assert AccumulatorOptions.from_config(tiny_cfg(changes)) == AccumulatorOptions(
        torch.device("cpu"), torch.float16
    )


@pytest.mark.parametrize(("dtype", "fits"), [(torch.float32, False), (torch.float16, True)])
def test_a_sum_that_cannot_fit(monkeypatch, dtype, fits):
    # 5 x 10 x 10 numbers are 2000 bytes in float32, 1000 in float16; 1500 are there.
    monkeypatch.setattr(postprocess, "_memory_bytes", lambda device: 1500)
    if fits:
        ProbabilityAccumulator(5, (10, 10), CPU, AccumulatorOptions(None, dtype))
    else:
        with pytest.raises(MemoryError, match=r"5 x 10 x 10.*TEST\.ACCUMULATE"):
            ProbabilityAccumulator(5, (10, 10), CPU, AccumulatorOptions(None, dtype))
