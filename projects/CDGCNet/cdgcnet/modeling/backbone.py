"""Dilated ResNet-18 to -152 with explicit dilations (Sec. 3.2)."""

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock, ResNet
from detectron2.projects.deeplab.resnet import DeepLabStem
from torch import Tensor

BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


class DilatedBasicBlock(CNNBlockBase):
    """The block of ResNet-18/34 with dilation, which Detectron2's ``BasicBlock`` lacks."""

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int, dilation: int, norm: str
    ):
        super().__init__(in_channels, out_channels, stride)
        self.shortcut = None
        if in_channels != out_channels or stride != 1:
            self.shortcut = Conv2d(
                in_channels,
                out_channels,
                kernel_size=1,
                stride=stride,
                bias=False,
                norm=get_norm(norm, out_channels),
            )
            weight_init.c2_msra_fill(self.shortcut)

        def conv(channels: int, step: int) -> Conv2d:
            layer = Conv2d(
                channels,
                out_channels,
                kernel_size=3,
                stride=step,
                padding=dilation,
                dilation=dilation,
                bias=False,
                norm=get_norm(norm, out_channels),
            )
            weight_init.c2_msra_fill(layer)
            return layer

        self.conv1 = conv(in_channels, stride)
        self.conv2 = conv(out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(F.relu_(self.conv1(x)))
        return F.relu_(out + (x if self.shortcut is None else self.shortcut(x)))


class DilatedResNet(ResNet):
    """A ResNet that also returns its input, as the feature "image".

    A head receives only features, and a stride-8 map does not tell whether its image was 769 or
    776 pixels wide. With the input the head can resize logits to the exact size.
    """

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"image": x, **super().forward(x)}

    def output_shape(self) -> dict[str, ShapeSpec]:
        image = ShapeSpec(channels=self.stem.in_channels, stride=1)
        return {"image": image, **super().output_shape()}


@BACKBONE_REGISTRY.register()
def build_dilated_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> DilatedResNet:
    """Build the backbone from ``cfg.MODEL.RESNETS``.

    State-dict keys and shapes are those of Detectron2's ResNet, so its weights fit.
    RES2_OUT_CHANNELS applies to all depths (torchvision: 64 for 18/34, 256 for 50/101/152).
    """
    res = cfg.MODEL.RESNETS
    stem_type = BasicStem if res.STEM_TYPE == "basic" else DeepLabStem
    stem = stem_type(
        in_channels=input_shape.channels, out_channels=res.STEM_OUT_CHANNELS, norm=res.NORM
    )
    bottleneck = res.DEPTH >= 50
    in_channels, out_channels = res.STEM_OUT_CHANNELS, res.RES2_OUT_CHANNELS
    inner_channels = res.NUM_GROUPS * res.WIDTH_PER_GROUP
    dilation_of_stage = (1, 1, res.RES4_DILATION, res.RES5_DILATION)
    stages = []
    for stage, (blocks, dilation) in enumerate(
        zip(BLOCKS[res.DEPTH], dilation_of_stage, strict=True)
    ):
        grid = res.RES5_MULTI_GRID if stage == 3 else [1]
        options = {
            "stride_per_block": [1 if stage == 0 or dilation > 1 else 2] + [1] * (blocks - 1),
            "dilation_per_block": [dilation * grid[i % len(grid)] for i in range(blocks)],
            "in_channels": in_channels,
            "out_channels": out_channels,
            "norm": res.NORM,
        }
        if bottleneck:
            options |= {
                "bottleneck_channels": inner_channels,
                "num_groups": res.NUM_GROUPS,
                "stride_in_1x1": res.STRIDE_IN_1X1,
            }
        block_class = BottleneckBlock if bottleneck else DilatedBasicBlock
        stages.append(ResNet.make_stage(block_class, blocks, **options))
        in_channels = out_channels
        out_channels *= 2
        inner_channels *= 2
    return DilatedResNet(
        stem, stages, out_features=res.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT
    )
