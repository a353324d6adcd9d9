"""Class-wise dynamic graph convolution (Hu et al., ECCV 2020) in plain PyTorch.

This package imports torch and nothing else; ``cdgcnet`` next door is Detectron2 around it.
"""

from .attention import segment_attention, segment_topk_attention
from .grouped_linear import class_linear
from .interpolation import resize_matrix, resize_taps
from .losses import OhemCrossEntropyLoss, cross_entropy, ohem_cross_entropy
from .module import (
    EDGES,
    HARD_POSITIVES,
    SCALES,
    SCOPES,
    TOPK_WEIGHTS,
    CDGCModule,
)
from .nodes import (
    NODE_MODES,
    SAMPLES,
    NodeSet,
    class_map,
    select_nodes,
    soft_nodes,
)
from .sampling_grid import resize_targets, valid_nodes

__all__ = [
    "EDGES",
    "HARD_POSITIVES",
    "NODE_MODES",
    "SAMPLES",
    "SCALES",
    "SCOPES",
    "TOPK_WEIGHTS",
    "CDGCModule",
    "NodeSet",
    "OhemCrossEntropyLoss",
    "class_linear",
    "class_map",
    "cross_entropy",
    "ohem_cross_entropy",
    "resize_matrix",
    "resize_taps",
    "resize_targets",
    "segment_attention",
    "segment_topk_attention",
    "select_nodes",
    "soft_nodes",
    "valid_nodes",
]
