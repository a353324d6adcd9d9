"""The paper's figures show what the network computes."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from cdgcnet import Predictor, Trainer
from cdgcnet.cli.main import main
from cdgcnet.data.image_io import read_image
from cdgcnet.data.label_io import read_labels
from cdgcnet.engine.feature_extractor import FeatureExtractor
from cdgcnet.visualization.paper_figures.activations import (
    Activations,
    hardest_class,
    sampled_nodes,
)
from cdgcnet.visualization.paper_figures.boxes import densest_boxes, group_boxes
from cdgcnet.visualization.paper_figures.comparison import (
    ComparedImage,
    draw_comparison,
    most_changed_crops,
)
from cdgcnet.visualization.paper_figures.features import class_affinity

pytestmark = pytest.mark.usefixtures("run_data")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, run_yaml, randomize):
    """Weights of the tiny net that predict several classes, and its config file."""
    from cdgcnet import load_cfg

    torch.manual_seed(0)
    cfg = load_cfg(str(run_yaml), ["INPUT.MIN_SIZE_TEST", "48"])
    folder = tmp_path_factory.mktemp("figures")
    torch.save({"model": randomize(Trainer.build_model(cfg)).state_dict()}, folder / "m.pth")
    cfg.MODEL.WEIGHTS = str(folder / "m.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder


@pytest.fixture
def cfg(checkpoint):
    from cdgcnet import load_cfg

    return load_cfg(str(checkpoint / "config.yaml"))


@pytest.fixture
def seen(cfg):
    return FeatureExtractor(cfg)(DatasetCatalog.get("cdgc_cityscapes_val")[0])


# ---------------------------------------------------------------- what is observed
def test_labels_are_the_predictors_and_truth_the_files(cfg, seen):
    d = DatasetCatalog.get("cdgc_cityscapes_val")[0]
    assert np.array_equal(seen.refined, Predictor(cfg).labels(read_image(d["file_name"], "BGR")))
    assert np.array_equal(seen.image, read_image(d["file_name"], "RGB"))
    assert np.array_equal(seen.truth, read_labels(d["sem_seg_file_name"]))
    assert len(np.unique(seen.coarse)) > 1 and not np.array_equal(seen.coarse, seen.refined)


def test_features_are_those_the_prediction_is_made_of(cfg, seen):
    extractor = FeatureExtractor(cfg)
    head = extractor.model.sem_seg_head
    d = DatasetCatalog.get("cdgc_cityscapes_val")[0]
    image = read_image(d["file_name"], "RGB")
    small = extractor.augmentation.get_transform(image).apply_image(image)
    tensor = torch.from_numpy(small.transpose(2, 0, 1).copy())
    x = (tensor.float() - extractor.model.pixel_mean) / extractor.model.pixel_std
    with torch.no_grad():
        expected = head.predict_logits(extractor.model.backbone(x[None]))
        both = torch.cat([seen.before, seen.after])[None]
        assert torch.allclose(head.refined_predictor(both), expected.refined, atol=1e-5)
        coarse = head.coarse_predictor(seen.before[None])
    assert torch.equal(coarse.argmax(dim=1)[0], seen.coarse_map)
    assert seen.coarse_map.shape == seen.truth_map.shape == seen.before.shape[1:]


def by_hand(coarse, truth):
    """An observation with these class maps and nothing else of interest."""
    coarse, truth = torch.tensor(coarse), torch.tensor(truth)
    image = np.zeros((16, 24, 3), np.uint8)
    labels = np.zeros((16, 24), np.uint8)
    features = torch.zeros(2, *coarse.shape)
    return Activations("x", image, labels, labels, labels, coarse, truth, features, None, True)


def test_nodes_of_a_class_by_hand():
    o = by_hand([[1, 1, 0], [1, 0, 2]], [[1, 0, 0], [255, 1, 1]])
    found = sampled_nodes(o, 1, num_classes=3, ignore_label=255, easy_ratio=1.0)
    # The node of class 1 with an ignored label is in no set.
    assert {k: v.tolist() for k, v in found.items()} == {
        "easy positive": [[0, 0]],
        "hard positive": [[1, 1], [1, 2]],
        "hard negative": [[0, 1]],
    }
    none = sampled_nodes(o, 1, num_classes=3, ignore_label=255, easy_ratio=0.0)
    assert [len(v) for v in none.values()] == [0, 2, 1]
    first = sampled_nodes(o, 0, num_classes=3, ignore_label=255, easy_ratio=1.0)
    assert {k: v.tolist() for k, v in first.items()} == {
        "easy positive": [[0, 2]],
        "hard positive": [[0, 1]],
        "hard negative": [[1, 1]],
    }


def test_positions_of_nodes():
    o = by_hand([[0, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]])
    rows, columns = o.node_positions()
    assert rows.tolist() == [0, 15] and columns.tolist() == [0, 11.5, 23]  # corners are aligned
    o = Activations(**{**vars(o), "align_corners": False})
    rows, columns = o.node_positions()
    assert rows.tolist() == [3.5, 11.5] and columns.tolist() == [3.5, 11.5, 19.5]


def test_the_hardest_class_is_hard_for_its_size():
    coarse = [[0] * 20, [1] * 10 + [2] * 10, [2] * 20]
    truth = [[0] * 20, [1] * 9 + [2] * 11, [2] * 20]
    assert hardest_class(by_hand(coarse, truth), 3, 255) == 1  # 1 of 10, not 1 of 31
    only_wrong = [[3] * 20, [1] * 10 + [2] * 10, [2] * 20]  # no node is truly of class 3
    assert hardest_class(by_hand(only_wrong, truth), 4, 255) == 1
    lost = [[0] * 20, [1] * 10 + [2] * 10, [0] * 20]  # class 2: easy 10, hard 20
    assert hardest_class(by_hand(lost, truth), 3, 255) == 2


def test_affinity_by_hand():
    # Two groups; standardised they are (1, 0) and (-1, 0), the second channel being constant.
    features = torch.tensor([[[3.0, 3.0], [1.0, 1.0]], [[5.0, 5.0], [5.0, 5.0]]])
    members = torch.tensor([[True, False], [False, False]])
    assert torch.allclose(class_affinity(features, members), torch.tensor([[1.0, 1], [-1, -1]]))


def test_boxes():
    marked = np.zeros((60, 100), bool)
    assert densest_boxes(marked) == group_boxes(marked) == []
    marked[10:14, 20:24] = True  # 16 pixels
    marked[40:46, 70:76] = True  # 36 pixels
    (left, top, width, height), other = densest_boxes(marked, 3)[:1][0], densest_boxes(marked)[1:]
    assert (width, height) == (10, 10) and not other  # 16 is less than half of 36
    assert left <= 70 and left + 10 >= 76 and top <= 40 and top + 10 >= 46
    # Grown by three pixels, a fiftieth of the width being less.
    assert group_boxes(marked) == [(67, 37, 12, 12), (17, 7, 10, 10)]
    marked[40:44, 80:84] = True  # its rectangle, 77 to 87, meets that of 67 to 79
    assert group_boxes(marked, 3) == [(67, 37, 20, 12), (17, 7, 10, 10)]


def test_crops_show_where_most_changed(tmp_path):
    rng = np.random.default_rng(0)
    image, same = rng.integers(0, 256, (30, 60, 3), np.uint8), np.zeros((30, 60), np.uint8)
    few, many, ignored = same.copy(), same.copy(), same.copy()
    few[12:14, 22:26] = 1  # 8 pixels
    many[20:25, 40:45] = 1  # 25 pixels
    ignored[3:9, 3:9] = 255
    compared = [
        ComparedImage("same", image, same, same, same),
        ComparedImage("few", image, same, same, few),
        ComparedImage("ignored", image, ignored, same, np.minimum(ignored, 1)),
        ComparedImage("many", image, same, many, same),
    ]
    # A third of the shorter side; an image in which nothing changed that counts has no crop.
    crops = most_changed_crops(compared, 4, 255)
    assert [(c.name, c.refined.shape) for c in crops] == [("many", (10, 10)), ("few", (10, 10))]
    assert [int(c.changed(255).sum()) for c in crops] == [25, 8]
    assert [c.name for c in most_changed_crops(compared, 1, 255)] == ["many"]
    with pytest.raises(ValueError, match="are the same in all"):
        draw_comparison(
            tmp_path / "x.png",
            compared[:1],
            MetadataCatalog.get("cdgc_cityscapes_val"),
            255,
            crops=2,
        )


# ---------------------------------------------------------------- the command
def call(checkpoint, figure, output, *argv, weights="m.pth"):
    words = [figure, "--config-file", checkpoint / "config.yaml", "--output", output]
    words += ["--weights", checkpoint / weights, *argv]
    return main(["figures", *(str(w) for w in words)])


@pytest.mark.parametrize("figure", ["sampling", "comparison", "features"])
def test_png(checkpoint, tmp_path, capsys, figure):
    path = tmp_path / "fig.png"
    assert call(checkpoint, figure, path, "--num", 2) == 0
    assert f"{path}: 2 rows" in capsys.readouterr().out
    picture = np.asarray(Image.open(path).convert("RGB"))
    assert picture.shape[1] == 1540  # 7 inches of 220 dots
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100
    assert [p.name for p in tmp_path.iterdir()] == ["fig.png"]


def test_crops(checkpoint, tmp_path, capsys):
    assert call(checkpoint, "comparison", tmp_path / "a.png", "--num", 2, "--crops", 1) == 0
    assert "a.png: 1 row\n" in capsys.readouterr().out
    with_one = np.asarray(Image.open(tmp_path / "a.png"))
    file = DatasetCatalog.get("cdgc_cityscapes_val")[0]["file_name"]  # without ground truth
    own = ("--images", file, "--crops", 3)
    assert call(checkpoint, "comparison", tmp_path / "b.png", *own) == 0
    assert with_one.shape[1] == Image.open(tmp_path / "b.png").width == 1540


@pytest.mark.parametrize(("suffix", "begins"), [("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_vectors(checkpoint, tmp_path, suffix, begins):
    path = tmp_path / f"fig.{suffix}"
    assert call(checkpoint, "sampling", path, "--num", 1, "--classes", "road", "sky") == 0
    assert path.read_bytes().startswith(begins)


def test_images_by_id_number_and_file(checkpoint, tmp_path, capsys):
    d = DatasetCatalog.get("cdgc_cityscapes_val")
    images = ("--images", d[1]["image_id"], 0)
    assert call(checkpoint, "comparison", tmp_path / "a.png", *images) == 0
    own = ("--images", d[0]["file_name"])
    assert call(checkpoint, "comparison", tmp_path / "b.png", *own) == 0
    shown = most_common_class(checkpoint, d[0]["file_name"])
    assert call(checkpoint, "features", tmp_path / "c.png", *own, "--classes", shown) == 0


def most_common_class(checkpoint, file):
    """The name of the class that the coarse prediction gives most nodes to."""
    from cdgcnet import load_cfg

    o = FeatureExtractor(load_cfg(str(checkpoint / "config.yaml")))({"file_name": file})
    most = int(o.coarse_map.flatten().mode().values)
    return MetadataCatalog.get("cdgc_cityscapes_val").stuff_classes[most]


def refused(capsys, checkpoint, figure, output, *argv, **kwargs) -> str:
    assert call(checkpoint, figure, output, *argv, **kwargs) == 1
    error = capsys.readouterr().err
    assert error.startswith("cdgcnet figures: error: ")
    return error


def test_an_existing_file_is_not_replaced(checkpoint, tmp_path, capsys):
    path = tmp_path / "mine.png"
    path.write_text("mine")
    assert str(path) in refused(capsys, checkpoint, "comparison", path)
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("output", "argv", "message"),
    [
        ("fig.jpg", (), "expected a name that ends with .png"),
        ("fig", (), "expected a name that ends with"),
        ("new/fig.png", (), "no folder"),
        ("fig.png", ("--images", "nothing"), "--images nothing"),
        ("fig.png", ("--images", "3"), "--images 3"),
        ("fig.png", ("--classes", "cat"), "--classes cat"),
        ("fig.png", ("--opts", "MODEL.CDGC.CHANNELS", "16"), "does not fit"),
        ("fig.png", ("--opts", "MODEL.META_ARCHITECTURE", "SemanticSegmentor"), "CDGCSegmentor"),
    ],
)
def test_bad_arguments(checkpoint, tmp_path, capsys, output, argv, message):
    assert message in refused(capsys, checkpoint, "sampling", tmp_path / output, *argv)
    assert not any(tmp_path.iterdir())


def test_files_without_ground_truth(checkpoint, tmp_path, capsys):
    file = DatasetCatalog.get("cdgc_cityscapes_val")[0]["file_name"]
    out = tmp_path / "fig.png"
    error = refused(capsys, checkpoint, "sampling", out, "--images", file)
    assert file in error and "ground truth" in error
    assert "--classes" in refused(capsys, checkpoint, "features", out, "--images", file)
    error = refused(capsys, checkpoint, "comparison", out, "--images", file, "0")
    assert f"--images {file}" in error


def test_a_network_without_a_graph_has_no_before_and_after(tmp_path, run_yaml, capsys):
    from cdgcnet import load_cfg

    cfg = load_cfg(str(run_yaml), ["MODEL.CDGC.ENABLED", "False"])
    torch.save({"model": Trainer.build_model(cfg).state_dict()}, tmp_path / "m.pth")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    error = refused(capsys, tmp_path, "features", tmp_path / "fig.png", "--num", 1)
    assert "MODEL.CDGC.ENABLED" in error
    assert not (tmp_path / "fig.png").exists()
