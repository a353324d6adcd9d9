"""What decides the outcome of an evaluation, in a form that can be stored and compared."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from torch import nn

# Keys that decide what is predicted and counted, and those below them that do not.
_DECISIVE = (
    "MODEL.",
    "INPUT.FORMAT",
    "INPUT.MIN_SIZE_TEST",
    "INPUT.MAX_SIZE_TEST",
    "TEST.",
)
_FREE = (
    "MODEL.WEIGHTS",  # the numbers themselves are compared
    "MODEL.DEVICE",
    "MODEL.CDGC.LOSS.",
    "TEST.RESUME",
    "TEST.WORST_IMAGES",
    "TEST.PICTURES",
    "TEST.EVAL_PERIOD",
    "TEST.EXPECTED_RESULTS",
)


def _flatten(node: dict, prefix: str = "") -> dict:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def flat_config(cfg: CfgNode | str) -> dict[str, Any]:
    """Dotted keys -> plain values.

    Args:
        cfg: a config, or one as YAML text.
    """
    return _flatten(yaml.safe_load(cfg if isinstance(cfg, str) else cfg.dump()))


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


def _weights(model: nn.Module) -> Iterable[bytes]:
    for name, value in sorted(model.state_dict().items()):
        yield name.encode()
        yield value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def evaluation_fingerprint(
    cfg: CfgNode, model: nn.Module, dataset_name: str, dicts: Sequence[dict]
) -> dict[str, Any]:
    """Dataset, images, weights and config keys of an evaluation.

    Args:
        cfg: of the evaluation.
        model: with its weights.
        dataset_name: for messages and comparison.
        dicts: of the dataset.
    """
    listed = (repr(sorted(d.items())).encode() for d in dicts)
    values = {
        "dataset": dataset_name,
        "images": f"{len(dicts)}, {_digest(listed)}",
        "weights": _digest(_weights(model)),
    }
    for key, value in flat_config(cfg).items():
        if key.startswith(_DECISIVE) and not key.startswith(_FREE):
            values[key] = value
    return values


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """One line per entry that is not the same."""
    return [
        f"{key}: {before.get(key)!r} there, {now.get(key)!r} now"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
