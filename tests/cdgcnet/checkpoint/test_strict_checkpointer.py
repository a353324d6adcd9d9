"""Weights: torchvision's names, and nothing left random by accident."""

import pickle

import pytest
import torch
import torchvision
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from torch import nn

from cdgcnet import build_dilated_resnet_backbone
from cdgcnet.checkpoint.formats import convert_names, recognize
from cdgcnet.checkpoint.strict_checkpointer import (
    StrictCheckpointer,
    check_weights_path,
)


@pytest.fixture
def torchvision_18():
    torch.manual_seed(1)
    return torchvision.models.resnet18(weights=None).state_dict()


@pytest.fixture
def wide_cfg(tiny_cfg):
    # As wide as torchvision's ResNet-18; the head stays tiny.
    def make(changes=None):
        width = {"MODEL.RESNETS.STEM_OUT_CHANNELS": 64, "MODEL.RESNETS.RES2_OUT_CHANNELS": 64}
        return tiny_cfg({**width, **(changes or {})})

    return make


@pytest.fixture
def save(tmp_path):
    def write(state, name="weights.pth"):
        torch.save(state, tmp_path / name)
        return str(tmp_path / name)

    return write


def load(model, path, backbone_only=True):
    checkpointer = StrictCheckpointer(model)
    checkpointer.allow_backbone_only = backbone_only
    return checkpointer.load(path)


# ---------------------------------------------------------------- names
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("conv1.weight", "stem.conv1.weight"),
        ("bn1.running_var", "stem.conv1.norm.running_var"),
        ("layer1.0.conv1.weight", "res2.0.conv1.weight"),
        ("layer4.2.conv3.weight", "res5.2.conv3.weight"),
        ("layer3.22.bn2.bias", "res4.22.conv2.norm.bias"),
        ("layer2.0.downsample.0.weight", "res3.0.shortcut.weight"),
        ("layer2.0.downsample.1.num_batches_tracked", "res3.0.shortcut.norm.num_batches_tracked"),
    ],
)
def test_names(theirs, ours):
    assert list(convert_names({theirs: torch.zeros(1)}, "torchvision")) == [ours]


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
def test_every_key_of_torchvision_fits(tiny_cfg, depth):
    with torch.device("meta"):
        theirs = getattr(torchvision.models, f"resnet{depth}")(weights=None).state_dict()
        cfg = tiny_cfg(
            {
                "MODEL.RESNETS.DEPTH": depth,
                "MODEL.RESNETS.STEM_OUT_CHANNELS": 64,
                "MODEL.RESNETS.RES2_OUT_CHANNELS": 64 if depth < 50 else 256,
            }
        )
        ours = build_dilated_resnet_backbone(cfg, ShapeSpec(channels=3)).state_dict()
    converted = convert_names(theirs, "torchvision")
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in ours.items()}


def test_classifier_is_dropped(torchvision_18):
    assert "fc.weight" in torchvision_18
    converted = convert_names(torchvision_18, "torchvision")
    assert not any("fc" in key for key in converted)
    assert len(converted) == len(torchvision_18) - 2


def test_half_precision_becomes_float():
    state = {
        "conv1.weight": torch.tensor([0.5]).half(),
        "bn1.num_batches_tracked": torch.tensor(3),
    }
    converted = convert_names(state, "torchvision")
    assert converted["stem.conv1.weight"].dtype == torch.float32
    assert converted["stem.conv1.weight"].item() == 0.5
    assert converted["stem.conv1.norm.num_batches_tracked"].dtype == torch.int64


@pytest.mark.parametrize(
    "key", ["layer5.0.conv1.weight", "layer1.0.se.weight", "head.weight", "module.conv1.weight"]
)
def test_unknown_key(key):
    with pytest.raises(ValueError, match=key):
        convert_names({"conv1.weight": torch.zeros(1), key: torch.zeros(1)}, "torchvision")


def test_recognition(torchvision_18):
    assert recognize(torchvision_18) == "torchvision"
    assert recognize(convert_names(torchvision_18, "torchvision")) == "detectron2"
    assert recognize({}) is None


