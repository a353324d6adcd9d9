"""OHEM cross entropy (Sec. 3.4)."""

from math import log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import ohem, relative
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from cdgc import OhemCrossEntropyLoss, cross_entropy, ohem_cross_entropy
from cdgc import upsampled_loss as upsampled_module


def from_probabilities(p):
    """Two-class logits (1, 2, 1, n) whose softmax gives class 0 the probabilities p."""
    p = torch.tensor(p, dtype=torch.float64)
    return torch.stack([p.log(), (1 - p).log()])[None, :, None].requires_grad_()


# p(true) of four pixels of class 0: two below 0.7.
LOGITS = from_probabilities([0.9, 0.5, 0.2, 0.8])
ZEROS = torch.zeros(1, 1, 4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("thresh", "min_kept", "kept"),
    [
        (0.7, 1, (0.5, 0.2)),  # both below 0.7; min_kept is met
        (0.7, 2, (0.5, 0.2)),
        (0.7, 3, (0.5, 0.2, 0.8)),  # one short: the next lowest
        (0.7, 99, (0.9, 0.5, 0.2, 0.8)),  # fewer valid than min_kept: all
        (0.3, 1, (0.2,)),
        (0.1, 1, (0.2,)),  # none below: the lowest min_kept
        (0.1, 2, (0.2, 0.5)),
        (0.85, 1, (0.5, 0.2, 0.8)),
        (0.7, 0.75, (0.5, 0.2, 0.8)),  # a share of the 1*1*4 pixels: 3
        (0.7, 0.25, (0.5, 0.2)),
    ],
)
def test_by_hand(thresh, min_kept, kept):
    expected = -sum(log(p) for p in kept) / len(kept)
    found = ohem_cross_entropy(LOGITS, ZEROS, thresh=thresh, min_kept=min_kept)
    assert found.shape == ()
    assert found.item() == pytest.approx(expected)
    module = OhemCrossEntropyLoss(thresh=thresh, min_kept=min_kept)
    assert torch.equal(module(LOGITS, ZEROS), found)


def test_class_weights_by_hand():
    # True classes 0 1 0 1 at p = 0.5 0.4 0.2 0.9, weights (1, 3), thresh 0.7 drops the last:
    # (-ln 0.5 - 3 ln 0.4 - ln 0.2) / (1 + 3 + 1)
    logits = from_probabilities([0.5, 0.6, 0.2, 0.1])
    targets = torch.tensor([[[0, 1, 0, 1]]])
    weights = torch.tensor([1.0, 3.0], dtype=torch.float64)
    expected = -(log(0.5) + 3 * log(0.4) + log(0.2)) / 5
    found = ohem_cross_entropy(logits, targets, min_kept=1, class_weights=weights)
    assert found.item() == pytest.approx(expected)
    module = OhemCrossEntropyLoss(min_kept=1, class_weights=weights)
    assert module(logits, targets).item() == pytest.approx(expected)


def test_weights_rank_nothing():
    # The weight enters the mean only: kept are the lowest p, not the largest weighted losses.
    # p = 0.3 (class 0, weight 1), 0.4 (class 1, weight 100); min_kept 1, thresh 0.1: 0.3 alone.
    logits, targets = from_probabilities([0.3, 0.6]), torch.tensor([[[0, 1]]])
    weights = torch.tensor([1.0, 100.0], dtype=torch.float64)
    found = ohem_cross_entropy(logits, targets, thresh=0.1, min_kept=1, class_weights=weights)
    assert found.item() == pytest.approx(-log(0.3))


def test_ties_do_not_raise_the_number():
    # min_kept = 2 of p = 0.2 0.9 0.9 0.9: 0.2 and any one of the ties, not all three. Saturated
    # pixels (p = 1 in float32) tie by the thousand and would dilute the mean.
    logits = from_probabilities([0.2, 0.9, 0.9, 0.9])
    found = ohem_cross_entropy(logits, ZEROS, min_kept=2)
    assert found.item() == pytest.approx(-(log(0.2) + log(0.9)) / 2)


