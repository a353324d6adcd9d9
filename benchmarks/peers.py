"""The context modules that the graph is measured against, minimal, from their papers' formulas.

Shape shorthand: x (B, C, h, w), N = h*w. ``fused`` takes torch's fused attention instead of
storing the N x N matrix.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _rows(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)  # (B, N, C)


def _attend(q: Tensor, k: Tensor, v: Tensor, fused: bool) -> Tensor:
    """softmax(q kᵀ) v, without a scale."""
    if fused:
        return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], scale=1.0)[:, 0]
    return torch.softmax(q @ k.transpose(1, 2), dim=-1) @ v


class NonLocal(nn.Module):
    """Embedded Gaussian non-local block (Wang et al., CVPR 2018): θ, φ, g to C/2 and back."""

    def __init__(self, channels: int, fused: bool = False):
        super().__init__()
        inner = channels // 2
        self.theta, self.phi, self.g = (nn.Conv2d(channels, inner, 1) for _ in range(3))
        self.out = nn.Conv2d(inner, channels, 1)
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (_rows(conv(x)) for conv in (self.theta, self.phi, self.g))
        y = _attend(q, k, v, self.fused).transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:])
        return x + self.out(y)


class PositionAttention(nn.Module):
    """DANet's position attention (Fu et al., CVPR 2019): queries and keys of C/8, values of C."""

    def __init__(self, channels: int, fused: bool = False):
        super().__init__()
        self.query, self.key = (nn.Conv2d(channels, channels // 8, 1) for _ in range(2))
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (_rows(conv(x)) for conv in (self.query, self.key, self.value))
        y = _attend(q, k, v, self.fused).transpose(1, 2).reshape(x.shape)
        return self.gamma * y + x


class ObjectContext(nn.Module):
    """OCR's object contextual representation (Yuan et al., ECCV 2020), key width C/2.

    M object regions are weighted means of the pixels; every pixel attends to the regions.
    """

    def __init__(self, channels: int):
        super().__init__()
        inner = channels // 2

        def two(out: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for width in (channels, out):
                layers += [nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            return nn.Sequential(*layers)

        def one(width: int, out: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()
            )

        self.pixel, self.region = two(inner), two(inner)
        self.value, self.up = one(channels, inner), one(inner, channels)
        self.bottleneck = one(2 * channels, channels)
        self.inner = inner

    def forward(self, x: Tensor, coarse_logits: Tensor) -> Tensor:
        weights = coarse_logits.flatten(2).softmax(dim=2)  # (B, M, N)
        regions = (weights @ _rows(x)).transpose(1, 2)[..., None]  # (B, C, M, 1)
        q = _rows(self.pixel(x))
        k, v = _rows(self.region(regions)), _rows(self.value(regions))
        attention = torch.softmax(q @ k.transpose(1, 2) * self.inner**-0.5, dim=-1)  # (B, N, M)
        y = (attention @ v).transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:])
        return self.bottleneck(torch.cat([self.up(y), x], dim=1))


class FusedAttention(nn.Module):
    """One fused softmax(φ(x) φ'(x)ᵀ) x over all N pixels, with W and U: the graph's worst case."""

    def __init__(self, channels: int):
        super().__init__()
        std = channels**-0.5
        shape = (channels, channels)
        self.phi, self.phi_prime, self.w, self.u = (
            nn.Parameter(torch.randn(shape) * std) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        rows = _rows(x)
        y = _attend(rows @ self.phi, rows @ self.phi_prime, rows, fused=True)
        y = torch.relu(y @ self.w) @ self.u
        return torch.relu(y).transpose(1, 2).reshape(x.shape)


class DenseGraph(nn.Module):
    """Eqs. 1-3 as printed: an M x N x N adjacency. Class sets as masks, before the softmax.

    The same function as :class:`cdgc.CDGCModule` with coarse nodes, given its parameters.
    """

    def __init__(self, graph: nn.Module):
        super().__init__()
        self.graph = graph

    def forward(self, x: Tensor, coarse_logits: Tensor) -> Tensor:
        graph, rows = self.graph, _rows(x)  # (B, N, C)
        sets = F.one_hot(coarse_logits.argmax(1).flatten(1), coarse_logits.shape[1])
        member = sets.transpose(1, 2).bool()  # (B, M, N)
        similarity = (rows @ graph.phi[0]) @ (rows @ graph.phi_prime[0]).transpose(1, 2)
        similarity = similarity[:, None].masked_fill(~member[:, :, None], -torch.inf)
        # A row without candidates, or of a pixel outside the set, is no node: zero.
        a = similarity.softmax(dim=-1).nan_to_num() * member[..., None]  # (B, M, N, N)
        z = torch.relu(torch.einsum("bmij,bjc,mcd->bmid", a, rows, graph.graph_weight))
        y = torch.einsum("bmid,mde->bie", z, graph.merge_weight) + graph.merge_bias
        y = y.transpose(1, 2).reshape(x.shape)
        return graph.relu(graph.norm(y))
