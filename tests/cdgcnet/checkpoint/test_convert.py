"""Backbones of other projects: what they compute is kept, what does not fit is refused."""

import pickle

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from torch import nn
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock, Bottleneck

from cdgcnet import build_dilated_resnet_backbone, load_cfg
from cdgcnet.checkpoint.completeness import check_complete
from cdgcnet.checkpoint.convert import convert_file
from cdgcnet.checkpoint.deepening import deepen_resnet50_to_101
from cdgcnet.checkpoint.formats import convert_names
from cdgcnet.checkpoint.provenance import Provenance
from cdgcnet.checkpoint.strict_checkpointer import StrictCheckpointer, read_provenance
from cdgcnet.cli.main import main
from cdgcnet.experiments.record import name_weights

LAYERS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def stem(widths):
    """Three 3x3 convolutions and their norms, the first with stride 2."""
    layers, before = [], 3
    for i, width in enumerate(widths):
        conv = nn.Conv2d(before, width, 3, stride=1 if i else 2, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
        before = width
    return nn.Sequential(*layers)


class Theirs(nn.Module):
    """torchvision's ResNet, perhaps with a deep stem before the pooling."""

    def __init__(self, depth, widths=None, stride_in_1x1=False):
        super().__init__()
        torch.manual_seed(depth)
        block = BasicBlock if depth < 50 else Bottleneck
        self.net = ResNet(block, list(LAYERS[depth]))
        self.first = nn.Sequential(self.net.conv1, self.net.bn1, nn.ReLU())
        if widths:
            self.first = stem(widths)
            if widths[-1] != 64:  # the first block then widens or narrows 128 channels
                self.net.inplanes = widths[-1]
                self.net.layer1 = self.net._make_layer(block, 64, LAYERS[depth][0])
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.2, 0.6)
                nn.init.normal_(module.bias, std=0.1)
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
        if stride_in_1x1:
            for layer in (self.net.layer2, self.net.layer3, self.net.layer4):
                layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
        self.eval()

    def forward(self, x):
        x = self.net.maxpool(self.first(x))
        res4 = self.net.layer3(self.net.layer2(self.net.layer1(x)))
        return {"res4": res4, "res5": self.net.layer4(res4)}

    def state(self, kind):
        """The state dict as a project publishes it."""
        blocks = {k: v for k, v in self.net.state_dict().items() if k[:5] == "layer" or "fc" in k}
        first = self.first.state_dict()
        if kind == "torchvision":
            return self.net.state_dict()
        if kind == "v1c":
            return {f"stem.{k}": v for k, v in first.items()} | blocks
        names = {str(3 * i + part): f"{('conv', 'bn')[part]}{i + 1}" for i in range(3)
                 for part in (0, 1)}  # fmt: skip
        renamed = {f"{names[k.split('.')[0]]}.{k.split('.')[1]}": v for k, v in first.items()}
        return renamed | blocks


KINDS = {
    "torchvision": (None, "basic", 64),
    "deep stem": ((64, 64, 128), "deeplab", 128),
    "v1c": ((32, 32, 64), "deeplab", 64),
}


def config(depth, kind="torchvision", *overrides):
    """A tiny head on the classification network itself: stride 32, no dilation."""
    _, stem_type, channels = KINDS[kind]
    keys = ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.NORM", "BN"]
    keys += ["MODEL.RESNETS.RES2_OUT_CHANNELS", 64 if depth < 50 else 256]
    keys += ["MODEL.RESNETS.STEM_TYPE", stem_type, "MODEL.RESNETS.STEM_OUT_CHANNELS", channels]
    keys += ["MODEL.SEM_SEG_HEAD.NORM", "BN", "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", 8]
    keys += ["MODEL.CDGC.NORM", "BN", "MODEL.CDGC.CHANNELS", 8, "MODEL.CDGC.AUX_CHANNELS", 8]
    keys += ["MODEL.RESNETS.RES4_DILATION", 1, "MODEL.RESNETS.RES5_DILATION", 1]
    return load_cfg("", [*keys, *overrides])


def features(path, cfg):
    """What the segmentor's backbone computes of a random image from a weight file."""
    torch.manual_seed(1)
    model = build_model(cfg).eval()
    StrictCheckpointer(model).load(str(path))
    with torch.no_grad():
        return model.backbone(image())


