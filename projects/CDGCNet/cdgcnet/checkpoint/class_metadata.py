"""The classes of a model: their names and colors in config and checkpoint, and its tensors."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model


def class_metadata(cfg: CfgNode) -> dict[str, list]:
    """What a checkpoint stores of MODEL.CLASS_NAMES and CLASS_COLORS; {} where they are empty."""
    values = {"class_names": cfg.MODEL.CLASS_NAMES, "class_colors": cfg.MODEL.CLASS_COLORS}
    return {key: [*value] for key, value in values.items() if len(value)}


def stored_classes(checkpoint: Mapping[str, Any]) -> tuple[list[str], list[list[int]]]:
    """Names and colors of the classes in a checkpoint; empty lists where it has none.

    Raises:
        ValueError: for names that are not texts or colors that are not [R, G, B].
    """
    names, colors = checkpoint.get("class_names", []), checkpoint.get("class_colors", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("class_names in the file is not a list of texts")
    if not isinstance(colors, list) or not all(
        isinstance(c, (list, tuple))
        and len(c) == 3
        and all(type(v) is int and 0 <= v <= 255 for v in c)
        for c in colors
    ):
        raise ValueError("class_colors in the file is not a list of [R, G, B]")
    return names, [list(color) for color in colors]


def class_difference(found: Sequence[str], expected: Sequence[str]) -> str | None:
    """How the classes of a file differ from the config's; None if they do not, or are unknown."""
    if not len(found) or not len(expected) or list(found) == list(expected):
        return None
    if len(found) != len(expected):
        return f"the file has {len(found)} classes, the config {len(expected)}"
    i = next(i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b)
    return f"class {i} is {found[i]!r} in the file and {expected[i]!r} in the config"


def check_same_classes(found: Sequence[str], expected: Sequence[str], *, training: bool) -> None:
    """Refuse weights of other classes than the config's; unknown classes pass.

    Raises:
        ValueError: naming the first class that differs and what to do about it.
    """
    if difference := class_difference(found, expected):
        advice = (
            "To fine-tune them on the config's classes, set MODEL.WEIGHTS_PARTIAL True"
            if training
            else "Take the config that they were trained with, config.yaml beside them, or weights "
            "that were trained with this one"
        )
        raise ValueError(f"the weights were trained on other classes: {difference}. {advice}")


def class_dependent_tensors(cfg: CfgNode) -> frozenset[str]:
    """Names of the parameters and buffers whose shape depends on the number of classes."""

    def shapes(classes: int) -> dict[str, torch.Size]:
        other = cfg.clone()
        other.defrost()
        other.MODEL.DEVICE = "meta"  # shapes alone
        other.MODEL.SEM_SEG_HEAD.NUM_CLASSES = classes
        other.MODEL.CDGC.LOSS.CLASS_WEIGHTS = []
        with torch.device("meta"):
            return {name: value.shape for name, value in build_model(other).state_dict().items()}

    classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    ours, more = shapes(classes), shapes(classes + 1)
    return frozenset(name for name, shape in ours.items() if more.get(name) != shape)