# ---------------------------------------------------------------- loading
def test_torchvision_round_trip(wide_cfg, save, torchvision_18):
    model = build_model(wide_cfg())
    head = {k: v.clone() for k, v in model.sem_seg_head.state_dict().items()}
    load(model, save(torchvision_18))
    found = model.backbone.state_dict()
    expected = convert_names(torchvision_18, "torchvision")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[k], expected[k]) for k in found)
    assert all(torch.equal(v, head[k]) for k, v in model.sem_seg_head.state_dict().items())


def test_half_precision_file(wide_cfg, save, torchvision_18):
    half = {k: v.half() if v.is_floating_point() else v for k, v in torchvision_18.items()}
    model = build_model(wide_cfg())
    load(model, save(half))
    weight = model.backbone.res5[1].conv2.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, torchvision_18["layer4.1.conv2.weight"].half().float())


def test_file_without_batch_counts(wide_cfg, save, torchvision_18):
    # torchvision's oldest files have no num_batches_tracked.
    old = {k: v for k, v in torchvision_18.items() if not k.endswith("num_batches_tracked")}
    model = build_model(wide_cfg())
    load(model, save(old))
    weight = model.backbone.stem.conv1.weight
    assert torch.equal(weight, torchvision_18["conv1.weight"])


@pytest.mark.parametrize("key", ["layer3.1.conv2.weight", "bn1.running_mean"])
def test_missing_backbone_key(wide_cfg, save, torchvision_18, key):
    del torchvision_18[key]
    (ours,) = convert_names({key: torch.zeros(1)}, "torchvision")
    with pytest.raises(ValueError, match=rf"backbone\.{ours}.*not in the file"):
        load(build_model(wide_cfg()), save(torchvision_18))


def test_wrong_depth(wide_cfg, save, torchvision_18):
    # ResNet-34 has blocks that ResNet-18 has not, and the other way round.
    with pytest.raises(
        ValueError, match=r"not in the file[\s\S]*MODEL\.RESNETS[\s\S]*config\.yaml"
    ):
        load(build_model(wide_cfg({"MODEL.RESNETS.DEPTH": 34})), save(torchvision_18))
    state = torchvision.models.resnet34(weights=None).state_dict()
    with pytest.raises(ValueError, match=r"not in the model[\s\S]*MODEL\.RESNETS"):
        load(build_model(wide_cfg()), save(state))


def test_wrong_width(tiny_cfg, save, torchvision_18):
    with pytest.raises(ValueError, match=r"stem\.conv1\.weight.*\(64, 3, 7, 7\).*\(8, 3, 7, 7\)"):
        load(build_model(tiny_cfg()), save(torchvision_18))


def test_detectron2_backbone_file(tiny_cfg, save, build):
    # Detectron2's own ImageNet files have backbone names without a prefix, and a classifier.
    state = build(tiny_cfg(), seed=3).backbone.state_dict()
    file = {**state, "stem.fc.weight": torch.zeros(1000, 64), "stem.fc.bias": torch.zeros(1000)}
    model = build_model(tiny_cfg())
    load(model, save({"model": file, "__author__": "torchvision", "matching_heuristics": True}))
    assert all(torch.equal(v, state[k]) for k, v in model.backbone.state_dict().items())


def test_trained_file_round_trip(tiny_cfg, save, build):
    state = build(tiny_cfg(), seed=3).state_dict()
    model = build_model(tiny_cfg())
    load(model, save({"model": state}), backbone_only=False)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_another_number_of_classes(tiny_cfg, save, build):
    state = build(tiny_cfg()).state_dict()
    other = build_model(tiny_cfg({"MODEL.SEM_SEG_HEAD.NUM_CLASSES": 7}))
    with pytest.raises(ValueError, match=r"\(5,.*\(7,[\s\S]*NUM_CLASSES"):
        load(other, save({"model": state}))


@pytest.mark.parametrize(
    "change",
    [
        {"MODEL.CDGC.FUSE_CONV": True},  # a layer the file lacks
        {"MODEL.CDGC.ENABLED": False},  # a graph the model lacks
        {"MODEL.CDGC.EDGES": "uniform"},
        {"MODEL.CDGC.SHARED_PHI": False},
        {"MODEL.CDGC.FUSION": "sum"},
        {"MODEL.CDGC.CONTEXT": "none"},
        {"MODEL.CDGC.LOSS.AUX_WEIGHT": 0.0},
    ],
    ids=str,
)
def test_another_head(tiny_cfg, save, build, change):
    state = build(tiny_cfg()).state_dict()
    with pytest.raises(ValueError, match="does not fit"):
        load(build_model(tiny_cfg(change)), save({"model": state}))


