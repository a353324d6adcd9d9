"""The state dicts of the formats: found in a file's contents, told apart, renamed."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

FORMATS = ("torchvision", "deep stem", "v1c", "detectron2")
_LEAVES = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
_BLOCK = re.compile(rf"layer([1-4])\.(\d+)\.(conv[123]|bn[123]|downsample\.[01])\.{_LEAVES}")
_OURS = re.compile(rf"(stem\.conv[123]|res[2-5]\.\d+\.(conv[123]|shortcut))(\.norm)?\.{_LEAVES}")
# Their module in the stem -> our convolution; its norm is the entry after it.
_STEMS = {
    "torchvision": {"conv1": "conv1", "bn1": "conv1.norm"},
    "deep stem": {
        f"{kind}{i}": f"conv{i}{end}"
        for i in (1, 2, 3)
        for kind, end in (("conv", ""), ("bn", ".norm"))
    },
    "v1c": {
        f"stem.{3 * i + part}": f"conv{i + 1}{end}"
        for i in range(3)
        for part, end in ((0, ""), (1, ".norm"))
    },
}
_CLASSIFIER = re.compile(r"(stem\.|head\.)?(fc\d*|linear)\.(weight|bias)")


def unwrap(loaded: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict in a file's contents: out of "state_dict" or "model", without prefixes.

    Raises:
        ValueError: naming a key that is no name or a value that is no tensor.
    """
    for name in ("state_dict", "model"):
        if isinstance(loaded.get(name), Mapping):
            loaded = loaded[name]
            break
    state = dict(loaded)
    for key in state:
        if not isinstance(key, str):
            raise ValueError(f"expected the names of parameters, found the key {key!r}")
    for prefix in ("module.", "backbone."):
        inside = {k: v for k, v in state.items() if k.startswith(prefix)}
        if inside and all(k in inside or _CLASSIFIER.fullmatch(k) for k in state):
            state = {k.removeprefix(prefix): v for k, v in state.items()}
    for key, value in state.items():
        if isinstance(value, np.ndarray):
            state[key] = torch.from_numpy(np.array(value))
        elif not isinstance(value, Tensor):
            raise ValueError(f"{key}: expected a tensor, found {type(value).__name__}")
    return state


def recognize(state: Mapping[str, Any]) -> str | None:
    """The format of a backbone's state dict by its keys; None for another thing."""
    blocks = any(k.startswith("layer1.") for k in state)
    if blocks and "stem.0.weight" in state:
        return "v1c"
    if blocks and "conv1.weight" in state:
        return "deep stem" if "conv2.weight" in state else "torchvision"
    if "stem.conv1.weight" in state and any(k.startswith("res2.") for k in state):
        return "detectron2"
    return None


def _our_name(key: str, file_format: str) -> str | None:
    if file_format == "detectron2":
        return key if _OURS.fullmatch(key) else None
    if found := _BLOCK.fullmatch(key):
        stage, block, module, leaf = found.groups()
        ours = {"downsample.0": "shortcut", "downsample.1": "shortcut.norm"}.get(module, module)
        if ours.startswith("bn"):
            ours = f"conv{ours[2]}.norm"
        return f"res{int(stage) + 1}.{block}.{ours}.{leaf}"
    module, _, leaf = key.rpartition(".")
    ours = _STEMS[file_format].get(module, "")
    return f"stem.{ours}.{leaf}" if ours and re.fullmatch(_LEAVES, leaf) else None


def convert_names(state: Mapping[str, Tensor], file_format: str) -> dict[str, Tensor]:
    """Detectron2's names, in float32; the classifier is dropped.

    Raises:
        ValueError: naming keys that are no part of a ResNet, or values that are no tensors.
    """
    converted = {}
    unknown = []
    for key, value in state.items():
        if _CLASSIFIER.fullmatch(key):
            continue
        if not isinstance(value, Tensor):
            raise ValueError(f"{key}: expected a tensor, found {type(value).__name__}")
        name = _our_name(key, file_format)
        if name is None:
            unknown.append(key)
        else:
            converted[name] = value.float() if value.is_floating_point() else value
    if unknown:
        raise ValueError(f"not keys of a {file_format} ResNet: {', '.join(unknown[:5])}")
    return converted
