"""Which images are trained on, and which stay unread."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from cdgcnet.comparison.datasets import choose_images, name_fraction


@pytest.fixture
def make_cfg(tiny_cfg):
    """``make_cfg(train dicts, test dicts)``: a config whose sets are these."""
    names = ("comparison_train", "comparison_test")

    def make(*sets):
        for name, dicts in zip(names, sets, strict=True):
            DatasetCatalog.register(name, lambda dicts=dicts: dicts)
            MetadataCatalog.get(name).set(stuff_classes=list("abcde"))
        return tiny_cfg({"DATASETS.TRAIN": names[:1], "DATASETS.TEST": names[1:]})

    yield make
    for name in names:
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def dicts(folder, count):
    return [
        {"file_name": f"{folder}/{i}.jpg", "sem_seg_file_name": f"{folder}/{i}.png"}
        for i in range(count)
    ]


def test_fractions_depend_on_the_name_alone():
    assert name_fraction("/a/photo.jpg") == name_fraction("b/photo.jpg")
    values = [name_fraction(f"{i}.jpg") for i in range(4000)]
    assert all(0 <= v < 1 for v in values)
    assert sum(v < 0.15 for v in values) / 4000 == pytest.approx(0.15, abs=0.02)


def test_a_holdout_is_part_of_the_training_set(make_cfg):
    cfg = make_cfg(dicts("train", 200), dicts("val", 50))
    train, test = choose_images(cfg, 0.15, 0, 0)
    names = [{d["file_name"] for d in part} for part in (train, test)]
    assert not names[0] & names[1]
    assert names[0] | names[1] == {d["file_name"] for d in dicts("train", 200)}
    assert all(name_fraction(n) < 0.15 for n in names[1])


def test_a_limit_takes_the_same_training_images_with_and_without_a_holdout(make_cfg):
    # So features that were computed for choices serve the final rows.
    cfg = make_cfg(dicts("train", 200), dicts("val", 50))
    chosen, test = choose_images(cfg, 0.15, 100, 10)
    final, val = choose_images(cfg, 0.0, 100, 0)
    assert chosen == final and len(final) == 100
    assert len(test) == 10 and len(val) == 50


def test_sets_without_labels_are_named(make_cfg):
    unlabeled = [*dicts("val", 2), {"file_name": "val/x.jpg"}]
    cfg = make_cfg(dicts("train", 3), unlabeled)
    with pytest.raises(ValueError, match=r"TEST comparison_test: 1 of 3 images .* val/x\.jpg"):
        choose_images(cfg, 0.0, 0, 0)


def test_a_holdout_of_nothing_is_named(make_cfg):
    cfg = make_cfg(dicts("train", 3), dicts("val", 2))
    with pytest.raises(ValueError, match=r"--holdout 1e-09 leaves 3 images to train on and 0"):
        choose_images(cfg, 1e-9, 0, 0)


def test_several_test_sets_are_refused(make_cfg):
    cfg = make_cfg(dicts("train", 3), dicts("val", 2))
    cfg.DATASETS.TEST = ("comparison_test", "comparison_train")
    with pytest.raises(ValueError, match="expected one dataset to score"):
        choose_images(cfg, 0.0, 0, 0)
