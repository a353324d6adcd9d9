"""ImageNet ResNets of other projects in Detectron2's names, complete or refused.

| format | stem | published by |
|---|---|---|
| torchvision | 7x7, 64 | torchvision's ResNet-18 to -152 |
| deep stem | three 3x3, 64-64-128 | MIT's semantic-segmentation-pytorch, hszhao's semseg |
| v1c | three 3x3, 32-32-64 | OpenMMLab |
| detectron2 | either | Detectron2, R-52 and R-103 of its DeepLab among them |
"""

import collections
import hashlib
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.resnet import BasicStem
from torch import Tensor

from .backbone import BLOCKS, build_dilated_resnet_backbone
from .config import add_cdgcnet_config

RGB_MEAN, RGB_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
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


@dataclass(frozen=True)
class Provenance:
    """What a backbone was trained with, which a config must repeat.

    Attributes:
        source: file name and the beginning of its sha256.
        format: one of :data:`FORMATS`.
        depth: of the ResNet.
        stem: "7x7 64", or widths of three 3x3 convolutions, "32-32-64".
        channel_order: "RGB" or "BGR".
        mean, std: per channel in that order, for values 0 to 255.
        stride_in: convolution of a stage's first block that has its stride, "1x1" or "3x3".
        grown_from: depth of the network that zero blocks were added to; 0 for none.
    """

    source: str
    format: str
    depth: int
    stem: str
    channel_order: str = "RGB"
    mean: tuple[float, ...] = RGB_MEAN
    std: tuple[float, ...] = RGB_STD
    stride_in: str = "3x3"
    grown_from: int = 0

    def line(self) -> str:
        """All of it in one line."""
        grown = f" grown from ResNet-{self.grown_from} by zero blocks" if self.grown_from else ""
        mean, std = (", ".join(f"{v:g}" for v in values) for values in (self.mean, self.std))
        pixels = f"{self.channel_order}, mean {mean}, std {std}"
        return (
            f"ResNet-{self.depth}{grown}, {self.format} format, from {self.source}; stem "
            f"{self.stem}; {pixels}; stride in the {self.stride_in} convolution"
        )

    def stored(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_stored(cls, values: Mapping[str, Any]) -> "Provenance":
        """The inverse of :meth:`stored`.

        Raises:
            TypeError: for other keys.
        """
        plain: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return cls(**plain)

    def check(self, model: Any) -> None:
        """Refuse a segmentor that is configured for other weights.

        Raises:
            ValueError: naming the keys, what they make and what the weights need.
        """
        problems = []
        found = stem_of(model.backbone)
        if found != self.stem:
            problems.append(f"MODEL.RESNETS.STEM_{{TYPE,OUT_CHANNELS}} make the stem {found}")
        for key, stated in (("mean", self.mean), ("std", self.std)):
            ours = getattr(model, f"pixel_{key}").flatten().tolist()
            if any(abs(a - b) > 0.5 for a, b in zip(ours, stated, strict=True)):
                problems.append(
                    f"MODEL.PIXEL_{key.upper()} is {[round(v, 3) for v in ours]}"
                    + (" (INPUT.FORMAT too?)" if abs(ours[0] - stated[-1]) < 0.5 else "")
                )
        stride = stride_of(model.backbone)
        if stride != self.stride_in:
            problems.append(f"MODEL.RESNETS.STRIDE_IN_1X1 puts the stride in the {stride}")
        if problems:
            raise ValueError(
                f"the weights do not fit the config: {'; '.join(problems)}. They are of a "
                f"{self.line()}"
            )


def stem_of(backbone: Any) -> str:
    """The stem of a ResNet of Detectron2 as :attr:`Provenance.stem` names it."""
    stem = backbone.stem
    if isinstance(stem, BasicStem):
        return f"7x7 {stem.conv1.out_channels}"
    return "-".join(str(c.out_channels) for c in (stem.conv1, stem.conv2, stem.conv3))


def stride_of(backbone: Any) -> str:
    """ "1x1" or "3x3", the convolution of res3's first block that has its stride."""
    block = backbone.res3[0]
    first = block.conv1
    return "1x1" if first.kernel_size == (1, 1) and first.stride != (1, 1) else "3x3"


# ---------------------------------------------------------------- reading
class _ArraysOnly(pickle.Unpickler):
    """Unpickles NumPy arrays in containers, and runs nothing else."""

    _ALLOWED = (
        ("collections", "OrderedDict"),
        ("_codecs", "encode"),
        *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
        *((f"numpy.{core}.multiarray", "scalar") for core in ("core", "_core")),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        if module == "collections":
            return collections.OrderedDict
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_file(path: Path) -> dict[str, Any]:
    """The contents of a weight file; nothing in it is run.

    Raises:
        FileNotFoundError, ValueError: naming the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        if path.suffix == ".pkl":
            with path.open("rb") as file:
                loaded = _ArraysOnly(file, encoding="latin1").load()
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and pickle raise many types for files of other kinds
        raise ValueError(f"{path}: not a file of tensors ({error})") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path}: expected a state dict, found {type(loaded).__name__}")
    return loaded


def unwrap(loaded: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict in a file's contents: out of "state_dict" or "model", without prefixes.

    Raises:
        ValueError: naming a value that is no tensor.
    """
    for name in ("state_dict", "model"):
        if isinstance(loaded.get(name), Mapping):
            loaded = loaded[name]
            break
    state = dict(loaded)
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


# ---------------------------------------------------------------- names
def recognise(state: Mapping[str, Any]) -> str | None:
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


# ---------------------------------------------------------------- completeness
def depth_of(state: Mapping[str, Tensor]) -> int:
    """The depth of a ResNet in Detectron2's names by its blocks.

    Raises:
        ValueError: for block counts that no ResNet has.
    """
    counts = tuple(
        len({key.split(".")[1] for key in state if key.startswith(f"res{stage}.")})
        for stage in (2, 3, 4, 5)
    )
    bottleneck = any(key.startswith("res2.0.conv3.") for key in state)
    for depth, blocks in BLOCKS.items():
        if counts == blocks and (depth >= 50) == bottleneck:
            return depth
    raise ValueError(f"no ResNet has {counts} blocks in its stages")


@cache
def expected_shapes(depth: int, deep_stem: bool, stem_channels: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a ResNet's parameters and buffers."""
    cfg = get_cfg()
    add_cdgcnet_config(cfg)
    res = cfg.MODEL.RESNETS
    res.DEPTH, res.NORM = depth, "BN"
    res.STEM_TYPE = "deeplab" if deep_stem else "basic"
    res.STEM_OUT_CHANNELS = stem_channels
    res.RES2_OUT_CHANNELS = 64 if depth < 50 else 256
    with torch.device("meta"):
        backbone = build_dilated_resnet_backbone(cfg, ShapeSpec(channels=3))
    return {key: tuple(value.shape) for key, value in backbone.state_dict().items()}


def check_complete(state: Mapping[str, Tensor]) -> tuple[int, str]:
    """Depth and stem of a whole ResNet in Detectron2's names.

    Raises:
        ValueError: naming keys that are missing, too many or of another shape.
    """
    if not any(key.endswith("running_mean") for key in state):
        raise ValueError(
            "no running_mean: the batch norms were folded away, as in Detectron2's MSRA files; use "
            "torchvision's weights"
        )
    depth = depth_of(state)
    deep = "stem.conv3.weight" in state
    last = state.get("stem.conv3.weight" if deep else "stem.conv1.weight")
    channels = 64 if last is None else len(last)
    expected = expected_shapes(depth, deep, channels)
    problems = [
        f"{key}: not in the file"
        for key in expected
        if key not in state and not key.endswith("num_batches_tracked")
    ]
    problems += [f"{key}: not in a ResNet-{depth}" for key in state if key not in expected]
    problems += [
        f"{key}: file has shape {tuple(state[key].shape)}, a ResNet-{depth} {shape}"
        for key, shape in expected.items()
        if key in state and tuple(state[key].shape) != shape
    ]
    if problems:
        more = f"\n  and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ValueError(
            f"not a whole ResNet-{depth} ({len(problems)} keys):\n  "
            + "\n  ".join(problems[:8])
            + more
        )
    if deep:
        return depth, "-".join(str(len(state[f"stem.conv{i}.weight"])) for i in (1, 2, 3))
    return depth, f"7x7 {channels}"


# ---------------------------------------------------------------- growth
def grow_to_101(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """ResNet-50 -> ResNet-101 that computes the same: 17 more blocks at the end of res4.

    Their last norm has weight and bias zero, so a block is relu(x + 0) = x for the x >= 0 that it
    gets; training wakes them up. It is no ResNet-101 trained on ImageNet, and every number that
    uses it must say so.

    Args:
        state: in Detectron2's names.

    Raises:
        ValueError: for another depth.
    """
    depth, _ = check_complete(state)
    if depth != 50:
        raise ValueError(f"a ResNet-50 can be grown to a ResNet-101, this is a ResNet-{depth}")
    grown = dict(state)
    generator = torch.Generator().manual_seed(0)
    last = {key: value for key, value in state.items() if key.startswith("res4.5.")}
    for block in range(6, 23):
        for key, value in last.items():
            new = torch.zeros_like(value)
            if key.endswith((".norm.running_var", ".norm.weight")):
                new.fill_(0.0 if key.endswith("conv3.norm.weight") else 1.0)
            elif ".norm." not in key:  # He's, as Detectron2 starts its convolutions
                fan_out = value.shape[0] * value[0, 0].numel()
                new.normal_(std=(2 / fan_out) ** 0.5, generator=generator)
            grown[key.replace("res4.5.", f"res4.{block}.")] = new
    return grown


# ---------------------------------------------------------------- files
def name_of(path: Path) -> str:
    """File name and the beginning of its sha256."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return f"{path.name} (sha256 {digest.hexdigest()[:12]})"


def convert_file(
    path: Path,
    *,
    channel_order: str = "RGB",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    stride_in_1x1: bool = False,
    grow: bool = False,
) -> tuple[dict[str, Tensor], Provenance]:
    """A backbone file in Detectron2's names, without prefix, and where it is from.

    What a file does not tell is an argument: the defaults are those of all published files that
    the table above lists.

    Args:
        path: of any of :data:`FORMATS`.
        channel_order: "RGB" or "BGR".
        mean, std: per channel in that order; ImageNet's if None.
        stride_in_1x1: whether the stride is in the first 1x1 convolution (MSRA, Caffe).
        grow: make a ResNet-101 of a ResNet-50.

    Raises:
        FileNotFoundError, ValueError: naming the file and what is wrong with it.
    """
    loaded = read_file(path)
    try:
        state = unwrap(loaded)
        file_format = recognise(state)
        if file_format is None:
            some = ", ".join(list(state)[:3]) or "none"
            raise ValueError(
                "not the state dict of a ResNet backbone (expected keys like conv1.weight, "
                f"layer1.0.conv1.weight or stem.conv1.weight, res2.0.conv1.weight; found {some})"
            )
        converted = convert_names(state, file_format)
        depth, stem = check_complete(converted)
        if stride_in_1x1 and depth < 50:
            raise ValueError(f"--stride-in-1x1: a ResNet-{depth} has no 1x1 convolutions in a row")
        if grow:
            converted = grow_to_101(converted)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    turn = -1 if channel_order == "BGR" else 1
    return converted, Provenance(
        source=name_of(path),
        format=file_format,
        depth=101 if grow else depth,
        stem=stem,
        channel_order=channel_order,
        mean=tuple(mean or RGB_MEAN[::turn]),
        std=tuple(std or RGB_STD[::turn]),
        stride_in="1x1" if stride_in_1x1 else "3x3",
        grown_from=depth if grow else 0,
    )