def test_default_is_plain_cross_entropy_for_small_maps():
    # At most 100 000 pixels: min_kept keeps all of them.
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 6, 7, generator=g, dtype=torch.float64)
    targets = torch.randint(5, (2, 6, 7), generator=g)
    targets[0, :2] = 255
    expected = F.cross_entropy(logits, targets, ignore_index=255)
    assert ohem_cross_entropy(logits, targets).item() == pytest.approx(expected.item())


@settings(max_examples=40)
@given(
    st.integers(1, 3),
    st.integers(2, 4),
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from([0.2, 0.5, 0.7, 1.0]),
    st.integers(1, 40),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.booleans(),
    st.integers(0, 999),
)
def test_equals_sorting(batch, classes, h, w, thresh, min_kept, ignored, weighted, seed):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, classes, h, w, generator=g, dtype=torch.float64).requires_grad_()
    targets = torch.randint(classes, (batch, h, w), generator=g)
    targets[torch.rand(batch, h, w, generator=g) < ignored] = 255
    weights = torch.rand(classes, generator=g, dtype=torch.float64) + 0.1 if weighted else None
    found = ohem_cross_entropy(
        logits, targets, thresh=thresh, min_kept=min_kept, class_weights=weights
    )
    expected = ohem(logits, targets, thresh, min_kept, class_weights=weights)
    assert relative(found, expected) <= 1e-10
    ours, theirs = (torch.autograd.grad(y, logits)[0] for y in (found, expected))
    assert relative(ours, theirs) <= 1e-10
    assert not ours.movedim(1, -1)[targets == 255].any()


@pytest.mark.parametrize("min_kept", [1, 100000, 0.085])
@pytest.mark.parametrize("weights", [None, torch.ones(2, dtype=torch.float64)])
def test_nothing_valid(min_kept, weights):
    logits = LOGITS.detach().clone().requires_grad_()
    found = ohem_cross_entropy(
        logits, torch.full_like(ZEROS, 255), min_kept=min_kept, class_weights=weights
    )
    assert found.item() == 0.0
    found.backward()
    assert logits.grad.tolist() == torch.zeros_like(logits).tolist()


def test_nothing_valid_with_infinite_logits():
    # 0 * inf would be NaN: the gradient path must not go through the values.
    logits = torch.tensor([[[[float("inf")]], [[0.0]]]], requires_grad=True)
    found = ohem_cross_entropy(logits, torch.full((1, 1, 1), 255))
    assert found.item() == 0.0


def test_weight_zero_for_all_that_is_kept():
    weights = torch.tensor([0.0, 1.0], dtype=torch.float64)
    found = ohem_cross_entropy(LOGITS, ZEROS, min_kept=1, class_weights=weights)
    assert found.item() == 0.0  # torch's cross_entropy gives 0/0 here
    assert torch.autograd.grad(found, LOGITS)[0].isfinite().all()


def test_another_ignore_label():
    targets = torch.tensor([[[0, -1, 0, 0]]])
    found = ohem_cross_entropy(LOGITS, targets, min_kept=1, ignore_label=-1)
    assert found.item() == pytest.approx(-log(0.2))
    module = OhemCrossEntropyLoss(min_kept=1, ignore_label=-1)
    assert torch.equal(module(LOGITS, targets), found)


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[[[1e4, -1e4]], [[-1e4, 1e4]]]], requires_grad=True)
    found = ohem_cross_entropy(logits, torch.zeros(1, 1, 2, dtype=torch.int64), min_kept=1)
    assert found.item() == pytest.approx(2e4)
    assert torch.autograd.grad(found, logits)[0].isfinite().all()


@pytest.mark.parametrize("masked", ["one logit", "one class"])
def test_logits_masked_with_minus_infinity(masked):
    """As torch computes them where nothing is resized."""
    logits = torch.randn(2, 4, 6, 5)
    targets = torch.randint(3, (2, 6, 5))
    logits[:, 3][..., slice(1 if masked == "one logit" else None)] = -torch.inf
    grads = []
    for loss in (cross_entropy, F.cross_entropy):
        leaf = logits.clone().requires_grad_()
        found = loss(leaf, targets)
        found.backward()
        grads.append((found.detach(), leaf.grad))
    torch.testing.assert_close(*grads)


