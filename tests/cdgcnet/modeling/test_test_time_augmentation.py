"""Test-time augmentation: what is averaged, over what, and from which image."""

import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.data import transforms as T
from detectron2.evaluation import inference_context
from detectron2.modeling import build_model
from torch import nn

from cdgcnet import SemanticSegmentorWithTTA
from cdgcnet.modeling.predictions import PredictionKind


@pytest.fixture
def aug_cfg(tiny_cfg):
    def make(scales=(1.0,), flip=False):
        return tiny_cfg({"TEST.AUG.SCALES": list(scales), "TEST.AUG.FLIP": flip})

    return make


class Pointwise(nn.Module):
    """A segmentor whose logits at a pixel depend on that pixel alone: flips commute with it."""

    def __init__(self, classes=3):
        super().__init__()
        self.seen = []  # the sizes of the views, in the order of the calls
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("weight", torch.randn(classes, 3, generator=generator) / 50)

    def forward(self, batched_inputs):
        results = []
        for x in batched_inputs:
            image = x["image"].float()
            self.seen.append(tuple(image.shape[-2:]))
            logits = torch.einsum("mc,chw->mhw", self.weight, image)
            size = (x.get("height", image.shape[1]), x.get("width", image.shape[2]))
            logits = F.interpolate(logits[None], size=size, mode="bilinear")[0]
            results.append({"sem_seg": logits})
        return results


