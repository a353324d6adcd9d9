"""cdgcnet visualize: the picture shows what training sees, and no file is lost."""

import numpy as np
import pytest
import torch
from detectron2.data import Metadata
from PIL import Image

from cdgcnet import Trainer
from cdgcnet.cli.visualize import first_samples
from cdgcnet.data.image_io import read_image
from cdgcnet.data.label_io import read_labels
from cdgcnet.visualization import training_samples
from cdgcnet.visualization.training_samples import draw_grid

pytestmark = pytest.mark.usefixtures("run_data")


@pytest.fixture
def call(command, run_yaml, tmp_path):
    """``cdgcnet visualize`` with the needed options; returns its exit code."""

    def run(*options) -> int:
        argv = ["--config-file", run_yaml, "--output", tmp_path / "grid.png", "--num", 2]
        return command("visualize", *argv, *options)

    return run


def refusal(capsys, code) -> str:
    assert code == 1
    error = capsys.readouterr().err
    assert error.startswith("cdgcnet visualize: error: ") and len(error) > 40, error
    return error


def test_the_samples_are_those_of_the_training(run_cfg):
    samples = first_samples(run_cfg, 5, augmented=True)
    loader = Trainer.build_train_loader(run_cfg)
    loader.seed = run_cfg.SEED
    batches = iter(loader)
    expected = [sample for _ in range(3) for sample in next(batches)][:5]  # batches of 2
    assert len(samples) == 5
    for sample, other in zip(samples, expected, strict=True):
        assert sample["file_name"] == other["file_name"]
        assert torch.equal(sample["image"], other["image"])
        assert torch.equal(sample["sem_seg"], other["sem_seg"])


def test_the_seed_changes_them(run_cfg):
    first = first_samples(run_cfg, 4, augmented=True)
    run_cfg.SEED = 4
    second = first_samples(run_cfg, 4, augmented=True)
    assert not all(torch.equal(a["image"], b["image"]) for a, b in zip(first, second, strict=True))


def test_without_augmentation_they_are_the_files(run_cfg):
    augmented = first_samples(run_cfg, 3, augmented=True)
    plain = first_samples(run_cfg, 3, augmented=False)
    assert [s["file_name"] for s in plain] == [s["file_name"] for s in augmented]
    for sample in plain:
        image = read_image(sample["file_name"], run_cfg.INPUT.FORMAT)
        np.testing.assert_array_equal(sample["image"].numpy(), image.transpose(2, 0, 1))
        labels = read_labels(sample["sem_seg_file_name"])
        np.testing.assert_array_equal(sample["sem_seg"].numpy(), labels)


def test_drawing_leaves_config_and_cache_alone(run_cfg, tmp_path):
    run_cfg.INPUT.CACHE = str(tmp_path / "cache")
    before = run_cfg.dump()
    first_samples(run_cfg, 2, augmented=True)
    assert run_cfg.dump() == before and not (tmp_path / "cache").exists()


@pytest.mark.parametrize("options", [(), ("--no-augmentation",), ("--num", 1), ("--num", 5)])
def test_a_picture_is_written(call, tmp_path, capsys, options):
    assert call(*options) == 0
    assert f"samples: {tmp_path / 'grid.png'}" in capsys.readouterr().out
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.width > 500 and picture.height > 200
    assert [p.name for p in tmp_path.iterdir()] == ["grid.png"]


def test_the_config_of_a_gpu_training_needs_no_gpu(call):
    assert call("--opts", "MODEL.DEVICE", "cuda", "SOLVER.AMP.ENABLED", "True") == 0


