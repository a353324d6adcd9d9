"""From stride-8 logits to full size: bilinear by hand, bands against the whole."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling.postprocessing import sem_seg_postprocess
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from cdgcnet.modeling import postprocessing as postprocess
from cdgcnet.modeling.postprocessing import (
    ResizeGeometry,
    best_class,
    check_fits,
    full_size_logits,
    label_map,
    score_bands,
)

NAN = float("nan")
ROW = torch.tensor([[[0.0, 1.0]]])  # one class, 1 x 2 nodes


@pytest.mark.parametrize(
    ("align_corners", "expected"),
    [
        (True, [0, 1 / 3, 2 / 3, 1]),  # column j lies at j * (2 - 1) / (4 - 1)
        (False, [0, 0.25, 0.75, 1]),  # at (j + 0.5) * 2 / 4 - 0.5, held within [0, 1]
    ],
)
def test_resize_by_hand(align_corners, expected):
    found = full_size_logits(ROW, ResizeGeometry((1, 4), (1, 4), (1, 4), align_corners))
    assert found.shape == (1, 1, 4)
    assert found[0, 0].tolist() == pytest.approx(expected)


def test_padding_is_cut_off_before_the_second_resize():
    # Padded to 4 columns, of which the image has 3: 0, 1/3, 2/3. From there to 6 columns without
    # aligned corners, column j at j/2 - 1/4: 0, .25, .75, 1.25, 1.75, 2 (thirds).
    found = full_size_logits(ROW, ResizeGeometry((1, 4), (1, 3), (1, 6), True))
    expected = [0, 0.25 / 3, 0.75 / 3, 1.25 / 3, 1.75 / 3, 2 / 3]
    assert found[0, 0].tolist() == pytest.approx(expected)


def test_best_class_by_hand():
    # Of equal scores the first class wins; NaN is the largest of all, as for torch.max.
    scores = torch.tensor([[[1.0, 2.0, 0.0, 1.0]], [[1.0, 3.0, 0.0, NAN]], [[0.0, 3.0, 1.0, 9.0]]])
    assert best_class(scores[:, :, :3]).tolist() == [[0, 1, 2]]
    assert best_class(scores).tolist() == [[0, 1, 2, 1]]


def test_labels_of_scores_with_gradients():
    scores = torch.cat([torch.full((1, 1, 2), 0.5), ROW]).requires_grad_()
    assert best_class(scores).tolist() == [[0, 1]]
    geometry = ResizeGeometry((1, 4), (1, 4), (1, 4), False)
    assert label_map(scores, geometry).tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize("classes", [1, 2, 19, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int32])
def test_best_class_equals_argmax(classes, dtype, monkeypatch):
    monkeypatch.setattr(postprocess, "_ARGMAX_PIXELS", 40)  # several parts, the last one short
    g = torch.Generator().manual_seed(0)
    scores = torch.randint(-8, 8, (classes, 9, 13), generator=g).to(dtype)
    assert torch.equal(best_class(scores), scores.max(dim=0).indices.to(torch.uint8))
    assert torch.equal(best_class(-scores.flip(2)), (-scores.flip(2)).max(0).indices.byte())


def test_labels_by_hand():
    # Class 0 holds 0.5 everywhere, class 1 the ramp above: 0, 1/4, 3/4, 1 is above from column 2.
    logits = torch.cat([torch.full((1, 1, 2), 0.5), ROW])
    labels = label_map(logits, ResizeGeometry((1, 4), (1, 4), (1, 4), False))
    assert labels.dtype == torch.uint8 and labels.tolist() == [[0, 0, 1, 1]]


def test_another_default_dtype_changes_nothing():
    geometry = ResizeGeometry((1, 4), (1, 4), (1, 7), False)  # no other test has this one
    logits = torch.cat([torch.full((1, 1, 2), 0.5), ROW])
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        found = label_map(logits, geometry)
        bands = [band.dtype for _, band in score_bands(logits, geometry)]
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(found, label_map(logits, geometry)) and bands == [torch.float32]


def test_last_of_256_classes():
    logits = torch.zeros(256, 1, 1)
    logits[255] = 1
    assert (
        label_map(logits, ResizeGeometry((3, 3), (3, 3), (2, 2), True)).tolist() == [[255] * 2] * 2
    )


def test_half_precision_logits_are_resized_in_float():
    geometry = ResizeGeometry((3, 5), (3, 5), (4, 4), True)
    assert full_size_logits(ROW.half(), geometry).dtype == torch.float32
    assert label_map(ROW.half(), geometry).shape == (4, 4)


@st.composite
def cases(draw):
    size = st.integers(1, 9)
    h, w, classes = draw(size), draw(size), draw(st.integers(1, 6))
    # Sizes of any kind, not only eight times the nodes: smaller, larger, degenerate.
    padded = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    image = draw(st.integers(1, padded[0])), draw(st.integers(1, padded[1]))
    if draw(st.booleans()):
        output = image
    else:
        output = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    logits = torch.randn(classes, h, w, generator=generator)
    return logits, ResizeGeometry(padded, image, output, draw(st.booleans()))


def assert_same_labels(found, logits):
    """Equal to the argmax wherever the two highest logits are not within rounding of a tie."""
    assert found.dtype == torch.uint8 and found.shape == logits.shape[1:]
    expected = logits.argmax(dim=0)
    differs = found != expected
    if not differs.any():
        return
    top = logits.topk(2, dim=0).values
    assert (top[0] - top[1])[differs].max() < 1e-4
    assert differs.float().mean() < 0.05


@given(cases())
def test_labels_are_the_argmax(case):
    logits, geometry = case
    whole = full_size_logits(logits, geometry)
    assert whole.shape == (len(logits), *geometry.output)
    assert_same_labels(label_map(logits, geometry), whole)


@given(cases())
def test_smooth_labels_are_the_argmax(case):
    # One class everywhere but at one node: most pixels take the short way.
    logits, geometry = case
    logits = logits / 10
    logits[0] += 5
    logits[-1, logits.shape[1] // 2, logits.shape[2] // 2] += 7
    whole = full_size_logits(logits, geometry)
    assert_same_labels(label_map(logits, geometry), whole)


@given(cases(), st.booleans(), st.sampled_from([1, 40, 1 << 19]), st.sampled_from([3, 128]))
def test_bands_equal_the_whole(case, flip, numbers, columns):
    logits, geometry = case
    whole = full_size_logits(logits, geometry)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(postprocess._BAND_VALUES, "cpu", numbers)
        patch.setitem(postprocess._BLOCK_COLUMNS, "cpu", columns)
        postprocess._column_blocks.cache_clear()
        rows, bands = zip(*score_bands(logits, geometry, flip), strict=True)
    assert [i for r in rows for i in range(r.start, r.stop)] == list(range(geometry.output[0]))
    found = torch.cat(bands, dim=1)
    torch.testing.assert_close(found, whole.flip(-1) if flip else whole, rtol=0, atol=2e-5)


@given(cases())
def test_full_size_logits_are_detectron2s(case):
    # The head's resize to the padded input, then Detectron2's sem_seg_postprocess.
    logits, geometry = case
    resized = F.interpolate(
        logits[None], size=geometry.padded, mode="bilinear", align_corners=geometry.align_corners
    )[0]
    expected = sem_seg_postprocess(resized, geometry.image, *geometry.output)
    found = full_size_logits(logits, geometry)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("width", [4, 7])
def test_pixels_between_unequal_nodes_are_few(monkeypatch, width):
    # A 3 x 4 map of two halves. Resized to 24 rows (8 times) only the columns between node 1 and
    # node 2 are mixed; the other pixels must not be computed.
    logits = torch.zeros(2, 3, 4)
    logits[0, :, :2] = logits[1, :, 2:] = 1
    seen = []
    interpolate = postprocess._interpolated_labels

    def counting(scores, pixel, rows, columns):
        seen.append(len(pixel))
        return interpolate(scores, pixel, rows, columns)

    monkeypatch.setattr(postprocess, "_interpolated_labels", counting)
    size = (24, 8 * width)
    found = label_map(logits, ResizeGeometry(size, size, size, False))
    # Column x lies at (x + 0.5) / (2 * width) - 0.5; between 1 and 2 for 3 width <= x + 0.5 < 5
    # width: 2 * width columns of 24 rows each.
    assert seen == [24 * 2 * width]
    assert (found[:, : 4 * width] == 0).all() and (found[:, 4 * width :] == 1).all()


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("output", [(769, 769), (1024, 2048), (512, 512)])
def test_a_large_map_has_few_ties(align_corners, output):
    # The promise of the README: at most 5 pixels of 2 million.
    logits = torch.randn(5, 97, 97, generator=torch.Generator().manual_seed(0))
    geometry = ResizeGeometry((769, 769), (769, 769), output, align_corners)
    expected = full_size_logits(logits, geometry).argmax(dim=0)
    wrong = int((label_map(logits, geometry) != expected).sum())
    assert wrong <= 5 * max(1, output[0] * output[1] / 2e6)


def test_label_map_never_holds_all_logits():
    # 5 x 2048 x 2048 floats would be 80 MiB. Noise: hardly two neighboring nodes agree.
    logits = torch.rand(5, 4, 256)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.is_floating_point():
                largest = max(largest, out.numel())
            return out

    with Watch():
        label_map(logits, ResizeGeometry((32, 2048), (32, 2048), (2048, 2048), True))
    # A band, or the matrix of an axis; 20 M numbers are the whole.
    assert 0 < largest <= 1 << 20


# ---------------------------------------------------------------- memory
@pytest.mark.parametrize(
    ("memory", "fits"),
    [
        (2 * 171 * 100 * 100 * 4, True),  # both the resized logits and their source
        (2 * 171 * 100 * 100 * 4 - 1, False),
    ],
)
def test_too_large_for_memory(monkeypatch, memory, fits):
    monkeypatch.setattr(postprocess, "_memory_bytes", lambda device: memory)
    if fits:
        check_fits(171, (100, 100), torch.device("cpu"))
    else:
        with pytest.raises(MemoryError, match=r"171 x 100 x 100.*INPUT\.MIN_SIZE_TEST"):
            check_fits(171, (100, 100), torch.device("cpu"))


def test_the_resized_input_counts_too(monkeypatch):
    # INPUT.MIN_SIZE_TEST may blow a small image up: logits exist at that size first.
    monkeypatch.setattr(postprocess, "_memory_bytes", lambda device: 10_000)
    with pytest.raises(MemoryError, match="INPUT"):
        full_size_logits(torch.zeros(5, 2, 2), ResizeGeometry((100, 100), (100, 100), (4, 4), True))


def test_real_memory_is_known():
    assert postprocess._memory_bytes(torch.device("cpu")) > 2**28


@pytest.mark.parametrize("device", ["cuda:1", "mps", "xpu", "meta"])
def test_every_accelerator_has_the_sizes_of_a_gpu(device):
    sizes = {"cpu": 1, "gpu": 2}
    assert postprocess._of_device(sizes, torch.device(device)) == 2
    assert postprocess._of_device(sizes, torch.device("cpu")) == 1
