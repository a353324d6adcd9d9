"""An exported network in ONNX Runtime against the eager model: CPU time and memory.

    python benchmarks/bench_export.py [--config-file CONFIG] [--output benchmarks/results]

The network has random weights whose classifiers predict several classes, and is exported first. A
trained network and its file can take its place (--weights, --onnx). Contestants run in one process
in turn, one thread each. "labels" asks for the label map alone, "logits" for the full-size
logits. With --compile, ``torch.compile`` of the eager model takes part; it needs a C++ compiler.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import protocol
import torch

from cdgcnet import Predictor, Trainer, load_cfg
from cdgcnet.cli.main import main as cdgcnet_main
from cdgcnet.config.files import find_config

CONFIG = "VOC-SemanticSegmentation/cdgcnet_r50_os8_cpu.yaml"
OUTPUTS = ("labels", "logits")
SIZES = ((512, 512), (512, 1024))
MAX_RATIO = 1.0


def image_of(size: tuple[int, int]) -> np.ndarray:
    """A smooth random image, so that several classes form regions."""
    import cv2

    blocks = np.random.default_rng(0).integers(0, 256, (size[0] // 64, size[1] // 64, 3), np.uint8)
    return cv2.resize(blocks, size[::-1], interpolation=cv2.INTER_CUBIC)


def eager_model(config: str, weights: str) -> torch.nn.Module:
    overrides = ["MODEL.WEIGHTS", weights, "MODEL.DEVICE", "cpu"]
    return Predictor(load_cfg(str(find_config(config)), overrides)).model


def eager_call(model: torch.nn.Module, size: tuple[int, int], output: str) -> Callable:
    inputs = [{"image": torch.from_numpy(image_of(size).transpose(2, 0, 1).copy())}]
    predict = model.predict_labels if output == "labels" else model
    return torch.no_grad()(lambda: predict(inputs))


def onnx_call(path: str, size: tuple[int, int], output: str) -> Callable:
    session = Predictor.from_onnx(path, threads=1).session
    return lambda: session.run([output], {"image": image_of(size)[None]})


def prepare_eager(config: str, weights: str, size: tuple[int, int], output: str) -> Callable:
    call = eager_call(eager_model(config, weights), size, output)
    eager_call(eager_model(config, weights), (64, 64), output)()  # what a first call loads
    return call


def prepare_onnx(path: str, size: tuple[int, int], output: str) -> Callable:
    return onnx_call(path, size, output)


def random_weights(config: str, path: Path) -> None:
    cfg = load_cfg(str(find_config(config)), ["MODEL.DEVICE", "cpu"])
    torch.manual_seed(0)
    model = Trainer.build_model(cfg)
    for name, parameter in model.named_parameters():
        if "predictor" in name:
            torch.nn.init.normal_(parameter)
    torch.save({"model": model.state_dict()}, path)


def compare(args: argparse.Namespace, size: tuple[int, int], output: str) -> list[list[str]]:
    """The rows of one image size and output."""
    model = eager_model(args.config_file, args.weights)
    contestants = {
        "eager": eager_call(model, size, output),
        "ONNX Runtime": onnx_call(args.onnx, size, output),
    }
    if args.compile:
        contestants["torch.compile"] = torch.compile(contestants["eager"])
    cell = f"{size[1]} × {size[0]}"
    try:
        times = protocol.measure(contestants, rounds=args.rounds)
    except protocol.Unsteady as error:
        return [[cell, output, "–", "–", f"not measured: {error}", ""]]
    memory = {
        "eager": protocol.peak_memory(prepare_eager, args.config_file, args.weights, size, output),
        "ONNX Runtime": protocol.peak_memory(prepare_onnx, args.onnx, size, output),
    }
    rows = []
    for name in contestants:
        ratio = times.ratio(name, "eager")
        verdict = ""
        if name == "ONNX Runtime":
            verdict = "met" if ratio <= MAX_RATIO else "**missed**"
        shown = protocol.mebibytes(memory[name]) if name in memory else ""
        rows.append([cell, output, name, f"{ratio:.2f}", verdict, shown])
    return rows


def main() -> None:
    parser = protocol.arguments(__doc__)
    parser.add_argument("--config-file", default=CONFIG, help="default: %(default)s")
    parser.add_argument("--weights", help="of a trained network; needs --onnx")
    parser.add_argument("--onnx", help="what cdgcnet export made of the same network")
    parser.add_argument("--compile", action="store_true", help="torch.compile takes part")
    args = parser.parse_args()
    if bool(args.weights) != bool(args.onnx):
        parser.error("--weights and --onnx belong together")
    protocol.one_thread()
    with tempfile.TemporaryDirectory() as folder:
        if not args.onnx:
            args.weights, args.onnx = f"{folder}/model.pth", f"{folder}/model.onnx"
            random_weights(args.config_file, Path(args.weights))
            command = ["export", "--config-file", args.config_file, "--weights", args.weights]
            if code := cdgcnet_main([*command, "--output", args.onnx]):
                sys.exit(code)
        rows = [row for size in SIZES for output in OUTPUTS for row in compare(args, size, output)]
    title = (
        f"Exported network: CPU time relative to the eager model ({Path(args.config_file).stem})"
    )
    header = ["image", "output", "contestant", "time / eager", f"≤ {MAX_RATIO:g}", "peak memory"]
    protocol.report("bench_export", title, header, rows, args.output)


if __name__ == "__main__":
    main()