def test_missing_head_key(tiny_cfg, save, build):
    state = build(tiny_cfg()).state_dict()
    del state["sem_seg_head.graph.graph_weight"]
    with pytest.raises(ValueError, match=r"graph\.graph_weight: not in the file"):
        load(build_model(tiny_cfg()), save({"model": state}))


def test_unexpected_key(tiny_cfg, save, build):
    state = {**build(tiny_cfg()).state_dict(), "sem_seg_head.extra.weight": torch.zeros(2)}
    with pytest.raises(ValueError, match=r"extra\.weight: not in the model"):
        load(build_model(tiny_cfg()), save({"model": state}))


def test_backbone_only(wide_cfg, save, torchvision_18):
    path = save(torchvision_18)
    load(build_model(wide_cfg()), path)
    with pytest.raises(ValueError, match=r"backbone only.*MODEL\.WEIGHTS"):
        load(build_model(wide_cfg()), path, backbone_only=False)


@pytest.mark.parametrize("state", [{}, {"model": {}}], ids=str)
def test_empty_file(tiny_cfg, save, state):
    with pytest.raises(ValueError, match=r"weights\.pth: the state dict is empty"):
        load(build_model(tiny_cfg()), save(state))


def test_foreign_file(tiny_cfg, save):
    state = nn.Linear(2, 2).state_dict()
    with pytest.raises(ValueError, match="does not fit"):
        load(build_model(tiny_cfg()), save(state))


def test_file_of_code_is_refused(tiny_cfg, tmp_path):
    # Trap 12: Detectron2 v0.6 unpickles; nothing in a weight file may be run.
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    path = tmp_path / "evil.pth"
    with path.open("wb") as file:
        pickle.dump({"model": Payload()}, file, protocol=2)  # as torch.save does
    with pytest.raises(ValueError, match=r"evil\.pth: not a file of tensors: it asks for io\.open"):
        load(build_model(tiny_cfg()), str(path))
    assert not (tmp_path / "ran").exists()


def test_missing_file(tmp_path):
    path = tmp_path / "nowhere.pth"
    with pytest.raises(FileNotFoundError, match=rf"MODEL\.WEIGHTS.*{path}"):
        check_weights_path(str(path))
    with pytest.raises(FileNotFoundError):
        check_weights_path(str(tmp_path))  # a folder is no file


@pytest.mark.parametrize("path", ["", "https://host/a.pth", "detectron2://a/b.pkl"])
def test_no_path_and_addresses_pass(path):
    check_weights_path(path)


# ---------------------------------------------------------------- files that people have
def renamed(state, prefix, *others):
    """A backbone's tensors below a prefix, and one tensor of each other part."""
    kept = {f"{prefix}{key}": value for key, value in state.items() if not key.startswith("fc.")}
    return kept | {f"{other}.weight": torch.ones(2) for other in others}


SEGMENTORS = {
    "OpenMMLab's": ("backbone.", "decode_head", "auxiliary_head"),
    "torchvision's": ("backbone.", "classifier", "aux_classifier"),
    "segmentation_models.pytorch's": ("encoder.", "decoder", "segmentation_head"),
}


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"state_dict": x, "meta": {"epoch": 3}}])
@pytest.mark.parametrize("parts", SEGMENTORS.values(), ids=SEGMENTORS)
def test_the_backbone_of_another_segmentor_is_used_and_said_so(
    wide_cfg, save, torchvision_18, caplog, parts, wrap
):
    prefix, *others = parts
    path = save(wrap(renamed(torchvision_18, prefix, *others)))
    model = build_model(wide_cfg())
    checkpointer = StrictCheckpointer(model)
    checkpointer.logger.addHandler(caplog.handler)
    checkpointer.logger.setLevel("INFO")
    checkpointer.load(path)
    checkpointer.logger.removeHandler(caplog.handler)
    assert torch.equal(model.backbone.res5[1].conv2.weight, torchvision_18["layer4.1.conv2.weight"])
    assert f"the backbone is used; left out are {', '.join(sorted(others))}" in caplog.text
    with pytest.raises(ValueError, match=r"backbone only.*MODEL\.WEIGHTS"):
        load(build_model(wide_cfg()), path, backbone_only=False)


