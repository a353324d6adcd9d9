"""The class graph at inference, in a form that torch.export and ONNX can express.

:class:`cdgc.CDGCModule` splits its nodes into segments whose lengths are Python integers, so that a
recording of it fits a single example. The form here has tensors only: the nodes of each image are
sorted by class, so that each class is a slice of them. A loop runs over blocks of queries, and for
each block another one over the classes; a class without nodes is skipped by a condition. The loops
are part of the exported graph, so its size does not depend on the number of classes, and the memory
it takes grows with N rather than N².

Shape shorthand: B images, C channels, h x w feature map, N = h*w pixels, M classes, K nodes of an
image (N, or 2N for soft nodes), n nodes of one class, H heads, D = C / H, q queries of a block.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental import _config as fx_config

from cdgc import CDGCModule
from cdgcnet.export.loops import fold, map_steps, run_if

# Queries whose attention is computed at once: the attention weights of four heads to the 9409 nodes
# of an image of 769 x 769 pixels take 37 MiB.
_BLOCK = 256
# Added to a similarity, it makes the softmax exactly 0.
_MASKED = -1e30


class Nodes(NamedTuple):
    """The nodes of each image, sorted by class.

    Attributes:
        pixel: (B, K), index within the image.
        class_index: (B, K), M for what is no node after all.
        log_weight: (B, K), the logarithm of the membership; None for hard nodes.
        starts, ends: (B, M), the slice of each class.
    """

    pixel: Tensor
    class_index: Tensor
    log_weight: Tensor | None
    starts: Tensor
    ends: Tensor


class ExportableGraph(nn.Module):
    """Inference with the parameters of a trained :class:`cdgc.CDGCModule`, without batch padding.

    The result equals the module's up to rounding, on every image and for every batch size.
    """

    def __init__(self, graph: CDGCModule):
        """
        Args:
            graph: in evaluation mode; its parameters are shared, not copied.

        Raises:
            ValueError: for a module in training mode.
        """
        super().__init__()
        if graph.training:
            raise ValueError("the graph is in training mode; call graph.eval() before exporting it")
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
        # Otherwise torch.export would decide by the example whether there is one node, or one block
        # of queries, and the file would refuse the sizes for which the answer is another one.
        exporting = torch.compiler.is_exporting()
        with _any_size() if exporting else nullcontext():
            return self._forward(x, coarse_logits)

    def _forward(self, x: Tensor, coarse_logits: Tensor) -> Tensor:
        size = (x.shape[2], x.shape[3])
        rows = _rows(x)
        nodes = self._sorted_nodes(coarse_logits)
        probability = None
        if self.scope == "class" and self.message_weights == "probability":
            probability = _rows(coarse_logits.softmax(1))
        if self.edges == "uniform":
            merged = self._uniform(rows, nodes, probability)
        else:
            merged = self._attention(rows, nodes, probability, size)
        merged = merged.unflatten(0, (x.shape[0], size[0] * size[1]))  # (B, N, C)
        if self.message_weights == "mean":
            present = (nodes.ends > nodes.starts).sum(1)
            merged = merged / present.clamp(min=1)[:, None, None]
        merged = (merged + self.merge_bias).transpose(1, 2).unflatten(2, size)
        return self.relu(self.norm(merged))

    def _sorted_nodes(self, coarse_logits: Tensor) -> Nodes:
        classes = len(self.graph_weight)
        logits = coarse_logits.flatten(2)
        log_weight = None
        if self.scope == "image":
            class_index = torch.zeros_like(logits[:, 0], dtype=torch.long)
        elif self.nodes != "soft" or classes == 1:
            class_index = logits.argmax(1)
        else:
            best = logits.topk(2, dim=1)
            log_weight = best.values.log_softmax(1).flatten(1)
            # A membership that rounds to 0 makes no node.
            is_node = best.values.softmax(1) > 0
            class_index = torch.where(is_node, best.indices, classes).flatten(1)
        pixel = torch.arange(logits.shape[2], device=logits.device).expand(logits.shape[0], -1)
        if log_weight is not None:
            pixel = torch.cat([pixel, pixel], 1)
        ids = torch.arange(classes, device=logits.device)
        counts = (class_index[:, None] == ids[:, None]).sum(2)
        ends = counts.cumsum(1)
        # Within a class in the order of the pixels, as in the module, so that ties end alike.
        length = class_index.shape[1]
        order = (class_index * length + torch.arange(length, device=logits.device)).argsort(1)
        if log_weight is not None:
            log_weight = log_weight.gather(1, order)
        return Nodes(
            pixel.gather(1, order), class_index.gather(1, order), log_weight, ends - counts, ends
        )

    def _uniform(self, rows: Tensor, nodes: Nodes, probability: Tensor | None) -> Tensor:
        """Σ_m of the messages with A_m = 1/n: a mean per class, (B*N, C). For hard nodes only."""
        images, pixels = nodes.pixel.shape
        ids = torch.arange(len(self.graph_weight), device=rows.device)
        unsorted = torch.zeros_like(nodes.pixel).scatter(1, nodes.pixel, nodes.class_index)
        one_hot = (unsorted[:, None] == ids[:, None]).float()  # (B, M, N)
        count = one_hot.sum(2, keepdim=True)
        mean = torch.bmm(one_hot, rows.unflatten(0, (images, pixels))) / count.clamp(min=1)
        # Absent classes have a mean of 0 and therefore a message of 0: W and U have no bias.
        messages = torch.bmm(
            torch.bmm(mean.transpose(0, 1), self.graph_weight).relu(), self.merge_weight
        )
        messages = messages.transpose(0, 1)  # (B, M, C)
        if self.receivers == "nodes":
            weights = one_hot.transpose(1, 2)
        elif probability is not None:
            weights = probability.unflatten(0, (images, pixels))
        else:
            weights = torch.ones_like(one_hot).transpose(1, 2)
        return torch.bmm(weights, messages).flatten(0, 1)

    def _attention(
        self, rows: Tensor, nodes: Nodes, probability: Tensor | None, size: tuple[int, int]
    ) -> Tensor:
        """Σ_m of the messages along similarity or top-k edges, (B*N, C)."""
        images, nodes_per_image = nodes.pixel.shape
        pixels, to_all = size[0] * size[1], self.receivers == "all"
        image = torch.arange(images, device=rows.device)
        flat_pixel = (image[:, None] * pixels + nodes.pixel).flatten()
        node_rows = rows.index_select(0, flat_pixel)  # (B*K, C)
        queries = (rows, (images, pixels)) if to_all else (node_rows, (images, nodes_per_image))
        messages = self._in_blocks(
            self._queries(*queries, size),
            self._keys(node_rows, nodes, size),
            self._by_head(node_rows).unflatten(0, (images, nodes_per_image)).transpose(1, 2),
            nodes,
            probability,
        ).flatten(0, 1)
        return messages if to_all else torch.zeros_like(rows).index_add(0, flat_pixel, messages)

    def _by_head(self, rows: Tensor) -> Tensor:
        """(B*N, C) -> (B*N, H, D)."""
        return rows.unflatten(1, (self.heads, -1))

    def _queries(self, rows: Tensor, shape: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """(B, N or K, H, D'), where D' is D, or D + 3 with a distance bias.

        Args:
            rows: (B*N or B*K, C).
            shape: (B, N or K).
            size: (h, w).
        """
        if self.phi is not None and len(self.phi) == 1:
            rows = torch.mm(rows, self.phi[0])
        q = self._by_head(rows) * self.scale
        q = q.unflatten(0, shape)
        if self.distance is not None:
            near = self._near(_positions(size, rows)) + torch.zeros_like(q[:, :, :, :2])
            q = torch.cat([q, near, torch.ones_like(near[:, :, :, :1])], 3)
        return q

    def _keys(self, rows: Tensor, nodes: Nodes, size: tuple[int, int]) -> Tensor:
        """(B, H, D', K)."""
        if self.phi_prime is not None and len(self.phi_prime) == 1:
            rows = torch.mm(rows, self.phi_prime[0])
        k = self._by_head(rows)
        if self.distance is not None:  # the bias, up to terms of the pixel alone
            near = self._near(_positions(size, rows)).index_select(0, nodes.pixel.flatten())
            from_node = (near * (self.distance.offset - 0.5 * near)).sum(2, keepdim=True)
            k = torch.cat([k, near, from_node], 2)
        # A copy, because the loops take no tensors that share their values.
        return _contiguous(k.unflatten(0, nodes.pixel.shape).permute(0, 2, 3, 1))

    def _near(self, position: Tensor) -> Tensor:
        """Positions (N, 2) in units of each head's width, (N, H, 2)."""
        assert self.distance is not None
        return self.distance.log_precision.exp()[:, None] * position[:, None]

    def _in_blocks(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        nodes: Nodes,
        probability: Tensor | None,
    ) -> Tensor:
        """The sum of the messages to each query, (B, N, C), or (B, K, C) if only nodes receive.

        Args:
            queries: (B, N or K, H, D').
            keys: (B, H, D', K).
            values: (B, H, K, D).
            nodes, probability: of the batch.
        """
        images, per_image = queries.shape[:2]
        blocks = (per_image + _BLOCK - 1) // _BLOCK
        # The last block ends in the rows of the next image, or in zeros; what it gives there is
        # dropped.
        queries = F.pad(queries.flatten(0, 1), (0, 0, 0, 0, 0, _BLOCK))
        to_all = self.receivers == "all"
        device, channels = queries.device, self.merge_bias.shape[0]
        image = torch.arange(images, device=device)[:, None]
        first = torch.arange(blocks, device=device) * _BLOCK
        # Sums instead of expand, which would make torch.export ask whether there is 1 block.
        image, first = (image + 0 * first).flatten(), (0 * image + first).flatten()
        steps = (
            image,
            first,
            nodes.starts.index_select(0, image),
            nodes.ends.index_select(0, image),
        )
        ids = torch.arange(len(self.graph_weight), device=device)
        per_class = [ids, self.graph_weight, self.merge_weight]
        if self.phi is not None and self.phi_prime is not None and len(self.phi) > 1:
            per_class += [self.phi, self.phi_prime]
        query_class = None if to_all else F.pad(nodes.class_index.flatten(), (0, _BLOCK), value=-1)
        query_weight = None
        if nodes.log_weight is not None and not to_all:
            query_weight = F.pad(nodes.log_weight.exp().flatten(), (0, _BLOCK))
        if probability is not None:
            query_weight = F.pad(probability, (0, 0, 0, _BLOCK))
        exporting = torch.compiler.is_exporting()

        def block(step: tuple[Tensor, ...]) -> Tensor:
            i, offset, starts, ends = step
            index = i * per_image + offset + torch.arange(_BLOCK, device=device)
            q = queries.index_select(0, index).transpose(0, 1)  # (H, q, D')
            k, v = keys.index_select(0, i[None])[0], values.index_select(0, i[None])[0]
            bias = nodes.log_weight
            bias = None if bias is None else bias.index_select(0, i[None])
            joint = _weights(torch.bmm(q, k)) if self.softmax == "image" else None
            own_class = None if query_class is None else query_class.index_select(0, index)
            own_weight = None if query_weight is None else query_weight.index_select(0, index)

            def add_class(total: Tensor, of_class: tuple[Tensor, ...]) -> Tensor:
                start, end, m, w, u, *phi = of_class

                def add(total: Tensor, start: Tensor, end: Tensor) -> Tensor:
                    first_node, end_node = start.item(), end.item()
                    # These hold by construction; torch.export cannot know.
                    torch._check(first_node >= 0)
                    torch._check(first_node < end_node)
                    torch._check(end_node <= k.shape[2])
                    torch._check(end_node <= v.shape[1])
                    own = slice(first_node, end_node)
                    if joint is not None:
                        gathered = torch.bmm(joint[:, :, own], v[:, own])
                    else:
                        own_bias = None if bias is None else bias[:, own]
                        gathered = self._gather(q, k[:, :, own], v[:, own], own_bias, phi)
                    gathered = gathered.transpose(0, 1).flatten(1)  # (q, C)
                    message = torch.mm(torch.mm(gathered, w).relu(), u)
                    if probability is not None and own_weight is not None:
                        message = message * own_weight.index_select(1, m[None])
                    if own_class is not None:
                        mine = (own_class == m).float()
                        message = (
                            message * (mine if own_weight is None else mine * own_weight)[:, None]
                        )
                    return total + message

                used = end > start
                if not to_all:  # nodes receive from their own class only
                    used = used & (start < offset + _BLOCK) & (end > offset)
                return run_if(exporting, used, add, (total, start, end))

            zero = torch.zeros(_BLOCK, channels, device=device)
            return fold(exporting, add_class, zero, (starts, ends, *per_class))

        messages = map_steps(exporting, block, steps).unflatten(0, (images, blocks))
        return _contiguous(messages.flatten(1, 2).narrow(1, 0, per_image))

    def _gather(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, phi: list[Tensor]
    ) -> Tensor:
        """A X of one class for one block of queries, (1, q, C).

        Args:
            q, k, v: (1, q, C), (1, C, n) and (1, n, C).
            bias: (1, n), added to the similarities; None for none.
            phi: φ and φ' of the class, (C, C) each; empty if they are applied already.
        """
        if phi:
            q, k = torch.bmm(q, phi[0][None]), torch.bmm(phi[1].t()[None], k)
        similarity = torch.bmm(q, k)
        if self.edges == "similarity":
            if bias is not None:
                similarity = similarity + bias[:, None]
            return torch.bmm(_weights(similarity), v)
        # With masked nodes added, every class has enough nodes for a constant number of neighbors.
        v = F.pad(v, (0, 0, 0, self.topk))
        similarity = F.pad(similarity, (0, self.topk), value=_MASKED)
        best, neighbors = similarity.topk(self.topk, dim=2)
        if self.topk_weights == "softmax":
            a = best.softmax(2)
        else:
            a = (best > _MASKED / 2).float()
            a = a / a.sum(2, keepdim=True)
        return torch.bmm(torch.zeros_like(similarity).scatter(2, neighbors, a), v)


def _any_size() -> AbstractContextManager:
    return fx_config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]


def _weights(similarity: Tensor) -> Tensor:
    """The softmax over the last dimension.

    Similarities more than 60 below the largest count as 60 below it: a weight of at most 1e-26,
    which no sum feels. Smaller weights would be subnormal numbers, which slow a CPU down.
    """
    return torch.maximum(similarity, similarity.amax(2, keepdim=True) - 60).softmax(2)


def _rows(maps: Tensor) -> Tensor:
    """(B, C, h, w) -> (B*N, C)."""
    return _contiguous(maps.permute(0, 2, 3, 1)).flatten(0, 2)


def _contiguous(x: Tensor) -> Tensor:
    """A copy in a layout that torch.export knows; it would ask whether sizes are 1 otherwise."""
    return x.clone(memory_format=torch.contiguous_format)


def _positions(size: tuple[int, int], like: Tensor) -> Tensor:
    """Row and column of every pixel, (N, 2), relative to the center of the map."""
    height, width = size
    y = torch.arange(height, device=like.device, dtype=like.dtype) - (height - 1) / 2
    x = torch.arange(width, device=like.device, dtype=like.dtype) - (width - 1) / 2
    return torch.stack([y[:, None].expand(-1, width), x.expand(height, -1)], dim=2).flatten(0, 1)
