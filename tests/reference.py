"""The oracle: Eqs. 1-4 of the CDGCNet paper and the OHEM loss, written out literally.

Written from the paper and its specification, never from our code: sets in Python, A as a dense
M x N x N tensor, one loop per class, the 1x1 convolution over M*C channels. Slow, and meant to be
read next to Sec. 3.3. The second half draws random scenes and measures how far `cdgc` deviates.

B images, C channels, H, W image, h, w feature map, N = h*w pixels, M classes.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import floor

import torch
from torch.nn import functional as F

PARTS = ("easy_positive", "hard_positive", "hard_negative")


# ---------------------------------------------------------------- nodes (Sec. 3.3, Eq. 4)
def sampled_index(i, image, feature, align_corners):
    """Row (or column) of the image that lies under row i of the feature map, in exact fractions."""
    if align_corners:
        where = Fraction(i * (image - 1), feature - 1) if feature > 1 else Fraction(0)
        return floor(where + Fraction(1, 2))  # nearest
    return floor(Fraction(2 * i + 1, 2) * Fraction(image, feature))  # under the center


def targets_at_nodes(targets, size, align_corners):
    """(B, H, W) -> one flat list of N labels per image."""
    (_, image_h, image_w), (h, w) = targets.shape, size
    rows = [sampled_index(i, image_h, h, align_corners) for i in range(h)]
    cols = [sampled_index(j, image_w, w, align_corners) for j in range(w)]
    return [[int(t[r, c]) for r in rows for c in cols] for t in targets]


def coarse_classes(logits):
    """(B, M, h, w) -> one flat list of N classes per image: argmax over M."""
    return [[col.index(max(col)) for col in image.flatten(1).T.tolist()] for image in logits]


def parts(coarse, target, valid, m, ignore_label):
    """Class m in one image (flat lists): C_m and Eq. 4's three parts, as sets of pixels."""
    pixels = {i for i in range(len(coarse)) if valid[i]}  # padding is never a node
    if target is not None:
        pixels = {i for i in pixels if target[i] != ignore_label}  # ignore leaves C and G
    c = {i for i in pixels if coarse[i] == m}
    g = {i for i in pixels if target is not None and target[i] == m}
    return {"coarse": c, "easy_positive": c & g, "hard_positive": g - c, "hard_negative": c - g}


def two_best(logits):
    """(B, M, h, w) -> one (N, M) table per image: the two largest probabilities, made to sum to 1.

    The extension's soft class maps; the hard ones are tables of 0 and 1.
    """
    tables = []
    for image in logits.detach():
        p = image.flatten(1).T.softmax(1)
        for row in p:
            row[row < row.sort(descending=True).values[:2].min()] = 0.0
        tables.append(p / p.sum(1, keepdim=True))
    return tables


def node_set(part, nodes, samples, kept_easy):
    """S_m: C_m, or Eq. 4 with `kept_easy` as its random share of the easy positives."""
    if nodes == "coarse":
        return part["coarse"]
    chosen = set()
    for name in samples:
        chosen |= kept_easy if name == "easy_positive" else part[name]
    return chosen


# ---------------------------------------------------------------- edges (Eq. 2-3)
def adjacency(
    x, members, phi, phi_prime, edges, scale, topk, topk_weights, weight=None, receivers=None
):
    """A_m (N, N) of one class in one image, x (N, C): columns of non-nodes are zero.

    So are the rows of all pixels but the `receivers`: the nodes themselves if None.
    `weight` (N,): A_ij ~ weight_j exp(F_ij), of which hard class maps are the case 1.
    """
    n = len(x)
    if not members:
        return x.new_zeros(n, n)
    receivers = members if receivers is None else receivers
    node = torch.tensor([i in members for i in range(n)])
    row = torch.tensor([[i in receivers] for i in range(n)]).to(x.dtype)
    if edges == "uniform":
        return row * node.to(x.dtype) / len(members)
    f = scale * (x @ phi) @ (x @ phi_prime).T  # Eq. 2: F_ij = phi(x_i)^T phi'(x_j)
    edge = node.repeat(n, 1)
    if edges == "topk":
        for i in receivers:
            ranked = sorted(members, key=lambda j, i=i: -f[i, j].item())
            edge[i, ranked[topk:]] = False
        if topk_weights == "equal":
            return row * edge / edge.sum(1, keepdim=True)
    if weight is not None:
        f = f + torch.where(node, weight, 1.0).log()
    return row * f.masked_fill(~edge, -torch.inf).softmax(1)  # Eq. 3: each row sums to 1


