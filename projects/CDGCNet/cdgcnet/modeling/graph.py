"""The class-wise graph in Detectron2: made from a config, its nodes noted in the event storage."""

from functools import partial

from detectron2.config import CfgNode
from detectron2.layers import get_norm
from detectron2.utils.events import get_event_storage

from cdgc import CDGCModule, NodeSet


def build_graph(cfg: CfgNode) -> CDGCModule:
    """The module that ``cfg.MODEL.CDGC`` describes."""
    head, cdgc = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.CDGC
    return CDGCModule(
        cdgc.CHANNELS,
        head.NUM_CLASSES,
        nodes=cdgc.NODES,
        edges=cdgc.EDGES,
        scope=cdgc.SCOPE,
        easy_ratio=cdgc.EASY_RATIO,
        samples=cdgc.SAMPLES,
        hard_positives=cdgc.HARD_POSITIVES,
        topk=cdgc.TOPK,
        topk_weights=cdgc.TOPK_WEIGHTS,
        scale=cdgc.SCALE,
        shared_phi=cdgc.SHARED_PHI,
        norm=partial(get_norm, cdgc.NORM) if cdgc.NORM else None,
        relu=cdgc.RELU,
        ignore_label=head.IGNORE_VALUE,
        align_corners=cdgc.ALIGN_CORNERS,
        check_finite=cdgc.CHECK_FINITE,
    )


def log_node_shares(nodes: NodeSet | None, period: int = 20) -> None:
    """Shares of easy positive, hard positive and hard negative nodes, into the event storage.

    Every ``period`` iterations like Detectron2's writers, since reading the counts waits for the
    device. Does nothing outside a training loop.
    """
    if nodes is None:
        return
    parts = {
        "easy_positive": nodes.easy_positive,
        "hard_positive": nodes.hard_positive,
        "hard_negative": nodes.hard_negative,
    }
    try:
        storage = get_event_storage()
    except AssertionError:  # Detectron2's way to say that no training loop runs
        return
    if storage.iter and (storage.iter + 1) % period:  # at the start, and when writers write
        return
    total = max(len(nodes.pixel), 1)
    for name, count in parts.items():
        if count is not None:  # no ground truth, no difficulty
            storage.put_scalar(f"nodes/{name}", float(count.sum()) / total, smoothing_hint=False)