def image():
    return torch.randn(1, 3, 65, 97, generator=torch.Generator().manual_seed(0))


def assert_equal(ours, theirs):
    for name in ("res4", "res5"):
        assert theirs[name].std() > 0.1  # nothing has died away
        assert (ours[name] - theirs[name]).abs().max() <= 1e-5 * theirs[name].abs().max()


@pytest.fixture
def convert(tmp_path, capsys):
    """Converts contents by the command; gives the new file and what was printed."""

    def run(content, *argv, name="theirs.pth"):
        source, target = tmp_path / name, tmp_path / "ours.pth"
        if name.endswith(".pkl"):
            source.write_bytes(pickle.dumps(content))
        else:
            torch.save(content, source)
        assert main(["convert", str(source), str(target), *argv]) == 0
        return target, capsys.readouterr().out

    return run


@pytest.fixture
def refused(tmp_path, capsys):
    def run(content, *argv, name="theirs.pth"):
        source, target = tmp_path / name, tmp_path / "ours.pth"
        if name.endswith(".pkl"):
            source.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
        else:
            torch.save(content, source)
        assert main(["convert", str(source), str(target), *argv]) == 1
        assert not target.exists()
        return capsys.readouterr().err

    return run


# ---------------------------------------------------------------- parity with torchvision
@pytest.mark.parametrize("depth", LAYERS)
def test_torchvision_computes_the_same(convert, depth):
    theirs = Theirs(depth)
    path, out = convert(theirs.state("torchvision"))
    assert f"ResNet-{depth}, torchvision format, from theirs.pth (sha256 " in out
    assert "stem 7x7 64; RGB, mean 123.675, 116.28, 103.53" in out
    assert "stride in the 3x3" in out
    with torch.no_grad():
        assert_equal(features(path, config(depth)), theirs(image()))


@pytest.mark.parametrize(("depth", "kind"), [(50, "deep stem"), (50, "v1c"), (18, "deep stem")])
def test_deep_stems_compute_the_same(convert, depth, kind):
    theirs = Theirs(depth, KINDS[kind][0])
    path, out = convert(theirs.state(kind))
    widths = "-".join(map(str, KINDS[kind][0]))
    assert f"ResNet-{depth}, {kind} format" in out and f"stem {widths};" in out
    with torch.no_grad():
        assert_equal(features(path, config(depth, kind)), theirs(image()))


@pytest.mark.parametrize("kind", KINDS)
def test_unconverted_files_load_too(tmp_path, kind):
    theirs = Theirs(18, KINDS[kind][0])
    torch.save({"meta": {"epoch": 3}, "state_dict": theirs.state(kind)}, tmp_path / "raw.pth")
    with torch.no_grad():
        assert_equal(features(tmp_path / "raw.pth", config(18, kind)), theirs(image()))


def test_stride_in_the_first_convolution(convert):
    theirs = Theirs(50, stride_in_1x1=True)
    path, out = convert(theirs.state("torchvision"), "--stride-in-1x1")
    assert "stride in the 1x1" in out
    ours = features(path, config(50, "torchvision", "MODEL.RESNETS.STRIDE_IN_1X1", True))
    with torch.no_grad():
        assert_equal(ours, theirs(image()))


@pytest.mark.parametrize(("depth", "kind"), [(50, "deep stem"), (101, "deep stem")])
def test_detectron2_pkl(convert, depth, kind):
    # R-52 and R-103: Detectron2's names and NumPy arrays in a pickle.
    theirs = Theirs(depth, KINDS[kind][0])
    first, _ = convert(theirs.state(kind))
    state = torch.load(first, weights_only=True)["model"]
    first.unlink()
    arrays = {k.removeprefix("backbone."): v.numpy() for k, v in state.items()}
    arrays |= {"stem.fc.weight": np.zeros((1000, 2048)), "stem.fc.bias": np.zeros(1000)}
    content = {"model": arrays, "__author__": "somebody", "matching_heuristics": True}
    path, out = convert(content, name="R-52.pkl")
    assert f"ResNet-{depth}, detectron2 format, from R-52.pkl" in out
    with torch.no_grad():
        assert_equal(features(path, config(depth, kind)), theirs(image()))


