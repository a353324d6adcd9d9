"""cdgcnet predict: raw label PNGs, overlays, and no file lost or overwritten."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cdgcnet import Predictor, Trainer, load_cfg
from cdgcnet.cli.predict import check_inputs_are_safe, find_sources
from cdgcnet.data.datasets.cityscapes import COLORS
from cdgcnet.data.image_io import read_image
from cdgcnet.engine.prediction_record import PredictionRecord, Source
from cdgcnet.engine.video import VideoFile

TOOL = Path(__file__).resolve().parents[3] / "tools" / "predict.py"
pytestmark = pytest.mark.usefixtures("run_data")


@pytest.fixture(scope="module")
def weights(run_yaml, tmp_path_factory):
    """Untrained, but with classifiers that predict several classes."""
    torch.manual_seed(0)
    model = Trainer.build_model(load_cfg(str(run_yaml)))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "predictor" in name:
                p.normal_(0, 1)
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"model": model.state_dict()}, path)
    return path


@pytest.fixture
def images(tmp_path):
    """A folder with images of different, odd sizes."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, size in (("a.jpg", (41, 67)), ("b.png", (64, 96)), ("c.PNG", (33, 20))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    return folder


@pytest.fixture
def call(command, run_yaml, weights, tmp_path):
    """``cdgcnet predict`` with the needed options; returns its exit code."""

    def run(*inputs, output=tmp_path / "out", options=()) -> int:
        argv = ["--config-file", run_yaml, "--weights", weights, "--output", output]
        argv += ["--input", *inputs, *options]
        return command("predict", *argv)

    return run


def names(folder: Path) -> list[str]:
    """The files below a folder, without the record of the predictions."""
    found = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return sorted(name for name in found if name != "predictions.jsonl")


# ---------------------------------------------------------------- what it writes


def test_label_pngs_hold_the_predictors_raw_classes(call, images, run_yaml, weights, tmp_path):
    assert call(images) == 0
    out = tmp_path / "out"
    assert names(out) == sorted(f"{s}{e}" for s in "abc" for e in (".png", "_overlay.jpg"))
    cfg = load_cfg(str(run_yaml), ["MODEL.WEIGHTS", str(weights)])
    predictor = Predictor(cfg)
    for source in images.iterdir():
        image = np.asarray(Image.open(source))
        expected = predictor(image[:, :, ::-1])["sem_seg"].argmax(0).numpy()
        with Image.open(out / f"{source.stem}.png") as labels:
            assert labels.mode == "P"
            np.testing.assert_array_equal(np.asarray(labels), expected)
            # In a viewer the classes have the dataset's colors.
            rgb = np.asarray(labels.convert("RGB"))
        np.testing.assert_array_equal(rgb, np.array(COLORS, np.uint8)[expected])
        assert len(np.unique(expected)) > 1
        with Image.open(out / f"{source.stem}_overlay.jpg") as overlay:
            assert overlay.size == (image.shape[1], image.shape[0])


def test_single_files_and_folders_together(call, images, tmp_path):
    shutil.move(images / "a.jpg", tmp_path / "a.jpg")
    assert call(tmp_path / "a.jpg", images) == 0
    assert len(names(tmp_path / "out")) == 6


def test_a_file_named_twice_is_predicted_once(call, images, tmp_path, capsys):
    assert call(images / "a.jpg", images / "a.jpg") == 0
    assert "1 of 1 images" in capsys.readouterr().out


def test_tta_option_averages_views(call, images, tmp_path):
    assert call(images / "b.png", output=tmp_path / "plain") == 0
    assert call(images / "b.png", output=tmp_path / "tta", options=["--tta"]) == 0
    plain, tta = (np.asarray(Image.open(tmp_path / d / "b.png")) for d in ("plain", "tta"))
    assert plain.shape == tta.shape == (64, 96)
    assert not np.array_equal(plain, tta)


