"""Packed convolutions: the same network, at inference on a CPU only, and never out of date."""

import copy
import pickle

import detectron2.layers
import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import get_norm
from torch import nn

from cdgcnet.modeling.packed_convolutions import PackedConvolutions, can_pack

CPU = torch.device("cpu")


def conv_of(norm, activation=F.relu_, **options):
    torch.manual_seed(0)
    norms = {"GN": nn.GroupNorm(4, 16)}  # Detectron2's has 32 groups
    options = {"kernel_size": 3, "padding": 2, "dilation": 2, "bias": not norm} | options
    conv = detectron2.layers.Conv2d(
        8, 16, norm=norms.get(norm) or get_norm(norm, 16), activation=activation, **options
    )
    if norm in ("BN", "FrozenBN"):
        for tensor in (conv.norm.weight, conv.norm.bias, conv.norm.running_mean):
            nn.init.normal_(tensor.data)
        nn.init.uniform_(conv.norm.running_var, 0.5, 2)
    return conv.eval()


def image(channels_last=False, size=(2, 8, 9, 7)):
    x = torch.randn(size, generator=torch.Generator().manual_seed(1))
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


@torch.no_grad()
def packed(network, x, packing=None):
    with (packing or PackedConvolutions()).use(network):
        return network(x)


@torch.no_grad()
def same(network, x, packing=None):
    found, expected = packed(network, x, packing), network(x)
    if x.is_contiguous(memory_format=torch.channels_last):
        assert found.stride() == expected.stride()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("activation", [F.relu_, F.relu, F.gelu, None])
@pytest.mark.parametrize("norm", ["BN", "FrozenBN", "GN", ""])
def test_equals_the_network(norm, activation, channels_last):
    same(conv_of(norm, activation).to(memory_format=torch.channels_last), image(channels_last))


@pytest.mark.parametrize(
    "options",
    [
        {"groups": 4},
        {"stride": 2},
        {"kernel_size": 1, "padding": 0},
        {"padding": "same"},
        {"padding_mode": "reflect"},
        {"bias": True},
    ],
)
def test_equals_the_network_with_other_options(options):
    same(conv_of("BN", **options), image())


def test_the_first_image_size_decides_nothing():
    # An evaluation that was interrupted begins with another image.
    network = conv_of("BN")
    packing = PackedConvolutions()
    sizes = [(1, 8, 33, 65), (1, 8, 5, 4), (4, 8, 9, 9)]
    in_order = [packed(network, image(size=s), packing) for s in sizes]
    for size, expected in zip(sizes, in_order, strict=True):
        assert torch.equal(packed(network, image(size=size)), expected)


@pytest.mark.parametrize("name", ["weight", "norm.running_var"])
def test_changed_weights_are_packed_again(name):
    network, packing = conv_of("BN"), PackedConvolutions()
    before = packed(network, image(), packing)
    state = {name: network.state_dict()[name] * 2}
    network.load_state_dict(state, strict=False)
    assert not torch.equal(packed(network, image(), packing), before)
    same(network, image(), packing)


def test_a_moving_average_through_data_is_noticed():
    """As mean-teacher code updates its teacher: PyTorch's version counter does not see it."""
    network, packing = conv_of("BN"), PackedConvolutions()
    before = packed(network, image(), packing)
    network.weight.data.mul_(0.9).add_(torch.ones_like(network.weight), alpha=0.1)
    assert not torch.equal(packed(network, image(), packing), before)
    same(network, image(), packing)


@pytest.mark.parametrize("channels_last", [False, True])
def test_pruning_through_data_is_noticed(channels_last):
    network, packing = conv_of("BN", activation=None), PackedConvolutions()
    if channels_last:
        network = network.to(memory_format=torch.channels_last)
    for part in ((slice(None), slice(1, 3)), (..., 2, 2), (0,)):  # inputs, one place, an output
        before = packed(network, image(), packing)
        network.weight.data[part] = 0
        assert not torch.equal(packed(network, image(), packing), before)
        same(network, image(), packing)


def test_compiled_parts_are_left_alone():
    network = nn.Sequential(conv_of("BN"), conv_of("BN")).eval()
    with torch.no_grad():
        assert can_pack(network, CPU) == torch.backends.mkldnn.is_available()
        network[0] = torch.compile(network[0], backend="eager")
        assert not can_pack(network, CPU)
        network = nn.Sequential(conv_of("BN")).eval()
        network[0].compile(backend="eager")
        assert not can_pack(network, CPU)


def test_the_network_is_left_as_it_was():
    network, packing = nn.Sequential(conv_of("BN")), PackedConvolutions()
    state, keys = copy.deepcopy(network.state_dict()), set(vars(network[0]))
    packed(network, image(), packing)
    assert set(vars(network[0])) == keys
    assert state.keys() == network.state_dict().keys()
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    for clone in (copy.deepcopy(packing), pickle.loads(pickle.dumps(packing))):
        assert not clone._packed
    with pytest.raises(RuntimeError), packing.use(network):
        raise RuntimeError
    assert set(vars(network[0])) == keys


def test_hooks_see_what_they_saw():
    network, seen = nn.Sequential(conv_of("BN")), []
    for module in (network[0], network[0].norm):
        module.register_forward_hook(lambda _, __, out: seen.append(out.clone()))
    packed(network, image())
    packed_seen, seen[:] = list(seen), []
    with torch.no_grad():
        network(image())
    for found, expected in zip(packed_seen, seen, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_only_at_inference_on_a_cpu():
    network = conv_of("BN")
    assert not can_pack(network, CPU)  # gradients are on
    with torch.no_grad():
        assert can_pack(network, CPU) == torch.backends.mkldnn.is_available()
        assert not can_pack(network, torch.device("cuda"))
        assert not can_pack(network.train(), CPU)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not can_pack(network.eval(), CPU)


def test_other_dtypes_and_inference_tensors_take_the_usual_way():
    network = conv_of("BN").double()
    assert torch.equal(packed(network, image().double()), network(image().double()))
    with torch.inference_mode():
        network = conv_of("BN")
    packing = PackedConvolutions()
    packed(network, image(), packing)
    assert not packing._packed
