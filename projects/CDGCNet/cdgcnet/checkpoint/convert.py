"""Converts a backbone file of any known format and records where it comes from."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from cdgcnet.checkpoint.completeness import check_complete
from cdgcnet.checkpoint.deepening import deepen_resnet50_to_101
from cdgcnet.checkpoint.formats import describe_foreign, find_backbone
from cdgcnet.checkpoint.provenance import RGB_MEAN, RGB_STD, Provenance
from cdgcnet.checkpoint.reading import name_of, read_weights


def check_pixels(mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
    """Refuse statistics that are not of pixels from 0 to 255.

    Raises:
        ValueError: naming the option, the values and what was expected.
    """
    for name, values, low in (("--mean", mean, 0.0), ("--std", std, 1.0)):
        if values is None:
            continue
        of_unit = name == "--mean" and all(0 < v < 1 for v in values)  # 0.485 0.456 0.406
        if of_unit or not all(low <= v <= 255 for v in values):
            raise ValueError(
                f"{name} is {' '.join(f'{v:g}' for v in values)}; expected numbers from {low:g} to "
                "255, for pixels from 0 to 255 (torchvision's 0.485 is 123.675 here)"
            )


def convert_file(
    path: Path,
    *,
    channel_order: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    stride_in_1x1: bool = False,
    grow: bool = False,
) -> tuple[dict[str, Tensor], Provenance]:
    """A backbone file in Detectron2's names, without prefix, and where it is from.

    Arguments state what a file does not: their defaults hold for all published files that the
    package's table lists. What a converted file states about itself is kept.

    Args:
        path: of any of :data:`.formats.FORMATS`.
        channel_order: "RGB" or "BGR"; RGB if None.
        mean, std: per channel in that order; ImageNet's if None.
        stride_in_1x1: whether the stride is in the first 1x1 convolution (MSRA, Caffe).
        grow: turn a ResNet-50 into a ResNet-101.

    Raises:
        FileNotFoundError, ValueError: naming the file and what is wrong with it, such as arguments
            that contradict what it states.
    """
    check_pixels(mean, std)
    file = read_weights(path)
    try:
        backbone = find_backbone(file.state)
        if backbone is None and any(k.startswith("sem_seg_head.") for k in file.state):
            raise ValueError("a checkpoint of a segmentor; MODEL.WEIGHTS takes it as it is")
        if backbone is None:
            raise ValueError(
                "not the state dict of a ResNet backbone (expected keys like conv1.weight, "
                "layer1.0.conv1.weight or stem.conv1.weight, res2.0.conv1.weight); found "
                f"{describe_foreign(file.state)}"
            )
        converted = backbone.state
        depth, stem = check_complete(converted)
        if stride_in_1x1 and depth < 50:
            raise ValueError(f"--stride-in-1x1: a ResNet-{depth} has no 1x1 convolutions in a row")
        turn = -1 if channel_order == "BGR" else 1
        provenance = Provenance(
            source=name_of(path),
            format=backbone.format,
            depth=depth,
            stem=stem,
            channel_order=channel_order or "RGB",
            mean=tuple(mean or RGB_MEAN[::turn]),
            std=tuple(std or RGB_STD[::turn]),
            stride_in="1x1" if stride_in_1x1 else "3x3",
        )
        if "provenance" in file.extra:
            stated = {
                "channel_order": channel_order is not None,
                "mean": mean is not None,
                "std": std is not None,
                "stride_in": stride_in_1x1,
            }
            given = {key: getattr(provenance, key) for key, said in stated.items() if said}
            provenance = _as_stored(file.extra["provenance"], given)
        if grow:
            converted = deepen_resnet50_to_101(converted)
            provenance = replace(provenance, depth=101, grown_from=depth)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return converted, provenance


def _as_stored(stored: Any, given: dict[str, Any]) -> Provenance:
    """The provenance that a file states.

    Args:
        stored: the entry of the file.
        given: what the arguments state instead, by attribute.

    Raises:
        ValueError: if it is not readable, or the arguments contradict it.
    """
    try:
        found = Provenance.from_stored(stored)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"its provenance is not readable ({error})") from error
    for key, value in given.items():
        if value != getattr(found, key):
            raise ValueError(
                f"it states {key} {getattr(found, key)}, the options say {value}; leave them out, "
                "or convert the file that it was made from"
            )
    return found
