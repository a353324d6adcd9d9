"""What the graph is measured against: context modules of other papers, and its own literal form.

The peers are mmsegmentation's where it is installed (``pip install -e ".[bench]"``), and in every
case the project's minimal ones from the papers' formulas, which also come with fused attention.

Shape shorthand: x (B, C, h, w), N = h*w pixels, M classes. ``fused`` takes torch's fused attention
instead of storing the N x N matrix.
"""

import importlib
import importlib.util
import sys
import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdgc import CDGCModule
from cdgc.propagation import Edges
from cdgcnet.modeling.context_modules import NonLocal, ObjectContext, PositionAttention, attend

__all__ = [
    "DenseGraph",
    "FusedAttention",
    "LinearPart",
    "NonLocal",
    "ObjectContext",
    "PositionAttention",
    "mmseg_build",
    "mmseg_danet",
    "mmseg_non_local",
    "mmseg_ocr",
    "mmseg_version",
]


def _rows(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2).contiguous()  # (B, N, C)


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
        y = attend(rows @ (self.phi @ self.phi_prime.t()), rows, rows)  # as the graph does
        y = torch.relu(y @ self.w) @ self.u
        return torch.relu(y).transpose(1, 2).reshape(x.shape)


class LinearEdges(Edges):
    """Edges that cost O(n) instead of O(n²) and pass gradients to the same tensors."""

    def aggregate(
        self, q: Tensor, k: Tensor, v: Tensor, lengths: list[int], log_weight: Tensor | None
    ) -> Tensor:
        return q + k

    def attend(self, q: Tensor, k: Tensor, v: Tensor, log_weight: Tensor | None) -> Tensor:
        return q + (k + v).mean(0)


class LinearPart(CDGCModule):
    """The graph without its attention: selection, gathers, φ φ'ᵀ, W, U, norm.

    With receivers="all" the products with U are N·C² for every class present in the image.
    """

    def _edges(self) -> Edges:
        return LinearEdges(self.edges, self.scale, self.topk, self.topk_weights)


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


# ---------------------------------------------------------------- mmsegmentation, where it is
class _MissingOps(types.ModuleType):
    """Stands for mmcv's compiled operators, which mmcv-lite lacks and mmseg's __init__ imports."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_: Any, **__: Any) -> None:
            raise RuntimeError(f"mmcv-lite has no compiled operator {name}")

        return missing


def mmseg_version() -> str:
    """Versions of mmsegmentation and mmcv, or "" where mmsegmentation is not installed.

    Makes mmsegmentation importable on top of mmcv-lite.
    """
    if importlib.util.find_spec("mmseg") is None:
        return ""
    if "mmcv._ext" not in sys.modules and importlib.util.find_spec("mmcv._ext") is None:
        sys.modules["mmcv._ext"] = _MissingOps("mmcv._ext")
    import mmcv
    import mmseg

    return f"mmsegmentation {mmseg.__version__}, mmcv {mmcv.__version__}"


def mmseg_build(config: dict) -> nn.Module:
    """A network of mmsegmentation's registry."""
    assert mmseg_version()
    importlib.import_module("mmseg.models")  # fills the registry
    from mmseg.registry import MODELS

    return MODELS.build(config)


def mmseg_non_local(channels: int) -> nn.Module:
    """mmcv's NonLocal2d as mmseg's NLHead uses it: keys and values of C/2."""
    assert mmseg_version()
    from mmcv.cnn import NonLocal2d

    return NonLocal2d(channels, reduction=2, use_scale=True, mode="embedded_gaussian")


def mmseg_danet(channels: int) -> nn.Module:
    """mmseg's position attention (PAM): keys of C/8, values of C, as its configs have it."""
    assert mmseg_version()
    from mmseg.models.decode_heads.da_head import PAM

    return PAM(channels, channels // 8)


class _MmsegOcr(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        from mmseg.models.decode_heads.ocr_head import ObjectAttentionBlock, SpatialGatherModule

        norm, act = {"type": "BN"}, {"type": "ReLU"}
        self.gather = SpatialGatherModule(1)
        self.attend = ObjectAttentionBlock(channels, channels // 2, 1, None, norm, act)

    def forward(self, x: Tensor, coarse_logits: Tensor) -> Tensor:
        return self.attend(x, self.gather(x, coarse_logits))


def mmseg_ocr(channels: int) -> nn.Module:
    """mmseg's object context: keys of C/2, two convolutions each in φ and ψ, as its authors'."""
    assert mmseg_version()
    return _MmsegOcr(channels)