# ---------------------------------------------------------------- reasoning (Eq. 1) and the merge
def refine(
    x,
    sets,
    weights,
    *,
    edges,
    coarse_mask=None,
    membership=None,
    receivers=None,
    message_weight=None,
    scale=1.0,
    topk=64,
    topk_weights="softmax",
):
    """x (B, C, h, w), sets[b][m] of pixels -> (B, C, h, w), before the norm and the outer ReLU.

    `coarse_mask[b][m]`: the pixels that get Z_m; None for all (outside S_m it is zero anyway).
    `membership[b]`: (N, M) of soft class maps.
    `receivers[b]`: the pixels that are queries of every class's graph; None for the nodes alone.
    `message_weight[b]`: (N, M), factors of Z_m for `receivers`; 1 if None.
    """
    phi, phi_prime, w_graph, w_merge, bias = weights
    (_, c, h, w), m_classes = x.shape, len(w_graph)
    conv = torch.cat([w_merge[m].T for m in range(m_classes)], 1)  # (C, M*C), the 1x1 conv
    out = []
    for b, (image, members) in enumerate(zip(x, sets, strict=True)):
        nodes = image.flatten(1).T  # X (N, C)
        z = []
        for m in range(m_classes):
            own = (phi[m % len(phi)], phi_prime[m % len(phi)]) if phi is not None else (None, None)
            weight = None if membership is None else membership[b][:, m]
            rows = None if receivers is None else receivers[b]
            a = adjacency(nodes, members[m], *own, edges, scale, topk, topk_weights, weight, rows)
            z_m = torch.relu(a @ nodes @ w_graph[m])  # Eq. 1, group convolution
            if receivers is not None:
                if message_weight is not None:
                    z_m = z_m * message_weight[b][:, m, None]
            elif weight is not None:
                z_m = z_m * weight[:, None]
            elif coarse_mask is not None:
                z_m = z_m * torch.tensor([[i in coarse_mask[b][m]] for i in range(len(nodes))])
            z.append(z_m)
        stacked = torch.cat(z, 1).T.reshape(1, m_classes * c, h, w)
        out.append(F.conv2d(stacked, conv[:, :, None, None], bias))
    return torch.cat(out)


# ---------------------------------------------------------------- OHEM (Sec. 3.4)
def ohem(logits, targets, thresh, min_kept, ignore_label=255, class_weights=None):
    """logits (B, M, H, W): sort all valid pixels by p(true), keep, average."""
    pixels = []
    for b, y, x in [tuple(p) for p in (targets != ignore_label).nonzero().tolist()]:
        label = int(targets[b, y, x])
        nll = logits[b, :, y, x].logsumexp(0) - logits[b, label, y, x]
        weight = 1.0 if class_weights is None else float(class_weights[label])
        pixels.append(((-nll).exp().item(), weight, nll))
    pixels.sort(key=lambda p: p[0])
    hard = [p for p in pixels if p[0] < thresh]
    kept = hard if len(hard) >= min_kept else pixels[:min_kept]
    if not kept:
        return logits.sum() * 0
    return sum(w * nll for _, w, nll in kept) / sum(w for _, w, _ in kept)


# ================================================================ scenes and the comparison
@dataclass
class Scene:
    x: torch.Tensor  # (B, C, h, w)
    logits: torch.Tensor  # (B, M, h, w)
    targets: torch.Tensor | None  # (B, H, W)
    valid: torch.Tensor | None  # (B, h, w)
    ignore_label: int = 255
    align_corners: bool = True

    @property
    def inputs(self):
        return self.x, self.logits, self.targets