@pytest.mark.parametrize("wrap", ["state_dict", "module", "classification net"])
def test_wrapped_files(convert, wrap):
    state = Theirs(18).state("torchvision")
    content = {
        "state_dict": {"meta": {}, "state_dict": state},
        "module": {"state_dict": {f"module.{k}": v for k, v in state.items()}},
        "classification net": {
            "state_dict": {f"backbone.{k}" if "fc" not in k else f"head.{k}": v
                           for k, v in state.items()}
        },
    }[wrap]  # fmt: skip
    path, _ = convert(content)
    found = torch.load(path, weights_only=True)["model"]
    assert torch.equal(found["backbone.res5.1.conv2.weight"], state["layer4.1.conv2.weight"])
    assert len(found) == len(state) - 2


# ---------------------------------------------------------------- growth
def test_a_grown_network_computes_what_the_small_one_does(convert):
    theirs = Theirs(50)
    path, out = convert(theirs.state("torchvision"), "--grow")
    assert "ResNet-101 grown from ResNet-50 by zero blocks" in out
    ours = features(path, config(101))
    with torch.no_grad():
        assert_equal(ours, theirs(image()))
    assert "grown from ResNet-50 by zero blocks" in name_weights(str(path), False)


def test_grown_blocks_pass_on_in_training_and_learn(convert):
    state, _ = convert_state(Theirs(50).state("torchvision"))
    cfg = config(101)
    grown = build_dilated_resnet_backbone(cfg, ShapeSpec(channels=3))
    grown.load_state_dict(deepen_resnet50_to_101(state))
    stage = grown.train().res4
    x = torch.rand(2, 1024, 3, 5)
    y = x
    for block in stage[6:]:
        y = block(y)
    assert torch.equal(x, y)
    y.square().sum().backward()
    assert all(block.conv3.norm.weight.grad.abs().sum() > 0 for block in stage[6:])
    assert not torch.equal(stage[6].conv2.weight, stage[7].conv2.weight)


def convert_state(state):
    ours = convert_names(state, "torchvision")
    return ours, check_complete(ours)


def test_only_a_resnet_50_grows(refused):
    assert "this is a ResNet-18" in refused(Theirs(18).state("torchvision"), "--grow")


# ---------------------------------------------------------------- unmatched keys
def _broken(change):
    state = dict(Theirs(18).state("torchvision"))
    if change == "missing":
        del state["layer3.1.bn2.running_mean"]
    elif change == "a block":
        state = {k: v for k, v in state.items() if not k.startswith("layer3.1.")}
    elif change == "extra":
        state["layer3.1.conv4.weight"] = torch.zeros(1)
    elif change == "shape":
        state["layer2.0.conv1.weight"] = torch.zeros(128, 64, 1, 1)
    elif change == "folded":
        state = {k: v for k, v in state.items() if "running" not in k and "tracked" not in k}
    elif change == "stem":
        state |= {"bn2.weight": torch.zeros(64)}
    elif change == "another net":
        state = {"features.0.weight": torch.zeros(1)}
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "res4.1.conv2.norm.running_mean: not in the file"),
        ("a block", "no ResNet has (2, 2, 1, 2) blocks"),
        ("extra", "layer3.1.conv4.weight"),
        ("shape", "res3.0.conv1.weight: file has shape (128, 64, 1, 1)"),
        ("folded", "no running_mean"),
        ("stem", "bn2.weight"),
        ("another net", "features.0.weight"),
    ],
)
def test_a_key_that_does_not_fit_is_an_error(refused, change, message):
    error = refused(_broken(change))
    assert message in error and "theirs.pth" in error


