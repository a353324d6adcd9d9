"""Class-wise dynamic graph convolution (Hu et al., ECCV 2020) in plain PyTorch.

This package depends on torch only. ``cdgcnet`` integrates it into Detectron2.

Example:
    >>> import torch
    >>> from cdgc import DEFAULT_GRAPH, CDGCModule
    >>> features, coarse_logits = torch.randn(2, 64, 33, 33), torch.randn(2, 19, 33, 33)
    >>> CDGCModule(64, num_classes=19, **DEFAULT_GRAPH)(features, coarse_logits).shape
    torch.Size([2, 64, 33, 33])
"""

from cdgc.attention import TOPK_WEIGHTS, segment_attention, segment_topk_attention
from cdgc.grouped_linear import class_linear
from cdgc.interpolation import resize_matrix, resize_taps
from cdgc.losses import REDUCTIONS, OhemCrossEntropyLoss, cross_entropy, ohem_cross_entropy
from cdgc.module import CDGCModule
from cdgc.nodes import NODE_MODES, SAMPLES, NodeSet, class_map, select_nodes, soft_nodes
from cdgc.options import (
    DEFAULT_GRAPH,
    EDGES,
    HARD_POSITIVES,
    MESSAGE_WEIGHTS,
    RECEIVERS,
    SCOPES,
    SOFTMAX,
)
from cdgc.propagation import SCALES
from cdgc.refinement import RefinedClassifier, refine
from cdgc.sampling_grid import resize_targets, valid_nodes
from cdgc.validation import check_labels

__all__ = [
    "DEFAULT_GRAPH",
    "EDGES",
    "HARD_POSITIVES",
    "MESSAGE_WEIGHTS",
    "NODE_MODES",
    "RECEIVERS",
    "REDUCTIONS",
    "SAMPLES",
    "SCALES",
    "SCOPES",
    "SOFTMAX",
    "TOPK_WEIGHTS",
    "CDGCModule",
    "NodeSet",
    "OhemCrossEntropyLoss",
    "RefinedClassifier",
    "check_labels",
    "class_linear",
    "class_map",
    "cross_entropy",
    "ohem_cross_entropy",
    "refine",
    "resize_matrix",
    "resize_taps",
    "resize_targets",
    "segment_attention",
    "segment_topk_attention",
    "select_nodes",
    "soft_nodes",
    "valid_nodes",
]