def test_overrides_reach_the_config(call, images, tmp_path):
    options = ["--opts", "INPUT.MIN_SIZE_TEST", "32"]
    assert call(images / "b.png", output=tmp_path / "plain") == 0
    assert call(images / "b.png", output=tmp_path / "small", options=options) == 0
    # The label map always has the size of the image; the record says how it was predicted.
    sizes = {}
    for name in ("plain", "small"):
        first = (tmp_path / name / "predictions.jsonl").read_text().splitlines()[0]
        sizes[name] = json.loads(first)["identity"]["INPUT.MIN_SIZE_TEST"]
    assert sizes["small"] == 32 != sizes["plain"]


def test_files_that_are_no_images_are_left_alone_in_a_folder(call, images, tmp_path):
    (images / "notes.txt").write_text("mine")
    (images / "empty").mkdir()
    assert call(images) == 0
    assert len(names(tmp_path / "out")) == 6


def test_subfolders_are_kept_and_earlier_predictions_are_no_input(call, images, capsys):
    (images / "sub").mkdir()
    shutil.move(images / "a.jpg", images / "sub" / "b.jpg")  # the name of another folder's image
    out = images / "predictions"
    assert call(images, output=out, options=["--no-overlay"]) == 0
    assert names(out) == ["b.png", "c.png", "sub/b.png"]
    assert call(images, output=out, options=["--no-overlay"]) == 0
    assert "nothing new predicted into" in capsys.readouterr().out
    assert names(out) == ["b.png", "c.png", "sub/b.png"]


def test_probabilities_give_the_labels(call, images, tmp_path):
    assert call(images / "b.png", options=["--probabilities", "--no-overlay"]) == 0
    assert names(tmp_path / "out") == ["b.png", "b_probabilities.npz"]
    with np.load(tmp_path / "out" / "b_probabilities.npz", allow_pickle=False) as found:
        assert found["classes"][0] == "road" and len(found["classes"]) == 19
        values = found["probabilities"]
    assert values.shape == (19, 64, 96) and values.dtype == np.float16
    np.testing.assert_allclose(values.astype(np.float32).sum(axis=0), 1, atol=0.01)
    labels = np.asarray(Image.open(tmp_path / "out" / "b.png"))
    assert (values.argmax(axis=0) == labels).mean() > 0.99  # float16 has more ties


def test_batches_give_the_same_labels(call, images, tmp_path):
    for name in ("b2.png", "b3.png"):
        shutil.copy(images / "b.png", images / name)
    assert call(images, output=tmp_path / "one") == 0
    assert call(images, output=tmp_path / "many", options=["--batch-size", "2"]) == 0
    for name in ("a.png", "b.png", "b2.png", "b3.png", "c.png"):
        one, many = (np.asarray(Image.open(tmp_path / d / name)) for d in ("one", "many"))
        assert (one != many).mean() < 0.001  # ties


def test_a_run_in_mixed_precision_predicts_without_a_gpu(call, images):
    assert call(images / "b.png", options=["--opts", "SOLVER.AMP.ENABLED", "True"]) == 0


# ---------------------------------------------------------------- interruption


def test_the_same_command_resumes(call, images, tmp_path, monkeypatch, capsys):
    from cdgcnet.engine import prediction

    predict = prediction.predict_batch

    def interrupted(predictor, batch, probabilities):
        if batch[0].key.name == "c":
            raise KeyboardInterrupt
        return predict(predictor, batch, probabilities)

    monkeypatch.setattr(prediction, "predict_batch", interrupted)
    assert call(images) == 130
    out = tmp_path / "out"
    assert names(out) == ["a.png", "a_overlay.jpg", "b.png", "b_overlay.jpg"]  # none is half
    (out / "b.png").unlink()  # as if it had been killed before
    before = (out / "a.png").stat().st_mtime_ns
    monkeypatch.undo()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert call(images) == 0
    captured = capsys.readouterr().out
    assert "2 of 2 images" in captured and "1 inputs were finished" in captured
    assert len(names(out)) == 6 and (out / "a.png").stat().st_mtime_ns == before


