"""The native meta-architecture against Detectron2's, batches against single images."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model

from cdgc import DEFAULT_GRAPH
from cdgc.sampling_grid import node_positions
from cdgcnet import CDGCSegmentor
from cdgcnet.modeling import postprocessing as postprocess
from cdgcnet.modeling.predictions import PredictionKind

REFINED, COARSE, ORACLE = PredictionKind
STOCK = {"MODEL.META_ARCHITECTURE": "SemanticSegmentor"}
# tiny_cfg has the paper's graph; this is the one that the project's configs start from.
DEFAULT = {f"MODEL.CDGC.{key.upper()}": value for key, value in DEFAULT_GRAPH.items()}
# The layout of the stock model, so that both round alike.
CONTIGUOUS = {"MODEL.CHANNELS_LAST": False}
SIZES = [(97, 131), (375, 500), (520, 520), (1, 1), (7, 3), (65, 33), (8, 8), (769, 769)]
OUTPUTS = [None, (64, 80), (1, 1), (200, 120)]


@pytest.fixture(scope="module")
def pair(tiny_cfg, build):
    """Native and stock model with the same weights, for both kinds of resize."""

    def make(align_corners):
        changes = {"MODEL.CDGC.ALIGN_CORNERS": align_corners, **CONTIGUOUS}
        native = build(tiny_cfg(changes))
        stock = build_model(tiny_cfg({**changes, **STOCK})).eval()
        stock.load_state_dict(native.state_dict())
        return native, stock

    return {flag: make(flag) for flag in (True, False)}


def assert_same_labels(found, logits, allowed=5e-6):
    """Equal but for ties: at most 5 pixels of 2 million, and one anywhere."""
    different = found.long() != logits.argmax(dim=0)
    assert int(different.sum()) <= max(1, allowed * different.numel())


def assert_equal_predictions(found, expected):
    assert found.labels.keys() == expected.labels.keys()
    assert all(torch.equal(found.labels[kind], expected.labels[kind]) for kind in found.labels)
    assert torch.equal(found.node_counts, expected.node_counts)


# ---------------------------------------------------------------- two ways to run
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("output", OUTPUTS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_native_equals_stock(pair, make_batch, size, output, align_corners):
    native, stock = pair[align_corners]
    batch = make_batch(size)
    if output:
        batch[0] |= {"height": output[0], "width": output[1]}
    with torch.no_grad():
        expected = stock(batch)[0]["sem_seg"]
        found = native(batch)[0]["sem_seg"]
        labels = native.predict_labels(batch)[0].labels[REFINED]
    assert found.shape == (5, *(output or size))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert_same_labels(labels, found)
    assert_same_labels(labels, expected)
    if size[0] * size[1] > 1000 and output != (1, 1):
        assert len(labels.unique()) > 1  # or the comparison would be idle


def test_state_dicts_are_interchangeable(pair):
    native, stock = pair[True]
    assert list(native.state_dict()) == list(stock.state_dict())


@pytest.mark.parametrize(
    "options",
    [
        {"MODEL.CDGC.ENABLED": False},
        {"MODEL.CDGC.SCOPE": "image"},
        {"MODEL.CDGC.EDGES": "uniform"},
        {"MODEL.CDGC.FUSION": "sum", "MODEL.CDGC.CONTEXT": "none"},
    ],
    ids=lambda o: ",".join(str(v) for v in o.values()),
)
def test_native_equals_stock_for_other_heads(tiny_cfg, build, make_batch, options):
    native = build(tiny_cfg({**options, **CONTIGUOUS}))
    stock = build_model(tiny_cfg({**options, **STOCK})).eval()
    stock.load_state_dict(native.state_dict())
    batch = make_batch((97, 131))
    with torch.no_grad():
        expected, found = stock(batch)[0]["sem_seg"], native(batch)[0]["sem_seg"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_same_losses_for_a_batch_of_one_size(tiny_cfg, make_batch):
    batch = make_batch((41, 57), (41, 57))
    losses = []
    for changes in (CONTIGUOUS, STOCK):
        torch.manual_seed(0)
        losses.append(build_model(tiny_cfg(changes)).train()(batch))
    assert {k: v.item() for k, v in losses[0].items()} == {
        k: v.item() for k, v in losses[1].items()
    }


def test_small_labels_have_the_same_losses(tiny_cfg, make_batch):
    # Two sizes, so that one is padded with the ignored label.
    batch = make_batch((33, 65), (41, 57))
    losses = []
    for dtype in (torch.int64, torch.uint8):
        torch.manual_seed(0)
        model = build_model(tiny_cfg()).train()
        losses.append(model([{**x, "sem_seg": x["sem_seg"].to(dtype)} for x in batch]))
    assert {k: v.item() for k, v in losses[0].items()} == {
        k: v.item() for k, v in losses[1].items()
    }


# ---------------------------------------------------------------- batches
@pytest.mark.parametrize(
    "options",
    [{}, {"MODEL.CDGC.SCOPE": "image"}, {"MODEL.CDGC.RECEIVERS": "all"}, DEFAULT],
    ids=str,
)
def test_a_result_does_not_depend_on_its_batch_mates(tiny_cfg, build, make_batch, options):
    # In float64: a convolution sums a batch of two in another order than two batches of one.
    native = build(tiny_cfg(options)).double()
    batch = make_batch((33, 65), (97, 131), (33, 65), (40, 40), (1, 1), (97, 131))
    batch[1] |= {"height": 50, "width": 60}
    batch[3] |= {"height": 81, "width": 79}
    with torch.no_grad():
        scores = native(batch), [native([x])[0] for x in batch]
        labels = native.predict_labels(batch), [native.predict_labels([x])[0] for x in batch]
    assert len(scores[0]) == len(labels[0]) == len(batch)
    for x, together, alone in zip(batch, *scores, strict=True):
        size = (x.get("height", x["image"].shape[1]), x.get("width", x["image"].shape[2]))
        assert together["sem_seg"].shape[-2:] == size
        torch.testing.assert_close(together["sem_seg"], alone["sem_seg"], rtol=0, atol=1e-5)
    for together, alone in zip(*labels, strict=True):
        if "MODEL.CDGC.SCOPE" in options:  # one graph over all pixels: no classes to count
            assert together.node_counts is None
        else:
            assert torch.equal(together.node_counts, alone.node_counts)
        assert set(together.labels) == {REFINED, COARSE}
        for kind in together.labels:
            assert (together.labels[kind] != alone.labels[kind]).sum() <= 1


def test_empty_batch(pair):
    assert pair[True][0]([]) == []


def test_inputs_are_left_alone(pair, make_batch):
    batch = make_batch((33, 41))
    before = {k: v.clone() for k, v in batch[0].items()}
    with torch.no_grad():
        pair[True][0](batch)
    assert batch[0].keys() == before.keys()
    assert all(torch.equal(batch[0][k], before[k]) for k in before)


def test_float_images_equal_byte_images(pair, make_batch):
    # Detectron2's mapper gives uint8, its DefaultPredictor float32.
    (x,) = make_batch((33, 41))
    with torch.no_grad():
        found = pair[True][0]([{"image": x["image"].float()}])[0]["sem_seg"]
        assert torch.equal(found, pair[True][0]([x])[0]["sem_seg"])


@pytest.mark.parametrize("scope", ["class", "image"])
@pytest.mark.parametrize("nodes", ["dynamic", "coarse"])
@pytest.mark.parametrize("align_corners", [True, False])
def test_batch_padding_is_never_a_node(
    tiny_cfg, make_batch, monkeypatch, scope, nodes, align_corners
):
    cfg = tiny_cfg(
        {
            "MODEL.CDGC.NODES": nodes,
            "MODEL.CDGC.SCOPE": scope,
            "MODEL.CDGC.ALIGN_CORNERS": align_corners,
        }
    )
    torch.manual_seed(0)
    model = build_model(cfg).train()
    graph = model.sem_seg_head.graph
    chosen = []
    propagate = graph.propagate
    monkeypatch.setattr(graph, "propagate", lambda x, n: chosen.append(n) or propagate(x, n))
    sizes = [(33, 65), (65, 40)]
    batch = make_batch(*sizes)
    for x in batch:
        x["sem_seg"].clamp_(max=4)  # no ignored pixels: what is no node must be padding
    losses = model(batch)
    assert all(torch.isfinite(v) for v in losses.values())
    # The batch is 65 x 65, 9 x 9 nodes. A node is an image's if its pixel is.
    pixels = node_positions(65, 9, align_corners)
    inside = [int((pixels < h).sum()) * int((pixels < w).sum()) for h, w in sizes]
    (nodes_found,) = chosen
    held = torch.zeros(2 * 81, dtype=torch.bool)
    held[nodes_found.pixel] = True
    assert held.view(2, 81).sum(1).tolist() == inside
    for i, (h, w) in enumerate(sizes):
        rows, columns = pixels >= h, pixels >= w
        assert not held.view(2, 9, 9)[i][rows[:, None] | columns[None]].any()


def test_padding_has_no_loss(tiny_cfg, make_batch):
    # Losses are means over labeled pixels, so ignored padding that is drawn into the image by
    # hand (in the mean color, as batch padding is) changes nothing. Mean and spread are chosen
    # such that the mean color is a byte.
    changes = {"MODEL.PIXEL_MEAN": [128.0] * 3, "MODEL.PIXEL_STD": [64.0] * 3}
    batch = make_batch((33, 65), (65, 40))
    by_hand = []
    for x in batch:
        _, h, w = x["image"].shape
        image = torch.full((3, 65, 65), 128, dtype=torch.uint8)
        labels = torch.full((65, 65), 255)
        image[:, :h, :w], labels[:h, :w] = x["image"], x["sem_seg"]
        by_hand.append({"image": image, "sem_seg": labels})
    losses = []
    for inputs in (batch, by_hand):
        torch.manual_seed(0)
        losses.append(build_model(tiny_cfg(changes)).train()(inputs))
    for name in losses[0]:
        torch.testing.assert_close(losses[0][name], losses[1][name])


# ---------------------------------------------------------------- outputs
@pytest.mark.parametrize("align_corners", [True, False])
def test_labels_come_with_coarse_labels_and_counts(pair, make_batch, align_corners):
    native, _ = pair[align_corners]
    batch = make_batch((97, 131), (33, 65))
    batch[0] |= {"height": 120, "width": 77}
    with torch.no_grad():
        results = native.predict_labels(batch)
    for x, result, size, n in zip(
        batch, results, [(120, 77), (33, 65)], [13 * 17, 5 * 9], strict=True
    ):
        assert set(result.labels) == {REFINED, COARSE}
        assert result.labels[REFINED].dtype == result.labels[COARSE].dtype == torch.uint8
        assert result.labels[REFINED].shape == result.labels[COARSE].shape == size
        assert result.node_counts.shape == (5,) and result.node_counts.sum() == n
        # By hand: normalize, backbone, head; C_m counted over the coarse argmax.
        image = (x["image"] - native.pixel_mean) / native.pixel_std
        with torch.no_grad():
            output = native.sem_seg_head.predict_logits(native.backbone(image[None]))
        counts = torch.bincount(output.coarse[0].argmax(dim=0).flatten(), minlength=5)
        assert result.node_counts.tolist() == counts.tolist()
        coarse = F.interpolate(
            output.coarse, size=image.shape[-2:], mode="bilinear", align_corners=align_corners
        )
        coarse = F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
        assert_same_labels(result.labels[COARSE], coarse[0])
        assert (result.labels[COARSE] != result.labels[REFINED]).any()


def test_without_graph_there_are_labels_only(tiny_cfg, build, make_batch):
    model = build(tiny_cfg({"MODEL.CDGC.ENABLED": False}))
    with torch.no_grad():
        (result,) = model.predict_labels(make_batch((33, 33)))
    assert set(result.labels) == {REFINED} and result.node_counts is None


# ---------------------------------------------------------------- oracle
def test_oracle_with_the_coarse_classes_is_the_refined_prediction(tiny_cfg, build, make_batch):
    # Classes that the coarse prediction has anyway, or none: the graph sees the same nodes.
    native = build(tiny_cfg())
    (x,) = make_batch((33, 65))
    x["oracle_sem_seg"] = torch.full((33, 65), 255)
    with torch.no_grad():
        (unknown,) = native.predict_labels([x])
        assert torch.equal(unknown.labels[ORACLE], unknown.labels[REFINED])
        x["oracle_sem_seg"] = unknown.labels[COARSE].long()
        (same,) = native.predict_labels([x])
    # Node i's pixel has the coarse argmax of the node itself: align_corners puts nodes on pixels.
    assert torch.equal(same.labels[ORACLE], unknown.labels[REFINED])


@pytest.mark.parametrize("options", [{}, {"TEST.SLIDE.ENABLED": True}], ids=str)
def test_oracle_changes_nothing_else(tiny_cfg, build, make_batch, options):
    slide = {"TEST.SLIDE.CROP": [33, 33], "TEST.SLIDE.STRIDE": [17, 17]} if options else {}
    native = build(tiny_cfg({**options, **slide}))
    batch = make_batch((41, 57), (41, 57))
    with torch.no_grad():
        expected = native.predict_labels(batch)
        oracle = torch.arange(5).repeat_interleave(12)[:57].expand(41, 57)
        batch[1] |= {"oracle_sem_seg": oracle}
        found = native.predict_labels(batch)
    assert ORACLE not in found[0].labels
    assert found[1].labels.pop(ORACLE).shape == (41, 57)
    for before, after in zip(expected, found, strict=True):
        assert_equal_predictions(before, after)


def test_oracle_of_a_resized_image(tiny_cfg, build, make_batch):
    # Labels have the output's size: column classes, twice as fine as the network's input.
    native = build(tiny_cfg())
    (x,) = make_batch((33, 33))
    columns = torch.arange(66).div(14, rounding_mode="floor")
    results = []
    for labels, size in ((columns[::2].expand(33, 33), 33), (columns.expand(66, 66), 66)):
        x |= {"height": size, "width": size, "oracle_sem_seg": labels.clamp(max=4)}
        with torch.no_grad():
            results.append(native.predict_scores([x], all_kinds=True)[0].scores[ORACLE])
    torch.testing.assert_close(results[0], results[1])


# ---------------------------------------------------------------- sliding window
def slide_options(crop, stride):
    return {
        "TEST.SLIDE.ENABLED": True,
        "TEST.SLIDE.CROP": list(crop),
        "TEST.SLIDE.STRIDE": list(stride),
    }


@pytest.mark.parametrize("size", [(33, 49), (64, 64), (1, 1), (7, 3)], ids=str)
@pytest.mark.parametrize("output", [None, (50, 70)], ids=str)
def test_one_window_is_the_whole_image(tiny_cfg, build, make_batch, size, output):
    whole = build(tiny_cfg())
    slide = build(tiny_cfg(slide_options((64, 64), (40, 40))))
    slide.load_state_dict(whole.state_dict())
    batch = make_batch(size)
    if output:
        batch[0] |= {"height": output[0], "width": output[1]}
    with torch.no_grad():
        expected = whole(batch)[0]["sem_seg"].softmax(dim=0)
        found = slide(batch)[0]["sem_seg"]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        labels = [m.predict_labels(batch)[0] for m in (whole, slide)]
    assert_equal_predictions(*labels)


@pytest.mark.parametrize("output", [None, (50, 70)], ids=str)
def test_windows_by_hand(tiny_cfg, build, make_batch, output):
    # 40 rows in windows of 32, stride 20: rows 0-32 and 8-40. 60 columns: 0-32, 20-52, 28-60.
    whole = build(tiny_cfg())
    slide = build(tiny_cfg(slide_options((32, 32), (20, 20))))
    slide.load_state_dict(whole.state_dict())
    (x,) = make_batch((40, 60))
    total, count = torch.zeros(5, 40, 60), torch.zeros(40, 60)
    nodes = 0
    with torch.no_grad():
        for y in (0, 8):
            for left in (0, 20, 28):
                window = {"image": x["image"][:, y : y + 32, left : left + 32]}
                p = whole([window])[0]["sem_seg"].softmax(dim=0)
                total[:, y : y + 32, left : left + 32] += p
                count[y : y + 32, left : left + 32] += 1
                nodes = nodes + whole.predict_labels([window])[0].node_counts
        expected = total / count
        if output:
            x |= {"height": output[0], "width": output[1]}
            expected = F.interpolate(expected[None], size=output, mode="bilinear")[0]
        shown: list = []
        slide.window_progress = lambda windows: shown.append(len(windows)) or windows
        found = slide([x])[0]["sem_seg"]
        assert shown == [6]  # for a progress bar
        result = slide.predict_labels([x])[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert_same_labels(result.labels[REFINED], expected)
    assert torch.equal(result.node_counts, nodes)
    assert result.labels[COARSE].shape == result.labels[REFINED].shape


@pytest.mark.parametrize(
    ("key", "value"),
    [("SLIDE.ENABLED", True), ("PRECISION", "bf16")],
)
def test_only_the_native_segmentor_knows_these_keys(tiny_cfg, key, value):
    # Detectron2's would ignore them.
    with pytest.raises(ValueError, match=rf"TEST\.{key}.*only CDGCSegmentor"):
        tiny_cfg({**STOCK, f"TEST.{key}": value})


# ---------------------------------------------------------------- precision and layout
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_is_close(tiny_cfg, build, make_batch, precision):
    full = build(tiny_cfg())
    reduced = build(tiny_cfg({"TEST.PRECISION": precision}))
    reduced.load_state_dict(full.state_dict())
    batch = make_batch((65, 97))
    with torch.no_grad():
        expected = full(batch)[0]["sem_seg"]
        found = reduced(batch)[0]["sem_seg"]
    assert found.dtype == torch.float32
    assert not torch.equal(found, expected)  # or nothing was reduced
    # bfloat16 keeps 8 bits, 0.4 % per rounding, over some twenty layers.
    assert (found - expected).norm() / expected.norm() < 0.05
    labels = reduced.predict_labels(batch)[0]
    assert labels.labels[REFINED].dtype == torch.uint8


def test_fp32_leaves_the_precision_to_the_caller(pair, make_batch):
    native, _ = pair[True]
    batch = make_batch((65, 97))
    with torch.no_grad():
        expected = native(batch)[0]["sem_seg"]
        with torch.autocast("cpu", torch.bfloat16):
            found, (labels,) = native(batch)[0]["sem_seg"], native.predict_labels(batch)
    assert found.dtype == torch.float32
    assert 0 < (found - expected).norm() / expected.norm() < 0.05
    # Only the network runs in bfloat16, not what resizes its scores.
    assert_same_labels(labels.labels[REFINED], found)


def test_training_in_bfloat16_keeps_float32_weights_and_gradients(tiny_cfg, make_batch):
    losses = []
    for enabled in (False, True):
        torch.manual_seed(0)
        amp = {"SOLVER.AMP.ENABLED": enabled, "SOLVER.AMP.PRECISION": "bf16"}
        model = build_model(tiny_cfg(amp)).train()
        found = model(make_batch((65, 97), (65, 97)))
        assert {x.dtype for x in found.values()} == {torch.float32}
        sum(found.values()).backward()
        for parameter in model.parameters():
            assert parameter.dtype == torch.float32
            assert parameter.grad is None or torch.isfinite(parameter.grad).all()
        losses.append(torch.stack(list(found.values())).detach())
    difference = (losses[1] - losses[0]).norm() / losses[0].norm()
    assert 0 < difference < 0.02


def test_training_does_not_take_the_precision_of_inference(tiny_cfg, make_batch):
    losses = []
    for precision in ("fp32", "bf16"):
        torch.manual_seed(0)
        model = build_model(tiny_cfg({"TEST.PRECISION": precision})).train()
        losses.append({k: v.item() for k, v in model(make_batch((33, 33))).items()})
    assert losses[0] == losses[1]


def test_channels_last_is_the_same_function(tiny_cfg, build, make_batch):
    plain = build(tiny_cfg({"MODEL.CHANNELS_LAST": False}))
    last = build(tiny_cfg())
    last.load_state_dict(plain.state_dict())
    convolution = next(m for m in last.modules() if isinstance(m, torch.nn.Conv2d))
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    batch = make_batch((65, 97))
    with torch.no_grad():
        expected, found = plain(batch)[0]["sem_seg"], last(batch)[0]["sem_seg"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    # In training too: losses and the gradient of the first convolution.
    batch = make_batch((33, 49), (33, 49))
    results = []
    for model in (plain.train(), last.train()):
        torch.manual_seed(0)
        losses = model(batch)
        sum(losses.values()).backward()
        first = next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d))
        results.append({**losses, "gradient": first.weight.grad})
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][key], value, rtol=1e-3, atol=1e-5)


def test_prediction_in_training_mode(tiny_cfg, make_batch):
    # Batch statistics of a test image would be wrong, and would be learned.
    with pytest.raises(ValueError, match="training mode"):
        build_model(tiny_cfg()).train().inference(make_batch((33, 33)))


# ---------------------------------------------------------------- bad input
def test_training_needs_ground_truth(tiny_cfg, make_batch):
    model = build_model(tiny_cfg()).train()
    batch = make_batch((33, 33), (33, 33))
    del batch[1]["sem_seg"]
    with pytest.raises(ValueError, match="sem_seg"):
        model(batch)


@pytest.mark.parametrize("shape", [(1, 9, 9), (4, 9, 9), (9, 9), (1, 3, 9, 9), (3, 0, 9)], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_malformed_image(tiny_cfg, shape, training):
    model = build_model(tiny_cfg()).train(training)
    labels = torch.zeros(shape[-2:]).long()
    x = {"image": torch.zeros(shape), "sem_seg": labels, "file_name": "a.png"}
    with pytest.raises(ValueError, match=r"\(3, H, W\).*a\.png"):
        model([x, x])


def test_labels_of_another_size(tiny_cfg, make_batch):
    # Logits are resized to the target: a target of another size would train on shifted labels.
    batch = make_batch((33, 33), (33, 33))
    for x in batch:
        x["sem_seg"] = x["sem_seg"][:17, :17]
    with pytest.raises(ValueError, match="sem_seg"):
        build_model(tiny_cfg()).train()(batch)


def test_a_head_without_the_interface():
    with pytest.raises(
        ValueError, match=r"SEM_SEG_HEAD\.NAME.*Identity has no main_feature, .*losses"
    ):
        CDGCSegmentor(
            backbone=torch.nn.Identity(),
            sem_seg_head=torch.nn.Identity(),
            pixel_mean=[0.0] * 3,
            pixel_std=[1.0] * 3,
        )


def test_sem_seg_too_large_for_memory(pair, make_batch, monkeypatch):
    native, _ = pair[True]
    batch = make_batch((33, 41))
    batch[0] |= {"height": 60, "width": 70}
    monkeypatch.setattr(postprocess, "_memory_bytes", lambda device: 50_000)
    with torch.no_grad():
        # 5 * 60 * 70 * 4 = 84000 bytes
        with pytest.raises(MemoryError, match=r"5 x 60 x 70.*INPUT\.MIN_SIZE_TEST"):
            native(batch)
        # Label maps need no such tensor.
        assert native.predict_labels(batch)[0].labels[REFINED].shape == (60, 70)


@pytest.mark.parametrize("training", [True, False])
def test_values_of_the_image(tiny_cfg, make_batch, training):
    model = build_model(tiny_cfg()).train(training)
    (x,) = make_batch((9, 9))
    for image, message in (
        (x["image"] / 255, "scaled to 0 to 1"),
        (x["image"] / float("nan"), "NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            model([{**x, "image": image}])


# ---------------------------------------------------------------- DefaultPredictor
@pytest.fixture(scope="module")
def weights(tmp_path_factory, pair):
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"model": pair[True][0].state_dict()}, path)
    return str(path)


@pytest.mark.parametrize("meta", ["CDGCSegmentor", "SemanticSegmentor"])
@pytest.mark.parametrize("edge", [0, 64])
def test_default_predictor_takes_any_size(tiny_cfg, weights, meta, edge):
    cfg = tiny_cfg(
        {
            "MODEL.META_ARCHITECTURE": meta,
            "MODEL.WEIGHTS": weights,
            "INPUT.MIN_SIZE_TEST": edge,
            "INPUT.MAX_SIZE_TEST": 300,
        }
    )
    predict = DefaultPredictor(cfg)
    rng = np.random.default_rng(0)
    for size in [(1, 1), (7, 3), (97, 131), (1, 40), (375, 500), (2, 900)]:
        image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        sem_seg = predict(image)["sem_seg"]
        assert sem_seg.shape == (5, *size)
        assert torch.isfinite(sem_seg).all()


def test_default_predictor_swaps_channels(tiny_cfg, weights, pair, tmp_path):
    # OpenCV reads BGR; the config says RGB.
    rgb = np.random.default_rng(1).integers(0, 256, (33, 41, 3), dtype=np.uint8)
    file = tmp_path / "a.png"
    cv2.imwrite(str(file), rgb[:, :, ::-1])
    found = DefaultPredictor(tiny_cfg({"MODEL.WEIGHTS": weights}))(cv2.imread(str(file)))
    with torch.no_grad():
        (expected,) = pair[True][0]([{"image": torch.from_numpy(rgb.transpose(2, 0, 1).copy())}])
    torch.testing.assert_close(found["sem_seg"], expected["sem_seg"])