def image_of(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def as_input(image, **extra):
    return {"image": torch.from_numpy(image.transpose(2, 0, 1).copy()), **extra}


# ---------------------------------------------------------------- the average
@pytest.mark.parametrize("meta", ["CDGCSegmentor", "SemanticSegmentor"])
@pytest.mark.parametrize("output", [None, (50, 70)])
@pytest.mark.parametrize("align_corners", [True, False])
def test_scale_one_is_plain_inference(aug_cfg, build, meta, output, align_corners):
    cfg = aug_cfg()
    cfg.MODEL.META_ARCHITECTURE = meta
    cfg.MODEL.CDGC.ALIGN_CORNERS = align_corners
    model = build(cfg)
    x = as_input(image_of(41, 57))
    if output:
        x |= {"height": output[0], "width": output[1], "original_image": image_of(41, 57)}
    with torch.no_grad():
        expected = model([x])[0]["sem_seg"].softmax(dim=0)
    found = SemanticSegmentorWithTTA(cfg, model)([x])[0]["sem_seg"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_scale_one_is_plain_inference_of_a_resized_image(aug_cfg, build):
    # The mapper resizes what the model sees; ratio 1 means that size.
    cfg = aug_cfg()
    model = build(cfg)
    image = image_of(41, 57)
    small = T.ResizeShortestEdge([48, 48], 100).get_transform(image).apply_image(image)
    x = as_input(small, original_image=image, height=41, width=57)
    with torch.no_grad():
        expected = model([x])[0]["sem_seg"].softmax(dim=0)
    found = SemanticSegmentorWithTTA(cfg, model)([x])[0]["sem_seg"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("flip", [False, True])
def test_average_by_hand(aug_cfg, flip):
    # Softmax first, mean afterwards: the mean of logits would be another map.
    scales = (0.5, 1.0, 2.0)
    model = Pointwise()
    image = image_of(20, 30)
    expected = 0
    for scale in scales:
        height, width = round(20 * scale), round(30 * scale)
        view = T.ResizeTransform(20, 30, height, width).apply_image(image)
        for flipped in (False, True)[: 1 + flip]:
            seen = view[:, ::-1] if flipped else view
            p = model([as_input(seen, height=20, width=30)])[0]["sem_seg"].softmax(dim=0)
            expected = expected + (p.flip(-1) if flipped else p)
    expected = expected / (len(scales) * (1 + flip))
    found = SemanticSegmentorWithTTA(aug_cfg(scales, flip), model)([as_input(image)])[0]["sem_seg"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(20, 30), (21, 33), (1, 1), (5, 2)])
def test_flip_changes_nothing_for_an_equivariant_model(aug_cfg, size):
    image = image_of(*size)
    maps = [
        SemanticSegmentorWithTTA(aug_cfg((0.75, 1.0, 1.5), flip), Pointwise())([as_input(image)])
        for flip in (False, True)
    ]
    torch.testing.assert_close(maps[0][0]["sem_seg"], maps[1][0]["sem_seg"], rtol=0, atol=1e-4)


def test_flip_symmetrises_any_model(aug_cfg, build):
    # The prediction for a mirrored image is the mirrored prediction.
    cfg = aug_cfg((1.0, 1.25), True)
    tta = SemanticSegmentorWithTTA(cfg, build(cfg))
    image = image_of(32, 48)
    found = tta([as_input(image[:, ::-1])])[0]["sem_seg"].flip(-1)
    expected = tta([as_input(image)])[0]["sem_seg"]
    # Not to the bit: Pillow's resize rounds to bytes, mirrored or not.
    assert (found - expected).abs().mean() < 1e-3


@pytest.mark.parametrize("size", [(41, 57), (1, 1), (7, 3), (1, 40)])
def test_output_is_a_distribution(aug_cfg, build, size):
    cfg = aug_cfg((0.75, 1.0, 2.0), True)
    (found,) = SemanticSegmentorWithTTA(cfg, build(cfg))([as_input(image_of(*size))])
    assert set(found) == {"sem_seg"}
    found = found["sem_seg"]
    assert found.shape == (5, *size)
    assert found.min() >= 0
    torch.testing.assert_close(found.sum(dim=0), torch.ones(size), rtol=0, atol=1e-5)
    assert not found.requires_grad


# ---------------------------------------------------------------- scales
def test_scales_in_order(aug_cfg):
    model = Pointwise()
    SemanticSegmentorWithTTA(aug_cfg((2.0, 0.5, 1.0), True), model)([as_input(image_of(20, 30))])
    sizes = [(40, 60), (10, 15), (20, 30)]
    assert model.seen == [s for s in sizes for _ in range(2)]  # each with its mirror image


def test_default_scales_are_the_papers(tiny_cfg):
    tta = SemanticSegmentorWithTTA(tiny_cfg(), Pointwise())
    assert tta.scales == [0.75, 1.0, 1.25, 1.5, 1.75, 2.0] and tta.flip


def test_views_are_resized_from_the_original_image(aug_cfg):
    # The mapper resized 40 x 60 to 20 x 30. The ratios multiply that size, but the pixels come from
    # the original, in a single resize; DatasetMapperTTA would resize the resized image.
    image = image_of(40, 60)
    small = as_input(image_of(20, 30, seed=1), original_image=image, height=40, width=60)
    model = Pointwise()
    (found,) = SemanticSegmentorWithTTA(aug_cfg((1.0, 2.0)), model)([small])
    assert model.seen == [(20, 30), (40, 60)]
    views = [T.ResizeTransform(40, 60, 20, 30).apply_image(image), image]
    expected = [model([as_input(v, height=40, width=60)])[0]["sem_seg"].softmax(0) for v in views]
    torch.testing.assert_close(found["sem_seg"], sum(expected) / 2, rtol=0, atol=1e-6)


def test_a_resized_image_needs_its_original(aug_cfg):
    x = as_input(image_of(20, 30), height=40, width=60, file_name="street.png")
    tta = SemanticSegmentorWithTTA(aug_cfg((1.0,)), Pointwise())
    for predict in (tta, tta.predict_labels):
        with pytest.raises(ValueError, match=r"20 x 30.*40 x 60.*original_image.*street\.png"):
            predict([x])


def test_output_size(aug_cfg):
    x = as_input(image_of(20, 30), original_image=image_of(20, 30), height=33, width=44)
    (found,) = SemanticSegmentorWithTTA(aug_cfg((0.5, 1.0), True), Pointwise())([x])
    assert found["sem_seg"].shape == (3, 33, 44)


# ---------------------------------------------------------------- contract
def test_batches(aug_cfg, build):
    cfg = aug_cfg((0.75, 1.0), True)
    tta = SemanticSegmentorWithTTA(cfg, build(cfg))
    batch = [
        as_input(image_of(33, 41)),
        as_input(image_of(50, 20, seed=1)),
        as_input(image_of(9, 9)),
    ]
    together = tta(batch)
    assert [r["sem_seg"].shape[1:] for r in together] == [(33, 41), (50, 20), (9, 9)]
    for x, found in zip(batch, together, strict=True):
        torch.testing.assert_close(found["sem_seg"], tta([x])[0]["sem_seg"])
    assert tta([]) == []


def test_inputs_are_left_alone(aug_cfg):
    image = image_of(20, 30)
    x = as_input(image, original_image=image.copy())
    SemanticSegmentorWithTTA(aug_cfg((0.5, 1.0), True), Pointwise())([x])
    assert np.array_equal(x["original_image"], image)
    assert torch.equal(x["image"], as_input(image)["image"])


def test_native_and_stock_agree(aug_cfg, build):
    cfg = aug_cfg((0.75, 1.0, 1.5), True)
    native = build(cfg)
    stock_cfg = aug_cfg((0.75, 1.0, 1.5), True)
    stock_cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    stock = build_model(stock_cfg).eval()
    stock.load_state_dict(native.state_dict())
    x = as_input(image_of(41, 57))
    found = SemanticSegmentorWithTTA(cfg, native)([x])[0]["sem_seg"]
    expected = SemanticSegmentorWithTTA(cfg, stock)([x])[0]["sem_seg"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_model_in_training_mode(aug_cfg, build, make_batch):
    # The model returns losses there; the error must explain that rather than fail on them.
    cfg = aug_cfg()
    with pytest.raises((ValueError, RuntimeError), match="training"):
        SemanticSegmentorWithTTA(cfg, build(cfg).train())(make_batch((33, 33)))


def test_wrapped_models_are_unwrapped(aug_cfg):
    # DistributedDataParallel keeps its model as `module`.
    wrapper, model = nn.Module(), Pointwise()
    wrapper.module = model
    assert SemanticSegmentorWithTTA(aug_cfg(), wrapper).model is model


def test_evaluation_leaves_the_mode_alone(aug_cfg):
    # inference_on_dataset sets the mode of what it evaluates and restores it afterwards.
    model = Pointwise().eval()
    with inference_context(SemanticSegmentorWithTTA(aug_cfg(), model)):
        pass
    assert not model.training


def test_scales_are_not_held_together(aug_cfg):
    # One (M, H, W) sum, however many scales: outputs of a view are gone when the next is asked.
    outputs, alive = [], []

    class Watched(Pointwise):
        def forward(self, batched_inputs):
            alive.append(sum(ref() is not None for ref in outputs))
            results = super().forward(batched_inputs)
            outputs.extend(weakref.ref(r["sem_seg"]) for r in results)
            return results

    scales = [0.5 + 0.1 * i for i in range(10)]
    SemanticSegmentorWithTTA(aug_cfg(scales, True), Watched())([as_input(image_of(20, 30))])
    assert len(outputs) == 20
    assert max(alive) <= 2  # an image and its mirror image of the view before


# ---------------------------------------------------------------- label maps, windows
@pytest.mark.parametrize("meta", ["CDGCSegmentor", "SemanticSegmentor"])
def test_labels_are_the_argmax(aug_cfg, build, meta):
    cfg = aug_cfg((0.75, 1.0, 1.5), True)
    cfg.MODEL.META_ARCHITECTURE = meta
    tta = SemanticSegmentorWithTTA(cfg, build(cfg))
    x = as_input(image_of(41, 57), original_image=image_of(41, 57), height=50, width=70)
    (found,) = tta.predict_labels([x])
    assert set(found.labels) == {PredictionKind.REFINED}
    labels = found.labels[PredictionKind.REFINED]
    assert labels.dtype == torch.uint8
    expected = tta([x])[0]["sem_seg"].argmax(dim=0)
    assert (labels != expected).sum() <= 1


def test_the_order_of_scales_is_of_no_matter(aug_cfg, build):
    cfg = aug_cfg((0.75, 1.0, 1.5), True)
    model = build(cfg)
    x = as_input(image_of(41, 57))
    expected = SemanticSegmentorWithTTA(cfg, model)([x])[0]["sem_seg"]
    other = SemanticSegmentorWithTTA(aug_cfg((1.5, 0.75, 1.0), True), model)([x])[0]["sem_seg"]
    torch.testing.assert_close(other, expected, rtol=0, atol=1e-6)


def test_windows_within_views(aug_cfg, build):
    # Each view is predicted in windows: at scale 1 that is the sliding window alone.
    cfg = aug_cfg()
    cfg.TEST.SLIDE.ENABLED = True
    cfg.TEST.SLIDE.CROP, cfg.TEST.SLIDE.STRIDE = [32, 32], [20, 20]
    model = build(cfg)
    x = as_input(image_of(41, 57))
    with torch.no_grad():
        expected = model([x])[0]["sem_seg"]
    found = SemanticSegmentorWithTTA(cfg, model)([x])[0]["sem_seg"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    cfg.TEST.AUG.SCALES, cfg.TEST.AUG.FLIP = [0.5, 1.5], True
    (found,) = SemanticSegmentorWithTTA(cfg, model)([x])
    torch.testing.assert_close(found["sem_seg"].sum(dim=0), torch.ones(41, 57))


def test_half_precision_sum(aug_cfg, build):
    cfg = aug_cfg((0.75, 1.0), True)
    model = build(cfg)
    x = as_input(image_of(41, 57))
    expected = SemanticSegmentorWithTTA(cfg, model)([x])[0]["sem_seg"]
    cfg.TEST.ACCUMULATE.DTYPE = "fp16"
    (found,) = SemanticSegmentorWithTTA(cfg, model)([x])
    assert found["sem_seg"].dtype == torch.float16
    torch.testing.assert_close(found["sem_seg"].float(), expected, rtol=0, atol=4e-3)
