"""How every head of a comparison is trained."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Schedule:
    """How every head is trained.

    Attributes:
        steps: of AdamW.
        batch: crops per step.
        crop: side of a crop in nodes.
        learning_rate: the peak of a one-cycle schedule.
        weight_decay: decoupled.
        width: C, channels of X, of the refined features and of the ASPP.
        aspp_dilations: in nodes.
        precision: "fp32", or "bf16" for autocast.
    """

    steps: int = 1000
    batch: int = 12
    crop: int = 20
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    width: int = 128
    aspp_dilations: tuple[int, int, int] = (3, 6, 9)
    precision: str = "fp32"

    def describe(self) -> dict[str, Any]:
        return {**asdict(self), "aspp_dilations": list(self.aspp_dilations)}