def test_low_precision_logits():
    # The choice and the mean are made in float32 at least: 0.7 is not a bfloat16 number.
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 4, 8, 8, generator=g)
    targets = torch.randint(4, (1, 8, 8), generator=g)
    low = logits.bfloat16()
    exact = ohem_cross_entropy(low.float(), targets, min_kept=1)
    found = ohem_cross_entropy(low, targets, min_kept=1)
    assert found.isfinite()
    assert found.item() == pytest.approx(exact.item(), rel=0.01)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ohem_cross_entropy(logits, targets).item() == pytest.approx(
            F.cross_entropy(logits, targets).item(), rel=1e-5
        )


@pytest.mark.parametrize("loss", [cross_entropy, ohem_cross_entropy])
def test_a_loss_scale_comes_before_the_gradient_is_rounded(loss):
    # The mean over 2 · 257² pixels has gradients of some 1e-6, of which float16, whose smallest
    # numbers are 6e-8 apart, keeps little. The factor of a GradScaler is there for them.
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 19, 65, 65, generator=g).half()
    targets = torch.randint(19, (2, 257, 257), generator=g)
    grads = []
    for x in (logits.clone(), logits.double()):
        x.requires_grad_()
        (65536 * loss(x, targets, align_corners=False)).backward()
        grads.append(x.grad)
    assert grads[0].dtype == torch.float16
    error = (grads[0].double() - grads[1]).norm() / grads[1].norm()
    assert error < 2**-11  # half a unit in the last place


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": LOGITS[0]}, "2, 1, 4"),
        ({"targets": ZEROS[0]}, "1, 4"),
        ({"targets": ZEROS.expand(2, 1, 4)}, "2, 1, 4"),
        ({"targets": ZEROS.float()}, "float"),
        ({"targets": ZEROS + 2}, r"\b2\b"),
        ({"targets": ZEROS - 1}, "-1"),
        ({"thresh": 1.5}, r"1\.5"),
        ({"thresh": -0.1}, r"-0\.1"),
        ({"min_kept": -1}, "-1"),
        ({"min_kept": 1.5}, r"1\.5"),
        ({"class_weights": torch.ones(3, dtype=torch.float64)}, "3"),
    ],
)
def test_bad_input(change, message):
    good = {"logits": LOGITS, "targets": ZEROS}
    ohem_cross_entropy(**good)
    with pytest.raises(ValueError, match=message):
        ohem_cross_entropy(**{**good, **change})


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int16, torch.int64])
def test_labels_of_any_integer_dtype(dtype):
    expected = ohem_cross_entropy(LOGITS, ZEROS)
    assert torch.equal(ohem_cross_entropy(LOGITS, ZEROS.to(dtype)), expected)


def test_an_ignore_label_of_minus_one_is_not_255():
    targets = torch.tensor([[[0, 1, 255, 1]]], dtype=torch.uint8)
    with pytest.raises(ValueError, match="target value 255 is neither a class"):
        cross_entropy(LOGITS, targets, ignore_label=-1)


# ---------------------------------------------------------------- logits at another resolution


def resized(logits, size, align_corners):
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=align_corners)