def test_a_killed_record_is_read(call, images, tmp_path):
    assert call(images) == 0
    record = tmp_path / "out" / "predictions.jsonl"
    record.write_text(record.read_text()[:-5])  # the last line, that of c.PNG, is torn
    for name in ("c.png", "c_overlay.jpg"):
        (tmp_path / "out" / name).unlink()
    assert call(images) == 0
    assert len(names(tmp_path / "out")) == 6
    assert call(images) == 0  # the record is whole again


def test_commands_into_one_folder_keep_each_others_entries(tmp_path):
    sources = [Source(tmp_path / name, name) for name in ("a", "b", "c")]
    first, second = PredictionRecord(tmp_path), PredictionRecord(tmp_path)
    first.start({"weights": "w"})
    first.add(sources[0])
    second.start({"weights": "w"})  # it has loaded its network in the meantime
    first.add(sources[1])
    second.add(sources[2])
    assert set(PredictionRecord(tmp_path).sources) == {"a", "b", "c"}
    with pytest.raises(ValueError, match="another network"):
        PredictionRecord(tmp_path).start({"weights": "x"})


def test_an_image_that_has_changed_is_not_taken_for_finished(call, images, tmp_path, capsys):
    assert call(images) == 0
    Image.new("RGB", (20, 30)).save(images / "b.png")
    capsys.readouterr()
    error = refusal(capsys, call(images))
    assert "b_overlay.jpg exists" in error and "--overwrite" in error


def test_predictions_of_another_network_do_not_mix(call, images, weights, tmp_path, capsys):
    assert call(images / "b.png") == 0
    state = torch.load(weights, weights_only=True)
    for value in state["model"].values():
        if value.is_floating_point():
            value += 0.01
    torch.save(state, tmp_path / "other.pth")
    capsys.readouterr()
    error = refusal(capsys, call(images, options=["--weights", tmp_path / "other.pth"]))
    assert "another network" in error and "weights" in error and "--overwrite" in error
    assert names(tmp_path / "out") == ["b.png", "b_overlay.jpg"]
    options = ["--weights", tmp_path / "other.pth", "--overwrite"]
    assert call(images, options=options) == 0


def test_a_record_of_something_else_is_named(call, images, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "predictions.jsonl").write_text("[1]\n")
    assert "predictions.jsonl" in refusal(capsys, call(images))


# ---------------------------------------------------------------- bad images


def test_one_bad_image_does_not_lose_the_others(call, images, tmp_path, capsys):
    (images / "b.png").write_bytes(b"broken")
    assert call(images) == 1
    captured = capsys.readouterr()
    assert "b.png: not a readable image" in captured.err
    assert "2 of 3 images" in captured.out
    assert names(tmp_path / "out") == ["a.png", "a_overlay.jpg", "c.png", "c_overlay.jpg"]


def test_one_prediction_that_cannot_be_written_does_not_lose_the_others(
    call, images, tmp_path, capsys
):
    (tmp_path / "out" / "a.png").mkdir(parents=True)  # a folder where the file belongs
    assert call(images, options=["--overwrite"]) == 1
    assert "a.png" in capsys.readouterr().err
    assert {"b.png", "c.png"} <= set(names(tmp_path / "out"))


# ---------------------------------------------------------------- refusals


def refusal(capsys, code) -> str:
    assert code == 1
    error = capsys.readouterr().err
    assert error.startswith("cdgcnet predict: error: ") and len(error) > 35, error
    return error


def test_existing_predictions_are_kept(call, images, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "b_overlay.jpg").write_text("mine")
    error = refusal(capsys, call(images))
    assert "b_overlay.jpg exists" in error and "--overwrite" in error
    assert names(out) == ["b_overlay.jpg"] and (out / "b_overlay.jpg").read_text() == "mine"


