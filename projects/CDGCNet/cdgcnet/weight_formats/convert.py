"""A backbone file of any of the formats, converted, checked and with its provenance."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from .completeness import check_complete
from .files import name_of, read_file
from .growth import grow_to_101
from .names import convert_names, recognise, unwrap
from .provenance import RGB_MEAN, RGB_STD, Provenance


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
    the package's table lists.

    Args:
        path: of any of :data:`.names.FORMATS`.
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
