"""The formats that ResNets are published in: recognized by their keys and renamed."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

FORMATS = ("torchvision", "deep stem", "v1c", "detectron2")
_LEAVES = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
_BLOCK = re.compile(rf"layer([1-4])\.(\d+)\.(conv[123]|bn[123]|downsample\.[01])\.{_LEAVES}")
_OURS = re.compile(rf"(stem\.conv[123]|res[2-5]\.\d+\.(conv[123]|shortcut))(\.norm)?\.{_LEAVES}")
# A module of their stem -> the convolution here, or its norm.
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
# The last layer of an ImageNet classifier, as MSRA, Detectron2, OpenMMLab and torchvision name it.
_CLASSIFIER = re.compile(r"(stem\.|head\.)?(fc\d*|linear)\.(weight|bias)")
# Where networks for other tasks keep their backbone: nowhere special, OpenMMLab, torchvision's
# and Detectron2's segmentors, segmentation_models.pytorch, Detectron2's feature pyramids.
_PREFIXES = ("", "backbone.", "encoder.", "backbone.bottom_up.")
# A beginning of a key -> the network that it belongs to.
_FOREIGN = {
    "patch_embed": "a vision transformer",
    "features.0.": "a VGG, MobileNet, DenseNet or EfficientNet",
    "downsample_layers.": "a ConvNeXt",
    "transition1.": "an HRNet",
    "embedder.": "a ResNet of Hugging Face's transformers",
}


@dataclass(frozen=True)
class Backbone:
    """A ResNet found in a state dict.

    Attributes:
        format: one of :data:`FORMATS`.
        state: in Detectron2's names, without prefix, in float32.
        prefix: of the backbone's keys in the file.
        left_out: top-level modules of the file that are not part of the backbone.
    """

    format: str
    state: dict[str, Tensor]
    prefix: str
    left_out: tuple[str, ...]


def recognize(state: Mapping[str, Any]) -> str | None:
    """The format of a backbone's state dict by its keys; None for anything else."""
    blocks = any(k.startswith("layer1.") for k in state)
    if blocks and "stem.0.weight" in state:
        return "v1c"
    if blocks and "conv1.weight" in state:
        return "deep stem" if "conv2.weight" in state else "torchvision"
    if "stem.conv1.weight" in state and any(k.startswith("res2.") for k in state):
        return "detectron2"
    return None


def _refuse_resnet_d(state: Mapping[str, Tensor]) -> None:
    pooled = any(
        re.fullmatch(r"layer\d\.0\.downsample\.1\.weight", k) and v.ndim == 4
        for k, v in state.items()
    )
    if pooled or "conv1.0.weight" in state:
        raise ValueError(
            "a ResNet-D (timm's resnet50d, OpenMMLab's ResNetV1d): its shortcuts pool before the "
            "convolution, which this backbone does not do; use a plain ResNet such as "
            "torchvision's resnet50, or OpenMMLab's ResNetV1c"
        )


def find_backbone(state: Mapping[str, Tensor]) -> Backbone | None:
    """The ResNet in a state dict of a classifier, a segmentor or a detector; None without one.

    Raises:
        ValueError: for a ResNet that differs from the one here, naming its keys or its format.
    """
    if any(key.startswith("sem_seg_head.") for key in state):
        return None  # a whole segmentor of Detectron2's kind
    for prefix in _PREFIXES:
        inside = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        _refuse_resnet_d(inside)
        file_format = recognize(inside)
        if file_format:
            others = [key for key in state if not key.startswith(prefix)]
            left_out = sorted({key.split(".")[0] for key in others})
            converted = convert_names(inside, file_format)
            return Backbone(file_format, converted, prefix, tuple(left_out))
    return None


def describe_foreign(state: Mapping[str, Any]) -> str:
    """What a state dict without a ResNet probably is, with some of its keys."""
    some = ", ".join(list(state)[:3])
    for start, name in _FOREIGN.items():
        if any(re.search(rf"(^|\.){re.escape(start)}", key) for key in state):
            return f"the weights of {name} (keys such as {some})"
    return f"keys such as {some}"


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
    """Rename a backbone to Detectron2's names, in float32; a classifier is dropped.

    Raises:
        ValueError: naming keys that are not part of a ResNet.
    """
    converted = {}
    unknown = []
    for key, value in state.items():
        if _CLASSIFIER.fullmatch(key):
            continue
        name = _our_name(key, file_format)
        if name is None:
            unknown.append(key)
        else:
            converted[name] = value.float() if value.is_floating_point() else value
    if unknown:
        raise ValueError(f"not keys of a {file_format} ResNet: {', '.join(unknown[:5])}")
    return converted
