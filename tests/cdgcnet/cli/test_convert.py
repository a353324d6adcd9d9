"""cdgcnet convert: torchvision names become Detectron2's, and nothing is lost."""

import pytest
import torch
from torchvision.models import resnet18, resnet50

from cdgcnet import Trainer, load_cfg
from cdgcnet.checkpoint.formats import convert_names
from cdgcnet.checkpoint.strict_checkpointer import StrictCheckpointer
from cdgcnet.cli.convert import convert

NETS = {18: resnet18, 50: resnet50}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """torchvision state dicts with random batch norms, as files."""
    folder = tmp_path_factory.mktemp("torchvision")
    paths = {}
    for depth, build in NETS.items():
        torch.manual_seed(depth)
        net = build()
        for key, value in net.state_dict().items():
            if "running_var" in key or "bn" in key:
                value.copy_(torch.rand_like(value.float()) + 0.5)
        paths[depth] = folder / f"resnet{depth}.pth"
        torch.save(net.state_dict(), paths[depth])
    return paths


def config(depth: int, *overrides):
    keys = ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.NORM", "BN"]
    keys += ["MODEL.RESNETS.RES2_OUT_CHANNELS", 64 if depth == 18 else 256]
    keys += ["MODEL.SEM_SEG_HEAD.NORM", "BN", "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", 8]
    keys += ["MODEL.CDGC.NORM", "BN", "MODEL.CDGC.CHANNELS", 8, "MODEL.CDGC.AUX_CHANNELS", 8]
    keys += ["MODEL.CHANNELS_LAST", False]  # torchvision's layout, so that both round alike
    # The classification net itself: stride 32, no dilation.
    keys += ["MODEL.RESNETS.RES4_DILATION", 1, "MODEL.RESNETS.RES5_DILATION", 1, *overrides]
    return load_cfg("", keys)


@pytest.mark.parametrize("depth", NETS)
def test_converted_backbone_computes_what_torchvision_computes(
    command, sources, tmp_path, depth, capsys
):
    target = tmp_path / "d2.pth"
    assert command("convert", sources[depth], target) == 0
    assert str(target) in capsys.readouterr().out

    torch.manual_seed(0)
    model = Trainer.build_model(config(depth)).eval()
    StrictCheckpointer(model).load(str(target))  # any unmatched backbone key is an error
    net = NETS[depth]().eval()
    net.load_state_dict(torch.load(sources[depth], weights_only=True))
    image = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        x = net.maxpool(net.relu(net.bn1(net.conv1(image))))
        res4 = net.layer3(net.layer2(net.layer1(x)))
        res5 = net.layer4(res4)
        found = model.backbone(image)
    torch.testing.assert_close(found["res4"], res4)
    torch.testing.assert_close(found["res5"], res5)