def make_scene(
    seed,
    batch=2,
    channels=4,
    classes=4,
    h=4,
    w=4,
    *,
    stride=1,
    absent=1,
    agree=0.6,
    ignore=0.15,
    padding=0.2,
    targets=True,
    dtype=torch.float64,
):
    """Random features; `absent` classes are neither predicted nor labeled; H = (h-1)*stride+1."""
    g = torch.Generator().manual_seed(seed)
    present = torch.randperm(classes, generator=g)[: max(1, classes - absent)]
    logits = torch.randn(batch, classes, h, w, generator=g, dtype=dtype)
    logits[:, present] += 20.0
    coarse = torch.tensor(coarse_classes(logits)).reshape(batch, h, w)
    label = present[torch.randint(len(present), (batch, h, w), generator=g)]
    label = torch.where(torch.rand(batch, h, w, generator=g) < agree, coarse, label)
    label[torch.rand(batch, h, w, generator=g) < ignore] = 255
    size = (batch, (h - 1) * stride + 1, (w - 1) * stride + 1)
    # Between the nodes: labels of the classes present, so that reading a wrong pixel is an error.
    full = present[torch.randint(len(present), size, generator=g)]
    full[:, ::stride, ::stride] = label
    valid = None
    if padding:  # as in a real batch: a pad to the right and below of the smaller images
        valid = torch.zeros(batch, h, w, dtype=torch.bool)
        for b in range(batch):
            keep_h, keep_w = (
                max(1, s - int(torch.rand((), generator=g) * 2 * padding * s)) for s in (h, w)
            )
            valid[b, :keep_h, :keep_w] = True
    # Padding keeps its random features, logits and labels: they must not matter.
    x = torch.randn(batch, channels, h, w, generator=g, dtype=dtype).requires_grad_()
    return Scene(x, logits, full if targets else None, valid)


def sets_from(scene, nodeset, m_classes, nodes, samples, easy_ratio, scope, training):
    """The oracle's node sets. The random easy choice is read off `nodeset`, once it is checked to
    have the right size and to lie within the easy positives; all else is the oracle's own."""
    batch, _, h, w = scene.x.shape
    valid = [[True] * (h * w)] * batch if scene.valid is None else scene.valid.flatten(1).tolist()
    if scope == "image":  # plain GCN: every pixel, whatever the classes
        return [[{i for i in range(h * w) if valid[b][i]}] for b in range(batch)]
    coarse, target = coarse_classes(scene.logits), [None] * batch
    if training and scene.targets is not None:
        target = targets_at_nodes(scene.targets, (h, w), scene.align_corners)
    found = unpack(nodeset, m_classes, batch, h * w)
    sets = []
    for b in range(batch):
        sets.append([])
        for m in range(m_classes):
            if nodes == "soft":
                some = two_best(scene.logits)[b][:, m] > 0
                ignored = target[b] is not None and [t == scene.ignore_label for t in target[b]]
                usable = [v and not (ignored and ignored[i]) for i, v in enumerate(valid[b])]
                sets[b].append({i for i in range(h * w) if some[i] and usable[i]})
                continue
            part = parts(coarse[b], target[b], valid[b], m, scene.ignore_label)
            kept = found[b][m] & part["easy_positive"]
            if training and nodes == "dynamic" and "easy_positive" in samples:
                assert len(kept) == round(easy_ratio * len(part["easy_positive"]))
            sets[b].append(node_set(part, nodes if training else "coarse", samples, kept))
    return sets


def unpack(nodeset, m_classes, batch, n):
    """NodeSet -> sets[b][m], checking the documented order: class, then image, then pixel."""
    assert tuple(nodeset.counts.shape) == (m_classes, batch)
    pixel, sets, start = nodeset.pixel.tolist(), [[None] * m_classes for _ in range(batch)], 0
    for m in range(m_classes):
        for b in range(batch):
            own = pixel[start : start + int(nodeset.counts[m, b])]
            start += len(own)
            assert own == sorted(set(own)), "pixels ascending, none twice"
            assert all(b * n <= p < (b + 1) * n for p in own), "pixels of another image"
            sets[b][m] = {p - b * n for p in own}
    assert start == len(pixel)
    return sets


DEFAULTS = {
    "nodes": "dynamic",
    "edges": "similarity",
    "scope": "class",
    "easy_ratio": 1.0,
    "samples": PARTS,
    "hard_positives": "nodes",
    "receivers": "nodes",
    "message_weights": "one",
    "topk": 64,
    "topk_weights": "softmax",
    "scale": 1.0,
    "shared_phi": True,
}