def test_a_pickle_runs_nothing(refused, tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    error = refused(pickle.dumps({"model": Payload()}), name="evil.pkl")
    assert "evil.pkl" in error and "it asks for" in error
    assert not (tmp_path / "ran").exists()


def test_basic_blocks_have_no_stride_to_move(refused):
    assert "--stride-in-1x1" in refused(Theirs(18).state("torchvision"), "--stride-in-1x1")


# ---------------------------------------------------------------- provenance and config
def test_provenance_round_trip(tmp_path, convert):
    path, out = convert(
        Theirs(18).state("torchvision"), "--channel-order", "BGR", "--std", "1", "1", "1"
    )
    found = read_provenance(str(path))
    assert found == Provenance(
        source=found.source,
        format="torchvision",
        depth=18,
        stem="7x7 64",
        channel_order="BGR",
        mean=(103.53, 116.28, 123.675),
        std=(1.0, 1.0, 1.0),
    )
    assert found.line() in out
    assert "sha256" in found.source
    for other in ("", "https://host/a.pth", str(tmp_path / "R-50.pkl"), str(tmp_path / "none.pth")):
        assert read_provenance(other) is None


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        (("MODEL.RESNETS.STRIDE_IN_1X1", True), ("MODEL.RESNETS.STRIDE_IN_1X1", "3x3")),
        (("MODEL.PIXEL_STD", [1.0, 1.0, 1.0]), ("MODEL.PIXEL_STD", "58.395")),
        (
            ("MODEL.PIXEL_MEAN", [103.53, 116.28, 123.675]),
            ("MODEL.PIXEL_MEAN", "INPUT.FORMAT", "RGB"),
        ),
        (
            ("MODEL.RESNETS.STEM_TYPE", "deeplab"),
            ("MODEL.RESNETS.STEM_{TYPE,OUT_CHANNELS}", "32-32-64", "7x7 64"),
        ),
    ],
)
def test_a_config_for_other_weights_is_refused(convert, overrides, keys):
    path, _ = convert(Theirs(50).state("torchvision"))
    with pytest.raises(ValueError, match="do not fit the config") as caught:
        features(path, config(50, "torchvision", *overrides))
    assert all(key in str(caught.value) for key in keys)


def test_the_line_is_logged_when_training_starts(convert, caplog):
    path, _ = convert(Theirs(18).state("torchvision"))
    with caplog.at_level("INFO"):
        features(path, config(18))
    assert read_provenance(str(path)).line() in caplog.text


def test_arguments_of_convert_file(tmp_path):
    torch.save(Theirs(18).state("torchvision"), tmp_path / "a.pth")
    _, found = convert_file(tmp_path / "a.pth", mean=[1.0, 2.0, 3.0])
    assert found.mean == (1.0, 2.0, 3.0) and found.std == (58.395, 57.12, 57.375)


def test_a_file_that_is_converted_again_keeps_what_it_states(tmp_path, convert, capsys):
    source = Theirs(50).state("torchvision")
    first, _ = convert(source, "--grow", "--stride-in-1x1", "--std", "1", "1", "1")
    stated = read_provenance(str(first))
    assert stated.grown_from == 50 and stated.stride_in == "1x1"
    again = tmp_path / "again.pth"
    assert main(["convert", str(first), str(again)]) == 0
    assert read_provenance(str(again)) == stated
    assert main(["convert", str(first), str(tmp_path / "b.pth"), "--stride-in-1x1"]) == 0
    capsys.readouterr()
    for option in (["--channel-order", "BGR"], ["--std", "2", "2", "2"]):
        assert main(["convert", str(first), str(tmp_path / "c.pth"), *option]) == 1
        assert "leave them out" in capsys.readouterr().err
    assert not (tmp_path / "c.pth").exists()


def test_a_converted_file_grows(tmp_path, convert):
    first, _ = convert(Theirs(50).state("torchvision"))
    assert main(["convert", str(first), str(tmp_path / "grown.pth"), "--grow"]) == 0
    found = read_provenance(str(tmp_path / "grown.pth"))
    assert (found.depth, found.grown_from) == (101, 50)
    assert found.source == read_provenance(str(first)).source


def test_a_provenance_that_cannot_be_read_is_named(refused):
    content = {"model": Theirs(18).state("torchvision"), "provenance": {"author": "me"}}
    assert "its provenance is not readable" in refused(content)


@pytest.mark.parametrize("name", ["a.safetensors", "a.onnx", "a"])
def test_only_torchs_format_is_written(tmp_path, capsys, name):
    torch.save(Theirs(18).state("torchvision"), tmp_path / "theirs.pth")
    assert main(["convert", str(tmp_path / "theirs.pth"), str(tmp_path / name)]) == 1
    assert "expected a name with .pth or .pt" in capsys.readouterr().err
    assert not (tmp_path / name).exists()
