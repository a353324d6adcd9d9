"""What a comparison can be asked for, with its defaults; imports nothing heavy."""

from dataclasses import asdict, dataclass
from pathlib import Path
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


@dataclass(frozen=True)
class Options:
    """What is compared, on what, and how it is run.

    Attributes:
        heads, contexts: separated by commas, see :func:`cdgcnet.comparison.rows.split_heads`.
        seeds: 1 to this.
        holdout: share of the training images that is scored instead of DATASETS.TEST; 0: none.
        train_images, eval_images: at most; 0 for all.
        shorter_side: of the backbone's input, in pixels.
        channels: principal components that are kept of the features.
        output: folder of records and table; None: output/compare/DATASET.
        cache: folder of the features; None: "features" below the output.
        jobs: rows side by side; None: one per CPU, or one on a GPU.
        time_budget: minutes after which no row may end that has not been started; None: no limit.
        command: kept in the records.
    """

    heads: str = "plain,pixelwise,aspp,non_local,danet,ocr,psp,graph"
    contexts: str = "none,aspp"
    seeds: int = 3
    holdout: float = 0.0
    train_images: int = 1500
    eval_images: int = 0
    shorter_side: int = 160
    channels: int = 192
    output: Path | None = None
    cache: Path | None = None
    jobs: int | None = None
    time_budget: float | None = None
    command: str = ""
