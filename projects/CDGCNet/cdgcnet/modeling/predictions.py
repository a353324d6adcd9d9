"""What the network predicts, from the head's logits to label maps.

Shape shorthand: B images, M classes, h x w feature map or scores, H x W output pixels.
"""

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor, nn

from cdgc import NodeSet
from cdgcnet.modeling.postprocessing import ResizeGeometry


class PredictionKind(str, Enum):
    """The predictions that a single pass through the network can make."""

    REFINED = "refined"  # the final prediction
    COARSE = "coarse"  # the prediction before the graph
    ORACLE = "oracle"  # the final prediction if the graph were given the true classes

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class HeadOutput:
    """Logits of a batch at the resolution of the feature map.

    Attributes:
        refined: (B, M, h, w) logits of the final prediction.
        coarse: (B, M, h, w) logits before the refinement; None without one.
        aux: (B, M, h, w) logits of the auxiliary head; None outside training.
        nodes: nodes of the class-wise graph; None without such a graph.
        oracle: (B, M, h, w) logits refined with the ground truth as the graph's classes; None
            unless requested.
    """

    refined: Tensor
    coarse: Tensor | None = None
    aux: Tensor | None = None
    nodes: NodeSet | None = None
    oracle: Tensor | None = None


@dataclass(frozen=True)
class ScorePrediction:
    """Scores of one image at the resolution at which they were computed.

    Attributes:
        scores: (M, h, w) for each kind, always including the refined one.
        logits: True for logits at the resolution of the feature map, False for probabilities at
            the size of the network's input, averaged over windows.
        geometry: how the scores are resized to the output.
        node_counts: (M,) int64, the number of nodes of each class, summed over windows; None
            without a class-wise graph.
    """

    scores: dict[PredictionKind, Tensor]
    logits: bool
    geometry: ResizeGeometry
    node_counts: Tensor | None = None


@dataclass(frozen=True)
class LabelPrediction:
    """Label maps of one image.

    Attributes:
        labels: (H, W) uint8 for each kind, always including the refined one.
        node_counts: as in :class:`ScorePrediction`.
    """

    labels: dict[PredictionKind, Tensor]
    node_counts: Tensor | None = None


def predict_labels(model: nn.Module, batched_inputs: list[dict]) -> list[LabelPrediction]:
    """Label maps of any semantic segmentor that follows Detectron2's contract.

    Uses the model's own ``predict_labels`` if it has one, otherwise the argmax of "sem_seg".

    Args:
        model: in evaluation mode.
        batched_inputs: dicts in Detectron2's input format.
    """
    predict = getattr(model, "predict_labels", None)
    if callable(predict):
        return predict(batched_inputs)
    return [
        LabelPrediction({PredictionKind.REFINED: output["sem_seg"].argmax(dim=0).to(torch.uint8)})
        for output in model(batched_inputs)
    ]
