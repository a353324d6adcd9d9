"""What a segmentor predicts for one image.

Shape shorthand: M classes, h x w scores, H x W output pixels.
"""

from dataclasses import dataclass
from enum import Enum

from torch import Tensor

from cdgcnet.modeling.postprocessing import ResizeGeometry


class PredictionKind(str, Enum):
    """The predictions that one pass through the network can make."""

    REFINED = "refined"  # the final prediction
    COARSE = "coarse"  # before the graph
    ORACLE = "oracle"  # refined with the ground truth as the graph's classes

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class ScorePrediction:
    """Scores of one image at the resolution at which the network made them.

    Attributes:
        scores: (M, h, w) per kind; always the refined ones.
        logits: True for logits at stride 8, False for probabilities at the size of the network's
            input, averaged over windows.
        sizes: how the scores are resized to the output.
        node_counts: (M,) int64 nodes of the graph, summed over windows; None without a
            class-wise graph.
    """

    scores: dict[PredictionKind, Tensor]
    logits: bool
    sizes: ResizeGeometry
    node_counts: Tensor | None = None


@dataclass(frozen=True)
class LabelPrediction:
    """Label maps of one image, as ``predict_labels`` returns them.

    Attributes:
        labels: (H, W) uint8 per kind; always the refined ones.
        node_counts: as in :class:`ScorePrediction`.
    """

    labels: dict[PredictionKind, Tensor]
    node_counts: Tensor | None = None
