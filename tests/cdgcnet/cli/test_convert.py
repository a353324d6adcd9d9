"""cdgcnet convert: every tensor arrives under Detectron2's name; mistakes are refused.

That converted backbones compute the same is tested in checkpoint/test_convert.py.
"""

import pytest
import torch
from torchvision.models import resnet18

from cdgcnet import Trainer, load_cfg
from cdgcnet.checkpoint.formats import convert_names
from cdgcnet.checkpoint.strict_checkpointer import StrictCheckpointer
from cdgcnet.cli.convert import convert


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The state dict of torchvision's ResNet-18 as a file, with random values in every tensor."""
    path = tmp_path_factory.mktemp("torchvision") / "resnet18.pth"
    torch.manual_seed(0)
    state = resnet18().state_dict()
    torch.save({k: torch.rand_like(v.float()).to(v.dtype) for k, v in state.items()}, path)
    return path


def config(*overrides):
    keys = ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.NORM", "BN"]
    keys += ["MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
    keys += ["MODEL.SEM_SEG_HEAD.NORM", "BN", "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", 8]
    keys += ["MODEL.CDGC.NORM", "BN", "MODEL.CDGC.CHANNELS", 8, "MODEL.CDGC.AUX_CHANNELS", 8]
    return load_cfg("", [*keys, *overrides])


def test_every_tensor_but_the_classifier_arrives_unchanged(source, tmp_path):
    count, _ = convert(source, tmp_path / "d2.pth")
    before = torch.load(source, weights_only=True)
    after = torch.load(tmp_path / "d2.pth", weights_only=True)["model"]
    assert count == len(after) == len(before) - 2  # fc.weight, fc.bias
    assert all(k.startswith("backbone.") for k in after)
    # By hand: layer2's second block, its second convolution and batch norm; a shortcut.
    for theirs, ours in (
        ("conv1.weight", "stem.conv1.weight"),
        ("bn1.running_var", "stem.conv1.norm.running_var"),
        ("layer2.1.conv2.weight", "res3.1.conv2.weight"),
        ("layer2.1.bn2.bias", "res3.1.conv2.norm.bias"),
        ("layer4.0.downsample.0.weight", "res5.0.shortcut.weight"),
        ("layer4.0.downsample.1.running_mean", "res5.0.shortcut.norm.running_mean"),
    ):
        assert torch.equal(after[f"backbone.{ours}"], before[theirs]), theirs


def test_half_precision_becomes_float32():
    state = {
        k: v.half() if v.is_floating_point() else v for k, v in resnet18().state_dict().items()
    }
    converted = convert_names(state, "torchvision")
    for value in converted.values():
        assert value.dtype in (torch.float32, torch.int64)


# ---------------------------------------------------------------- refusals


def test_existing_target_is_kept(refusal, source, tmp_path):
    target = tmp_path / "mine.pth"
    target.write_text("mine")
    assert str(target) in refusal("convert", source, target)
    assert target.read_text() == "mine"


def test_target_equal_to_source_is_refused(refusal, source, tmp_path):
    before = source.read_bytes()
    refusal("convert", source, source)
    assert source.read_bytes() == before


def test_missing_source_is_named(refusal, tmp_path):
    assert str(tmp_path / "no.pth") in refusal("convert", tmp_path / "no.pth", tmp_path / "out.pth")


def test_missing_target_folder_is_named_or_made(command, source, tmp_path, capsys):
    # Either is fine; a traceback out of torch.save is not.
    target = tmp_path / "new" / "d2.pth"
    code = command("convert", source, target)
    if target.is_file():
        assert code == 0
    else:
        assert code == 1
        assert str(target.parent) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "empty"), (b"no checkpoint", "not a file of tensors")]
)
def test_source_that_is_no_checkpoint_is_named(refusal, tmp_path, content, reason):
    source = tmp_path / "broken.pth"
    source.write_bytes(content)
    message = refusal("convert", source, tmp_path / "out.pth")
    assert "broken.pth" in message and reason in message
    assert not (tmp_path / "out.pth").exists()


def test_a_folder_as_source_is_named(refusal, tmp_path):
    assert "a folder; expected a weight file" in refusal("convert", tmp_path, tmp_path / "out.pth")


class Malicious:
    def __reduce__(self):
        return (print, ("run",))


def test_code_in_a_file_is_refused_in_one_line(refusal, tmp_path):
    torch.save({"conv1.weight": Malicious()}, tmp_path / "evil.pth")
    message = refusal("convert", tmp_path / "evil.pth", tmp_path / "out.pth")
    assert "it asks for" in message and "print" in message
    assert len(message.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--mean", "nan", "2", "3"), "--mean is nan 2 3"),
        (("--std", "0", "2", "3"), "--std is 0 2 3"),
        (("--mean", "0.485", "0.456", "0.406"), "123.675"),
        (("--std", "0.229", "0.224", "0.225"), "--std is 0.229 0.224 0.225"),
        (("--mean", "300", "2", "3"), "--mean is 300 2 3"),
    ],
)
def test_statistics_of_other_pixels_are_refused(refusal, source, tmp_path, options, message):
    assert message in refusal("convert", source, tmp_path / "out.pth", *options)
    assert not (tmp_path / "out.pth").exists()


def _changed(state: dict, change: str):
    if change == "a list":
        return [torch.zeros(1)]
    if change == "numbered keys":
        return {1: torch.zeros(1)}
    if change == "numbered keys inside":
        return {"state_dict": {1: torch.zeros(1)}}
    if change == "NaN":
        return state | {"conv1.weight": torch.full((64, 3, 7, 7), float("nan"))}
    if change == "a checkpoint of CDGCNet":
        return {"model": {"sem_seg_head.x": torch.zeros(1), "backbone.y": torch.zeros(1)}}
    if change == "a fifth stage":
        return state | {"layer5.0.conv1.weight": torch.zeros(1)}
    return state | {"layer1.0.conv1.weight": "not a tensor"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("a list", "expected a state dict, found list"),
        ("a fifth stage", "layer5.0.conv1.weight"),
        ("numbered keys", "the key 1"),
        ("numbered keys inside", "the key 1"),
        ("NaN", "conv1.weight: 9408 of 9408 values are NaN"),
        ("a checkpoint of CDGCNet", "MODEL.WEIGHTS takes it as it is"),
        ("no tensor", "layer1.0.conv1.weight: expected a tensor, found str"),
    ],
)
def test_contents_that_are_no_resnet_are_refused(refusal, tmp_path, change, message):
    torch.save(_changed(resnet18().state_dict(), change), tmp_path / "odd.pth")
    assert message in refusal("convert", tmp_path / "odd.pth", tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize(
    ("overrides", "word"),
    [
        (("MODEL.RESNETS.DEPTH", 34), "not in the file"),  # more blocks than the file has
        (("MODEL.RESNETS.STEM_TYPE", "deeplab"), "stem"),
        (("MODEL.RESNETS.STEM_OUT_CHANNELS", 32), "file has shape"),
    ],
)
def test_a_backbone_that_does_not_fit_is_a_hard_error(source, overrides, word):
    model = Trainer.build_model(config(*overrides))
    with pytest.raises(ValueError, match=r"resnet18\.pth does not fit") as caught:
        StrictCheckpointer(model).load(str(source))
    assert word in str(caught.value)
