"""Real CamVid, where DETECTRON2_DATASETS has it: lists, labels, and the config's real path."""

from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog

from cdgcnet import Trainer, load_cfg, register_all
from cdgcnet.data.datasets import datasets_root
from cdgcnet.data.image_io import read_image
from cdgcnet.data.label_io import read_labels

CONFIG = (
    Path(__file__).resolve().parents[1]
    / "configs/CamVid-SemanticSegmentation/cdgcnet_r50_os8_cpu.yaml"
)
FOLDER = datasets_root() / "camvid"
pytestmark = [
    pytest.mark.skipif(
        not (FOLDER / "train.txt").is_file(),
        reason=f"no CamVid in {FOLDER.absolute()} (set DETECTRON2_DATASETS to the folder above)",
    ),
    pytest.mark.usefixtures("clean_logging"),
]


@pytest.fixture(autouse=True)
def registered():
    register_all()


@pytest.mark.parametrize(("split", "count"), [("train", 367), ("val", 101)])
def test_split_sizes(split, count):
    dicts = DatasetCatalog.get(f"cdgc_camvid_{split}")
    assert len(dicts) == len({d["image_id"] for d in dicts}) == count


@pytest.mark.parametrize(
    ("part", "count", "sequences"), [("fit", 266, {"0001TP", "0016E5"}), ("dev", 101, {"0006R0"})]
)
def test_held_out_part(part, count, sequences):
    dicts = DatasetCatalog.get(f"cdgc_camvid_{part}")
    assert len(dicts) == len({d["image_id"] for d in dicts}) == count
    assert {d["image_id"].split("_")[0] for d in dicts} == sequences


def test_fit_and_dev_are_train():
    fit, dev, train = (
        {d["file_name"] for d in DatasetCatalog.get(f"cdgc_camvid_{s}")}
        for s in ("fit", "dev", "train")
    )
    assert not fit & dev and fit | dev == train


def test_splits_are_disjoint():
    train, val = (DatasetCatalog.get(f"cdgc_camvid_{s}") for s in ("train", "val"))
    assert not {d["file_name"] for d in train} & {d["file_name"] for d in val}


def test_labels_are_classes_or_ignored_and_as_large_as_their_images():
    dicts = DatasetCatalog.get("cdgc_camvid_train") + DatasetCatalog.get("cdgc_camvid_val")
    seen = set()
    for sample in dicts[::20]:
        labels = read_labels(sample["sem_seg_file_name"])
        assert labels.shape == read_image(sample["file_name"]).shape[:2] == (360, 480)
        seen |= set(np.unique(labels).tolist())
    assert seen <= {*range(11), 255}
    # Sky, building, road, tree and car are on almost every street.
    assert {0, 1, 3, 5, 8} <= seen


def test_training_and_evaluation_through_the_config(tmp_path):
    # The real config, data and sizes; only the net is shrunk and the validation set cut.
    cfg = load_cfg(
        str(CONFIG),
        [
            "MODEL.RESNETS.DEPTH", "18",
            "MODEL.RESNETS.STEM_OUT_CHANNELS", "8",
            "MODEL.RESNETS.RES2_OUT_CHANNELS", "8",
            "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", "8",
            "MODEL.CDGC.CHANNELS", "8",
            "MODEL.CDGC.AUX_CHANNELS", "8",
            "MODEL.WEIGHTS", "from_scratch",
            "DATALOADER.NUM_WORKERS", "0",
            "SOLVER.MAX_ITER", "2",
            "OUTPUT_DIR", str(tmp_path),
        ],
    )  # fmt: skip
    test_sets, cfg.DATASETS.TEST = cfg.DATASETS.TEST, ()
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert (tmp_path / "model_final.pth").is_file()

    from cdgcnet.evaluation.testing import evaluate

    [name] = test_sets
    loader = Trainer.build_test_loader(cfg, name)
    samples = [batch for _, batch in zip(range(2), loader, strict=False)]
    # Input at 180 x 240, scored at the labels' 360 x 480.
    assert samples[0][0]["image"].shape == (3, 180, 240)
    assert (samples[0][0]["height"], samples[0][0]["width"]) == (360, 480)
    results = evaluate(cfg, trainer.model, samples, name)
    for task in ("sem_seg", "sem_seg_coarse"):
        metrics = results[task]
        assert 0 <= metrics["mIoU"] <= 100
        assert sum(k.startswith("IoU-") for k in metrics) == 11
