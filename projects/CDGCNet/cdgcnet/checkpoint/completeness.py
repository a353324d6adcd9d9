"""Whether a state dict in Detectron2's names is a whole ResNet, and which."""

from collections.abc import Mapping
from functools import cache

import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from torch import Tensor

from cdgcnet.config.defaults import add_cdgcnet_config
from cdgcnet.modeling.backbone import BLOCKS, build_dilated_resnet_backbone


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
            "no running_mean: the batch norms were folded away, as in Detectron 1's files; use "
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
