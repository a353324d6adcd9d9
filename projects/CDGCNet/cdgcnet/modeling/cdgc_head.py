"""The semantic segmentation head: context, coarse prediction, class-wise graph, refinement.

Shape shorthand: B images, C channels (CHANNELS), M classes, h x w feature map at stride 8.

    res4 -> auxiliary head -> auxiliary logits                            gamma * CE
    res5 -> ASPP or nothing -> reduce -> X -> coarse classifier -> P      alpha * CE
    X, P (and targets in training) -> CDGC -> X̂;  [X; X̂] or X + X̂ -> R    beta * OHEM

A module of :mod:`cdgcnet.modeling.context_modules` can replace the graph.
"""

from functools import partial

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ASPP, ShapeSpec, get_norm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from cdgc import CDGCModule, NodeSet, check_labels, class_map, resize_targets
from cdgc.validation import check_choice
from cdgcnet.modeling.context_modules import build_context_module
from cdgcnet.modeling.head_losses import HeadLosses
from cdgcnet.modeling.layers import conv_norm_relu
from cdgcnet.modeling.predictions import HeadOutput


def build_graph(cfg: CfgNode) -> CDGCModule:
    """The graph module that ``cfg.MODEL.CDGC`` describes."""
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
        receivers=cdgc.RECEIVERS,
        message_weights=cdgc.MESSAGE_WEIGHTS,
        softmax=cdgc.SOFTMAX,
        heads=cdgc.HEADS if cdgc.SOFTMAX == "image" else 1,
        distance_bias=cdgc.DISTANCE_BIAS and cdgc.SOFTMAX == "image",
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


def log_node_fractions(nodes: NodeSet | None, period: int = 20) -> None:
    """Write the fractions of easy positive, hard positive and hard negative nodes to the storage.

    Only every ``period`` iterations, like Detectron2's writers, because reading the counts waits
    for the device. Does nothing outside a training loop.
    """
    if nodes is None:
        return
    try:
        storage = get_event_storage()
    except AssertionError:  # how Detectron2 reports that no training loop is running
        return
    if storage.iter and (storage.iter + 1) % period:  # log the first iteration too
        return
    counts = {
        "easy_positive": nodes.easy_positive,
        "hard_positive": nodes.hard_positive,
        "hard_negative": nodes.hard_negative,
    }
    total = max(len(nodes.pixel), 1)
    for name, count in counts.items():
        if count is not None:  # None: selected without ground truth
            storage.put_scalar(f"nodes/{name}", float(count.sum()) / total, smoothing_hint=False)


def _classifier(channels: int, num_classes: int, dropout: float) -> nn.Sequential:
    # PyTorch's default initialization: with the customary sigma of 0.01 almost no gradient reaches
    # the backbone at first, and a short schedule never learns the rare classes.
    conv = nn.Conv2d(channels, num_classes, kernel_size=1)
    return nn.Sequential(nn.Dropout2d(dropout), conv)


def _features(shapes: dict[str, ShapeSpec], names: list[str]) -> dict[str, ShapeSpec]:
    missing = [name for name in names if name not in shapes]
    if missing:
        offered = ", ".join(
            f"{name} ({shape.channels} channels, stride {shape.stride})"
            for name, shape in shapes.items()
            if name != "image"
        )
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.IN_FEATURES is {list(names)}, but the backbone has the features "
            f"{offered}; name two of them, first the auxiliary, then the main one"
        )
    return {name: shapes[name] for name in names}


def _refuse_tracing() -> None:
    if torch.jit.is_tracing():
        raise RuntimeError(
            "torch.jit.trace would record the nodes and sizes of the example image and return "
            "wrong predictions for any other. Export the network with `cdgcnet export` instead"
        )


def _check_options(
    fusion: str,
    context: str,
    graph: nn.Module | None,
    context_module: nn.Module | None,
    input_shape: dict[str, ShapeSpec],
) -> None:
    check_choice("fusion", fusion, ("concat", "sum"))
    check_choice("context", context, ("aspp", "none"))
    if graph is not None and context_module is not None:
        raise ValueError(
            "a context module replaces the graph; got both a graph and "
            f"{type(context_module).__name__}"
        )
    if len(input_shape) != 2:
        raise ValueError(f"expected two input features (auxiliary, main), got {list(input_shape)}")