@st.composite
def resizes(draw):
    """Logits (B, M, h, w), targets (B, H, W) with ignored pixels, align_corners, weights."""
    seed = draw(st.integers(0, 999))
    g = torch.Generator().manual_seed(seed)
    batch, classes = draw(st.integers(1, 3)), draw(st.integers(2, 5))
    h, w, height, width = (draw(st.integers(1, 12)) for _ in range(4))
    factor = draw(st.sampled_from([1, 8]))  # also larger, as in training
    logits = torch.randn(batch, classes, h, w, generator=g, dtype=torch.float64)
    targets = torch.randint(classes, (batch, height * factor, width * factor), generator=g)
    targets[torch.rand(targets.shape, generator=g) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = 255
    weights = None
    if draw(st.booleans()):
        weights = torch.rand(classes, generator=g, dtype=torch.float64) + 0.1
    return logits.requires_grad_(), targets, draw(st.booleans()), weights


def close(found, expected):
    """Values and gradients; the resize weights of ``F.interpolate`` are float64 here too."""
    assert relative(found[0], expected[0]) <= 1e-9
    assert relative(found[1], expected[1]) <= 1e-9


@settings(max_examples=40)
@given(resizes(), st.sampled_from([1, 100, 1000, 1 << 19]))
def test_cross_entropy_is_torchs_of_the_resized_logits(case, band):
    logits, targets, align_corners, weights = case
    full = resized(logits, targets.shape[1:], align_corners)
    total = F.cross_entropy(full, targets, weights, ignore_index=255, reduction="sum")
    valid = targets != 255
    mass = valid.sum() if weights is None else weights[targets[valid]].sum()
    expected = total / mass.clamp(min=1e-12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(upsampled_module._BAND_VALUES, "cpu", band)  # any number of bands
        found = cross_entropy(logits, targets, class_weights=weights, align_corners=align_corners)
    close(
        (found, torch.autograd.grad(found, logits)[0]),
        (expected, torch.autograd.grad(expected, logits)[0]),
    )


def test_tensors_without_numbers_leave_nothing_behind():
    # As tools that estimate memory use them; the sizes occur in no other test.
    logits, targets = torch.randn(1, 3, 7, 9), torch.randint(3, (1, 31, 47))
    expected = cross_entropy(logits, targets)
    upsampled_module._kept_matrix.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = mode.from_tensor(logits), mode.from_tensor(targets)
        assert cross_entropy(*fake, check_targets=False).shape == ()
    assert torch.equal(cross_entropy(logits, targets), expected)


@settings(max_examples=25)
@given(resizes(), st.sampled_from([1, 5, 0.5]))
def test_ohem_is_that_of_the_resized_logits(case, min_kept):
    logits, targets, align_corners, weights = case
    full = resized(logits, targets.shape[1:], align_corners)
    least = int(min_kept * targets.numel()) if min_kept < 1 else min_kept
    expected = ohem(full, targets, 0.7, least, class_weights=weights)
    found = ohem_cross_entropy(
        logits,
        targets,
        min_kept=min_kept,
        class_weights=weights,
        align_corners=align_corners,
    )
    nll = F.cross_entropy(full.detach(), targets, ignore_index=255, reduction="none")
    nll = nll[targets != 255].sort().values
    if (nll.diff() < 1e-9).any():  # clamped edges give equal pixels, any of which may be kept
        assert relative(found, expected) <= 1e-9
        return
    close(
        (found, torch.autograd.grad(found, logits)[0]),
        (expected, torch.autograd.grad(expected, logits)[0]),
    )


@pytest.mark.parametrize(
    ("low", "high", "classes", "align"), [(97, 769, 3, True), (65, 520, 4, False)]
)
def test_single_precision_at_the_papers_sizes(low, high, classes, align):
    g = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(1, classes, low, low, generator=g)).requires_grad_()
    targets = torch.randint(classes, (1, high, high), generator=g)
    expected = F.cross_entropy(resized(logits, (high, high), align), targets)
    found = cross_entropy(logits, targets, align_corners=align)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    ours, theirs = (torch.autograd.grad(y, logits)[0] for y in (found, expected))
    assert relative(ours, theirs) <= 1e-5


def test_gradient_scales_with_the_loss_weight():
    # alpha * loss must have alpha times the gradient, though it is made in the forward pass.
    logits = torch.randn(1, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    targets = torch.zeros(1, 5, 5, dtype=torch.int64)
    one, scaled = (
        torch.autograd.grad(a * cross_entropy(logits, targets), logits)[0] for a in (1.0, 0.6)
    )
    torch.testing.assert_close(scaled, 0.6 * one)


def test_no_gradient_is_made_where_none_is_asked_for():
    logits = torch.randn(1, 2, 2, 2)
    found = cross_entropy(logits, torch.zeros(1, 4, 4, dtype=torch.int64))
    assert not found.requires_grad


def test_autocast_does_not_lower_the_precision():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 4, 5, 5, generator=g)
    targets = torch.randint(4, (1, 33, 33), generator=g)
    exact = cross_entropy(logits, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(cross_entropy(logits, targets), exact)


def test_a_device_other_than_cpu_and_cuda():
    logits = torch.empty(2, 3, 4, 5, device="meta")
    targets = torch.empty(2, 7, 9, dtype=torch.long, device="meta")
    nll, grad = upsampled_module._scan(logits, targets, True, torch.empty_like(targets))
    assert (nll.shape, grad.shape) == (targets.shape, logits.shape)
