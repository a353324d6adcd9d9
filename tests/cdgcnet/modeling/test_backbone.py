"""Dilated ResNets: shapes, names, and numbers equal to Detectron2's and torchvision's."""

import itertools

import pytest
import torch
import torchvision
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.resnet import build_resnet_backbone
from detectron2.projects.deeplab import build_resnet_deeplab_backbone

from cdgcnet import build_dilated_resnet_backbone
from cdgcnet.checkpoint.formats import find_backbone

RGB = ShapeSpec(channels=3)
# output stride -> (RES4_DILATION, RES5_DILATION)
DILATIONS = {8: (2, 4), 16: (1, 2), 32: (1, 1)}
STAGES = ["res2", "res3", "res4", "res5"]


@pytest.fixture
def backbone_cfg(tiny_cfg):
    def make(depth, stride, **resnets):
        cfg = tiny_cfg()
        res = cfg.MODEL.RESNETS
        res.DEPTH = depth
        res.RES4_DILATION, res.RES5_DILATION = DILATIONS[stride]
        res.OUT_FEATURES = STAGES
        if depth >= 50:
            res.RES2_OUT_CHANNELS, res.WIDTH_PER_GROUP = 32, 8
        for key, value in resnets.items():
            res[key] = value
        return cfg

    return make


