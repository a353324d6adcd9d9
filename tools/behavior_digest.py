#!/usr/bin/env python
"""Show that a refactoring changed no number: digests of short runs and of the demo's scores.

    python tools/behavior_digest.py --output before.json
    python tools/behavior_digest.py --compare before.json

Trains the street config for 20 iterations with dynamic and with coarse nodes, on one thread, and
digests every trained tensor and every logged loss. --demo adds the results of `make demo`. The
names of tensors do not enter the digest, so that a renamed module keeps it. --compare exits with
status 1 where anything differs.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "configs/Streets-SemanticSegmentation/cdgcnet_r18_cpu.yaml"
ITERATIONS = 20
# Times and memory differ between two runs of the same code.
UNSTABLE = ("time", "eta_seconds", "memory")


def run(command: list[str]) -> None:
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "DETECTRON2_DATASETS": str(ROOT / ".cache" / "datasets"),
        "PYTHONPATH": str(ROOT / "projects" / "CDGCNet"),
    }
    subprocess.run([sys.executable, *command], cwd=ROOT, env=env, check=True, stdout=sys.stderr)


def digest_of_weights(path: Path) -> str:
    """SHA-256 over the sorted digests of all tensors of a checkpoint."""
    import torch

    state = torch.load(path, weights_only=True)["model"]
    digests = sorted(
        hashlib.sha256(t.contiguous().numpy().tobytes()).hexdigest() for t in state.values()
    )
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def training(nodes: str, folder: Path) -> dict:
    output = folder / nodes
    overrides = {
        "OUTPUT_DIR": output,
        "MODEL.CDGC.NODES": nodes,
        "MODEL.CDGC.RECEIVERS": "nodes",
        "MODEL.CDGC.SOFTMAX": "class",
        "MODEL.DEVICE": "cpu",
        "SOLVER.MAX_ITER": ITERATIONS,
    }
    pairs = [str(text) for pair in overrides.items() for text in pair]
    run(["train_net.py", "--config-file", CONFIG, *pairs])
    lines = (output / "metrics.json").read_text(encoding="utf-8").splitlines()
    losses = [
        {k: v for k, v in json.loads(line).items() if not any(word in k for word in UNSTABLE)}
        for line in lines
    ]
    return {"weights": digest_of_weights(output / "model_final.pth"), "losses": losses}


def demo(folder: Path) -> dict:
    run(["-W", "ignore::FutureWarning", "tools/demo.py", "--output", str(folder / "demo")])
    return json.loads((folder / "demo" / "results.json").read_text(encoding="utf-8"))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="write the digests to this JSON file")
    parser.add_argument("--compare", type=Path, help="digests of an earlier call")
    parser.add_argument("--demo", action="store_true", help="include the demo (minutes)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found: dict = {nodes: training(nodes, folder) for nodes in ("dynamic", "coarse")}
        if args.demo:
            found["demo"] = demo(folder)
    if args.output:
        args.output.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    if args.compare:
        expected = json.loads(args.compare.read_text(encoding="utf-8"))
        different = [name for name in found if found[name] != expected.get(name)]
        print(f"different: {', '.join(different)}" if different else "all digests are equal")
        return 1 if different else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