def test_overwrite_replaces_them(call, images, tmp_path):
    assert call(images / "b.png") == 0
    first = (tmp_path / "out" / "b.png").read_bytes()
    (tmp_path / "out" / "b.png").write_text("old")
    assert call(images / "b.png", options=["--overwrite"]) == 0
    assert (tmp_path / "out" / "b.png").read_bytes() == first


@pytest.mark.parametrize("options", [[], ["--overwrite"]])
def test_output_folder_of_the_input_is_refused(call, images, tmp_path, capsys, options):
    before = {p.name: p.read_bytes() for p in images.iterdir()}
    error = refusal(capsys, call(images, output=images, options=options))
    assert str(images) in error and "input" in error
    assert {p.name: p.read_bytes() for p in images.iterdir()} == before


def test_an_input_file_is_never_overwritten(call, images, capsys):
    before = (images / "b.png").read_bytes()
    error = refusal(capsys, call(images / "b.png", output=images, options=["--overwrite"]))
    assert "b.png is one of the input files" in error
    assert (images / "b.png").read_bytes() == before


def test_output_through_a_link_to_the_input_is_refused(call, images, tmp_path, capsys):
    (tmp_path / "link").symlink_to(images)
    refusal(capsys, call(images, output=tmp_path / "link", options=["--overwrite"]))


@pytest.fixture
def clip(tmp_path):
    """A video of three frames beside a folder of its name."""
    path = tmp_path / "clips" / "drive.mp4"
    path.parent.mkdir()
    video = VideoFile(path, 10.0)
    for value in (0, 100, 200):
        video.write(np.full((48, 64, 3), value, np.uint8))
    video.finish()
    return path


def test_a_folder_that_is_no_prediction_is_never_deleted(call, clip, tmp_path, capsys):
    notes = clip.with_suffix("") / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine")
    assert call(clip, output=clip.parent, options=["--overwrite"]) == 1
    assert "drive holds notes.txt" in capsys.readouterr().err and notes.read_text() == "mine"
    # Frames of the user's own, extracted beside the video.
    notes.rename(notes.with_name("000000.png"))
    assert call(clip, output=clip.parent, options=["--overwrite"]) == 1
    assert "drive was there before" in capsys.readouterr().err
    assert notes.with_name("000000.png").read_text() == "mine"


def test_overwrite_replaces_the_frames_of_a_video(call, clip, tmp_path):
    out = tmp_path / "out"
    assert call(clip) == 0
    before = names(out)
    for _ in range(2):
        (out / "drive" / "000007.png").touch()  # of a longer video of this name
        assert call(clip, options=["--overwrite"]) == 0
        assert names(out) == before


def test_a_folder_of_inputs_is_never_replaced(call, clip, images, capsys):
    images.rename(clip.with_suffix(""))
    inputs = (clip.with_suffix(""), clip)
    assert call(*inputs, output=clip.parent, options=["--overwrite"]) == 1
    assert "drive holds input files" in capsys.readouterr().err
    assert len(list(inputs[0].iterdir())) == 3


def test_images_in_the_folder_of_a_videos_frames_are_refused(call, clip, images, capsys):
    images.rename(clip.with_suffix(""))
    assert call(clip.parent, clip) == 1
    assert "would be written to the folder drive" in capsys.readouterr().err


def test_two_images_of_one_name_are_refused(call, images, tmp_path, capsys):
    shutil.copy(images / "b.png", images / "a.png")
    error = refusal(capsys, call(images))
    assert "a.jpg" in error and "a.png" in error
    assert not (tmp_path / "out").exists()


