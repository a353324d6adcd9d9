"""The graph's rivals against the formulas of their papers, written out with loops in float64."""

from math import exp

import pytest
import torch
from torch import nn

from cdgc import CDGCModule
from cdgcnet.modeling.context_modules import (
    CONTEXT_MODULES,
    ChannelAttention,
    DualAttention,
    NonLocal,
    ObjectContext,
    Pixelwise,
    PositionAttention,
    PyramidPooling,
    attend,
    build_context_module,
)

C, M, H, W = 8, 3, 3, 4
N = H * W


@pytest.fixture
def inputs(generator):
    """Features (2, C, H, W) and coarse logits (2, M, H, W)."""
    x = torch.randn(2, C, H, W, generator=generator, dtype=torch.float64)
    return x, torch.randn(2, M, H, W, generator=generator, dtype=torch.float64)


@pytest.fixture
def prepared(generator):
    """In float64 and evaluation, all parameters and statistics random: nothing starts at zero."""

    def prepare(module):
        module = module.double().eval()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.normal_(0, 0.5, generator=generator)
            for part in module.modules():
                if isinstance(part, nn.BatchNorm2d):
                    part.running_mean.normal_(0, 0.5, generator=generator)
                    part.running_var.uniform_(0.5, 2.0, generator=generator)
        return module

    return prepare


def pixels(x):
    """One image (C, h, w) as a list of N vectors."""
    return list(x.flatten(1).T)


def linear(conv, vector):
    return conv.weight[:, :, 0, 0] @ vector + (0 if conv.bias is None else conv.bias)


def conv_bn_relu(block, vector):
    """A 1x1 conv-norm-ReLU of one pixel, in evaluation: (v - mean) / sqrt(var + eps) * γ + β."""
    v, bn = linear(block, vector), block.norm
    v = (v - bn.running_mean) / (bn.running_var + bn.eps).sqrt() * bn.weight + bn.bias
    return v.clamp(min=0)


def softmax(numbers):
    powers = [exp(n) for n in numbers]
    return [p / sum(powers) for p in powers]


def as_map(vectors):
    return torch.stack(vectors, dim=1).view(-1, H, W)


# ---------------------------------------------------------------- by the papers' formulas
def test_attend_by_hand():
    # Scores 0 and ln 3: weights 1/4 and 3/4 of the values 4 and 8 make 1 + 6 = 7.
    query, key = torch.tensor([[[1.0]]]), torch.tensor([[[1.0], [3.0]]]).log()
    value = torch.tensor([[[4.0], [8.0]]])
    for fused in (False, True):
        assert attend(query, key, value, fused).item() == pytest.approx(7.0)


@pytest.mark.parametrize("fused", [True, False])
def test_non_local(inputs, prepared, fused):
    x, coarse = inputs
    block = prepared(NonLocal(C, fused=fused))
    with torch.no_grad():
        found = block(x, coarse)
        for b in range(2):
            expected = []
            for x_i in pixels(x[b]):
                scores = [
                    (linear(block.theta, x_i) @ linear(block.phi, x_j)).item()
                    for x_j in pixels(x[b])
                ]
                y_i = sum(
                    w * linear(block.g, x_j)
                    for w, x_j in zip(softmax(scores), pixels(x[b]), strict=True)
                )
                expected.append(linear(block.out, y_i) + x_i)
            torch.testing.assert_close(found[b], as_map(expected))


@pytest.mark.parametrize("fused", [True, False])
def test_position_attention(inputs, prepared, fused):
    x, _ = inputs
    block = prepared(PositionAttention(C, fused=fused))
    with torch.no_grad():
        found = block(x)
        for b in range(2):
            expected = []
            for a_j in pixels(x[b]):
                scores = [
                    (linear(block.key, a_i) @ linear(block.query, a_j)).item()
                    for a_i in pixels(x[b])
                ]
                mixed = sum(
                    s * linear(block.value, a_i)
                    for s, a_i in zip(softmax(scores), pixels(x[b]), strict=True)
                )
                expected.append(block.alpha * mixed + a_j)
            torch.testing.assert_close(found[b], as_map(expected))


def test_channel_attention(inputs, prepared):
    x, _ = inputs
    block = prepared(ChannelAttention())
    with torch.no_grad():
        found = block(x)
        for b in range(2):
            for j in range(C):
                scores = [(x[b, i] * x[b, j]).sum().item() for i in range(C)]
                mixed = sum(s * x[b, i] for i, s in enumerate(softmax(scores)))
                torch.testing.assert_close(found[b, j], block.beta * mixed + x[b, j])


def test_channel_attention_survives_half_precision():
    # Sums over pixels beyond fp16's 65504: 1000 · 10² = 100 000. All channels are alike, so
    # attention is even and E = x + x.
    block = ChannelAttention()
    block.beta.data.fill_(1.0)
    x = torch.full((1, C, 10, 100), 10.0, dtype=torch.float16)
    assert torch.equal(block(x), 2 * x)


def test_dual_attention_is_the_sum(inputs, prepared):
    x, coarse = inputs
    block = prepared(DualAttention(C))
    with torch.no_grad():
        position = block.of_position(block.position(x))
        channel = block.of_channel(block.channel(x))
        torch.testing.assert_close(block(x, coarse), position + channel)
    assert block.of_position.kernel_size == block.of_channel.kernel_size == (3, 3)


