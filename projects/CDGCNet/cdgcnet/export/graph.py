"""The class graph at inference, in a form that torch.export and ONNX can express.

:class:`cdgc.CDGCModule` splits its nodes into segments whose lengths are Python integers, so that a
recording of it fits a single example. The form here has tensors only: for each class, ``nonzero``
finds the pixels of its nodes, and one attention serves all images of the batch. An image's pixel
that is a node in another image only is masked. Classes that are absent from the whole batch are
skipped by a condition inside the exported graph. With softmax="image", the attention weights of all
pixels to all nodes are computed first, and each class takes its columns.

Shape shorthand: B images, C channels, h x w feature map, N = h*w pixels, M classes, n pixels that
are nodes of one class in at least one image, H heads.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdgc import CDGCModule

NODE_SELECTIONS = ("nonzero", "mask")
# Added to a similarity, it makes the softmax exactly 0. Unlike -inf, it gives numbers, which are
# dropped later, even where every node is masked.
_MASKED = -1e30


class Membership(NamedTuple):
    """The classes that each pixel belongs to.

    Attributes:
        classes: (B, 1 or 2, N) int64.
        log_weight: (B, 1 or 2, N), the logarithm of the membership; None for hard nodes.
        weight: (B, 1 or 2, N), the membership, 0 for no node; None for hard nodes.
    """

    classes: Tensor
    log_weight: Tensor | None = None
    weight: Tensor | None = None

    def of_class(self, m: int) -> tuple[Tensor, Tensor]:
        """Which pixels are nodes of class m, (B, N) bool, and the logarithm of their membership."""
        matches = self.classes == m
        if self.log_weight is None or self.weight is None:
            keep = matches.any(1)
            return keep, torch.zeros_like(keep, dtype=torch.float32)
        matches = matches & (self.weight > 0)
        return matches.any(1), torch.where(matches, self.log_weight, 0.0).sum(1)


class ExportableGraph(nn.Module):
    """Inference with the parameters of a trained :class:`cdgc.CDGCModule`, without batch padding.

    The result equals the module's up to rounding, on every image and for every batch size.
    """

    def __init__(self, graph: CDGCModule, node_selection: str = "nonzero"):
        """
        Args:
            graph: in evaluation mode; its parameters are shared, not copied.
            node_selection: "nonzero", or "mask" for runtimes without ONNX's NonZero: every pixel
                is then a masked node of every class, which takes the time and memory of N x N
                similarities for each class that is present.

        Raises:
            ValueError: for another selection, or a module in training mode.
        """
        super().__init__()
        if node_selection not in NODE_SELECTIONS:
            raise ValueError(
                f"node_selection must be one of {NODE_SELECTIONS}, got {node_selection!r}"
            )
        if graph.training:
            raise ValueError("the graph is in training mode; call graph.eval() before exporting it")
        self.node_selection = node_selection
        self.nodes, self.edges, self.scope = graph.nodes, graph.edges, graph.scope
        self.receivers, self.message_weights = graph.receivers, graph.message_weights
        self.topk, self.topk_weights, self.scale = graph.topk, graph.topk_weights, graph.scale
        self.softmax, self.heads, self.distance = graph.softmax, graph.heads, graph.distance
        self.phi, self.phi_prime = graph.phi, graph.phi_prime
        self.graph_weight, self.merge_weight = graph.graph_weight, graph.merge_weight
        self.merge_bias = graph.merge_bias
        self.norm, self.relu = graph.norm, graph.relu

    def forward(self, x: Tensor, coarse_logits: Tensor) -> Tensor:
        """
        Args:
            x: (B, C, h, w) float32 features.
            coarse_logits: (B, M, h, w).

        Returns:
            (B, C, h, w) refined features.
        """
        rows = x.flatten(2).transpose(1, 2).contiguous()  # (B, N, C)
        membership = self._membership(coarse_logits)
        weights = None
        if self.scope == "class" and self.message_weights == "probability":
            weights = coarse_logits.flatten(2).softmax(1)  # (B, M, N)
        if self.edges == "uniform":
            merged = self._uniform(rows, membership, weights)
        elif self.softmax == "image":
            merged = self._joint(rows, membership, (x.shape[2], x.shape[3]))
        else:
            merged = self._attention(rows, membership, weights)
        if self.message_weights == "mean":
            merged = merged / self._present(membership).sum(1, keepdim=True).clamp(min=1)
        merged = (merged + self.merge_bias).transpose(1, 2).reshape(x.shape)
        return self.relu(self.norm(merged))

    def _membership(self, coarse_logits: Tensor) -> Membership:
        logits = coarse_logits.flatten(2)
        if self.scope == "image":
            return Membership(torch.zeros_like(logits[:, :1], dtype=torch.long))
        if self.nodes != "soft" or logits.shape[1] == 1:
            return Membership(logits.argmax(1, keepdim=True))
        best = logits.topk(2, dim=1)
        return Membership(best.indices, best.values.log_softmax(1), best.values.softmax(1))

    def _one_hot(self, membership: Membership) -> Tensor:
        """(B, M, N) float32: 1 where a pixel is a node of a class. For hard nodes only."""
        ids = torch.arange(len(self.graph_weight), device=membership.classes.device)
        return (membership.classes == ids[:, None]).float()

    def _present(self, membership: Membership) -> Tensor:
        """(B, M, 1) float32: 1 for classes that have a node in the image."""
        found = [
            membership.of_class(m)[0].any(1, keepdim=True) for m in range(len(self.graph_weight))
        ]
        return torch.stack(found, dim=1).float()

    def _uniform(self, rows: Tensor, membership: Membership, weights: Tensor | None) -> Tensor:
        """Σ_m of the messages with A_m = 1/n: a mean per class, (B, N, C)."""
        one_hot = self._one_hot(membership)
        count = one_hot.sum(2, keepdim=True)  # (B, M, 1)
        mean = (one_hot @ rows) / count.clamp(min=1)
        # Absent classes have a mean of 0 and therefore a message of 0: W and U have no bias.
        z = (mean.transpose(0, 1) @ self.graph_weight).relu() @ self.merge_weight  # (M, B, C)
        messages = z.transpose(0, 1)
        if self.receivers == "nodes":
            return one_hot.transpose(1, 2) @ messages
        if weights is not None:
            return weights.transpose(1, 2) @ messages
        return messages.sum(1, keepdim=True).expand_as(rows)

    def _attention(self, rows: Tensor, membership: Membership, weights: Tensor | None) -> Tensor:
        """Σ_m of the messages with similarity or top-k edges, (B, N, C)."""
        assert self.phi is not None and self.phi_prime is not None
        shared = len(self.phi) == 1
        queries = rows @ self.phi[0] if shared else rows
        keys = rows @ self.phi_prime[0] if shared else rows
        total = torch.zeros_like(rows)
        for m in range(len(self.graph_weight)):
            keep, log_weight = membership.of_class(m)
            class_weight = torch.ones_like(log_weight) if weights is None else weights[:, m]
            operands = (
                total,
                queries if shared else rows @ self.phi[m],
                keys if shared else rows @ self.phi_prime[m],
                rows,
                keep,
                log_weight,
                class_weight,
                self.graph_weight[m],
                self.merge_weight[m],
            )
            total = self._if_any(keep, self._add_message, operands)
        return total

    def _if_any(
        self, keep: Tensor, add: Callable[..., Tensor], operands: tuple[Tensor, ...]
    ) -> Tensor:
        """``add(*operands)`` if any pixel is a node, otherwise the first operand."""
        if self.scope == "image":
            return add(*operands)
        if torch.compiler.is_exporting():
            return torch.cond(keep.any(), add, _skip, operands)
        return add(*operands) if bool(keep.any()) else operands[0]

    def _joint(self, rows: Tensor, membership: Membership, size: tuple[int, int]) -> Tensor:
        """Σ_m of the messages with one softmax over the nodes of all classes, (B, N, C).

        At inference without padding every pixel is a node.
        """
        assert self.phi is not None and self.phi_prime is not None
        q = self._by_head(rows @ self.phi[0]) * self.scale
        k = self._by_head(rows @ self.phi_prime[0])
        if self.distance is not None:  # as in DistanceBias.extend
            g = self.distance.log_precision.exp()[:, None, None]
            near = g * _positions(size, rows)  # (H, N, 2)
            offset = self.distance.offset[:, None]
            from_node = (near * (offset - 0.5 * near)).sum(2, keepdim=True)
            of_pixel = torch.cat([near, torch.ones_like(from_node)], 2)
            of_node = torch.cat([near, from_node], 2)
            q, k = (
                torch.cat([t, extra.expand(t.shape[0], -1, -1, -1)], 3)
                for t, extra in ((q, of_pixel), (k, of_node))
            )
        attention = (q @ k.transpose(2, 3)).softmax(3)  # (B, H, N, N)
        values = self._by_head(rows)
        total = torch.zeros_like(rows)
        for m in range(len(self.graph_weight)):
            keep = membership.of_class(m)[0]
            w, u = self.graph_weight[m], self.merge_weight[m]
            operands = (total, attention, values, keep, w, u)
            total = self._if_any(keep, self._add_joint_message, operands)
        return total

    def _by_head(self, rows: Tensor) -> Tensor:
        """(B, N, C) -> (B, H, N, C / H)."""
        return rows.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def _add_joint_message(
        self, total: Tensor, attention: Tensor, values: Tensor, keep: Tensor, w: Tensor, u: Tensor
    ) -> Tensor:
        """Add the message of one class to the sum, (B, N, C)."""
        values = values * keep[:, None, :, None]
        if self.node_selection == "nonzero" and self.scope == "class":
            found = keep.any(0).nonzero()[:, 0]
            torch._check(found.shape[0] > 0)  # otherwise the condition skips this function
            # A node of value 0 more, because torch.export asks whether the number of nodes is 1.
            attention = F.pad(attention.index_select(3, found), (0, 1))
            values = F.pad(values.index_select(2, found), (0, 0, 0, 1))
        gathered = (attention @ values).transpose(1, 2).flatten(2)  # (B, N, C)
        return total + (gathered @ w).relu() @ u

    def _add_message(
        self,
        total: Tensor,
        queries: Tensor,
        keys: Tensor,
        rows: Tensor,
        keep: Tensor,
        log_weight: Tensor,
        class_weight: Tensor,
        w: Tensor,
        u: Tensor,
    ) -> Tensor:
        """Add the message of one class to the sum, (B, N, C)."""
        bias = torch.where(keep, log_weight, _MASKED)
        factor = torch.where(keep, log_weight.exp(), 0.0)
        values, index = rows, None
        if self.node_selection == "nonzero" and self.scope == "class":
            found = keep.any(0).nonzero()[:, 0]
            torch._check(found.shape[0] > 0)  # otherwise the condition skips this function
            # One masked node more, because torch.export asks whether the number of nodes is 1.
            index = F.pad(found, (0, 1))
            bias = F.pad(bias.index_select(1, found), (0, 1), value=_MASKED)
            factor = F.pad(factor.index_select(1, found), (0, 1))
            keys, values = keys.index_select(1, index), rows.index_select(1, index)
            if self.receivers == "nodes":
                queries = queries.index_select(1, index)
        message = self._attend(queries, keys, values @ w, bias).relu() @ u
        if self.receivers == "all":
            present = keep.any(1)[:, None, None]
            return total + torch.where(present, message * class_weight[..., None], 0.0)
        message = message * factor[..., None]
        return total + message if index is None else total.index_add(1, index, message)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """A V with (B, N', C) queries, (B, n, C) keys and values and a (B, n) bias of the keys."""
        if self.edges == "similarity":
            mask = None if self.scope == "image" else bias[:, None, None]
            return F.scaled_dot_product_attention(
                q[:, None], k[:, None], v[:, None], attn_mask=mask, scale=self.scale
            )[:, 0]
        # With masked nodes added, every segment has enough nodes for a constant number of them.
        k, v = (F.pad(t, (0, 0, 0, self.topk)) for t in (k, v))
        bias = F.pad(bias, (0, self.topk), value=_MASKED)
        similarity = q @ k.transpose(1, 2) + bias[:, None]
        values, neighbors = similarity.topk(self.topk, dim=2)
        if self.topk_weights == "softmax":
            a = (values * self.scale).softmax(2)
        else:
            a = (values > _MASKED / 2).float()
            a = a / a.sum(2, keepdim=True).clamp(min=1)
        return torch.zeros_like(similarity).scatter(2, neighbors, a) @ v


def _skip(total: Tensor, *_: Tensor) -> Tensor:
    return total.clone()


def _positions(size: tuple[int, int], like: Tensor) -> Tensor:
    """Row and column of every pixel, (N, 2), relative to the center of the map."""
    height, width = size
    y = torch.arange(height, device=like.device, dtype=like.dtype) - (height - 1) / 2
    x = torch.arange(width, device=like.device, dtype=like.dtype) - (width - 1) / 2
    return torch.stack([y[:, None].expand(-1, width), x.expand(height, -1)], dim=2).flatten(0, 1)
