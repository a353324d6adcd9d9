"""The semantic segmentation head: context, coarse prediction, class-wise graph, refinement.

Shape shorthand: B images, C channels (CHANNELS), M classes, h x w feature map at stride 8.

    res4 -> aux head -> aux logits                                        gamma * CE
    res5 -> ASPP or nothing -> reduce -> X -> coarse classifier -> P      alpha * CE
    X, P (and targets in training) -> CDGC -> X̂;  [X; X̂] or X + X̂ -> R    beta * OHEM

Another module of :mod:`cdgcnet.modeling.context_modules` can replace the graph.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ASPP, ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from cdgc import (
    CDGCModule,
    NodeSet,
    OhemCrossEntropyLoss,
    class_map,
    cross_entropy,
    resize_targets,
)
from cdgcnet.modeling.context_modules import build_context_module
from cdgcnet.modeling.graph import build_graph, log_node_shares
from cdgcnet.modeling.layers import conv_norm_relu


@dataclass(frozen=True)
class HeadOutput:
    """What the head predicts at stride 8.

    Attributes:
        refined: (B, M, h, w) logits of the final prediction.
        coarse: (B, M, h, w) logits before the refinement; None without one.
        aux: (B, M, h, w) logits of the auxiliary head; None outside training.
        nodes: the graph's nodes; None without a graph.
        oracle: (B, M, h, w) logits refined with the ground truth as the graph's classes; None if
            not asked for.
    """

    refined: Tensor
    coarse: Tensor | None = None
    aux: Tensor | None = None
    nodes: NodeSet | None = None
    oracle: Tensor | None = None


def _classifier(channels: int, num_classes: int, dropout: float) -> nn.Sequential:
    # torch's own initialisation: with the field's sigma of 0.01 almost no gradient reaches the
    # backbone at first, and a short schedule never learns the rare classes.
    conv = nn.Conv2d(channels, num_classes, kernel_size=1)
    return nn.Sequential(nn.Dropout2d(dropout), conv)


@SEM_SEG_HEADS_REGISTRY.register()
class CDGCNetHead(nn.Module):
    """Coarse-to-fine head of CDGCNet (Fig. 2, Eq. 5).

    Follows Detectron2's head contract: ``(None, losses)`` in training and ``(logits, {})`` in
    evaluation, with logits at the size of the input image when the backbone hands its input on
    as the feature "image" (ours does), else at stride times the feature map.
    """

    class_weights: Tensor | None

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        num_classes: int,
        channels: int = 256,
        graph: CDGCModule | None = None,
        refiner: nn.Module | None = None,
        fusion: str = "concat",
        fuse_conv: bool = False,
        context: str = "aspp",
        aspp_dilations: list[int] | tuple[int, ...] = (12, 24, 36),
        aspp_channels: int = 256,
        aux_channels: int = 256,
        norm: str = "BN",
        dropout: float = 0.1,
        align_corners: bool = True,
        ignore_value: int = 255,
        refined_criterion: nn.Module | None = None,
        class_weights: list[float] | tuple[float, ...] = (),
        coarse_weight: float = 0.6,
        refined_weight: float = 0.7,
        aux_weight: float = 0.4,
        baseline_weight: float = 1.0,
        baseline_loss: str = "ce",
    ):
        """
        Args:
            input_shape: shapes of the two features used, in the order auxiliary, main.
            num_classes: M.
            channels: C.
            graph: refines X with the help of the coarse logits.
            refiner: stands in the graph's place, called with X and the coarse logits. Neither:
                the basic network.
            fusion: "concat" or "sum" of X and X̂ (Table 2).
            fuse_conv: a 1x1 conv-norm-ReLU before the last classifier (the paper has none).
            context: "aspp", or "none" to reduce res5 directly.
            aspp_dilations, aspp_channels: of the ASPP.
            aux_channels: width of the auxiliary head.
            norm: Detectron2 norm name.
            dropout: before every classifier.
            align_corners: how logits are resized.
            ignore_value: label without loss.
            refined_criterion: loss of the refined logits; OHEM with its defaults if None.
            class_weights: M factors for all losses, or empty.
            coarse_weight, refined_weight, aux_weight: alpha, beta, gamma of Eq. 5; no auxiliary
                head is built for aux_weight 0.
            baseline_weight: of the only prediction's loss in the basic network.
            baseline_loss: that loss, "ce", or "ohem" for the refined criterion.

        Raises:
            ValueError: on a value outside those named, or a graph and a refiner.
        """
        super().__init__()
        if fusion not in ("concat", "sum"):
            raise ValueError(f"fusion must be 'concat' or 'sum', got {fusion!r}")
        if context not in ("aspp", "none"):
            raise ValueError(f"context must be 'aspp' or 'none', got {context!r}")
        if baseline_loss not in ("ce", "ohem"):
            raise ValueError(f"baseline_loss must be 'ce' or 'ohem', got {baseline_loss!r}")
        if graph is not None and refiner is not None:
            raise ValueError(
                f"a refiner stands in the graph's place, got both: {type(refiner).__name__} and a "
                "graph"
            )
        if len(input_shape) != 2:
            raise ValueError(
                f"expected two input features (auxiliary, main), got {list(input_shape)}"
            )
        (self.aux_feature, aux_shape), (self.main_feature, main_shape) = input_shape.items()
        self.stride = main_shape.stride
        self.ignore_value = ignore_value
        self.align_corners = align_corners
        self.fusion = fusion
        self.coarse_weight = coarse_weight
        self.refined_weight = refined_weight
        self.aux_weight = aux_weight
        self.baseline_weight = baseline_weight
        self.baseline_loss = baseline_loss
        weights = torch.tensor(class_weights, dtype=torch.float) if len(class_weights) else None
        # Not part of a checkpoint: a model trained with weights predicts without them.
        self.register_buffer("class_weights", weights, persistent=False)

        width = main_shape.channels
        self.context: nn.Module = nn.Identity()
        if context == "aspp":
            # Global pooling: a fixed pooling window would refuse most test-time scales.
            self.context = ASPP(
                width, aspp_channels, list(aspp_dilations), norm=norm, activation=F.relu
            )
            width = aspp_channels
        self.reduce = conv_norm_relu(width, channels, 3, norm)
        self.coarse_predictor = _classifier(channels, num_classes, dropout)
        self.aux_head = None
        if aux_weight > 0:
            self.aux_head = nn.Sequential(
                conv_norm_relu(aux_shape.channels, aux_channels, 3, norm),
                _classifier(aux_channels, num_classes, dropout),
            )
        self.graph = graph
        self.refiner = refiner
        if self.refines:
            fused = channels * (2 if fusion == "concat" else 1)
            self.fuse = conv_norm_relu(fused, channels, 1, norm) if fuse_conv else nn.Identity()
            self.refined_predictor = _classifier(
                channels if fuse_conv else fused, num_classes, dropout
            )
        if self.refines or baseline_loss == "ohem":
            self.refined_criterion = refined_criterion or OhemCrossEntropyLoss(
                ignore_label=ignore_value, class_weights=weights, align_corners=align_corners
            )

    @property
    def refines(self) -> bool:
        """Whether there is a coarse and a refined prediction, not only one."""
        return self.graph is not None or self.refiner is not None

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        """Arguments from ``cfg.MODEL.SEM_SEG_HEAD`` and ``cfg.MODEL.CDGC``."""
        head, cdgc, loss = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.CDGC, cfg.MODEL.CDGC.LOSS
        graph = refiner = None
        if cdgc.ENABLED and cdgc.CONTEXT_MODULE == "graph":
            graph = build_graph(cfg)
        elif cdgc.ENABLED:
            with torch.device("meta"):  # only to be counted
                parameters = sum(p.numel() for p in build_graph(cfg).parameters())
            refiner = build_context_module(
                cdgc.CONTEXT_MODULE, cdgc.CHANNELS, norm=cdgc.NORM, parameters=parameters
            )
        weights = None
        if len(loss.CLASS_WEIGHTS):
            weights = torch.tensor(loss.CLASS_WEIGHTS, dtype=torch.float)
        return {
            "input_shape": {name: input_shape[name] for name in head.IN_FEATURES},
            "num_classes": head.NUM_CLASSES,
            "channels": cdgc.CHANNELS,
            "graph": graph,
            "refiner": refiner,
            "fusion": cdgc.FUSION,
            "fuse_conv": cdgc.FUSE_CONV,
            "context": cdgc.CONTEXT,
            "aspp_dilations": head.ASPP_DILATIONS,
            "aspp_channels": head.ASPP_CHANNELS,
            "aux_channels": cdgc.AUX_CHANNELS,
            "norm": head.NORM,
            "dropout": cdgc.DROPOUT,
            "align_corners": cdgc.ALIGN_CORNERS,
            "ignore_value": head.IGNORE_VALUE,
            "refined_criterion": OhemCrossEntropyLoss(
                thresh=loss.OHEM_THRESH,
                min_kept=loss.OHEM_MIN_KEPT,
                ignore_label=head.IGNORE_VALUE,
                class_weights=weights,
                align_corners=cdgc.ALIGN_CORNERS,
            ),
            "class_weights": loss.CLASS_WEIGHTS,
            "coarse_weight": loss.COARSE_WEIGHT,
            "refined_weight": loss.REFINED_WEIGHT,
            "aux_weight": loss.AUX_WEIGHT,
            "baseline_weight": loss.BASELINE_WEIGHT,
            "baseline_loss": loss.BASELINE,
        }

    def layers(
        self,
        features: dict[str, Tensor],
        targets: Tensor | None = None,
        valid: Tensor | None = None,
        oracle: Tensor | None = None,
    ) -> HeadOutput:
        """All predictions at stride 8.

        Args:
            features: backbone features, (B, channels, h, w) each.
            targets: (B, H, W) labels; used in training only, to choose the graph's nodes.
            valid: (B, h, w) bool, False where a node is batch padding.
            oracle: (B, H, W) labels; the graph is applied a second time with these classes, the
                coarse ones where a label is ignored. No effect without a class-wise graph.
        """
        x = self.reduce(self.context(features[self.main_feature]))  # (B, C, h, w)
        coarse = self.coarse_predictor(x)  # (B, M, h, w)
        aux = None
        if self.training and self.aux_head is not None:
            aux = self.aux_head(features[self.aux_feature])
        if self.refiner is not None:
            return HeadOutput(self._predict(x, self.refiner(x, coarse)), coarse, aux)
        if self.graph is None:
            return HeadOutput(coarse, aux=aux)
        nodes = self.graph.select(coarse, targets, valid=valid)
        refined = self._predict(x, self.graph.propagate(x, nodes))
        best = None
        if oracle is not None and self.graph.scope == "class":
            oracle_nodes = self._oracle_nodes(coarse, oracle, valid)
            best = self._predict(x, self.graph.propagate(x, oracle_nodes))
        return HeadOutput(refined, coarse, aux, nodes, best)

    def _predict(self, x: Tensor, refined: Tensor) -> Tensor:
        """Logits of X and X̂, (B, C, h, w) both."""
        x = torch.cat([x, refined], dim=1) if self.fusion == "concat" else x + refined
        return self.refined_predictor(self.fuse(x))

    def _oracle_nodes(self, coarse: Tensor, labels: Tensor, valid: Tensor | None) -> NodeSet:
        assert self.graph is not None
        size = (int(coarse.shape[2]), int(coarse.shape[3]))
        true = resize_targets(labels, size, self.align_corners).long()
        best = torch.where(true == self.ignore_value, class_map(coarse), true)
        # So far apart that soft nodes have shares of 1 and 0.
        logits = 1e4 * F.one_hot(best, coarse.shape[1]).permute(0, 3, 1, 2).to(coarse.dtype)
        return self.graph.select(logits, valid=valid)

    def losses(self, output: HeadOutput, targets: Tensor) -> dict[str, Tensor]:
        """The weighted terms of Eq. 5 for targets (B, H, W).

        Logits are resized to the size of the target, never by a factor: 97 * 8 is 776, not 769.
        """

        def ce(logits: Tensor) -> Tensor:
            return cross_entropy(
                logits,
                targets,
                ignore_label=self.ignore_value,
                class_weights=self.class_weights,
                align_corners=self.align_corners,
            )

        losses = {}
        if output.coarse is None:
            ohem = self.baseline_loss == "ohem"
            plain = self.refined_criterion(output.refined, targets) if ohem else ce(output.refined)
            losses["loss_baseline"] = self.baseline_weight * plain
        else:
            losses["loss_coarse"] = self.coarse_weight * ce(output.coarse)
            refined = self.refined_criterion(output.refined, targets)
            losses["loss_refined"] = self.refined_weight * refined
        if output.aux is not None:
            losses["loss_aux"] = self.aux_weight * ce(output.aux)
        return losses

    def forward(
        self, features: dict[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Detectron2's contract: ``(None, losses)`` in training, ``(logits, {})`` otherwise.

        Evaluation ignores targets: Detectron2's ``SemanticSegmentor`` hands them over there too.
        """
        if self.training:
            if targets is None:
                raise ValueError('training needs ground truth: no "sem_seg" in the batch')
            output = self.layers(features, targets)
            log_node_shares(output.nodes)
            return None, self.losses(output, targets)
        output = self.layers(features)
        if "image" in features:
            size = tuple(features["image"].shape[-2:])
        else:
            size = tuple(s * self.stride for s in output.refined.shape[-2:])
        logits = F.interpolate(
            output.refined, size=size, mode="bilinear", align_corners=self.align_corners
        )
        return logits, {}
