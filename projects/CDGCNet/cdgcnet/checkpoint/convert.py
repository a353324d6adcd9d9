"""Converts a backbone file of any known format and records where it comes from."""

from collections.abc import Sequence
from pathlib import Path

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
    channel_order: str = "RGB",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    stride_in_1x1: bool = False,
    grow: bool = False,
) -> tuple[dict[str, Tensor], Provenance]:
    """A backbone file in Detectron2's names, without prefix, and where it is from.

    Arguments state what a file cannot: their defaults hold for all published files that the
    package's table lists.

    Args:
        path: of any of :data:`.formats.FORMATS`.
        channel_order: "RGB" or "BGR".
        mean, std: per channel in that order; ImageNet's if None.
        stride_in_1x1: whether the stride is in the first 1x1 convolution (MSRA, Caffe).
        grow: turn a ResNet-50 into a ResNet-101.

    Raises:
        FileNotFoundError, ValueError: naming the file and what is wrong with it.
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
        if grow:
            converted = deepen_resnet50_to_101(converted)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    turn = -1 if channel_order == "BGR" else 1
    return converted, Provenance(
        source=name_of(path),
        format=backbone.format,
        depth=101 if grow else depth,
        stem=stem,
        channel_order=channel_order,
        mean=tuple(mean or RGB_MEAN[::turn]),
        std=tuple(std or RGB_STD[::turn]),
        stride_in="1x1" if stride_in_1x1 else "3x3",
        grown_from=depth if grow else 0,
    )