def test_the_backbone_of_a_detector_of_detectron2(wide_cfg, save, torchvision_18):
    state = renamed(
        convert_names(torchvision_18, "torchvision"), "backbone.bottom_up.", "roi_heads"
    )
    model = build_model(wide_cfg())
    load(model, save({"model": {**state, "backbone.fpn_lateral2.weight": torch.ones(2)}}))
    assert torch.equal(model.backbone.res5[1].conv2.weight, torchvision_18["layer4.1.conv2.weight"])


FOREIGN = {
    "timm's resnet50d": (
        {"conv1.0.weight": (32, 3, 3, 3), "layer1.0.conv1.weight": (64, 64, 1, 1)},
        "a ResNet-D",
    ),
    "OpenMMLab's ResNetV1d": (
        {
            "backbone.stem.0.weight": (32, 3, 3, 3),
            "backbone.layer1.0.downsample.1.weight": (64,) * 4,
        },
        "a ResNet-D",
    ),
    "a transformer": ({"backbone.patch_embed.proj.weight": (8, 3, 4, 4)}, "a vision transformer"),
    "HRNet": ({"transition1.0.0.weight": (8, 8, 3, 3)}, "an HRNet"),
    "ConvNeXt": ({"downsample_layers.0.0.weight": (8, 3, 4, 4)}, "a ConvNeXt"),
    "Hugging Face": ({"resnet.embedder.embedder.convolution.weight": (8, 3, 7, 7)}, "Hugging Face"),
    "squeeze and excitation": (
        {
            "conv1.weight": (64, 3, 7, 7),
            "layer1.0.conv1.weight": (1,),
            "layer1.0.se.fc.weight": (1,),
        },
        r"not keys of a torchvision ResNet: layer1\.0\.se\.fc\.weight",
    ),
}


@pytest.mark.parametrize(("shapes", "reason"), FOREIGN.values(), ids=FOREIGN)
def test_another_network_is_refused_by_its_name(wide_cfg, save, shapes, reason):
    state = {key: torch.zeros(shape) for key, shape in shapes.items()}
    if "ResNetV1d" in reason:
        state["backbone.layer1.0.downsample.1.weight"] = torch.zeros(4, 4, 1, 1)
    with pytest.raises(ValueError, match=rf"weights\.pth.*{reason}") as raised:
        load(build_model(wide_cfg()), save(state))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("wrap", ["module", "model and module"])
def test_a_trained_network_of_several_gpus(tiny_cfg, save, build, wrap):
    state = build(tiny_cfg(), seed=3).state_dict()
    file = {f"module.{key}": value for key, value in state.items()}
    model = build_model(tiny_cfg())
    load(model, save({"model": file} if "model" in wrap else file), backbone_only=False)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_nan_is_named_by_its_tensor(tiny_cfg, save, build):
    state = build(tiny_cfg()).state_dict()
    state["sem_seg_head.reduce.weight"][0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"reduce\.weight: 1 of \d+ values are NaN"):
        load(build_model(tiny_cfg()), save({"model": state}), backbone_only=False)


@pytest.mark.parametrize("path", ["", "from_scratch"])
def test_nothing_is_loaded_from_scratch(tiny_cfg, build, path):
    model = build(tiny_cfg())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert load(model, path) == {}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_an_address_that_cannot_be_read_is_named(tiny_cfg, monkeypatch):
    def fails(url):
        raise OSError("no route to host")

    monkeypatch.setattr("cdgcnet.checkpoint.strict_checkpointer.PathManager.get_local_path", fails)
    address = (
        r"MODEL\.WEIGHTS https://example\.org/a\.pth: cannot be downloaded \(no route to host\)"
    )
    with pytest.raises(ValueError, match=address):
        load(build_model(tiny_cfg()), "https://example.org/a.pth")
