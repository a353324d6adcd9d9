"""The literal form of softmax="image": loops over heads, pixels and nodes."""

import torch
from reference import build


def joint(scene, seed=0, **options):
    """A module for the scene, with random offsets and precisions of its distance bias."""
    fixed = {"receivers": "all", "softmax": "image", "nodes": "coarse"}
    return build(scene, seed, **{**fixed, **options})


def dense(scene, module, nodes):
    """X̂ from the formulas at the top of cdgc/joint_attention.py, with loops and full matrices."""
    batch, channels, height, width = scene.x.shape
    heads, n = module.heads, height * width
    part = channels // heads
    members = [[] for _ in range(batch)]  # (pixel, class) of every node
    start = 0
    for m, per_image in enumerate(nodes.counts.tolist()):
        for b, count in enumerate(per_image):
            for pixel in nodes.pixel[start : start + count].tolist():
                members[b].append((pixel - b * n, m))
            start += count
    out = []
    for b in range(batch):
        x = scene.x[b].flatten(1).T  # (N, C)
        if not members[b]:
            out.append(module.merge_bias.expand(n, channels).T.reshape(1, channels, height, width))
            continue
        index = [pixel for pixel, _ in members[b]]
        q, k = x @ module.phi[0], x[index] @ module.phi_prime[0]
        gathered = [x.new_zeros(n, channels) for _ in module.graph_weight]
        for h in range(heads):
            own = slice(h * part, (h + 1) * part)
            logits = module.scale * q[:, own] @ k[:, own].T
            if module.distance is not None:
                sigma = module.distance.log_precision[h].exp() ** -1
                oy, ox = module.distance.offset[h]
                for i in range(n):
                    bias = [
                        -0.5 * ((j // width - i // width) / sigma - oy) ** 2
                        - 0.5 * ((j % width - i % width) / sigma - ox) ** 2
                        for j in index
                    ]
                    logits = logits + torch.zeros_like(logits).index_put(
                        (torch.tensor([i]),), torch.stack(bias)[None], accumulate=True
                    )
            attention = logits.softmax(1)
            for column, (pixel, m) in enumerate(members[b]):
                add = torch.zeros_like(gathered[m])
                add[:, own] = attention[:, column, None] * x[pixel, own]
                gathered[m] = gathered[m] + add
        total = module.merge_bias
        for m, y in enumerate(gathered):
            total = total + (y @ module.graph_weight[m]).relu() @ module.merge_weight[m]
        out.append(total.T.reshape(1, channels, height, width))
    return torch.cat(out)
