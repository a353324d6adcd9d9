"""``cdgcnet predict --onnx`` and ``serve --onnx`` need neither PyTorch nor Detectron2."""

import io
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("onnx", reason="needs the extra [export]")
pytest.importorskip("onnxruntime", reason="needs the extra [export]")
pytest.importorskip("onnxscript", reason="needs the extra [export]")

PROJECT = Path(__file__).resolve().parents[3] / "projects" / "CDGCNet"
WITHOUT_TORCH = """
import sys
for name in ("torch", "torchvision", "detectron2", "fvcore"):
    sys.modules[name] = None
from cdgcnet.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def start(*arguments):
    """``cdgcnet …`` in a process that cannot import PyTorch or Detectron2."""
    return subprocess.Popen(
        [sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )


@pytest.fixture
def image():
    blocks = np.random.default_rng(0).integers(0, 256, (5, 5, 3), np.uint8)
    return cv2.resize(blocks, (40, 30), interpolation=cv2.INTER_CUBIC)


def agreement(plain, image, labels):
    return (np.asarray(labels) == plain[0].labels(image)).mean()


def test_predict(plain, image, tmp_path):
    inputs, output = tmp_path / "in", tmp_path / "out"
    inputs.mkdir()
    cv2.imwrite(str(inputs / "a.png"), image)
    video = cv2.VideoWriter(str(inputs / "v.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5, (40, 30))
    for _ in range(2):
        video.write(image)
    video.release()
    inputs_ = [inputs / "a.png", inputs / "v.avi"]
    command = ["predict", "--onnx", plain[2], "--input", *inputs_, "--output", output]
    process = start(*command)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "1 of 1 images and 2 video frames predicted" in out
    assert agreement(plain, image, Image.open(output / "a.png")) > 0.999
    assert (output / "a_overlay.jpg").is_file() and (output / "v" / "000001.png").is_file()
    probabilities = ["--probabilities", "--overwrite", "--no-overlay"]
    process = start("predict", "--onnx", plain[2], "--input", inputs / "a.png", "--output", output,
                    *probabilities)  # fmt: skip
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    with np.load(output / "a_probabilities.npz") as stored:
        values = stored["probabilities"].astype(np.float32)
    np.testing.assert_allclose(values, plain[0].probabilities(image), atol=1e-3)


def test_other_networks_do_not_continue_a_folder(plain, image, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), image)
    output = tmp_path / "out"
    command = ["predict", "--onnx", plain[2], "--input", tmp_path / "a.png", "--output", output]
    assert start(*command).wait(120) == 0
    process = start(*command, "--tta")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "predictions of another network or config" in err


def test_the_advice_for_an_image_that_is_too_large_works(plain, image, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), image)  # 30 x 40 pixels
    command = ["predict", "--onnx", plain[2], "--input", tmp_path / "a.png", "--output"]
    limit = ["--opts", "INPUT.MAX_PIXELS"]
    process = start(*command, tmp_path / "small", *limit, 1199)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "a.png: 30 x 40 (height x width)" in err and "raise INPUT.MAX_PIXELS" in err
    assert start(*command, tmp_path / "large", *limit, 1200).wait(120) == 0
    assert (tmp_path / "large" / "a.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--onnx", "there.txt"], 1, "no ONNX file that ONNX Runtime"),
        (["--onnx", "missing.onnx"], 1, "there is no such file"),
        (["--onnx", "a.onnx", "--weights", "b.pth"], 2, "leave out the other model options"),
        (["--onnx", "a.onnx", "--opts", "INPUT.MIN_SIZE_TEST", "9"], 2, "except --opts INPUT.MAX_"),
        (["--onnx", "a.onnx", "--opts", "INPUT.MAX_PIXELS"], 2, "except --opts INPUT.MAX_PIXELS N"),
        (["--onnx", "a.onnx", "--opts", "INPUT.MAX_PIXELS", "0"], 2, "expected an integer that is"),
        (["--onnx", "a.onnx", "--opts", "INPUT.MAX_PIXELS", "x"], 2, "expected an integer that is"),
        (["--weights", "b.pth"], 2, "either --config-file and --weights, or --onnx"),
    ],
)
def test_wrong_models(tmp_path, monkeypatch, capsys, arguments, code, message):
    from cdgcnet.cli.main import main

    monkeypatch.chdir(tmp_path)
    Path("there.txt").write_text("no model")
    try:
        found = main(["predict", *arguments, "--input", "there.txt", "--output", "out"])
    except SystemExit as error:
        found = error.code
    assert found == code
    assert message in capsys.readouterr().err
    assert not Path("out").exists()


def test_serve(plain, image):
    httpx = pytest.importorskip("httpx", reason="needs the extra [test]")
    pytest.importorskip("uvicorn", reason="needs the extra [serve]")
    pytest.importorskip("fastapi", reason="needs the extra [serve]")
    process = start("serve", "--onnx", plain[2], "--port", 0)
    try:
        line = process.stdout.readline()
        assert line.startswith("listening on "), process.stderr.read()
        url = line.split()[-1]
        upload = cv2.imencode(".png", image)[1].tobytes()
        answer = httpx.post(f"{url}/predict", content=upload, timeout=60)
        assert answer.status_code == 200, answer.text
        assert agreement(plain, image, Image.open(io.BytesIO(answer.content))) > 0.999
        summary = httpx.post(f"{url}/predict?format=json", content=upload, timeout=60).json()
        assert (summary["height"], summary["width"]) == image.shape[:2]
        assert sum(c["share"] for c in summary["classes"]) == pytest.approx(1)
        assert summary["changed"] is None  # the file has no coarse prediction
        assert httpx.post(f"{url}/predict", content=b"no image").status_code == 400
    finally:
        process.terminate()
        process.communicate(timeout=60)