@SEM_SEG_HEADS_REGISTRY.register()
class CDGCNetHead(nn.Module):
    """Coarse-to-fine head of CDGCNet (Fig. 2, Eq. 5).

    Follows Detectron2's contract for semantic segmentation heads: ``(None, losses)`` in training
    and ``(logits, {})`` in evaluation. The logits have the size of the input image if the backbone
    returns its input as the feature "image" (see :mod:`cdgcnet.modeling.backbone`), otherwise the
    size of the feature map times its stride.

    Args:
        input_shape: shapes of the two features used, first the auxiliary, then the main one.
        num_classes: M.
        losses: no auxiliary head is built if its weight is 0 there.
        channels: C.
        graph: refines X, given the coarse logits.
        context_module: replaces the graph; called with X and the coarse logits. With neither
            of them, this is the basic network.
        fusion: "concat" or "sum" of X and X̂ (Table 2).
        fuse_conv: whether a 1x1 conv-norm-ReLU precedes the last classifier (not in the
            paper).
        context: "aspp", or "none" to reduce res5 directly.
        aspp_dilations, aspp_channels: dilations and width of the ASPP.
        aux_channels: width of the auxiliary head.
        norm: Detectron2 norm name.
        dropout: rate of the dropout before each classifier.

    Raises:
        ValueError: for a value other than those listed, for a graph together with a context
            module, or unless there are two input features.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        num_classes: int,
        losses: HeadLosses,
        channels: int = 256,
        graph: CDGCModule | None = None,
        context_module: nn.Module | None = None,
        fusion: str = "concat",
        fuse_conv: bool = False,
        context: str = "aspp",
        aspp_dilations: list[int] | tuple[int, ...] = (12, 24, 36),
        aspp_channels: int = 256,
        aux_channels: int = 256,
        norm: str = "BN",
        dropout: float = 0.1,
    ):
        super().__init__()
        _check_options(fusion, context, graph, context_module, input_shape)
        (self.aux_feature, aux_shape), (self.main_feature, main_shape) = input_shape.items()
        self.stride = main_shape.stride
        self.fusion = fusion
        self.losses = losses

        width = main_shape.channels
        self.context: nn.Module = nn.Identity()
        if context == "aspp":
            # Global pooling: a fixed pooling window would not fit most test-time scales.
            self.context = ASPP(
                width, aspp_channels, list(aspp_dilations), norm=norm, activation=F.relu
            )
            width = aspp_channels
        self.reduce = conv_norm_relu(width, channels, 3, norm)
        self.coarse_predictor = _classifier(channels, num_classes, dropout)
        self.aux_head = None
        if losses.aux_weight > 0:
            self.aux_head = nn.Sequential(
                conv_norm_relu(aux_shape.channels, aux_channels, 3, norm),
                _classifier(aux_channels, num_classes, dropout),
            )
        self.graph = graph
        self.context_module = context_module
        if graph is not None or context_module is not None:
            fused = channels * (2 if fusion == "concat" else 1)
            self.fuse = conv_norm_relu(fused, channels, 1, norm) if fuse_conv else nn.Identity()
            self.refined_predictor = _classifier(
                channels if fuse_conv else fused, num_classes, dropout
            )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        """Arguments from ``cfg.MODEL.SEM_SEG_HEAD`` and ``cfg.MODEL.CDGC``."""
        head, cdgc = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.CDGC
        graph = context_module = None
        if cdgc.ENABLED and cdgc.CONTEXT_MODULE == "graph":
            graph = build_graph(cfg)
        elif cdgc.ENABLED:
            parameters = 0
            if cdgc.CONTEXT_MODULE == "pixelwise":  # it has as many parameters as the graph
                with torch.device("meta"):  # they are only counted
                    parameters = sum(p.numel() for p in build_graph(cfg).parameters())
            context_module = build_context_module(
                cdgc.CONTEXT_MODULE, cdgc.CHANNELS, norm=cdgc.NORM, parameters=parameters
            )
        return {
            "input_shape": _features(input_shape, head.IN_FEATURES),
            "num_classes": head.NUM_CLASSES,
            "losses": HeadLosses.from_config(cfg),
            "channels": cdgc.CHANNELS,
            "graph": graph,
            "context_module": context_module,
            "fusion": cdgc.FUSION,
            "fuse_conv": cdgc.FUSE_CONV,
            "context": cdgc.CONTEXT,
            "aspp_dilations": head.ASPP_DILATIONS,
            "aspp_channels": head.ASPP_CHANNELS,
            "aux_channels": cdgc.AUX_CHANNELS,
            "norm": head.NORM,
            "dropout": cdgc.DROPOUT,
        }

    @property
    def align_corners(self) -> bool:
        """How logits are resized: in inference as in the losses they were trained with."""
        return self.losses.align_corners

    @property
    def ignore_value(self) -> int:
        """The ignore label, by the name that Detectron2's ``SemanticSegmentor`` expects."""
        return self.losses.ignore_label

    def predict_logits(
        self,
        features: dict[str, Tensor],
        targets: Tensor | None = None,
        valid: Tensor | None = None,
        oracle: Tensor | None = None,
    ) -> HeadOutput:
        """All predictions at the resolution of the feature map.

        Args:
            features: backbone features, (B, channels, h, w) each.
            targets: (B, H, W) labels; used in training only, to choose the graph's nodes.
            valid: (B, h, w) bool, False where a node is batch padding.
            oracle: (B, H, W) labels; the graph is applied a second time with these classes, or
                the coarse ones where a label is ignored. No effect without a class-wise graph.

        Raises:
            RuntimeError: under ``torch.jit.trace``.
        """
        _refuse_tracing()
        x = self.reduce(self.context(features[self.main_feature]))  # (B, C, h, w)
        coarse = self.coarse_predictor(x)  # (B, M, h, w)
        aux = None
        if self.training and self.aux_head is not None:
            aux = self.aux_head(features[self.aux_feature])
        if self.context_module is not None:
            refined = self.refined_logits(x, self.context_module(x, coarse))
            return HeadOutput(refined, coarse, aux)
        if self.graph is None:
            return HeadOutput(coarse, aux=aux)
        nodes = self.graph.select(coarse, targets, valid=valid)
        refined = self.refined_logits(x, self.graph.propagate(x, nodes))
        if self.graph.scope != "class":
            return HeadOutput(refined, coarse, aux)
        oracle_logits = None
        if oracle is not None:
            oracle_nodes = self._oracle_nodes(coarse, oracle, valid)
            oracle_logits = self.refined_logits(x, self.graph.propagate(x, oracle_nodes))
        return HeadOutput(refined, coarse, aux, nodes, oracle_logits)

    def refined_logits(self, x: Tensor, refined: Tensor) -> Tensor:
        """Logits (B, M, h, w) of X and X̂, both (B, C, h, w)."""
        x = torch.cat([x, refined], dim=1) if self.fusion == "concat" else x + refined
        return self.refined_predictor(self.fuse(x))

    def _oracle_nodes(self, coarse: Tensor, labels: Tensor, valid: Tensor | None) -> NodeSet:
        assert self.graph is not None
        size = (int(coarse.shape[2]), int(coarse.shape[3]))
        targets = resize_targets(labels, size, self.align_corners).long()
        check_labels(targets, coarse.shape[1], self.ignore_value, "oracle label")
        classes = torch.where(targets == self.ignore_value, class_map(coarse), targets)
        # The margin is so large that soft nodes have weights of exactly 1 and 0.
        logits = 1e4 * F.one_hot(classes, coarse.shape[1]).permute(0, 3, 1, 2).to(coarse.dtype)
        return self.graph.select(logits, valid=valid)

    def forward(
        self, features: dict[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Detectron2's contract: ``(None, losses)`` in training, ``(logits, {})`` otherwise.

        Evaluation ignores the targets, which Detectron2's ``SemanticSegmentor`` passes there too.
        """
        if self.training:
            if targets is None:
                raise ValueError('training needs ground truth: no "sem_seg" in the batch')
            output = self.predict_logits(features, targets)
            log_node_fractions(output.nodes)
            return None, self.losses(output, targets)
        output = self.predict_logits(features)
        if "image" in features:
            size = tuple(features["image"].shape[-2:])
        else:
            size = tuple(s * self.stride for s in output.refined.shape[-2:])
        logits = F.interpolate(
            output.refined, size=size, mode="bilinear", align_corners=self.align_corners
        )
        return logits, {}
