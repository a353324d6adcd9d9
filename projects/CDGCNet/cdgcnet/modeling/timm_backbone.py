"""Backbones of the timm library: ``MODEL.BACKBONE.NAME build_timm_backbone``.

The weights come from a file (MODEL.TIMM.PRETRAINED), see :mod:`cdgcnet.checkpoint.timm_weights`;
nothing is downloaded.
"""

import difflib
import logging
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

NAME_KEY = "MODEL.TIMM.NAME"
# What timm's networks raise for options and sizes that they do not support.
_REFUSALS = (TypeError, ValueError, KeyError, IndexError, RuntimeError, AssertionError)


class FeatureLayout(NamedTuple):
    """What a timm network returns.

    Attributes:
        shapes: channels and stride of each feature, by timm's name of the layer.
        size_divisibility: the network needs images whose sides are multiples of this; 0 for any.
        channels_last: whether features are (B, h, w, C).
    """

    shapes: dict[str, ShapeSpec]
    size_divisibility: int
    channels_last: bool


class TimmBackbone(Backbone):
    """Features of a timm network, and its input as the feature "image".

    With an ``output_stride``, features of larger strides are interpolated to it. Their values stand
    for the middle of each patch, so corners are not aligned.
    """

    def __init__(self, net: nn.Module, layout: FeatureLayout, output_stride: int | None = None):
        """
        Args:
            net: returns a list of features.
            layout: of these features.
            output_stride: None to return every feature at the network's own stride.
        """
        super().__init__()
        self.net = net
        self.layout = layout
        self.output_stride = output_stride

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: (B, channels, H, W), with H and W multiples of :attr:`size_divisibility`.

        Returns:
            "image", which is x, and (B, C, h, w) features by name.
        """
        features = {"image": x}
        for (name, shape), feature in zip(self.layout.shapes.items(), self.net(x), strict=True):
            if self.layout.channels_last:
                feature = feature.permute(0, 3, 1, 2)
            if self.output_stride is not None and shape.stride > self.output_stride:
                size = [-(-side // self.output_stride) for side in x.shape[2:]]
                feature = F.interpolate(feature, size, mode="bilinear", align_corners=False)
            features[name] = feature
        return features

    @property
    def size_divisibility(self) -> int:
        """Detectron2 pads the images of a batch to multiples of this."""
        return self.layout.size_divisibility

    def output_shape(self) -> dict[str, ShapeSpec]:
        limit = self.output_stride
        shapes = {
            name: shape if limit is None else shape._replace(stride=min(shape.stride, limit))
            for name, shape in self.layout.shapes.items()
        }
        return {"image": ShapeSpec(channels=3, stride=1), **shapes}


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """Build the backbone that ``cfg.MODEL.TIMM`` describes, with random weights.

    Its batch norms are synchronized between processes where MODEL.SEM_SEG_HEAD.NORM is SyncBN.

    Raises:
        ImportError: if timm is not installed.
        ValueError: naming the key and what the network offers.
    """
    try:
        import timm.layers
    except ImportError as error:
        raise ImportError(
            "MODEL.BACKBONE.NAME build_timm_backbone needs timm: pip install 'cdgcnet[timm]'"
        ) from error
    keys = cfg.MODEL.TIMM
    if not timm.is_model(keys.NAME):
        close = difflib.get_close_matches(keys.NAME, timm.list_models(), n=3, cutoff=0.4)
        hint = f", for example {' or '.join(close)}" if close else ""
        raise ValueError(f"{NAME_KEY} is {keys.NAME!r}; expected a model of timm{hint}")
    options: dict[str, Any] = {"in_chans": input_shape.channels}
    if keys.STRIDE_ADAPTER == "dilation":
        options["output_stride"] = keys.OUTPUT_STRIDE
    # On the meta device, a network takes neither memory nor time.
    with torch.device("meta"):
        options |= _accepted_options(cfg, options)
        layout = _feature_layout(cfg, _create(keys.NAME, keys.OUT_INDICES, options))
    net = _create(keys.NAME, keys.OUT_INDICES, options)
    _compare_pixel_statistics(cfg, timm.get_pretrained_cfg(keys.NAME))
    if cfg.MODEL.SEM_SEG_HEAD.NORM == "SyncBN":
        net = timm.layers.convert_sync_batchnorm(net)
    return TimmBackbone(
        net, layout, keys.OUTPUT_STRIDE if keys.STRIDE_ADAPTER == "interpolation" else None
    )


def _create(name: str, out_indices: list[int] | None, options: dict[str, Any]) -> Any:
    import timm

    if out_indices is not None:
        options = {**options, "out_indices": tuple(out_indices)}
    return timm.create_model(name, pretrained=False, features_only=True, **options)


def _accepted_options(cfg: CfgNode, options: dict[str, Any]) -> dict[str, Any]:
    """The options with which the network takes images of any size.

    Raises:
        ValueError: if the network has no feature maps, cannot be dilated, or lacks a feature of
            MODEL.TIMM.OUT_INDICES.
    """
    keys = cfg.MODEL.TIMM
    try:
        extra = {"dynamic_img_size": True}  # for transformers; other networks do not know it
        try:
            info = _create(keys.NAME, None, extra).feature_info
        except TypeError:
            extra = {}
            info = _create(keys.NAME, None, extra).feature_info
    except _REFUSALS as error:
        raise ValueError(
            f"{NAME_KEY} is {keys.NAME!r}, which has no feature maps: {_first_line(error)}"
        ) from error
    options = {**options, **extra}
    try:
        _create(keys.NAME, None, options)
    except _REFUSALS as error:
        raise ValueError(
            f"MODEL.TIMM.STRIDE_ADAPTER is {keys.STRIDE_ADAPTER!r}, but timm cannot dilate "
            f"{keys.NAME} from strides {info.reduction()} to MODEL.TIMM.OUTPUT_STRIDE "
            f"{keys.OUTPUT_STRIDE}; expected 'interpolation' or 'none'"
        ) from error
    try:
        _create(keys.NAME, keys.OUT_INDICES, options)
    except _REFUSALS as error:
        names = zip(info.out_indices, info.module_name(), strict=True)
        offered = ", ".join(f"{index} ({name})" for index, name in names)
        raise ValueError(
            f"MODEL.TIMM.OUT_INDICES is {keys.OUT_INDICES}; expected indices of features of "
            f"{keys.NAME}, for example {offered}"
        ) from error
    return extra


def _feature_layout(cfg: CfgNode, net: Any) -> FeatureLayout:
    """Find out by a forward pass what a network on the meta device returns and needs.

    Raises:
        ValueError: if its features do not fit MODEL.TIMM.
    """
    keys, info = cfg.MODEL.TIMM, net.feature_info
    channels, strides = info.channels(), info.reduction()
    shapes = {
        name: ShapeSpec(channels=c, stride=s)
        for name, c, s in zip(info.module_name(), channels, strides, strict=True)
    }
    if len(shapes) < len(keys.OUT_INDICES) or list(info.out_indices) != sorted(info.out_indices):
        raise ValueError(
            f"MODEL.TIMM.OUT_INDICES is {keys.OUT_INDICES}; expected distinct features in rising "
            "order"
        )
    if keys.STRIDE_ADAPTER == "dilation" and max(strides) > keys.OUTPUT_STRIDE:
        raise ValueError(
            f"MODEL.TIMM.STRIDE_ADAPTER is 'dilation', but {keys.NAME} keeps the strides "
            f"{strides}; expected 'interpolation' or 'none'"
        )
    net.eval()
    # One pixel more than a multiple: padded convolutions round the size up, patches do not.
    for side, divisibility in ((97, 0), (3 * max(strides), max(strides)), (96, 32)):
        try:
            with torch.no_grad():
                found = [f.shape[1:] for f in net(torch.zeros(1, 3, side, side, device="meta"))]
        except _REFUSALS as error:
            reason = _first_line(error)
            continue
        maps = [(-(-side // stride), -(-side // stride)) for stride in strides]
        for channels_last in (False, True):
            if [tuple(shape) for shape in found] == [
                (*size, c) if channels_last else (c, *size)
                for c, size in zip(channels, maps, strict=True)
            ]:
                return FeatureLayout(shapes, divisibility, channels_last)
        reason = f"{side} x {side} pixels give features {[tuple(shape) for shape in found]}"
    raise ValueError(
        f"{NAME_KEY} is {keys.NAME!r}, which does not take images of every size: {reason}"
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _compare_pixel_statistics(cfg: CfgNode, pretrained: Any) -> None:
    """Warn where published weights of a network were trained with another mean or deviation."""
    if not cfg.MODEL.TIMM.PRETRAINED or pretrained is None:
        return
    for key, published in (("PIXEL_MEAN", pretrained.mean), ("PIXEL_STD", pretrained.std)):
        found = cfg.MODEL[key]
        stated = [round(255 * value, 3) for value in published]
        if any(abs(a - b) > 0.5 for a, b in zip(found, stated, strict=True)):
            logging.getLogger(__name__).warning(
                f"MODEL.{key} is {found}; timm's weights of {cfg.MODEL.TIMM.NAME} were trained "
                f"with {stated}"
            )
