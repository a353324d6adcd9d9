"""The one convolution block of the head and of what may stand in the graph's place."""

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from detectron2.layers import Conv2d, get_norm


def conv_norm_relu(in_channels: int, out_channels: int, kernel_size: int, norm: str) -> Conv2d:
    """A convolution that keeps the map's size, a Detectron2 norm ("": a bias instead), ReLU."""
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size=kernel_size,
        padding=kernel_size // 2,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        activation=F.relu_,
    )
    weight_init.c2_msra_fill(conv)
    return conv