def test_another_set_may_be_shown(call, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(training_samples, "draw_grid", lambda samples, *_: seen.update(s=samples))
    assert call("--dataset", "cdgc_cityscapes_val", "--num", 3) == 0
    assert all("/val/" in s["file_name"] for s in seen["s"])


def test_the_seed_option_stands_for_the_configs(call, run_cfg, monkeypatch):
    seen = []
    monkeypatch.setattr(training_samples, "draw_grid", lambda samples, *_: seen.extend(samples))
    assert call("--seed", 7) == 0
    run_cfg.SEED = 7
    expected = first_samples(run_cfg, 2, augmented=True)
    for sample, other in zip(seen, expected, strict=True):
        assert torch.equal(sample["image"], other["image"])


@pytest.mark.parametrize(("columns", "across"), [(None, 2), (1, 1), (3, 3), (8, 5)])
def test_columns(call, figures, columns, across):
    # A sample is three pictures; there are 5 samples, so no more columns than that.
    assert call("--num", 5, *(() if columns is None else ("--columns", columns))) == 0
    assert figures[0].axes[0].get_gridspec().ncols == 3 * across


def make_sample(labels, name="a.png", channels=(255, 0, 0)):
    labels = torch.as_tensor(labels)
    image = torch.tensor(channels, dtype=torch.uint8)[:, None, None].expand(3, *labels.shape)
    return {"file_name": name, "image": image, "sem_seg": labels}


@pytest.fixture
def figures(monkeypatch):
    """The matplotlib figures that are saved."""
    from matplotlib.figure import Figure

    saved = []
    original = Figure.savefig

    def savefig(self, *args, **kwargs):
        saved.append(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return saved


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_pictures_titles_and_legend(figures, tmp_path, image_format):
    metadata = Metadata(stuff_classes=["a $x$", "$b", "c"], stuff_colors=[(1, 2, 3)] * 3)
    labels = np.full((16, 16), 2)
    labels[:4] = 255  # a quarter
    labels[4] = 0
    red = (255, 0, 0) if image_format == "RGB" else (0, 0, 255)
    samples = [make_sample(labels, "x/$1_$2.png", red)]
    draw_grid(samples, image_format, metadata, "$t$", tmp_path / "g.png")
    (figure,) = figures
    # By frequency; class 1 does not occur.
    assert legend_of(figure) == ["c", "a $x$", "ignored"]
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["$1_$2.png", "labels, 25.0 % ignored", "both"]
    image, colored, overlay = (axis.images[0].get_array() for axis in figure.axes)
    assert (image == (255, 0, 0)).all()
    assert (colored[4:] == (1, 2, 3)).all() and (colored[:4] != (1, 2, 3)).all()
    # 0.45 * 255 + 0.55 * 1 = 115.3; 0.55 * 2 = 1.1; 0.55 * 3 = 1.65
    assert (overlay[5] == (115, 1, 2)).all()


def test_a_set_without_colors_gets_detectron2s(figures, tmp_path):
    metadata = Metadata(stuff_classes=[f"c{i}" for i in range(100)])  # the map has 79 colors
    labels = np.array([[0, 1, 99]])
    draw_grid([make_sample(labels)], "RGB", metadata, "t", tmp_path / "g.png")
    colored = figures[0].axes[1].images[0].get_array()
    assert len({tuple(color) for color in colored[0].tolist()}) == 3
    assert legend_of(figures[0]) == ["c0", "c1", "c99"]


def test_a_long_legend_is_cut_at_the_most_frequent(figures, tmp_path):
    metadata = Metadata(stuff_classes=[f"c{i}" for i in range(30)], stuff_colors=[(9, 9, 9)] * 30)
    # Class i has i + 1 pixels, so the 24 most frequent are 29 … 6.
    labels = np.repeat(np.arange(30), np.arange(1, 31)).reshape(15, 31)
    draw_grid([make_sample(labels)], "RGB", metadata, "t", tmp_path / "g.png")
    assert legend_of(figures[0]) == [f"c{i}" for i in range(29, 5, -1)] + ["+6 more"]


def test_samples_of_several_sizes(tmp_path):
    metadata = Metadata(stuff_classes=["a"], stuff_colors=[(9, 9, 9)])
    samples = [make_sample(np.zeros(size, np.int64)) for size in ((5, 9), (9, 5), (1, 1), (30, 7))]
    draw_grid(samples, "RGB", metadata, "t", tmp_path / "g.png")
    assert (tmp_path / "g.png").is_file()


def test_an_existing_picture_is_kept(call, tmp_path, capsys):
    (tmp_path / "grid.png").write_text("mine")
    error = refusal(capsys, call())
    assert "grid.png exists" in error and "--overwrite" in error
    assert (tmp_path / "grid.png").read_text() == "mine"
    assert call("--overwrite") == 0
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.format == "PNG"


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--config-file", "no.yaml"], "no.yaml"),
        (["--opts", "MODEL.CDGC.NOODLES", "1"], "MODEL.CDGC.NOODLES"),
        (["--dataset", "cdgc_nothing"], "cdgc_nothing"),
        (["--dataset", "cdgc_camvid_train"], "has 11 classes"),
    ],
)
def test_wrong_options_are_named(call, tmp_path, capsys, options, word):
    assert word in refusal(capsys, call(*options))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num", "0"], "argument --num: 0: expected 1 or more"),
        (["--num", "65"], "--num 65: expected 1 to 64"),
        (["--output", "grid.jpg"], "grid.jpg: expected a name that ends with .png"),
        (["--opts", "SEED"], "overrides come in pairs KEY VALUE; found SEED"),
        (["--columns", "9"], "--columns 9: expected 1 to 8"),
        (["--seed", "-4"], "argument --seed: -4: expected 0 or more"),
    ],
)
def test_usage_errors(call, tmp_path, capsys, options, message):
    assert call(*options) == 2
    error = capsys.readouterr().err
    assert error.startswith("usage: cdgcnet visualize") and message in error
    assert not list(tmp_path.iterdir())


def test_a_folder_as_output_is_refused(call, tmp_path, capsys):
    (tmp_path / "folder.png").mkdir()
    error = refusal(capsys, call("--output", tmp_path / "folder.png", "--overwrite"))
    assert "folder.png" in error


def test_a_set_that_is_not_there_is_named(call, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))
    assert str(tmp_path / "nowhere") in refusal(capsys, call())


def test_a_random_seed_is_said(call, capsys):
    assert call("--opts", "SEED", "-1") == 0
    assert "SEED is -1" in capsys.readouterr().out
