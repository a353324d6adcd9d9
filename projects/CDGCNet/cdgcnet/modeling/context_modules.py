"""Drop-in alternatives to the graph module: context modules of other papers, and a control.

Each maps features x (B, C, h, w) and coarse logits (B, M, h, w) to refined features (B, C, h, w).
Unlike the graph, they treat batch padding like any other pixel.

Shape shorthand: B images, C channels, h x w feature map, N = h*w pixels, M classes, K channels of
queries and keys. ``fused`` selects torch's fused attention, which does not store the N x N matrix.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdgcnet.modeling.layers import conv_norm_relu

CONTEXT_MODULES = ("non_local", "danet", "ocr", "psp", "pixelwise")


def _rows(x: Tensor) -> Tensor:
    # Fused attention kernels require contiguous rows.
    return x.flatten(2).transpose(1, 2).contiguous()  # (B, N, C)


def _map(rows: Tensor, like: Tensor) -> Tensor:
    return rows.transpose(1, 2).reshape(rows.shape[0], -1, *like.shape[2:])  # (B, C, h, w)


def attend(query: Tensor, key: Tensor, value: Tensor, fused: bool = True) -> Tensor:
    """softmax(query keyᵀ) value, unscaled: (B, N, K), (B, N', K), (B, N', C) -> (B, N, C)."""
    if fused:
        query, key, value = query[:, None], key[:, None], value[:, None]  # one head
        return F.scaled_dot_product_attention(query, key, value, scale=1.0)[:, 0]
    return torch.softmax(query @ key.transpose(1, 2), dim=-1) @ value


class NonLocal(nn.Module):
    """Non-local block, embedded Gaussian (Wang et al., CVPR 2018, Eqs. 1, 4, 6).

    ``z_i = W y_i + x_i`` with ``y_i = Σ_j softmax_j(θ(x_i)ᵀφ(x_j)) g(x_j)``; θ, φ and g map to
    C/2 channels. W is initialized to 0, so that the block starts as the identity.
    """

    def __init__(self, channels: int, *, fused: bool = True):
        super().__init__()
        inner = max(1, channels // 2)
        self.theta, self.phi, self.g = (nn.Conv2d(channels, inner, 1) for _ in range(3))
        self.out = nn.Conv2d(inner, channels, 1)
        nn.init.zeros_(self.out.weight)
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias)
        self.fused = fused

    def forward(self, x: Tensor, coarse_logits: Tensor | None = None) -> Tensor:
        """Refined features (B, C, h, w); the coarse logits are not used."""
        query, key, value = (_rows(f(x)) for f in (self.theta, self.phi, self.g))
        return x + self.out(_map(attend(query, key, value, self.fused), x))


class PositionAttention(nn.Module):
    """DANet's position attention (Fu et al., CVPR 2019, Eqs. 1-2).

    ``E_j = α Σ_i softmax_i(B_iᵀC_j) D_i + A_j`` for pixels i, j of A = x; B and C have C/8
    channels, D has C, and α starts at 0.
    """

    def __init__(self, channels: int, *, fused: bool = True):
        super().__init__()
        inner = max(1, channels // 8)
        self.query, self.key = (nn.Conv2d(channels, inner, 1) for _ in range(2))
        self.value = nn.Conv2d(channels, channels, 1)
        self.alpha = nn.Parameter(torch.zeros(1))
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (_rows(f(x)) for f in (self.query, self.key, self.value))
        return self.alpha * _map(attend(query, key, value, self.fused), x) + x


class ChannelAttention(nn.Module):
    """DANet's channel attention (Fu et al., CVPR 2019, Eqs. 3-4).

    ``E_j = β Σ_i softmax_i(A_iᵀA_j) A_i + A_j`` for channel maps i, j of A = x; β starts at 0.
    This is the formula of the paper; its authors' code attends to the least similar channels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        maps = x.flatten(2)  # (B, C, N)
        with torch.autocast(x.device.type, enabled=False):  # sums over N pixels overflow fp16
            gram = maps.float() if maps.dtype.itemsize < 4 else maps
            attention = torch.softmax(gram @ gram.transpose(1, 2), dim=-1)  # (B, C, C)
        return self.beta * (attention.to(x.dtype) @ maps).view_as(x) + x


class DualAttention(nn.Module):
    """DANet (Fu et al., CVPR 2019): the sum of position and channel attention."""

    def __init__(self, channels: int, *, norm: str = "BN", fused: bool = True):
        super().__init__()
        self.position = PositionAttention(channels, fused=fused)
        self.channel = ChannelAttention()
        self.of_position, self.of_channel = (
            conv_norm_relu(channels, channels, 3, norm) for _ in range(2)
        )

    def forward(self, x: Tensor, coarse_logits: Tensor | None = None) -> Tensor:
        """Refined features (B, C, h, w); the coarse logits are not used."""
        return self.of_position(self.position(x)) + self.of_channel(self.channel(x))