@pytest.mark.parametrize(
    ("depth", "stride"), list(itertools.product((18, 34, 50, 101), (8, 16, 32)))
)
def test_shapes(backbone_cfg, depth, stride):
    net = build_dilated_resnet_backbone(backbone_cfg(depth, stride), RGB).eval()
    strides = {name: min(s, stride) for name, s in zip(STAGES, (4, 8, 16, 32), strict=True)}
    image = torch.rand(1, 3, 97, 65)
    with torch.no_grad():
        features = net(image)
    assert features["image"] is image
    spec = net.output_shape()
    assert set(spec) == set(features) == {"image", *STAGES}
    assert (spec["image"].channels, spec["image"].stride) == (3, 1)
    width = 8 if depth < 50 else 32
    for i, (name, s) in enumerate(strides.items()):
        # Every stride-2 layer is "same"-padded: ceil(ceil(n/2)/2) = ceil(n/4).
        assert features[name].shape == (1, width * 2**i, -(-97 // s), -(-65 // s))
        assert (spec[name].channels, spec[name].stride) == (width * 2**i, s)


@pytest.mark.parametrize("size", [(129, 97), (65, 129), (769, 9), (1, 1), (7, 3), (33, 64)])
def test_odd_sizes(backbone_cfg, size):
    net = build_dilated_resnet_backbone(backbone_cfg(18, 8), RGB).eval()
    with torch.no_grad():
        features = net(torch.rand(2, 3, *size))
    for name in ("res4", "res5"):
        assert features[name].shape[-2:] == (-(-size[0] // 8), -(-size[1] // 8))


@pytest.mark.parametrize(
    ("depth", "stride", "options"),
    [
        (50, 8, {}),
        (50, 16, {}),
        (50, 32, {}),
        (50, 8, {"STRIDE_IN_1X1": True, "RES5_MULTI_GRID": [1, 2, 4]}),
        (50, 16, {"STEM_TYPE": "deeplab", "RES5_MULTI_GRID": [1, 2, 4]}),
        (101, 8, {}),
        (101, 8, {"STEM_TYPE": "deeplab", "STRIDE_IN_1X1": True}),
    ],
)
def test_equals_detectron2(backbone_cfg, randomize, depth, stride, options):
    cfg = backbone_cfg(depth, stride, **options)
    theirs = randomize(build_resnet_deeplab_backbone(cfg, RGB)).eval()
    ours = build_dilated_resnet_backbone(cfg, RGB).eval()
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }
    ours.load_state_dict(theirs.state_dict())
    image = torch.rand(1, 3, 65, 81)
    with torch.no_grad():
        expected, found = theirs(image), ours(image)
    for name in STAGES:
        assert torch.equal(found[name], expected[name])


@pytest.mark.parametrize("depth", [18, 34])
def test_basic_blocks_equal_detectron2_at_stride_32(backbone_cfg, randomize, depth):
    # Detectron2 has R-18/34 at output stride 32 and 64 channels only.
    cfg = backbone_cfg(depth, 32, STEM_OUT_CHANNELS=64, RES2_OUT_CHANNELS=64)
    theirs = randomize(build_resnet_backbone(cfg, RGB)).eval()
    ours = build_dilated_resnet_backbone(cfg, RGB).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    image = torch.rand(1, 3, 65, 33)
    with torch.no_grad():
        expected, found = theirs(image), ours(image)
    for name in STAGES:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("stride", "grid", "res4", "res5"),
    [
        # dilations of the two blocks of each stage of ResNet-18
        (32, [1, 1, 1], [1, 1], [1, 1]),
        (16, [1, 1, 1], [1, 1], [2, 2]),
        (8, [1, 1, 1], [2, 2], [4, 4]),
        (8, [1, 2, 4], [2, 2], [4, 8]),  # the third entry is for ResNet-50 and deeper
        (16, [1, 2, 4], [1, 1], [2, 4]),
    ],
)
def test_dilations_of_basic_blocks(backbone_cfg, stride, grid, res4, res5):
    net = build_dilated_resnet_backbone(backbone_cfg(18, stride, RES5_MULTI_GRID=grid), RGB)
    for stage, expected in ((net.res2, [1, 1]), (net.res3, [1, 1]), (net.res4, res4)):
        assert [block.conv1.dilation[0] for block in stage] == expected
    for block, dilation in zip(net.res5, res5, strict=True):
        for conv in (block.conv1, block.conv2):
            assert conv.dilation == (dilation, dilation) and conv.padding == conv.dilation


@pytest.mark.parametrize("grid", [[1, 1, 1], [1, 2, 4]])
def test_dilated_blocks_see_what_strided_ones_see(backbone_cfg, grid):
    # The law of dilation: at output stride 8 a block of res5 computes at every 4th node what the
    # same weights compute at stride 32 everywhere. Zero padding agrees: a dilated kernel that
    # leaves the map reads the same zeros. (A whole stage differs: as in Detectron2's DeepLab
    # project its first block is dilated instead of strided.)
    strided = build_dilated_resnet_backbone(backbone_cfg(18, 32, RES5_MULTI_GRID=grid), RGB)
    dense = build_dilated_resnet_backbone(backbone_cfg(18, 8, RES5_MULTI_GRID=grid), RGB)
    dense.load_state_dict(strided.state_dict())
    x = torch.rand(1, 64, 5, 7, dtype=torch.float64)
    wide = torch.rand(1, 64, 17, 25, dtype=torch.float64)  # what lies between has no say
    wide[:, :, ::4, ::4] = x
    with torch.no_grad():
        expected = strided.eval().double().res5[1](x)
        found = dense.eval().double().res5[1](wide)
    torch.testing.assert_close(found[:, :, ::4, ::4], expected)


def test_deep_stem(backbone_cfg):
    # R-103's stem: three convolutions of 64, 64 and 128 channels, stride 4 in all.
    cfg = backbone_cfg(50, 8, STEM_TYPE="deeplab", STEM_OUT_CHANNELS=128)
    net = build_dilated_resnet_backbone(cfg, RGB)
    assert [net.stem.get_submodule(f"conv{i}").out_channels for i in (1, 2, 3)] == [64, 64, 128]
    assert net(torch.rand(1, 3, 33, 33))["res2"].shape[-2:] == (9, 9)


@pytest.mark.parametrize(("freeze_at", "frozen"), [(0, []), (1, ["stem"]), (2, ["stem", "res2"])])
def test_freezing(backbone_cfg, freeze_at, frozen):
    cfg = backbone_cfg(18, 8)
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    net = build_dilated_resnet_backbone(cfg, RGB)
    without = {name.split(".")[0] for name, p in net.named_parameters() if not p.requires_grad}
    assert without == set(frozen)


@pytest.mark.parametrize(("depth", "width"), [(18, 64), (34, 64), (50, 256), (101, 256)])
def test_equals_torchvision(backbone_cfg, randomize, depth, width):
    # Random weights and statistics; float64, so that only a different function can differ.
    theirs = getattr(torchvision.models, f"resnet{depth}")(weights=None)
    randomize(theirs)
    cfg = backbone_cfg(depth, 32, STEM_OUT_CHANNELS=64, RES2_OUT_CHANNELS=width, WIDTH_PER_GROUP=64)
    ours = build_dilated_resnet_backbone(cfg, RGB)
    ours.load_state_dict(find_backbone(theirs.state_dict()).state)
    theirs, ours = theirs.eval().double(), ours.eval().double()
    image = torch.rand(1, 3, 49, 65, dtype=torch.float64)
    with torch.no_grad():
        found = ours(image)
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
        for i, name in enumerate(STAGES):
            x = theirs.get_submodule(f"layer{i + 1}")(x)
            torch.testing.assert_close(found[name], x, rtol=1e-9, atol=1e-9)
