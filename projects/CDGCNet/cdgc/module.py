"""The class-wise dynamic graph convolution module (Sec. 3.3, Fig. 3).

Shape shorthand: B images, C channels, h x w feature map, N = h*w pixels, M classes (1 for
scope="image"), P = B*N pixels and K selected nodes of the batch.

The ragged form below and the paper's dense M x N x N form are the same function, forward and
backward, for two reasons: pixels outside S_m are masked with -inf before the softmax (rather than
given zero features), and the grouped W has neither bias nor normalization before the merge.
"""

import dataclasses
import math
from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from cdgc.compilation import graph_break
from cdgc.gather import in_layout_of, map_to_rows, rows_to_map
from cdgc.joint_attention import DistanceBias
from cdgc.nodes import SAMPLES, NodeSet, class_map, select_nodes, soft_nodes
from cdgc.options import check_graph_options
from cdgc.propagation import (
    Edges,
    GraphWeights,
    JointOptions,
    propagate_to_all,
    propagate_to_nodes,
    scale_factor,
)
from cdgc.sampling_grid import resize_targets
from cdgc.validation import (
    check_device,
    check_features,
    check_finite,
    check_maps,
    check_not_tracing,
    check_shape,
)


class CDGCModule(nn.Module):
    """Refines features with one graph per class of a coarse prediction.

    ``x̂_i = ReLU(norm(Σ_m U_m ReLU(A_m X W_m)_i + b))``, where the sum runs over the at most two
    classes m whose node set S_m contains pixel i; with nodes="soft" each term is weighted by the
    membership of i in m. With receivers="all" it runs over all classes present in the image: every
    pixel is a query of every class's graph, and S_m holds the keys and values.

    Parameters: ``phi`` and ``phi_prime`` (1 or M, C, C) of Eq. 2 (None for uniform edges);
    ``graph_weight`` W and ``merge_weight`` U (M, C, C), applied as ``row @ W``; ``merge_bias``
    (C,). They are stacked in one tensor each, so that absent classes have zero gradients rather
    than none.

    Mixed precision: under ``torch.autocast`` the matrix products and the attention run in the
    autocast dtype, whatever the dtype of the features but float64. Softmax, uniform means and top-k
    similarities are computed at least in float32. With softmax="image" everything before the norm
    is computed in float32 at least, except on GPUs whose fused attention was found to be accurate
    (:mod:`cdgc.packed_attention`). Outside autocast the features must have the dtype of the
    parameters.

    ``torch.compile`` runs :meth:`select` and :meth:`propagate` uncompiled. ``torch.jit.trace`` and
    ``torch.export`` are refused, because they would record the segment lengths of one example;
    ``cdgcnet export`` writes the module in another form.
    """

    phi: nn.Parameter | None
    phi_prime: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        nodes: str = "dynamic",
        edges: str = "similarity",
        scope: str = "class",
        easy_ratio: float = 1.0,
        samples: Collection[str] = SAMPLES,
        hard_positives: str = "nodes",
        receivers: str = "nodes",
        message_weights: str = "one",
        softmax: str = "class",
        heads: int = 1,
        distance_bias: bool = False,
        topk: int = 64,
        topk_weights: str = "softmax",
        scale: float | str = 1.0,
        shared_phi: bool = True,
        norm: Callable[[int], nn.Module] | None = nn.BatchNorm2d,
        relu: bool = True,
        ignore_label: int = 255,
        align_corners: bool = True,
        check_finite: bool = False,
    ):
        """The defaults are the paper's; :data:`cdgc.DEFAULT_GRAPH` holds those of this project.

        Args:
            in_channels: C, channels of the input and of the refined features.
            num_classes: M.
            nodes: nodes in training: "dynamic" (Eq. 4, needs targets) or "coarse" (Table 3 "sim").
                At inference, both use the nodes of the coarse prediction. "soft" uses
                :func:`cdgc.soft_nodes` in training and at inference; it needs edges="similarity"
                and ignores the options of Eq. 4 (easy_ratio, samples, hard_positives).
            edges: "similarity" (Eqs. 2-3), "uniform" (1/|S_m|) or "topk" (the ``topk`` most
                similar nodes, weighted according to ``topk_weights``).
            scope: "class", or "image" for a plain GCN: one graph over all pixels (Table 1), which
                ignores ``nodes``.
            easy_ratio, samples: see :func:`cdgc.select_nodes`.
            hard_positives: "nodes" as in Eq. 4, or "keys_only": hard positives are neighbors of
                the other nodes of their true class but receive nothing from its graph themselves,
                so that no refined feature reveals the label of its own pixel. It has no effect
                with receivers="all", where S_m holds nothing but keys.
            receivers: "nodes" as in the paper's text, or "all": every pixel of the image receives
                from the graph of every class, except batch padding. Ignored pixels receive too, so
                that training and inference agree. See :mod:`cdgc.messages`.
            message_weights: weight w_im of the message of class m to pixel i, for receivers="all":
                "one", "mean" (1 / number of classes present in the image) or "probability" (of the
                coarse prediction, without gradient).
            softmax: for receivers="all", over the nodes of each "class" (Eq. 2), or of all classes
                of the "image" at once; see :mod:`cdgc.joint_attention`.
            heads: of the attention, for softmax="image"; each has C / heads channels.
            distance_bias: whether each head learns a preference for certain distances, for
                softmax="image".
            topk: neighbors per node for edges="topk".
            topk_weights: "softmax" over their similarities, or "equal".
            scale: factor on the similarity, "none" (1.0, as in the paper) or "sqrt" for C**-0.5.
            shared_phi: one φ and φ' for all classes, or one pair per class.
            norm: builds the normalization after the merge from a channel count; None for none.
            relu: whether the module ends with a ReLU.
            ignore_label: target value that excludes a pixel from every class's graph in training.
            align_corners: how targets are resized to the feature map; as the logits are.
            check_finite: for debugging: refuse NaN and infinity in features and logits (slow).

        Raises:
            ValueError: if a value is not one of those named above.
        """
        super().__init__()
        check_graph_options(
            in_channels=in_channels,
            num_classes=num_classes,
            nodes=nodes,
            edges=edges,
            scope=scope,
            easy_ratio=easy_ratio,
            samples=samples,
            hard_positives=hard_positives,
            receivers=receivers,
            message_weights=message_weights,
            softmax=softmax,
            heads=heads,
            distance_bias=distance_bias,
            topk=topk,
            topk_weights=topk_weights,
            shared_phi=shared_phi,
        )
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.nodes = nodes
        self.edges = edges
        self.scope = scope
        self.easy_ratio = easy_ratio
        self.samples = tuple(samples)
        self.hard_positives = hard_positives
        self.receivers = receivers
        self.message_weights = message_weights
        self.softmax = softmax
        self.heads = heads
        self.distance = DistanceBias(heads) if distance_bias else None
        self.topk = topk
        self.topk_weights = topk_weights
        self.scale = scale_factor(scale, in_channels)
        self.ignore_label = ignore_label
        self.align_corners = align_corners
        self.check_finite = check_finite

        self._create_weights(shared_phi)
        self.norm = nn.Identity() if norm is None else norm(in_channels)
        self.relu = nn.ReLU(inplace=True) if relu else nn.Identity()
        self._reset_weights()

    def _create_weights(self, shared_phi: bool) -> None:
        c = self.in_channels
        graphs = self.num_classes if self.scope == "class" else 1
        if self.edges == "uniform":
            self.phi = self.phi_prime = None
        else:
            shape = (1 if shared_phi else graphs, c, c)
            # Equal weights give φ no gradient, and distributed training would wait for one.
            trained = self.edges != "topk" or self.topk_weights != "equal"
            self.phi = nn.Parameter(torch.empty(shape), requires_grad=trained)
            self.phi_prime = nn.Parameter(torch.empty(shape), requires_grad=trained)
        self.graph_weight = nn.Parameter(torch.empty(graphs, c, c))
        self.merge_weight = nn.Parameter(torch.empty(graphs, c, c))
        self.merge_bias = nn.Parameter(torch.zeros(c))

    def reset_parameters(self) -> None:
        """Initialize so that similarities and activations are O(1) for features after BN-ReLU."""
        if self.distance is not None:
            self.distance.reset_parameters()
        self._reset_weights()

    def _reset_weights(self) -> None:
        c = self.in_channels
        if self.phi is not None and self.phi_prime is not None:
            # |x|² ≈ C/2 after BN and ReLU, so entries of variance a² give φ(x)ᵀφ'(x) a standard
            # deviation of sqrt(C)·a²·C/2, which is 1/scale for a² = 2·C^-1.5/scale. Larger
            # similarities would saturate the softmax from the start.
            # Of H heads each sums C/H channels only.
            std = math.sqrt(2.0 / self.scale) * c**-0.75 * self.heads**0.25
            nn.init.normal_(self.phi, std=std)
            nn.init.normal_(self.phi_prime, std=std)
        nn.init.normal_(self.graph_weight, std=math.sqrt(2.0 / c))
        # The sum of a pixel runs over the C channels of its own class, not over M*C.
        nn.init.normal_(self.merge_weight, std=math.sqrt(1.0 / c))
        nn.init.zeros_(self.merge_bias)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.num_classes}, nodes={self.nodes}, edges={self.edges}, "
            f"scope={self.scope}, easy_ratio={self.easy_ratio}, samples={self.samples}, "
            f"receivers={self.receivers}, softmax={self.softmax}, heads={self.heads}"
        )

    def forward(
        self,
        x: Tensor,
        coarse_logits: Tensor,
        targets: Tensor | None = None,
        *,
        valid: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """
        Args:
            x: (B, C, h, w) features.
            coarse_logits: (B, M, h, w), used without gradient: its class map or, for soft nodes,
                the probabilities of its two best classes.
            targets: (B, H, W) integer labels at full resolution, used in training only:
                evaluation is bit-identical with and without them.
            valid: (B, h, w) bool, False for batch padding.
            generator: source of the random choice of easy positives.

        Returns:
            (B, C, h, w) refined features X̂.

        Raises:
            ValueError: if shapes, dtypes or devices do not fit, a target is not a class, or
                dynamic nodes are used in training without targets.
        """
        check_not_tracing()
        check_shape("x", x, ("B", self.in_channels, "h", "w"))
        expected = (x.shape[0], self.num_classes, *x.shape[2:])
        check_shape("coarse_logits", coarse_logits, expected, "x")
        check_device("coarse_logits", coarse_logits.device, x.device, "x")
        nodes = self.select(coarse_logits, targets, valid=valid, generator=generator)
        return self.propagate(x, nodes)

    @graph_break
    def select(
        self,
        coarse_logits: Tensor,
        targets: Tensor | None = None,
        *,
        valid: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> NodeSet:
        """Choose the nodes; the arguments are those of :meth:`forward`."""
        check_not_tracing()
        uses_targets = self.training and self.scope == "class"
        check_maps(coarse_logits, targets if uses_targets else None, self.num_classes)
        if self.check_finite and coarse_logits.is_floating_point():
            check_finite("coarse_logits", coarse_logits)
        if self.scope == "image":
            batch, _, height, width = coarse_logits.shape
            one_class = coarse_logits.new_zeros(batch, height, width, dtype=torch.long)
            return select_nodes(one_class, num_classes=1, valid=valid, known_classes=True)
        nodes = self._select_class_nodes(coarse_logits, targets, valid, generator)
        if self.message_weights == "probability":
            logits = coarse_logits.detach().movedim(1, -1).flatten(0, 2)
            probability = logits.softmax(1, dtype=torch.promote_types(logits.dtype, torch.float32))
            return dataclasses.replace(nodes, class_weight=probability)
        return nodes

    def _select_class_nodes(
        self,
        coarse_logits: Tensor,
        targets: Tensor | None,
        valid: Tensor | None,
        generator: torch.Generator | None,
    ) -> NodeSet:
        height, width = coarse_logits.shape[2:]
        target_map = None
        if self.training and targets is not None:
            target_map = resize_targets(targets, (int(height), int(width)), self.align_corners)
        if self.nodes == "soft":
            return soft_nodes(
                coarse_logits, target_map, ignore_label=self.ignore_label, valid=valid
            )
        return select_nodes(
            class_map(coarse_logits),
            target_map,
            num_classes=self.num_classes,
            nodes=self.nodes if self.training else "coarse",
            samples=self.samples,
            easy_ratio=self.easy_ratio,
            ignore_label=self.ignore_label,
            valid=valid,
            generator=generator,
            known_classes=True,
        )

    @graph_break
    def propagate(self, x: Tensor, nodes: NodeSet) -> Tensor:
        """Graph convolution over the chosen nodes (Eq. 1).

        Args:
            x: (B, C, h, w) features.
            nodes: from :meth:`select`.

        Returns:
            (B, C, h, w) refined features X̂.

        Raises:
            ValueError: if x, the nodes and the parameters differ in shape, device or (outside
                autocast) dtype.
        """
        check_not_tracing()
        check_features(x, nodes.counts.shape[1], len(nodes.node_index), self.graph_weight)
        check_device("nodes", nodes.pixel.device, x.device, "x")
        if self.check_finite:
            check_finite("x", x)
        weights = GraphWeights(self.phi, self.phi_prime, self.graph_weight, self.merge_weight)
        # The rows are not kept in a variable, so that they are freed before the norm.
        if self.receivers == "all":
            mean = self.message_weights == "mean"
            merged = propagate_to_all(
                map_to_rows(x), nodes, weights, self._edges(), mean, self._joint_options(x)
            )
        else:
            only = self.hard_positives == "keys_only"
            merged = propagate_to_nodes(map_to_rows(x), nodes, weights, self._edges(), only)
        merged = merged.add_(self.merge_bias)
        return in_layout_of(x, self.relu(self.norm(rows_to_map(merged, x))))

    def _joint_options(self, x: Tensor) -> JointOptions | None:
        """How attention is computed with softmax="image"; None with softmax="class"."""
        if self.softmax == "class":
            return None
        return JointOptions((int(x.shape[2]), int(x.shape[3])), self.heads, self.distance)

    def _edges(self) -> Edges:
        return Edges(self.edges, self.scale, self.topk, self.topk_weights)
