"""Backbones of timm: their features, what they need, and what is refused."""

import sys

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model

from cdgcnet import build_dilated_resnet_backbone
from cdgcnet.checkpoint.timm_weights import load_timm_weights
from cdgcnet.modeling.timm_backbone import build_timm_backbone

timm = pytest.importorskip("timm")

RGB = ShapeSpec(channels=3)
VIT, SWIN = "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"


@pytest.fixture
def timm_cfg(tiny_cfg):
    def make(name, **keys):
        cfg = tiny_cfg()
        cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
        cfg.MODEL.TIMM.NAME = name
        for key, value in keys.items():
            cfg.MODEL.TIMM[key] = value
        return cfg

    return make


@pytest.mark.parametrize(
    ("name", "adapter", "names", "strides", "divisibility"),
    [
        ("resnet18", "dilation", ["layer3", "layer4"], [8, 8], 0),
        ("resnet18", "none", ["layer3", "layer4"], [16, 32], 0),
        ("convnext_atto", "dilation", ["stages.2", "stages.3"], [8, 8], 8),
        (VIT, "interpolation", ["blocks.10", "blocks.11"], [8, 8], 16),
        (VIT, "none", ["blocks.10", "blocks.11"], [16, 16], 16),
        (SWIN, "interpolation", ["layers.2", "layers.3"], [8, 8], 32),  # returns (B, h, w, C)
    ],
)
def test_features(timm_cfg, name, adapter, names, strides, divisibility):
    net = build_timm_backbone(timm_cfg(name, STRIDE_ADAPTER=adapter), RGB).eval()
    assert net.size_divisibility == divisibility
    side = 97 if not divisibility else 96
    image = torch.rand(1, 3, side, 64)
    with torch.no_grad():
        features = net(image)
    spec = net.output_shape()
    assert list(features) == list(spec) == ["image", *names]
    assert features["image"] is image and (spec["image"].channels, spec["image"].stride) == (3, 1)
    for feature, stride in zip(names, strides, strict=True):
        assert spec[feature].stride == stride
        size = (spec[feature].channels, -(-side // stride), 64 // stride)
        assert features[feature].shape == (1, *size)


def test_interpolated_features_are_those_of_the_network(timm_cfg):
    net = build_timm_backbone(timm_cfg(VIT, STRIDE_ADAPTER="interpolation"), RGB).eval()
    with torch.no_grad():
        x = torch.rand(1, 3, 64, 96)
        found, own = net(x)["blocks.11"], net.net(x)[-1]
    # Without aligned corners, the mean of 2 x 2 interpolated values inside is near the patch's.
    assert found.shape[2:] == (8, 12) and own.shape[2:] == (4, 6)
    torch.testing.assert_close(found[..., 0, 0], own[..., 0, 0])
    torch.testing.assert_close(found[..., 1, 0], 0.75 * own[..., 0, 0] + 0.25 * own[..., 1, 0])


# ---- weights ----
@pytest.fixture
def resnet_file(tmp_path):
    """A timm ResNet-50 of random weights whose batch norms have statistics of their own."""
    torch.manual_seed(0)
    net = timm.create_model("resnet50", pretrained=False)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    torch.save(net.state_dict(), tmp_path / "resnet50.pth")
    return tmp_path / "resnet50.pth"


def ours(tiny_cfg, file, dilations):
    from cdgcnet.checkpoint.formats import find_backbone
    from cdgcnet.checkpoint.reading import read_weights

    cfg = tiny_cfg()
    res = cfg.MODEL.RESNETS
    res.DEPTH, res.STEM_OUT_CHANNELS, res.RES2_OUT_CHANNELS, res.NORM = 50, 64, 256, "BN"
    res.RES4_DILATION, res.RES5_DILATION = dilations
    net = build_dilated_resnet_backbone(cfg, RGB).eval()
    net.load_state_dict(find_backbone(read_weights(file).state).state)
    return net


@pytest.mark.slow
@pytest.mark.parametrize("stride", [8, 32])
def test_resnet50_equals_ours_with_equal_weights(timm_cfg, tiny_cfg, resnet_file, stride):
    net = build_timm_backbone(timm_cfg("resnet50", OUTPUT_STRIDE=stride), RGB).eval()
    load_timm_weights(net.net, resnet_file)
    if stride == 8:
        # timm, like torchvision, gives the first block of a stage the dilation of the stage
        # before; Detectron2 and this project give all blocks of a stage the same.
        for stage, dilation in (("layer3", 2), ("layer4", 4)):
            first = net.net[stage][0].conv2
            assert first.dilation == (dilation // 2, dilation // 2)
            first.dilation = first.padding = (dilation, dilation)
    other = ours(tiny_cfg, resnet_file, (2, 4) if stride == 8 else (1, 1))
    with torch.no_grad():
        x = torch.randn(1, 3, 97, 65)
        found, expected = net(x), other(x)
    for a, b in (("layer3", "res4"), ("layer4", "res5")):
        scale = expected[b].abs().max()
        torch.testing.assert_close(found[a] / scale, expected[b] / scale, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", VIT, SWIN])
def test_a_file_of_the_whole_network_loads(timm_cfg, tmp_path, name, caplog):
    whole = timm.create_model(name, pretrained=False)
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    net = build_timm_backbone(timm_cfg(name, STRIDE_ADAPTER="none"), RGB)
    with caplog.at_level("INFO"):
        load_timm_weights(net.net, tmp_path / "weights.pth")
    assert "left out are" in caplog.text  # the classifier
    parameters = {value.double().sum().item() for value in whole.state_dict().values()}
    assert all(value.double().sum().item() in parameters for value in net.state_dict().values())


def test_a_file_of_another_network_is_refused(timm_cfg, tmp_path):
    net = build_timm_backbone(timm_cfg("resnet18"), RGB)
    file = tmp_path / "weights.pth"
    torch.save(timm.create_model("resnet26", pretrained=False).state_dict(), file)
    with pytest.raises(ValueError, match=r"weights\.pth does not fit MODEL\.TIMM\.NAME: .*shape"):
        load_timm_weights(net.net, file)
    torch.save({"fc.weight": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=r"not in the file; and \d+ more"):
        load_timm_weights(net.net, file)


# ---- whole networks ----
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "adapter", "features"),
    [
        ("resnet18", "dilation", ["layer3", "layer4"]),
        ("convnext_atto", "dilation", ["stages.2", "stages.3"]),
        (VIT, "interpolation", ["blocks.10", "blocks.11"]),
        (SWIN, "none", ["layers.2", "layers.3"]),
    ],
)
def test_a_network_trains_a_step_and_predicts(timm_cfg, name, adapter, features):
    torch.manual_seed(0)
    cfg = timm_cfg(name, STRIDE_ADAPTER=adapter)
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = features
    model = build_model(cfg).train()
    classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    batch = [
        {
            "image": torch.randint(256, (3, 65, 97), dtype=torch.uint8),
            "sem_seg": torch.randint(classes, (65, 97)),
        }
        for _ in range(2)
    ]
    losses = model(batch)
    sum(losses.values()).backward()
    # Distributed training needs a gradient for every parameter.
    assert not [k for k, p in model.named_parameters() if p.requires_grad and p.grad is None]
    with torch.no_grad():
        [found] = model.eval()([{"image": batch[0]["image"], "height": 65, "width": 97}])
    assert found["sem_seg"].shape == (classes, 65, 97) and found["sem_seg"].isfinite().all()


# ---- refusals ----
@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("resnet5", {}, "NAME is 'resnet5'; expected a model of timm, for example resnet"),
        ("hf-hub:someone/net", {}, "expected a model of timm"),
        (SWIN, {}, r"cannot dilate .* strides \[4, 8, 16, 32\].*'interpolation' or 'none'"),
        (VIT, {}, "STRIDE_ADAPTER"),
        ("resnet18", {"OUT_INDICES": [3, 7]}, r"OUT_INDICES is \[3, 7\].*4 \(layer4\)"),
        ("resnet18", {"OUT_INDICES": [-1, 4]}, "distinct features in rising order"),
        ("resnet18", {"OUT_INDICES": [4, 2]}, "distinct features in rising order"),
        ("mixer_s16_224", {"STRIDE_ADAPTER": "none"}, "does not take images of every size"),
    ],
)
def test_wrong_keys(timm_cfg, name, keys, message):
    with pytest.raises(ValueError, match=message) as caught:
        build_timm_backbone(timm_cfg(name, **keys), RGB)
    assert "MODEL.TIMM." in str(caught.value) and "\n" not in str(caught.value)


def test_a_head_without_the_features_names_those_there_are(timm_cfg):
    with pytest.raises(ValueError, match=r"layer3 \(256 channels, stride 8\), layer4 \(512"):
        build_model(timm_cfg("resnet18"))


def test_without_timm_the_message_names_the_extra(timm_cfg, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"pip install 'cdgcnet\[timm\]'"):
        build_timm_backbone(timm_cfg("resnet18"), RGB)


def test_another_mean_than_that_of_the_weights_is_mentioned(timm_cfg, caplog):
    build_timm_backbone(timm_cfg(VIT, STRIDE_ADAPTER="none", PRETRAINED="vit.pth"), RGB)
    assert "MODEL.PIXEL_MEAN" in caplog.text and "127.5" in caplog.text


def test_batch_norms_are_synchronized_where_the_head_is(timm_cfg):
    cfg = timm_cfg("resnet18")
    cfg.MODEL.SEM_SEG_HEAD.NORM = "SyncBN"
    found = [type(m) for m in build_timm_backbone(cfg, RGB).modules()]
    assert torch.nn.SyncBatchNorm in found and torch.nn.BatchNorm2d not in found
