#!/usr/bin/env python
"""Check that this machine has what the benchmarks and experiments import, and describe it.

    python benchmarks/check_machine.py --device cuda --output DIR

Appends date, commit, versions and hardware to DIR/machine.txt.
"""

import argparse
import importlib
import sys
from pathlib import Path

NEEDED = [
    *("numpy", "torch", "torchvision", "cv2", "scipy", "matplotlib.pyplot", "tensorboard"),
    *("safetensors", "tabulate", "cloudpickle", "jinja2", "yaml", "pydantic", "pycocotools.mask"),
    *("detectron2.engine", "pytest", "hypothesis"),
]


def problems(names: list[str]) -> list[str]:
    """Why modules cannot be imported, one line each."""
    found = []
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            found.append(f"{name}: {error}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    args = parser.parse_args()
    if missing := problems(NEEDED):
        sys.exit("check_machine.py: error: cannot import\n    " + "\n    ".join(missing))

    import torch

    from cdgcnet.engine.run_metadata import run_metadata

    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("check_machine.py: error: --device cuda: this machine has no CUDA device")
    lines = [f"{k}: {v}" for k, v in run_metadata(sys.argv).items() if k != "command"]
    text = "\n".join(lines) + "\n"
    print(text)
    with (args.output / "machine.txt").open("a", encoding="utf-8") as file:
        file.write(text + "\n")


if __name__ == "__main__":
    main()
