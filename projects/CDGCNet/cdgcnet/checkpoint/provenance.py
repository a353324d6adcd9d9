"""What a backbone was trained with, and whether a segmentor is configured for it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from detectron2.modeling.backbone.resnet import BasicStem

RGB_MEAN, RGB_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


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


@dataclass(frozen=True)
class Provenance:
    """What a backbone was trained with, which a config must repeat.

    Attributes:
        source: file name and the beginning of its sha256.
        format: one of :data:`.formats.FORMATS`.
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