def build(scene, seed=0, **options):
    """CDGCModule for `scene`, bare merge by default, its parameters drawn so that nothing is 0."""
    from cdgc import CDGCModule

    channels, classes = scene.x.shape[1], scene.logits.shape[1]
    bare = {
        "norm": None,
        "relu": False,
        "align_corners": scene.align_corners,
        "ignore_label": scene.ignore_label,
    }
    module = CDGCModule(channels, classes, **{**bare, **options}).to(scene.x.dtype)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            noise = torch.randn(p.shape, generator=g, dtype=torch.float64)
            p.copy_(noise if p.dim() == 1 else noise / channels**0.5)
    # The phi of equal top-k asks for no gradient; here it does, so that a path to it would show.
    return module.requires_grad_()


def weights_of(module):
    return [
        getattr(module, name)
        for name in ("phi", "phi_prime", "graph_weight", "merge_weight", "merge_bias")
    ]


def oracle(scene, weights, nodeset, training=True, **options):
    o = {**DEFAULTS, **options}
    sets = sets_from(
        scene,
        nodeset,
        scene.logits.shape[1],
        o["nodes"],
        o["samples"],
        o["easy_ratio"],
        o["scope"],
        training,
    )
    scale = scene.x.shape[1] ** -0.5 if o["scale"] == "sqrt" else o["scale"]
    coarse_mask = membership = receivers = message_weight = None
    if o["receivers"] == "all":
        receivers, message_weight = receivers_of(scene, sets, o)
    if o["nodes"] == "soft" and o["scope"] == "class":
        membership = two_best(scene.logits)
    elif o["hard_positives"] == "keys_only" and o["scope"] == "class":
        classes = range(scene.logits.shape[1])
        coarse_mask = [
            [{i for i, c in enumerate(image) if c == m} for m in classes]
            for image in coarse_classes(scene.logits)
        ]
    return refine(
        scene.x,
        sets,
        weights,
        coarse_mask=coarse_mask,
        membership=membership,
        receivers=receivers,
        message_weight=message_weight,
        edges=o["edges"],
        scale=scale,
        topk=o["topk"],
        topk_weights=o["topk_weights"],
    )


def receivers_of(scene, sets, options):
    """Every valid pixel, and the weight of each class's message to it."""
    batch, _, h, w = scene.x.shape
    valid = [[True] * (h * w)] * batch if scene.valid is None else scene.valid.flatten(1).tolist()
    receivers = [{i for i in range(h * w) if image[i]} for image in valid]
    weight = None
    if options["message_weights"] == "mean":
        present = [max(1, sum(bool(s) for s in image)) for image in sets]
        ones = torch.ones(h * w, len(sets[0]), dtype=scene.x.dtype)
        weight = [ones / n for n in present]
    elif options["message_weights"] == "probability" and options["scope"] == "class":
        weight = [image.flatten(1).T.softmax(1) for image in scene.logits.detach()]
    return receivers, weight


def deviation(scene, found, expected, module, probe_seed=1):
    """Largest difference of outputs and of the gradients of x and every parameter, each relative
    to the size of what is expected. `found` and `expected` come from `module`'s own parameters."""
    leaves = [scene.x, *[p for p in weights_of(module) if p is not None]]
    g = torch.Generator().manual_seed(probe_seed)
    probe = torch.randn(expected.shape, generator=g, dtype=expected.dtype)
    worst = relative(found, expected)
    # No path at all (equal top-k's phi; x where there is no node) counts as zero here.
    ours, theirs = (
        [
            torch.zeros_like(leaf) if d is None else d
            for leaf, d in zip(
                leaves,
                torch.autograd.grad((y * probe).sum(), leaves, allow_unused=True),
                strict=True,
            )
        ]
        for y in (found, expected)
    )
    return max([worst, *[relative(a, b) for a, b in zip(ours, theirs, strict=True)]])


def relative(found, expected):
    assert found.shape == expected.shape, f"{tuple(found.shape)} != {tuple(expected.shape)}"
    if expected.numel() == 0:
        return 0.0
    worst = ((found - expected).abs().max() / expected.abs().max().clamp(min=1)).item()
    return worst if worst == worst else float("inf")  # NaN is as far off as can be
