"""Puts a class graph into an existing network, in the place of its last convolution."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdgc.losses import cross_entropy
from cdgc.module import CDGCModule
from cdgc.options import DEFAULT_GRAPH

# A map of 128 x 128: 1024 x 1024 pixels at stride 8, or 512 x 512 at stride 4.
MAX_NODES = 128 * 128


class RefinedClassifier(nn.Module):
    """Coarse classifier, class graph and fused classifier, from features to refined logits.

    ``R = V(X) + U(X̂)`` with ``X̂ = CDGC(reduce(X), P)`` and the coarse logits ``P = K(X)``. K and V
    start as copies of the replaced convolution and U starts at zero: a refined network first
    computes exactly what the network computed before.

    The gradient of the refined logits does not reach K. Only :meth:`coarse_loss` trains it, so
    that belongs in every training loop.

    A checkpoint of the unrefined network loads: its classifier becomes K and V. Copies and pickles
    leave out what belongs to a training step in progress.
    """

    def __init__(
        self,
        classifier: nn.Conv2d,
        channels: int | None = None,
        max_nodes: int | None = MAX_NODES,
        **graph_options: Any,
    ):
        """
        Args:
            classifier: the convolution from features (B, C, h, w) to logits (B, M, h, w).
            channels: width of the graph; features of another width are reduced by a 1x1
                convolution. None: C, at most 256, where fused attention kernels end.
            max_nodes: larger feature maps are average-pooled for the graph until h*w is at most
                this, and U X̂ is resized back; None for no limit. The time of the graph grows with
                (h*w)², about 4·C·(h*w)² operations per image, its memory with h*w.
            graph_options: options of :class:`cdgc.CDGCModule`. The defaults are those of
                :data:`cdgc.DEFAULT_GRAPH`, which need no labels in training, and
                align_corners=False. If 4 does not divide the width of the graph, its attention has
                as many heads as the largest divisor below 4. With softmax="class", which soft
                nodes, receivers="nodes" and other edges need, ``heads`` and ``distance_bias`` have
                no default.

        Raises:
            ValueError: if the classifier is a grouped or strided convolution or has a single
                output channel, or an option is wrong.
        """
        super().__init__()
        if classifier.groups != 1 or classifier.stride != (1, 1):
            raise ValueError(
                "expected a convolution without groups and with stride 1 as the classifier, got "
                f"groups={classifier.groups}, stride={classifier.stride}"
            )
        if classifier.out_channels < 2:
            raise ValueError(
                "expected a classifier with an output channel for each of two or more classes, got "
                "one channel: the graphs are built from the most probable class of every pixel"
            )
        if max_nodes is not None and max_nodes < 1:
            raise ValueError(f"max_nodes must be at least 1, got {max_nodes}")
        width = channels or min(classifier.in_channels, 256)
        self.coarse = classifier
        self.fused = copy.deepcopy(classifier)
        self.reduce: nn.Module = nn.Identity()
        if width != classifier.in_channels:
            self.reduce = nn.Sequential(
                nn.Conv2d(classifier.in_channels, width, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            )
        options = _with_defaults(graph_options, width)
        self.graph = CDGCModule(width, classifier.out_channels, **options)
        self.from_graph = nn.Conv2d(width, classifier.out_channels, 1, bias=False)
        nn.init.zeros_(self.from_graph.weight)
        self.max_nodes = max_nodes
        self._targets: Tensor | None = None
        self._coarse_logits: Tensor | None = None
        self._seen_versions: tuple[int, int] | None = None
        self.register_load_state_dict_pre_hook(_accept_unrefined)
        self.register_load_state_dict_pre_hook(_name_other_options)

    def forward(self, x: Tensor) -> Tensor:
        """
        Args:
            x: (B, C, h, w) features.

        Returns:
            (B, M, h, w) refined logits.

        Raises:
            ValueError: if the classifier changes the size of its input, or the graph has dynamic
                nodes and trains outside of :meth:`targets`.
        """
        coarse = self.coarse(x)
        if coarse.shape[2:] != x.shape[2:]:
            raise ValueError(
                f"the classifier maps features {tuple(x.shape[2:])} to logits "
                f"{tuple(coarse.shape[2:])}; expected the same size (check its padding)"
            )
        if self.training:
            if self.graph.nodes == "dynamic" and self._targets is None:
                raise ValueError(
                    "nodes='dynamic' needs labels in training: call the network inside "
                    "`with refined.targets(labels):`, or use nodes='coarse'"
                )
            if self._coarse_logits is not None and self._coarse_logits.requires_grad:
                warnings.warn(
                    "the last training step left out refined.coarse_loss(labels), without which "
                    "the coarse classifier is not trained; add it to the loss",
                    stacklevel=2,
                )
            self._coarse_logits = coarse
        features, logits = self.reduce(x), coarse
        size = self._graph_size(features)
        if size is not None:
            features = F.adaptive_avg_pool2d(features, size)
            logits = F.adaptive_avg_pool2d(logits, size)
        # An exported graph takes no targets.
        targets = () if self._targets is None else (self._targets,)
        refined = self.from_graph(self.graph(features, logits.float(), *targets))
        if size is not None:
            refined = F.interpolate(refined, x.shape[2:], mode="bilinear", align_corners=False)
        return self.fused(x) + refined

    def _graph_size(self, features: Tensor) -> tuple[int, int] | None:
        """The size to pool to; None if the map is small enough."""
        height, width = features.shape[2:]
        if self.max_nodes is None or height * width <= self.max_nodes:
            return None
        factor = (self.max_nodes / (height * width)) ** 0.5
        pooled_height = min(max(1, int(height * factor)), self.max_nodes)
        # Where the height is rounded up to 1, the width has to make up for it.
        return pooled_height, min(max(1, int(width * factor)), self.max_nodes // pooled_height)

    def __getstate__(self) -> dict[str, Any]:
        # Tensors of a step in progress cannot be copied and do not belong in a file.
        return {**self.__dict__, "_targets": None, "_coarse_logits": None, "_seen_versions": None}

    @contextmanager
    def targets(self, labels: Tensor) -> Iterator[None]:
        """Make labels known to the graph while the network runs; Eq. 4 chooses its nodes by them.

        Args:
            labels: (B, H, W) integers, the graph's ``ignore_label`` for ignored pixels.
        """
        self._targets = labels
        try:
            yield
        finally:
            self._targets = None

    def coarse_loss(self, labels: Tensor, *, weight: float = 0.6) -> Tensor:
        """α·CE of the coarse logits of the last training step, the first term of Eq. 5.

        Args:
            labels: (B, H, W) integers.
            weight: α.

        Returns:
            Scalar. Call it once per step, before the next forward pass.

        Raises:
            ValueError: if no training step has run since the last call.
        """
        if self._coarse_logits is None:
            raise ValueError(
                "coarse_loss: no training step has reached the refined classifier since the last "
                "call; call the network in training mode once before each call. If you did, its "
                "forward does not use this convolution: refine another one"
            )
        coarse, self._coarse_logits = self._coarse_logits, None
        if not torch.compiler.is_compiling():
            self._warn_if_graph_is_not_optimized()
        return weight * cross_entropy(
            coarse,
            labels,
            ignore_label=self.graph.ignore_label,
            align_corners=self.graph.align_corners,
        )

    def _warn_if_graph_is_not_optimized(self) -> None:
        """Warn if the last step changed the classifier, which the network had before, alone."""
        before = self._seen_versions
        # PyTorch counts the changes in place of every tensor.
        now = self._seen_versions = self.coarse.weight._version, self.from_graph.weight._version
        if before is None or not self.from_graph.weight.requires_grad:
            return
        if now[0] != before[0] and now[1] == before[1]:
            warnings.warn(
                "the last optimizer step changed the classifier but not the graph: build the "
                "optimizer after cdgc.refine, so that it has the new parameters too",
                stacklevel=3,
            )


def _with_defaults(options: dict[str, Any], width: int) -> dict[str, Any]:
    """Options of the graph of a refined network whose features have ``width`` channels."""
    defaults = {**DEFAULT_GRAPH, "align_corners": False}
    defaults["heads"] = max(n for n in range(1, defaults["heads"] + 1) if width % n == 0)
    if options.get("softmax") == "class":
        del defaults["heads"], defaults["distance_bias"]
    return defaults | options


def _name_other_options(
    module: RefinedClassifier, state: dict[str, Any], prefix: str, *_: Any
) -> None:
    """Explain the keys that are missing or unexpected where the options of the graph differ."""
    graph = f"{prefix}graph."
    if f"{graph}merge_bias" not in state:
        return
    saved = any(key.startswith(f"{graph}distance.") for key in state)
    built = module.graph.distance is not None
    if saved != built:
        # load_state_dict does not tell a hook whether it is strict; if it is, its error follows.
        warnings.warn(
            f"{graph.rstrip('.')} was saved with distance_bias={saved}, but this one was built "
            f"with distance_bias={built}: pass the options of the saved network to cdgc.refine"
            + ("" if saved else ", for example softmax='class'"),
            stacklevel=2,
        )


def _accept_unrefined(
    module: RefinedClassifier, state: dict[str, Any], prefix: str, *_: Any
) -> None:
    """Rename the classifier of an unrefined checkpoint; the graph keeps its own values."""
    if f"{prefix}weight" not in state:
        return
    for name, value in module.state_dict().items():
        state.setdefault(prefix + name, value)
    for leaf in ("weight", "bias"):
        if f"{prefix}{leaf}" in state:
            value = state.pop(f"{prefix}{leaf}")
            state[f"{prefix}coarse.{leaf}"] = value
            # A copy: load_state_dict(assign=True) would make both share their values for good.
            state[f"{prefix}fused.{leaf}"] = value.clone()


def refine(
    net: nn.Module,
    classifier: str,
    num_classes: int | None = None,
    *,
    channels: int | None = None,
    max_nodes: int | None = MAX_NODES,
    **graph_options: Any,
) -> nn.Module:
    """Replace the last convolution of a network by a :class:`RefinedClassifier`, in place.

    ::

        net = torchvision.models.segmentation.deeplabv3_resnet50(num_classes=21)
        net = cdgc.refine(net, classifier="classifier.4", num_classes=21)
        refined = net.get_submodule("classifier.4")
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)  # after refine, for its parameters
        loss = criterion(net(images)["out"], labels) + refined.coarse_loss(labels)

    Args:
        net: any network whose logits come from one convolution.
        classifier: name of that convolution, as ``net.named_modules()`` gives it.
        num_classes: M, checked against the convolution; None takes it from there.
        channels, max_nodes, graph_options: see :class:`RefinedClassifier`.

    Returns:
        ``net`` itself.

    Raises:
        ValueError: if there is no such module, it is not a convolution, or it has another number of
            classes.
    """
    convolutions = [name for name, m in net.named_modules() if isinstance(m, nn.Conv2d)]
    try:
        old = net.get_submodule(classifier)
    except AttributeError as error:
        raise ValueError(
            f"classifier {classifier!r}: the network has no such module; its last convolutions are "
            f"{', '.join(convolutions[-5:])}"
        ) from error
    if not isinstance(old, nn.Conv2d) or not classifier:
        raise ValueError(
            f"classifier {classifier!r} is a {type(old).__name__}, expected a Conv2d; the "
            f"network's last convolutions are {', '.join(convolutions[-5:])}"
        )
    if num_classes is not None and num_classes != old.out_channels:
        raise ValueError(
            f"num_classes is {num_classes}, but {classifier} has {old.out_channels} output channels"
        )
    device, dtype = old.weight.device, old.weight.dtype
    new = RefinedClassifier(old, channels, max_nodes, **graph_options).to(device, dtype)
    new.train(net.training)
    parent, _, name = classifier.rpartition(".")
    setattr(net.get_submodule(parent), name, new)
    return net