class ObjectContext(nn.Module):
    """OCR, object-contextual representations (Yuan et al., ECCV 2020, Eqs. 3-6).

    Object regions ``f_m = Σ_i softmax_i(P_mi) x_i`` from the coarse logits P; every pixel attends
    to them, ``y_i = ρ(Σ_m softmax_m(φ(x_i)ᵀψ(f_m)) δ(f_m))``; ``z_i = g([x_i; y_i])``. All of φ,
    ψ, δ, ρ, g are 1x1 conv-norm-ReLU, the first three to K = C/2 channels. φᵀψ is scaled by
    K**-0.5, as in the authors' code.
    """

    def __init__(self, channels: int, *, norm: str = "BN"):
        super().__init__()
        inner = max(1, channels // 2)
        self.phi, self.psi, self.delta = (
            conv_norm_relu(channels, inner, 1, norm) for _ in range(3)
        )
        self.rho = conv_norm_relu(inner, channels, 1, norm)
        self.g = conv_norm_relu(2 * channels, channels, 1, norm)
        self.scale = inner**-0.5

    def forward(self, x: Tensor, coarse_logits: Tensor) -> Tensor:
        """Refined features (B, C, h, w) of x and the coarse logits (B, M, h, w)."""
        weights = coarse_logits.flatten(2).softmax(dim=2)  # (B, M, N)
        regions = (weights @ _rows(x)).transpose(1, 2)[..., None]  # (B, C, M, 1)
        query = _rows(self.phi(x)) * self.scale
        key, value = _rows(self.psi(regions)), _rows(self.delta(regions))
        y = attend(query, key, value, fused=False)  # N x M is small
        return self.g(torch.cat([x, self.rho(_map(y, x))], dim=1))


class PyramidPooling(nn.Module):
    """PSPNet's pyramid pooling (Zhao et al., CVPR 2017, Sec. 3.2), projected to C channels.

    Averages over 1x1, 2x2, 3x3 and 6x6 bins pass through a 1x1 conv-norm-ReLU to C/4 channels
    each, are resized to h x w and concatenated with x; a 3x3 conv-norm-ReLU projects to C channels.
    """

    def __init__(self, channels: int, *, norm: str = "BN", bins: tuple[int, ...] = (1, 2, 3, 6)):
        super().__init__()
        inner = max(1, channels // len(bins))
        self.bins = bins
        self.stages = nn.ModuleList(conv_norm_relu(channels, inner, 1, norm) for _ in bins)
        self.project = conv_norm_relu(channels + inner * len(bins), channels, 3, norm)

    def forward(self, x: Tensor, coarse_logits: Tensor | None = None) -> Tensor:
        """Refined features (B, C, h, w); the coarse logits are not used."""
        parts = [x]
        for count, stage in zip(self.bins, self.stages, strict=True):
            pooled = stage(F.adaptive_avg_pool2d(x, count))
            parts.append(
                F.interpolate(pooled, size=x.shape[2:], mode="bilinear", align_corners=True)
            )
        return self.project(torch.cat(parts, dim=1))


class Pixelwise(nn.Module):
    """A control with as many parameters as the graph, in which no pixel sees another.

    Two 1x1 conv-norm-ReLU layers C -> H -> C. H is the multiple of C that brings 2·C·H closest to
    the given number; for the graph's (2M + 2)·C² it is (M + 1)·C.
    """

    def __init__(self, channels: int, *, parameters: int, norm: str = "BN"):
        """
        Args:
            channels: C.
            parameters: approximate number of parameters of the block.
            norm: Detectron2 norm name.
        """
        super().__init__()
        hidden = channels * max(1, round(parameters / (2 * channels**2)))
        self.layers = nn.Sequential(
            conv_norm_relu(channels, hidden, 1, norm), conv_norm_relu(hidden, channels, 1, norm)
        )

    def forward(self, x: Tensor, coarse_logits: Tensor | None = None) -> Tensor:
        """Refined features (B, C, h, w); the coarse logits are not used."""
        return self.layers(x)


def build_context_module(name: str, channels: int, *, norm: str, parameters: int) -> nn.Module:
    """Build one of :data:`CONTEXT_MODULES`.

    Args:
        name: one of them.
        channels: C.
        norm: Detectron2 norm name.
        parameters: number of parameters of the graph that it replaces, for "pixelwise".

    Raises:
        ValueError: for any other name.
    """
    if name == "non_local":
        return NonLocal(channels)
    if name == "danet":
        return DualAttention(channels, norm=norm)
    if name == "ocr":
        return ObjectContext(channels, norm=norm)
    if name == "psp":
        return PyramidPooling(channels, norm=norm)
    if name == "pixelwise":
        return Pixelwise(channels, parameters=parameters, norm=norm)
    raise ValueError(f"the context module must be one of {CONTEXT_MODULES}, got {name!r}")