def test_converted_and_original_file_load_to_the_same_model(sources, tmp_path):
    convert(sources[18], tmp_path / "d2.pth")
    states = []
    for path in (sources[18], tmp_path / "d2.pth"):
        torch.manual_seed(0)
        model = Trainer.build_model(config(18))
        StrictCheckpointer(model).load(str(path))
        states.append(model.state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_every_tensor_but_the_classifier_arrives_unchanged(sources, tmp_path):
    count, _ = convert(sources[50], tmp_path / "d2.pth")
    before = torch.load(sources[50], weights_only=True)
    after = torch.load(tmp_path / "d2.pth", weights_only=True)["model"]
    assert count == len(after) == len(before) - 2  # fc.weight, fc.bias
    assert all(k.startswith("backbone.") for k in after)
    # By hand: layer2's second block, its third convolution and batch norm; a shortcut.
    for theirs, ours in (
        ("conv1.weight", "stem.conv1.weight"),
        ("bn1.running_var", "stem.conv1.norm.running_var"),
        ("layer2.1.conv3.weight", "res3.1.conv3.weight"),
        ("layer2.1.bn3.bias", "res3.1.conv3.norm.bias"),
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


def test_existing_target_is_kept(refusal, sources, tmp_path):
    target = tmp_path / "mine.pth"
    target.write_text("mine")
    assert str(target) in refusal("convert", sources[18], target)
    assert target.read_text() == "mine"


def test_target_equal_to_source_is_refused(refusal, sources, tmp_path):
    before = sources[18].read_bytes()
    refusal("convert", sources[18], sources[18])
    assert sources[18].read_bytes() == before


def test_missing_source_is_named(refusal, tmp_path):
    assert str(tmp_path / "no.pth") in refusal("convert", tmp_path / "no.pth", tmp_path / "out.pth")


def test_missing_target_folder_is_named_or_made(command, sources, tmp_path, capsys):
    # Either is fine; a traceback out of torch.save is not.
    target = tmp_path / "new" / "d2.pth"
    code = command("convert", sources[18], target)
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
    said = refusal("convert", source, tmp_path / "out.pth")
    assert "broken.pth" in said and reason in said
    assert not (tmp_path / "out.pth").exists()


def test_a_folder_as_source_is_named(refusal, tmp_path):
    assert "a folder; expected a weight file" in refusal("convert", tmp_path, tmp_path / "out.pth")


class Malicious:
    def __reduce__(self):
        return (print, ("run",))


def test_code_in_a_file_is_told_in_one_line(refusal, tmp_path):
    torch.save({"conv1.weight": Malicious()}, tmp_path / "evil.pth")
    said = refusal("convert", tmp_path / "evil.pth", tmp_path / "out.pth")
    assert "it asks for" in said and "print" in said and len(said.strip().splitlines()) == 1


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
def test_statistics_of_other_pixels_are_refused(refusal, sources, tmp_path, options, message):
    assert message in refusal("convert", sources[18], tmp_path / "out.pth", *options)
    assert not (tmp_path / "out.pth").exists()


def _changed(state: dict, change: str):
    if change == "another net":
        return {"features.0.weight": torch.zeros(1), "classifier.1.bias": torch.zeros(1)}
    if change == "a list":
        return [torch.zeros(1)]
    if change == "an extra key":
        return state | {"layer1.0.conv1.extra.thing": torch.zeros(1), "avgpool.x": torch.zeros(1)}
    if change == "numbered keys":
        return {1: torch.zeros(1)}
    if change == "numbered keys inside":
        return {"state_dict": {1: torch.zeros(1)}}
    if change == "NaN":
        return state | {"conv1.weight": torch.full((64, 3, 7, 7), float("nan"))}
    if change == "a checkpoint of ours":
        return {"model": {"sem_seg_head.x": torch.zeros(1), "backbone.y": torch.zeros(1)}}
    if change == "a fifth stage":
        return state | {"layer5.0.conv1.weight": torch.zeros(1)}
    return state | {"layer1.0.conv1.weight": "not a tensor"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("another net", "features.0.weight"),
        ("a list", "expected a state dict, found list"),
        ("an extra key", "layer1.0.conv1.extra.thing"),
        ("a fifth stage", "layer5.0.conv1.weight"),
        ("numbered keys", "the key 1"),
        ("numbered keys inside", "the key 1"),
        ("NaN", "conv1.weight: 9408 of 9408 values are NaN"),
        ("a checkpoint of ours", "MODEL.WEIGHTS takes it as it is"),
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
def test_a_backbone_that_does_not_fit_is_a_hard_error(sources, overrides, word):
    model = Trainer.build_model(config(18, *overrides))
    with pytest.raises(ValueError, match=r"resnet18\.pth does not fit") as caught:
        StrictCheckpointer(model).load(str(sources[18]))
    assert word in str(caught.value)


def test_a_missing_backbone_key_is_a_hard_error(sources, tmp_path):
    state = torch.load(sources[18], weights_only=True)
    del state["layer3.1.bn2.weight"]
    torch.save(state, tmp_path / "hole.pth")
    model = Trainer.build_model(config(18))
    with pytest.raises(
        ValueError, match=r"backbone\.res4\.1\.conv2\.norm\.weight: not in the file"
    ):
        StrictCheckpointer(model).load(str(tmp_path / "hole.pth"))