def test_object_context(inputs, prepared):
    x, coarse = inputs
    block = prepared(ObjectContext(C))
    with torch.no_grad():
        found = block(x, coarse)
        for b in range(2):
            regions = [
                sum(
                    w * x_i
                    for w, x_i in zip(
                        softmax(coarse[b, m].flatten().tolist()), pixels(x[b]), strict=True
                    )
                )
                for m in range(M)
            ]
            expected = []
            for x_i in pixels(x[b]):
                query = conv_bn_relu(block.phi, x_i)
                scores = [
                    (query @ conv_bn_relu(block.psi, f)).item() * (C // 2) ** -0.5 for f in regions
                ]
                mixed = sum(
                    w * conv_bn_relu(block.delta, f)
                    for w, f in zip(softmax(scores), regions, strict=True)
                )
                y_i = conv_bn_relu(block.rho, mixed)
                expected.append(conv_bn_relu(block.g, torch.cat([x_i, y_i])))
            torch.testing.assert_close(found[b], as_map(expected))


def test_pyramid_pooling(generator, prepared):
    # 6 x 12 divides evenly into all bins: 6/n x 12/n pixels each.
    x = torch.randn(2, C, 6, 12, generator=generator, dtype=torch.float64)
    block = prepared(PyramidPooling(C))
    with torch.no_grad():
        parts = [x]
        for n, stage in zip((1, 2, 3, 6), block.stages, strict=True):
            assert stage.out_channels == C // 4
            means = x.view(2, C, n, 6 // n, n, 12 // n).mean((3, 5))
            flat = [conv_bn_relu(stage, v) for b in range(2) for v in pixels(means[b])]
            pooled = torch.stack(flat).view(2, n, n, -1).permute(0, 3, 1, 2)
            # Corner values sit on corner pixels: row r of 6 lies at r (n - 1) / 5 of n rows.
            rows, columns = (
                torch.stack(
                    [
                        torch.clamp(
                            1 - (torch.arange(n).double() - r * (n - 1) / (size - 1)).abs(), min=0
                        )
                        for r in range(size)
                    ]
                )
                for size in (6, 12)
            )
            parts.append(torch.einsum("hi,wj,bcij->bchw", rows, columns, pooled))
        torch.testing.assert_close(block(x), block.project(torch.cat(parts, 1)))


# ---------------------------------------------------------------- starts
@pytest.mark.parametrize("module", [NonLocal(C), PositionAttention(C), ChannelAttention()])
def test_attention_starts_as_the_identity(inputs, module):
    x, _ = inputs
    torch.testing.assert_close(module.double()(x), x)


# ---------------------------------------------------------------- the control
@pytest.mark.parametrize("classes", [1, 11, 19, 171])
@pytest.mark.parametrize("channels", [32, 128, 256])
@pytest.mark.parametrize(
    "options", [{}, {"edges": "uniform"}, {"shared_phi": False}, {"scope": "image"}]
)
def test_pixelwise_has_the_parameters_of_the_graph(channels, classes, options):
    def count(module):
        return sum(p.numel() for p in module.parameters())

    with torch.device("meta"):
        graph = count(CDGCModule(channels, classes, **options))
        block = Pixelwise(channels, parameters=graph)
    assert count(block) == pytest.approx(graph, rel=0.05)


def test_hidden_width_by_hand():
    # 19 classes of 256 channels: W and U 2·19·256², φ and φ' 2·256², that is 40·256². Two layers
    # of 2·256·H have as many at H = 20·256.
    with torch.device("meta"):
        block = Pixelwise(256, parameters=40 * 256**2)
    assert [layer.out_channels for layer in block.layers] == [20 * 256, 256]


def test_no_pixel_of_the_control_sees_another(inputs, prepared):
    x, coarse = inputs
    block = prepared(Pixelwise(C, parameters=500))
    changed = x.clone()
    changed[:, :, 1, 2] += 1.0
    with torch.no_grad():
        different = (block(changed, coarse) != block(x, coarse)).any(1)
    expected = torch.zeros(2, H, W, dtype=torch.bool)
    expected[:, 1, 2] = True
    assert torch.equal(different, expected)


# ---------------------------------------------------------------- all of them
@pytest.mark.parametrize("norm", ["BN", "GN", ""])
@pytest.mark.parametrize("name", CONTEXT_MODULES)
def test_shapes_and_gradients(generator, name, norm):
    block = build_context_module(name, 128, norm=norm, parameters=10**5)
    x = torch.randn(2, 128, 5, 7, generator=generator, requires_grad=True)
    found = block(x, torch.randn(2, M, 5, 7, generator=generator))
    assert found.shape == x.shape
    found.square().sum().backward()
    assert torch.isfinite(x.grad).all() and x.grad.any()
    for parameter_name, parameter in block.named_parameters():
        assert parameter.grad is not None, f"no gradient for {parameter_name}"
        assert torch.isfinite(parameter.grad).all(), parameter_name


@pytest.mark.parametrize("name", ["non_local", "ocr", "pixelwise"])
def test_pixels_have_no_place(inputs, prepared, name):
    # Permuting pixels permutes the result: these blocks know no positions.
    x, coarse = inputs
    block = prepared(build_context_module(name, C, norm="BN", parameters=500))
    with torch.no_grad():
        torch.testing.assert_close(
            block(x.flip(2, 3), coarse.flip(2, 3)), block(x, coarse).flip(2, 3)
        )


def test_unknown_name():
    with pytest.raises(ValueError, match=r"context module.*non_local.*pixelwise.*'graph'"):
        build_context_module("graph", C, norm="BN", parameters=1)
