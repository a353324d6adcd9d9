"""Caches of made-up features, and records with given scores.

Fixtures return functions: under pytest's importlib mode test files cannot import each other.
"""

import json

import numpy as np
import pytest


@pytest.fixture
def make_store(tmp_path):
    """``make_store([(features, labels), …])``: a complete cache at stride 8.

    Features (h, w, C) and labels (4(h-1)+1, 4(w-1)+1) of each image.
    """
    from cdgcnet.comparison.feature_cache import FeatureStore

    count = iter(range(100))

    def make(images):
        folder = tmp_path / f"store{next(count)}"
        folder.mkdir()
        names = [f"{i}.png" for i in range(len(images))]
        listed = [[name, "", x.shape[:2]] for name, (x, _) in zip(names, images, strict=True)]
        identity = {"extractor": {"stride": 8}, "images": listed}
        (folder / "identity.json").write_text(json.dumps(identity))
        (folder / "finished").write_text(str(len(images)))
        rows = [x.reshape(-1, x.shape[2]) for x, _ in images]
        np.save(folder / "features.npy", np.concatenate(rows).astype(np.float16))
        labels = [y.ravel() for _, y in images]
        np.save(folder / "labels.npy", np.concatenate(labels).astype(np.uint8))
        return FeatureStore(folder)

    return make


@pytest.fixture
def make_records():
    """``make_records({label: [mIoU of seed 1, seed 2, …]}, **changes of the instrument)``."""
    from cdgcnet.comparison.records import Record

    instrument = {
        "trained_on": "a", "evaluated_on": "b", "train_images": 6, "eval_images": 3,
        "shorter_side": 160, "feature": "res5", "stride": 8, "weights_file": "r50.pth",
        "channels": 192, "explained": 0.9, "steps": 10, "batch": 2, "crop": 20,
        "learning_rate": 0.002, "precision": "fp32",
    }  # fmt: skip
    keys = ("command", "commit", "versions", "hardware", "date")
    metadata = {key: f"some {key}" for key in keys}
    cost = {"parameters": 100_000, "seconds": 1.0, "cpu_seconds": 2.0, "peak_memory": 1 << 20}

    def make(scores, **changes):
        records = []
        for label, by_seed in scores.items():
            context = "aspp" if label.startswith("aspp") else "none"
            head = label.removeprefix("aspp").removeprefix(" + ") or "plain"
            for seed, value in enumerate(by_seed, start=1):
                kind = head.partition(":")[0]
                metrics = {"sem_seg": {"mIoU": value}}
                about = {**instrument, **changes}
                settings = {"row": label}
                records.append(
                    Record(
                        label, kind, context, head, seed, settings, about, metrics, cost, metadata
                    )
                )
        return records

    return make
