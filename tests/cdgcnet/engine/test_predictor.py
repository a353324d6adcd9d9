"""One image in, one prediction out."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torchvision
from detectron2.engine import DefaultPredictor

from cdgcnet import Predictor, SemanticSegmentorWithTTA, SemSegMapper
from cdgcnet.modeling.predictions import PredictionKind


@pytest.fixture(scope="module")
def model(tiny_cfg, build):
    return build(tiny_cfg())


@pytest.fixture(scope="module")
def weights(tmp_path_factory, model):
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"model": model.state_dict()}, path)
    return str(path)


def test_the_guide_runs_as_printed(tiny_cfg, model, tmp_path, monkeypatch):
    guide = (Path(__file__).parents[3] / "docs" / "predicting.md").read_text(encoding="utf-8")
    [example] = re.findall(r"test_predictor.py runs this -->\n```python\n(.+?)```", guide, re.S)
    monkeypatch.chdir(tmp_path)
    run = Path("output/my")
    run.mkdir(parents=True)
    classes = {"MODEL.CLASS_NAMES": list("abcde"), "MODEL.CLASS_COLORS": [[9, 9, 9]] * 5}
    (run / "config.yaml").write_text(tiny_cfg(classes).dump(), encoding="utf-8")
    torch.save({"model": model.state_dict()}, run / "model_final.pth")
    cv2.imwrite("street.jpg", image_of(61, 90))
    names: dict = {}
    exec(example, names)  # from our own guide
    assert names["labels"].shape == (61, 90)
    assert cv2.imread("street_overlay.png").shape == (61, 90, 3)


def image_of(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("edge", [0, 48])
@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
@pytest.mark.parametrize("meta", ["CDGCSegmentor", "SemanticSegmentor"])
def test_equals_detectron2s(tiny_cfg, weights, meta, image_format, edge):
    changes = {
        "MODEL.META_ARCHITECTURE": meta,
        "MODEL.WEIGHTS": weights,
        "INPUT.FORMAT": image_format,
        "INPUT.MIN_SIZE_TEST": edge,
    }
    image = image_of(41, 57)
    expected = DefaultPredictor(tiny_cfg(changes))(image)["sem_seg"]
    found = Predictor(tiny_cfg(changes))(image)["sem_seg"]
    assert torch.equal(found, expected)
    assert not found.requires_grad


@pytest.mark.parametrize("tta", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (7, 3), (97, 131), (1, 40), (200, 150)])
def test_any_size(tiny_cfg, weights, size, tta):
    cfg = tiny_cfg({"MODEL.WEIGHTS": weights, "TEST.AUG.SCALES": [0.75, 1.25]})
    found = Predictor(cfg, tta=tta)(image_of(*size))["sem_seg"]
    assert found.shape == (5, *size)
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
@pytest.mark.parametrize("edge", [0, 30])
def test_tta_is_that_of_the_image(tiny_cfg, weights, tmp_path, image_format, edge):
    # The same as in an evaluation, in which the mapper reads the file.
    cfg = tiny_cfg(
        {
            "MODEL.WEIGHTS": weights,
            "INPUT.FORMAT": image_format,
            "INPUT.MIN_SIZE_TEST": edge,
            "TEST.AUG.SCALES": [1.0, 1.5],
        }
    )
    image = image_of(41, 57)
    file = tmp_path / "a.png"
    cv2.imwrite(str(file), image)
    predictor = Predictor(cfg, tta=True)
    inputs = SemSegMapper(cfg, is_train=False)({"file_name": str(file)})
    inputs["original_image"] = image if image_format == "BGR" else image[:, :, ::-1]
    (expected,) = SemanticSegmentorWithTTA(cfg, predictor.model)([inputs])
    found = predictor(image)["sem_seg"]
    assert torch.equal(found, expected["sem_seg"])
    torch.testing.assert_close(found.sum(dim=0), torch.ones(41, 57), rtol=0, atol=1e-5)


def test_image_is_left_alone(tiny_cfg, weights):
    image = image_of(20, 30)
    Predictor(tiny_cfg({"MODEL.WEIGHTS": weights}), tta=True)(image)
    assert np.array_equal(image, image_of(20, 30))


def test_read_only_and_strided_images(tiny_cfg, weights):
    predictor = Predictor(tiny_cfg({"MODEL.WEIGHTS": weights, "INPUT.FORMAT": "BGR"}))
    image = image_of(20, 30)
    image.flags.writeable = False
    expected = predictor(image.copy()[:, ::-1].copy())["sem_seg"]
    assert torch.equal(predictor(image[:, ::-1])["sem_seg"], expected)
    predictor(image)


def test_config_is_left_alone(tiny_cfg, weights):
    cfg = tiny_cfg({"MODEL.WEIGHTS": weights})
    cfg.freeze()
    before = cfg.dump()
    Predictor(cfg)
    assert cfg.dump() == before


def test_metadata(weights, tiny_cfg, run_data):
    names, colors = ["a", "b", "c", "d", "e"], [[i, 0, 255] for i in range(5)]
    classes = {"MODEL.CLASS_NAMES": names, "MODEL.CLASS_COLORS": colors}
    metadata = Predictor(tiny_cfg({"MODEL.WEIGHTS": weights, **classes})).metadata
    assert metadata.stuff_classes == names and metadata.stuff_colors[1] == (1, 0, 255)
    # The run of a dataset without colors, on a machine that does not know the dataset.
    elsewhere = {"MODEL.CLASS_NAMES": names, "DATASETS.TEST": ("my_val",)}
    metadata = Predictor(tiny_cfg({"MODEL.WEIGHTS": weights, **elsewhere})).metadata
    assert metadata.stuff_classes == names and len(set(metadata.stuff_colors)) == 5
    # Eleven classes are not the five of this model.
    cfg = tiny_cfg({"MODEL.WEIGHTS": weights, "DATASETS.TEST": ("cdgc_camvid_val",)})
    assert Predictor(cfg).metadata is None
    assert Predictor(tiny_cfg({"MODEL.WEIGHTS": weights})).metadata is None


def test_images_are_checked(tiny_cfg, weights):
    predictor = Predictor(tiny_cfg({"MODEL.WEIGHTS": weights}))
    for predict in (predictor, predictor.labels):
        with pytest.raises(ValueError, match=r"uint8 array \(H, W, 3\).*float32"):
            predict(np.zeros((9, 9, 3), np.float32))


# ---------------------------------------------------------------- weights
def test_no_weights(tiny_cfg):
    with pytest.raises(ValueError, match=r"MODEL\.WEIGHTS is ''; prediction needs"):
        Predictor(tiny_cfg())


def test_missing_weights(tiny_cfg, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"MODEL\.WEIGHTS.*nowhere"):
        Predictor(tiny_cfg({"MODEL.WEIGHTS": str(tmp_path / "nowhere.pth")}))


def test_weights_of_another_model(tiny_cfg, weights):
    cfg = tiny_cfg({"MODEL.WEIGHTS": weights, "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 3})
    with pytest.raises(ValueError, match="NUM_CLASSES"):
        Predictor(cfg)


def test_backbone_weights_are_not_enough(tiny_cfg, tmp_path):
    path = tmp_path / "resnet18.pth"
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), path)
    cfg = tiny_cfg(
        {
            "MODEL.WEIGHTS": str(path),
            "MODEL.RESNETS.STEM_OUT_CHANNELS": 64,
            "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
        }
    )
    with pytest.raises(ValueError, match="backbone only"):
        Predictor(cfg)


@pytest.mark.parametrize("tta", [False, True])
@pytest.mark.parametrize("meta", ["CDGCSegmentor", "SemanticSegmentor"])
def test_labels_are_the_argmax(tiny_cfg, weights, meta, tta):
    cfg = tiny_cfg({"MODEL.WEIGHTS": weights, "MODEL.META_ARCHITECTURE": meta})
    predictor = Predictor(cfg, tta=tta)
    labels = predictor.labels(image_of(60, 90))
    expected = predictor(image_of(60, 90))["sem_seg"].argmax(dim=0).numpy()
    assert labels.dtype == np.uint8
    assert (labels != expected).sum() <= 1  # a tie may fall the other way


# ---------------------------------------------------------------- batches, kinds, probabilities
def test_a_batch_of_mixed_sizes_keeps_its_order(tiny_cfg, weights):
    predictor = Predictor(tiny_cfg({"MODEL.WEIGHTS": weights}))
    images = [image_of(30, 40), image_of(25, 60), image_of(30, 40)[::-1]]
    for image, found in zip(images, predictor.label_maps(images), strict=True):
        assert list(found) == [PredictionKind.REFINED]
        assert (found[PredictionKind.REFINED] != predictor.labels(image)).sum() <= 1  # ties


def test_coarse_labels_come_from_the_same_pass(tiny_cfg, weights):
    predictor = Predictor(tiny_cfg({"MODEL.WEIGHTS": weights}))
    (found,) = predictor.label_maps([image_of(60, 90)], coarse=True)
    assert set(found) == {PredictionKind.REFINED, PredictionKind.COARSE}
    assert np.array_equal(found[PredictionKind.REFINED], predictor.labels(image_of(60, 90)))
    assert not np.array_equal(found[PredictionKind.REFINED], found[PredictionKind.COARSE])


@pytest.mark.parametrize(
    ("changes", "tta"),
    [
        ({}, False),
        ({}, True),
        (
            {
                "TEST.SLIDE.ENABLED": True,
                "TEST.SLIDE.CROP": [33, 33],
                "TEST.SLIDE.STRIDE": [17, 17],
            },
            False,
        ),
        ({"MODEL.META_ARCHITECTURE": "SemanticSegmentor"}, False),
    ],
)
def test_probabilities_sum_to_one(tiny_cfg, weights, changes, tta):
    predictor = Predictor(tiny_cfg({"MODEL.WEIGHTS": weights, **changes}), tta=tta)
    found = predictor.probabilities(image_of(50, 70))
    assert found.shape == (5, 50, 70) and found.dtype == np.float32
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-5)
    assert (found.argmax(axis=0) != predictor.labels(image_of(50, 70))).sum() <= 1
