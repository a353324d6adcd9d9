"""Exported networks in ONNX Runtime against the eager model: CPU time and memory.

    python benchmarks/bench_export.py [--config-file CONFIG …] [--output benchmarks/results]

Each network has random weights whose classifiers predict several classes, and is exported first. A
trained network and its file can take its place (--weights, --onnx). Contestants run in one process
in turn, one thread each. "labels" asks for the label map alone, "logits" for the full-size logits.

``torch.compile`` of the eager model takes part without a target, if there is a C++ compiler. It
compiles backbone, ASPP and classifiers; the graph stays eager, because the lengths of its segments
change with every image, and so does the label map behind its first data-dependent check. Its time
and memory are those of later calls, without compilation.
"""

import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import protocol
import torch

from cdgcnet import Predictor, Trainer, load_cfg
from cdgcnet.cli.main import main as cdgcnet_main
from cdgcnet.config.files import find_config

CONFIGS = (
    "Streets-SemanticSegmentation/cdgcnet_r18_cpu.yaml",
    "VOC-SemanticSegmentation/cdgcnet_r50_os8_cpu.yaml",
)
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
    # As all contestants, and as cdgcnet predict.
    session = Predictor.from_onnx(path, threads=1, flush_subnormals=True).session
    return lambda: session.run([output], {"image": image_of(size)[None]})


def prepare_eager(config: str, weights: str, size: tuple[int, int], output: str) -> Callable:
    call = eager_call(eager_model(config, weights), size, output)
    eager_call(eager_model(config, weights), (64, 64), output)()  # what a first call loads
    return call


def prepare_compiled(config: str, weights: str, size: tuple[int, int], output: str) -> Callable:
    call = torch.compile(eager_call(eager_model(config, weights), size, output))
    call()  # compiles
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


def compare(
    config: str, weights: str, onnx: str, size: tuple[int, int], output: str, rounds: int
) -> list[list[str]]:
    """The rows of one network, image size and output."""
    eager = eager_call(eager_model(config, weights), size, output)
    contestants = {"eager": eager, "ONNX Runtime": onnx_call(onnx, size, output)}
    model = (config, weights, size, output)
    memory = {
        "eager": protocol.peak_memory(prepare_eager, *model),
        "ONNX Runtime": protocol.peak_memory(prepare_onnx, onnx, size, output),
    }
    if shutil.which("c++"):
        torch.compiler.reset()  # otherwise the next size would be compiled for any size
        contestants["torch.compile"] = torch.compile(eager)
        memory["torch.compile"] = protocol.peak_memory(prepare_compiled, *model)
    cell = [Path(config).stem, f"{size[1]} × {size[0]}", output]
    try:
        times = protocol.measure(contestants, rounds=rounds)
    except protocol.Unsteady as error:
        return [[*cell, "–", "–", f"not measured: {error}", ""]]
    rows = []
    for name in contestants:
        ratio = times.ratio(name, "eager")
        verdict = ""
        if name == "ONNX Runtime":
            verdict = "met" if ratio <= MAX_RATIO else "**missed**"
        rows.append([*cell, name, f"{ratio:.2f}", verdict, protocol.mebibytes(memory[name])])
    return rows


def export(config: str, folder: Path) -> tuple[str, str]:
    """A network with random weights: its checkpoint and its ONNX file."""
    folder.mkdir()
    weights, onnx = str(folder / "model.pth"), str(folder / "model.onnx")
    random_weights(config, Path(weights))
    command = ["export", "--config-file", config, "--weights", weights, "--output", onnx]
    if code := cdgcnet_main(command):
        sys.exit(code)
    return weights, onnx


def main() -> None:
    parser = protocol.arguments(__doc__)
    parser.add_argument(
        "--config-file", nargs="+", default=CONFIGS, help="default: a ResNet-18 and a ResNet-50"
    )
    parser.add_argument(
        "--weights", help="of a trained network; needs --onnx and one --config-file"
    )
    parser.add_argument("--onnx", help="what cdgcnet export made of the same network")
    parser.add_argument("--outputs", nargs="+", choices=OUTPUTS, default=OUTPUTS[:1])
    args = parser.parse_args()
    if bool(args.weights) != bool(args.onnx):
        parser.error("--weights and --onnx belong together")
    if args.weights and len(args.config_file) != 1:
        parser.error("--weights needs one --config-file")
    protocol.one_thread()
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        for config in args.config_file:
            files = (args.weights, args.onnx)
            if not args.weights:
                files = export(config, Path(folder) / Path(config).stem)
            for size in SIZES:
                for output in args.outputs:
                    rows += compare(config, *files, size, output, args.rounds)
    title = (
        "Exported networks: CPU time relative to the eager model, "
        f"ONNX Runtime {onnxruntime.__version__}"
    )
    header = ["network", "image", "output", "contestant", "time / eager", f"≤ {MAX_RATIO:g}"]
    protocol.report("bench_export", title, [*header, "peak memory"], rows, args.output)


if __name__ == "__main__":
    main()
