"""The options of the graph module, and which of them go together."""

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from cdgc.attention import TOPK_WEIGHTS
from cdgc.nodes import check_options
from cdgc.validation import check_choice

EDGES = ("similarity", "uniform", "topk")
SCOPES = ("class", "image")
HARD_POSITIVES = ("nodes", "keys_only")
RECEIVERS = ("nodes", "all")
MESSAGE_WEIGHTS = ("one", "mean", "probability")
SOFTMAX = ("class", "image")

#: The graph of this project, as options of :class:`cdgc.CDGCModule`: nodes of the coarse
#: prediction, and one attention of four heads from every pixel to the nodes of all classes.
#: The defaults of :class:`cdgc.CDGCModule` itself are those of the paper.
DEFAULT_GRAPH: Mapping[str, Any] = MappingProxyType(
    {
        "nodes": "coarse",
        "receivers": "all",
        "softmax": "image",
        "heads": 4,
        "distance_bias": True,
    }
)


def check_graph_options(
    *,
    in_channels: int,
    num_classes: int,
    nodes: str,
    edges: str,
    scope: str,
    easy_ratio: float,
    samples: Collection[str],
    hard_positives: str,
    receivers: str,
    message_weights: str,
    softmax: str,
    heads: int,
    distance_bias: bool,
    topk: int,
    topk_weights: str,
    shared_phi: bool,
) -> None:
    """Check the options of :class:`cdgc.CDGCModule`, which documents them.

    Raises:
        ValueError: naming the option, its value and what it may be.
    """
    check_options(nodes, samples, easy_ratio)
    check_choice("edges", edges, EDGES)
    check_choice("scope", scope, SCOPES)
    check_choice("topk_weights", topk_weights, TOPK_WEIGHTS)
    check_choice("hard_positives", hard_positives, HARD_POSITIVES)
    check_choice("receivers", receivers, RECEIVERS)
    check_choice("message_weights", message_weights, MESSAGE_WEIGHTS)
    check_choice("softmax", softmax, SOFTMAX)
    sizes = {"in_channels": in_channels, "num_classes": num_classes, "topk": topk}
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    if heads < 1 or in_channels % heads:
        raise ValueError(f"heads must divide in_channels {in_channels}, got {heads}")
    if softmax == "class" and (heads > 1 or distance_bias):
        raise ValueError(f"heads={heads} and distance_bias={distance_bias} need softmax='image'")
    if softmax == "image":
        needed = {
            "receivers": (receivers, "all"),
            "edges": (edges, "similarity"),
            "shared_phi": (shared_phi, True),
            "message_weights": (message_weights, "one"),
        }
        for name, (value, expected) in needed.items():
            if value != expected:
                raise ValueError(f"softmax='image' needs {name}={expected!r}, got {value!r}")
        if nodes == "soft":
            raise ValueError("softmax='image' needs nodes='coarse' or 'dynamic', got 'soft'")
    if receivers == "nodes" and message_weights != "one":
        raise ValueError(f"message_weights={message_weights!r} needs receivers='all', got 'nodes'")
    if nodes == "soft" and edges != "similarity":
        raise ValueError(f"nodes='soft' needs edges='similarity', got {edges!r}")