def test_empty_folder_is_refused(call, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    error = refusal(capsys, call(tmp_path / "empty"))
    assert str(tmp_path / "empty") in error and ".jpg" in error


def test_missing_input_is_named(call, tmp_path, capsys):
    assert str(tmp_path / "gone.jpg") in refusal(capsys, call(tmp_path / "gone.jpg"))


def test_output_that_is_a_file_is_refused(call, images, tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    assert str(tmp_path / "out") in refusal(capsys, call(images))
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--config-file", "no.yaml"], "no.yaml"),
        (["--weights", "no.pth"], "no.pth"),
        (["--opts", "MODEL.CDGC.EDGES", "blunt"], "MODEL.CDGC.EDGES is 'blunt'"),
        (["--opts", "MODEL.CDGC.NOODLES", "1"], "MODEL.CDGC.NOODLES"),
        (["--opts", "MODEL.CDGC.CHANNELS", "16"], "does not fit"),
        (["--opts", "DATASETS.TEST", "()"], "DATASETS.TEST"),
        (["--opts", "DATASETS.TEST", "('cdgc_nothing',)"], "cdgc_nothing"),
        (
            ["--opts", "DATASETS.TEST", "('cdgc_camvid_val',)"],
            "(DATASETS.TEST) has 11",
        ),
    ],
)
def test_wrong_options_are_named(call, images, tmp_path, capsys, options, word):
    # Later options win, so these replace the good ones.
    error = refusal(capsys, call(images, options=options))
    assert word in error
    assert not (tmp_path / "out").exists()


def test_weights_that_are_no_checkpoint_are_named(call, images, tmp_path, capsys):
    (tmp_path / "broken.pth").write_bytes(b"broken")
    error = refusal(capsys, call(images, options=["--weights", tmp_path / "broken.pth"]))
    assert "broken.pth" in error


def test_other_classes_in_the_config_are_told(call, images, weights, tmp_path, capsys):
    names = [f"class {i}" for i in range(19)]
    named = tmp_path / "named.pth"
    torch.save({**torch.load(weights), "class_names": names}, named)
    for classes, warned in ((names, False), (names[::-1], True)):
        file = tmp_path / "classes.txt"
        file.write_text("\n".join(classes))
        entry = {"NAME": "mine", "IMAGES": "i", "LABELS": "l", "CLASSES": str(file)}
        keys = ["DATASETS.FOLDERS", str([entry]), "DATASETS.TEST", "('mine',)"]
        options = ["--weights", named, "--overwrite", "--opts", *keys]
        assert call(images / "a.jpg", options=options) == 0
        told = "class 0 is 'class 0' in the file and 'class 18' in the config"
        assert (told in capsys.readouterr().err) == warned


def test_a_bare_backbone_is_refused(call, images, weights, tmp_path, capsys):
    state = torch.load(weights, weights_only=True)["model"]
    state = {k: v for k, v in state.items() if k.startswith("backbone.")}
    torch.save({"model": state}, tmp_path / "backbone.pth")
    error = refusal(capsys, call(images, options=["--weights", tmp_path / "backbone.pth"]))
    assert "backbone only" in error


def test_in_the_shell(run_yaml, weights, images, tmp_path):
    # One call shows both: without a display the pictures are made, and a failure sets the code.
    (images / "a.jpg").write_bytes(b"broken")
    argv = [sys.executable, TOOL, "--config-file", run_yaml, "--weights", weights]
    argv += ["--output", tmp_path / "out", "--input", images]
    environment = {k: v for k, v in os.environ.items() if k != "DISPLAY"}
    done = subprocess.run(
        [str(a) for a in argv],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 1
    assert "2 of 3 images" in done.stdout and "a.jpg: not a readable image" in done.stderr
    assert "Traceback" not in done.stderr
    assert names(tmp_path / "out") == ["b.png", "b_overlay.jpg", "c.png", "c_overlay.jpg"]


def test_hidden_files_and_loops_of_links_in_a_folder(tmp_path):
    # macOS leaves ._photo.jpg; a link to itself made Path.resolve raise RuntimeError.
    for name in ("photo.JPG", "._photo.JPG", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "loop.png").symlink_to("loop.png")
    images, videos = find_sources([tmp_path], tmp_path / "out")
    assert [image.path.name for image in images] == ["loop.png", "photo.JPG"] and not videos
    check_inputs_are_safe(images, [tmp_path / "out" / "loop.png"])
    with pytest.raises(ValueError, match=r"loop\.png: not a readable image"):
        read_image(images[0].path)
