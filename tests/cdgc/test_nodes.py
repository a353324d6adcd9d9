"""Node selection (Eq. 4), class maps and labels at the nodes."""

import itertools
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import PARTS, coarse_classes, parts, targets_at_nodes, two_best, unpack

from cdgc import (
    class_map,
    resize_targets,
    select_nodes,
    soft_nodes,
    valid_nodes,
)

# One image, 2 x 3 pixels numbered 0..5, three classes:
#   coarse 0 0 1    target 0  1  1     C_0 = {0,1,5}  G_0 = {0,3,5}  C_1 = {2,3,(4)}  G_1 = {1,2}
#          1 1 0           0 255 0     pixel 4 is ignored and leaves C_1; class 2 is empty.
COARSE = torch.tensor([[[0, 0, 1], [1, 1, 0]]])
TARGET = torch.tensor([[[0, 1, 1], [0, 255, 0]]])
SUBSETS = [c for r in (1, 2, 3) for c in itertools.combinations(PARTS, r)]


def test_dynamic_by_hand():
    # Class 0: easy {0,5}, hard negative {1}, hard positive {3}; class 1: easy {2}, hard negative
    # {3}, hard positive {1}. Pixels 1 and 3 therefore belong to both sets.
    nodes = select_nodes(COARSE, TARGET, num_classes=3, nodes="dynamic")
    assert nodes.pixel.tolist() == [0, 1, 3, 5, 1, 2, 3]
    assert nodes.counts.tolist() == [[4], [3], [0]]
    assert nodes.node_index.tolist() == [[0, -1], [1, 4], [5, -1], [6, 2], [-1, -1], [3, -1]]
    assert nodes.easy_positive.tolist() == [[2], [1], [0]]
    assert nodes.hard_positive.tolist() == [[1], [1], [0]]
    assert nodes.hard_negative.tolist() == [[1], [1], [0]]
    for field in nodes.pixel, nodes.counts, nodes.node_index, nodes.easy_positive:
        assert field.dtype == torch.int64


@pytest.mark.parametrize(
    ("samples", "pixel", "node_index"),
    [  # positions of the coarse-class node and of the hard positive node, pixel by pixel
        (("easy_positive",), [0, 5, 2], [[0, -1], [-1, -1], [2, -1], [-1, -1], [-1, -1], [1, -1]]),
        (("hard_positive",), [3, 1], [[-1, -1], [-1, 1], [-1, -1], [-1, 0], [-1, -1], [-1, -1]]),
        (("hard_negative",), [1, 3], [[-1, -1], [0, -1], [-1, -1], [1, -1], [-1, -1], [-1, -1]]),
        (
            ("hard_positive", "hard_negative"),
            [1, 3, 1, 3],
            [[-1, -1], [0, 2], [-1, -1], [3, 1], [-1, -1], [-1, -1]],
        ),
    ],
)
def test_parts_by_hand(samples, pixel, node_index):
    nodes = select_nodes(COARSE, TARGET, num_classes=3, nodes="dynamic", samples=samples)
    assert nodes.pixel.tolist() == pixel
    assert nodes.node_index.tolist() == node_index
    for part in PARTS:  # a part that is switched off has no nodes
        assert (getattr(nodes, part).sum() > 0) == (part in samples)


def test_coarse_by_hand():
    nodes = select_nodes(COARSE, num_classes=3, nodes="coarse")
    assert nodes.pixel.tolist() == [0, 1, 5, 2, 3, 4]
    assert nodes.counts.tolist() == [[3], [3], [0]]
    assert nodes.node_index.tolist() == [[0, -1], [1, -1], [3, -1], [4, -1], [5, -1], [2, -1]]
    assert nodes.easy_positive is None
    assert nodes.hard_positive is None
    assert nodes.hard_negative is None
    # With targets (training) only the ignored pixel 4 leaves; samples and ratio have no effect.
    nodes = select_nodes(
        COARSE, TARGET, num_classes=3, nodes="coarse", samples=("hard_positive",), easy_ratio=0.0
    )
    assert nodes.pixel.tolist() == [0, 1, 5, 2, 3]
    assert nodes.node_index.tolist() == [[0, -1], [1, -1], [3, -1], [4, -1], [-1, -1], [2, -1]]
    assert nodes.easy_positive.tolist() == [[2], [1], [0]]
    assert nodes.hard_positive.tolist() == [[0], [0], [0]]
    assert nodes.hard_negative.tolist() == [[1], [1], [0]]


def test_class_major_then_image_then_pixel():
    coarse = torch.tensor([[[1, 0, 1]], [[0, 1, 0]]])  # pixels 0 1 2 and 3 4 5
    nodes = select_nodes(coarse, num_classes=2, nodes="coarse")
    assert nodes.pixel.tolist() == [1, 3, 5, 0, 2, 4]
    assert nodes.counts.tolist() == [[1, 2], [2, 1]]  # rows: classes, columns: images


def test_padding_is_never_a_node():
    valid = torch.tensor([[[True, True, False], [True, True, False]]])
    target = TARGET.clone()
    nodes = select_nodes(COARSE, target, num_classes=3, nodes="dynamic", valid=valid)
    # pixels 2 and 5 are gone: class 0 {0,1,3}, class 1 {1,3}
    assert nodes.pixel.tolist() == [0, 1, 3, 1, 3]
    assert nodes.node_index[[2, 5]].tolist() == [[-1, -1], [-1, -1]]
    assert select_nodes(COARSE, num_classes=3, valid=valid).pixel.tolist() == [0, 1, 3, 4]


def test_another_ignore_label():
    target = torch.where(TARGET == 255, 9, TARGET)
    nodes = select_nodes(COARSE, target, num_classes=3, nodes="dynamic", ignore_label=9)
    assert nodes.pixel.tolist() == [0, 1, 3, 5, 1, 2, 3]
    # An ignore label within the range of classes hides that class: 0 here.
    nodes = select_nodes(
        COARSE,
        torch.where(TARGET == 255, 1, TARGET),
        num_classes=3,
        nodes="dynamic",
        ignore_label=0,
    )
    assert nodes.pixel.tolist() == [1, 1, 2, 4]


def test_nothing_to_select():
    nodes = select_nodes(COARSE, torch.full_like(TARGET, 255), num_classes=3, nodes="dynamic")
    assert nodes.pixel.shape == (0,)
    assert nodes.counts.tolist() == [[0], [0], [0]]
    assert (nodes.node_index == -1).all()
    assert nodes.node_index.shape == (6, 2)


@st.composite
def maps(draw):
    """(coarse, target, valid, M): independent random labels, so all parts of Eq. 4 occur."""
    m, b = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    h, w = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    used = draw(st.integers(1, m))  # the classes from `used` on are empty
    coarse = torch.randint(used, (b, h, w), generator=g)
    target = torch.where(
        torch.rand(b, h, w, generator=g) < 0.5, coarse, torch.randint(used, (b, h, w), generator=g)
    )
    target[torch.rand(b, h, w, generator=g) < draw(st.sampled_from([0.0, 0.2, 1.0]))] = 255
    valid = None
    if draw(st.booleans()):
        valid = torch.rand(b, h, w, generator=g) < 0.7
    return coarse, target, valid, m


@settings(max_examples=80)
@given(
    maps(),
    st.sampled_from(["coarse", "dynamic"]),
    st.sampled_from(SUBSETS),
    st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.7, 0.75, 1.0]),
    st.booleans(),
)
def test_equals_sets(drawn, mode, samples, ratio, with_target):
    coarse, target, valid, m_classes = drawn
    with_target = with_target or mode == "dynamic"
    nodes = select_nodes(
        coarse,
        target if with_target else None,
        num_classes=m_classes,
        nodes=mode,
        samples=samples,
        easy_ratio=ratio,
        valid=valid,
        generator=torch.Generator().manual_seed(1),
    )
    (batch, *_), n = coarse.shape, coarse[0].numel()
    seen = torch.ones_like(coarse, dtype=torch.bool) if valid is None else valid
    found = unpack(nodes, m_classes, batch, n)
    position = {}  # (image, class, pixel) -> position in `pixel`
    order = [(m, b, i) for m in range(m_classes) for b in range(batch) for i in sorted(found[b][m])]
    for at, key in enumerate(order):
        position[key] = at
    for b in range(batch):
        labels = target[b].flatten().tolist() if with_target else None
        for m in range(m_classes):
            part = parts(coarse[b].flatten().tolist(), labels, seen[b].flatten().tolist(), m, 255)
            easy, hard_pos, hard_neg = (part[name] for name in PARTS)
            if mode == "coarse":
                assert found[b][m] == part["coarse"]
                expected = {
                    "easy_positive": easy,
                    "hard_positive": set(),
                    "hard_negative": hard_neg,
                }
            else:
                kept = found[b][m] & easy
                share = round(ratio * len(easy)) if "easy_positive" in samples else 0
                assert len(kept) == share
                expected = {
                    "easy_positive": kept,
                    "hard_positive": hard_pos,
                    "hard_negative": hard_neg,
                }
                expected = {k: v if k in samples else set() for k, v in expected.items()}
                assert found[b][m] == set().union(*expected.values())
                if samples == PARTS:  # Eq. 4: |C u G| minus the dropped easy positives
                    dropped = len(easy) - share
                    assert len(found[b][m]) == len(easy | hard_pos | hard_neg) - dropped
            for name in PARTS:
                if with_target:
                    assert getattr(nodes, name)[m, b] == len(expected[name]), name
                else:
                    assert getattr(nodes, name) is None
    for p, slot in enumerate(nodes.node_index.tolist()):
        b, i = divmod(p, n)
        c, g = int(coarse.flatten()[p]), int(target.flatten()[p])
        assert slot[0] == position.get((c, b, i), -1)
        assert slot[1] == (position.get((g, b, i), -1) if g != c else -1)


@settings(max_examples=40)
@given(maps(), st.booleans())
def test_without_hard_positives_is_coarse(drawn, hide_ignored):
    # Table 5's second row: dynamic at ratio 1 without hard positives is C_m again, node by node.
    coarse, target, valid, m_classes = drawn
    if hide_ignored:
        target = torch.where(target == 255, coarse, target)
    dynamic = select_nodes(
        coarse,
        target,
        num_classes=m_classes,
        nodes="dynamic",
        valid=valid,
        samples=("easy_positive", "hard_negative"),
    )
    plain = select_nodes(
        coarse, None if hide_ignored else target, num_classes=m_classes, nodes="coarse", valid=valid
    )
    for field in ("pixel", "counts", "node_index"):
        assert torch.equal(getattr(dynamic, field), getattr(plain, field)), field


@pytest.mark.parametrize("n", range(8))
@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.3, 0.5, 0.7, 0.75, 0.8, 1.0])
def test_easy_share_rounds_like_python(n, ratio):
    # 0.5 of 1, 3, 5, 7 are 0, 2, 2, 4: half to even, in double precision.
    coarse = torch.zeros(1, 1, 8, dtype=torch.int64)
    target = torch.ones(1, 1, 8, dtype=torch.int64)
    target[..., :n] = 0
    nodes = select_nodes(
        coarse, target, num_classes=2, nodes="dynamic", easy_ratio=ratio, samples=("easy_positive",)
    )
    assert nodes.counts.tolist() == [[round(ratio * n)], [0]]


def test_easy_share_is_per_image_and_class():
    # 2, 1, 3 and 6 easy positives at ratio 0.5: 1, 0, 2 and 3. One draw over the batch would mix.
    coarse = torch.tensor([[[0, 0, 1, 0, 0, 0, 0, 0, 0]], [[0, 0, 0, 1, 1, 1, 1, 1, 1]]])
    target = coarse.clone()
    target[0, 0, 3:] = 255
    for seed in range(10):
        nodes = select_nodes(
            coarse,
            target,
            num_classes=2,
            nodes="dynamic",
            easy_ratio=0.5,
            generator=torch.Generator().manual_seed(seed),
        )
        assert nodes.counts.tolist() == [[1, 2], [0, 3]]


def test_easy_choice_is_uniform(generator):
    # 4 easy positives, 2 kept: each of the 6 pairs at 1/6. With 900 draws the standard deviation
    # of a pair's share is sqrt(5/36/900) = 0.0124; 0.062 is five of them.
    coarse = torch.zeros(1, 1, 4, dtype=torch.int64)
    seen = dict.fromkeys(itertools.combinations(range(4), 2), 0)
    for _ in range(900):
        nodes = select_nodes(
            coarse, coarse, num_classes=1, nodes="dynamic", easy_ratio=0.5, generator=generator
        )
        seen[tuple(nodes.pixel.tolist())] += 1
    assert all(abs(count / 900 - 1 / 6) < 0.062 for count in seen.values()), seen


@pytest.mark.parametrize("num_classes", [127, 128, 255, 256, 16383, 16384, 32767, 32768, 70_000])
def test_any_number_of_classes(num_classes, generator):
    # Keys of two images need one byte up to 127 classes, two up to 16383.
    last = num_classes - 1
    coarse = torch.tensor([[[last, 0, last, last]], [[0, last, last, 1]]])
    target = torch.tensor([[[last, last, 255, last]], [[0, last, last, last]]])
    target[0, 0, 2] = num_classes  # ignored
    options = {"num_classes": num_classes, "ignore_label": num_classes, "nodes": "dynamic"}
    found = select_nodes(coarse, target, **options)
    assert found.pixel.tolist() == [1, 4, 7, 0, 1, 3, 5, 6, 7]
    assert found.counts[[0, 1, last]].tolist() == [[1, 1], [0, 1], [3, 3]]
    assert found.counts.sum() == 9
    assert found.easy_positive[[0, last]].tolist() == [[0, 1], [2, 2]]
    half = select_nodes(coarse, target, **options, easy_ratio=0.5, generator=generator)
    assert half.easy_positive[[0, last]].tolist() == [[0, 0], [1, 1]]
    assert half.counts.sum() == 6


@pytest.mark.parametrize("mode", ["coarse", "dynamic"])
def test_no_images(mode):
    nothing = torch.zeros(0, 3, 4, dtype=torch.int64)
    found = select_nodes(nothing, nothing, num_classes=5, nodes=mode, easy_ratio=0.5)
    assert found.counts.shape == found.easy_positive.shape == (5, 0)
    assert len(found.pixel) == len(found.node_index) == 0


def test_choice_depends_on_the_generator_only():
    coarse = torch.zeros(2, 4, 4, dtype=torch.int64)

    def choose(seed):
        nodes = select_nodes(
            coarse,
            coarse,
            num_classes=2,
            nodes="dynamic",
            easy_ratio=0.5,
            generator=torch.Generator().manual_seed(seed),
        )
        return nodes.pixel.tolist()

    torch.manual_seed(1)
    first, state = choose(7), torch.random.get_rng_state()
    torch.manual_seed(2)
    assert choose(7) == first
    assert choose(8) != first
    torch.manual_seed(1)
    choose(7)
    assert torch.equal(torch.random.get_rng_state(), state), "the global state was used"


def test_class_map():
    logits = torch.tensor([[[[0.1, 2.0]], [[0.3, -1.0]], [[0.2, 1.9]]]], requires_grad=True)
    found = class_map(logits)
    assert found.tolist() == [[[1, 0]]]
    assert found.dtype == torch.int64
    assert not found.requires_grad
    g = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 5, 3, 4, generator=g)
    assert class_map(logits).flatten(1).tolist() == coarse_classes(logits)


# ------------------------------------------------------------------ labels at the nodes
def column_index(image, feature, align_corners):
    """The column read for each node, off a target that holds its own column numbers."""
    target = torch.arange(image).expand(1, image, image)
    found = resize_targets(target, (feature, feature), align_corners)
    assert found.shape == (1, feature, feature)
    assert found.dtype == torch.int64
    by_rows = resize_targets(target.transpose(1, 2), (feature, feature), align_corners)
    assert torch.equal(by_rows.transpose(1, 2), found)
    return found[0, 0].tolist()


def test_align_corners_reads_every_eighth_pixel():
    # 8 * 96 + 1 = 769: node i lies exactly on pixel 8 i.
    target = torch.arange(769 * 769).reshape(1, 769, 769)
    assert torch.equal(resize_targets(target, (97, 97), True), target[:, ::8, ::8])


@pytest.mark.parametrize("image", [769, 520, 375, 513, 9])
@pytest.mark.parametrize("align_corners", [True, False])
def test_reads_the_pixel_of_the_node(image, align_corners):
    feature = -(-image // 8)
    found = column_index(image, feature, align_corners)
    grid = [[list(range(image))] * image]
    assert found == targets_at_nodes(torch.tensor(grid), (1, feature), align_corners)[0]
    # Whatever the formula, no other pixel's center is nearer to the node's (ties aside).
    for i, at in enumerate(found):
        if align_corners:
            off = abs(at - Fraction(i * (image - 1), feature - 1))
        else:
            off = abs(at + Fraction(1, 2) - Fraction(2 * i + 1, 2) * Fraction(image, feature))
        assert off <= Fraction(1, 2)


def test_labels_by_hand():
    # 520 -> 65 is a factor of 8 exactly: floor(8 i + 4). 375 -> 47, 375/47 = 7.9787:
    # 0.5 * 7.9787 = 3.99 -> 3, 1.5 * 7.9787 = 11.97 -> 11, 46.5 * 7.9787 = 371.01 -> 371.
    assert column_index(520, 65, False) == list(range(4, 520, 8))
    assert [column_index(375, 47, False)[i] for i in (0, 1, 46)] == [3, 11, 371]
    # Aligned: 374/46 = 8.1304: 8.13 -> 8, 4 * 8.1304 = 32.52 -> 33, 23 * 374/46 = 187, 374;
    # 519/64 = 8.1094: 8.11 -> 8, 5 * 8.1094 = 40.55 -> 41, 64 -> 519.
    assert [column_index(375, 47, True)[i] for i in (0, 1, 4, 23, 46)] == [0, 8, 33, 187, 374]
    assert [column_index(520, 65, True)[i] for i in (0, 1, 5, 64)] == [0, 8, 41, 519]


@pytest.mark.parametrize(
    ("image", "feature", "node", "pixel"),
    [
        (148, 18, 13, 111),  # 13.5 * 148 / 18 = 111 exactly
        (222, 27, 22, 185),  # 22.5 * 222 / 27 = 185
        (236, 29, 14, 118),  # 14.5 * 236 / 29 = 118
    ],
)
def test_exact_positions_do_not_round_down(image, feature, node, pixel):
    # image/feature in floating point is a little short of the fraction, and floor then falls.
    assert column_index(image, feature, False)[node] == pixel


def test_plain_nearest_resize_would_drift():
    # The reason for resize_targets: torch's nearest reads floor(i * 769/97), off by up to 7.
    target = torch.arange(769.0).expand(1, 1, 769, 769)
    plain = torch.nn.functional.interpolate(target, size=(97, 97), mode="nearest")
    drift = (plain[0, 0, 0].long() - torch.tensor(column_index(769, 97, True))).abs()
    assert drift.max() == 7


@pytest.mark.parametrize("align_corners", [True, False])
def test_resize_keeps_rows_and_columns_apart(align_corners):
    target = torch.arange(2 * 17 * 33).reshape(2, 17, 33)
    found = resize_targets(target, (3, 5), align_corners)
    expected = targets_at_nodes(target, (3, 5), align_corners)
    assert found.flatten(1).tolist() == expected
    assert torch.equal(resize_targets(target, (17, 33), align_corners), target)
    assert resize_targets(target, (1, 1), align_corners).shape == (2, 1, 1)


# ------------------------------------------------------------------ soft class maps
def test_soft_by_hand():
    # Three pixels, three classes; probabilities / 10: (6 3 1), (1 1.5 7.5), (2 5 3).
    # The two best, made to sum to 1: pixel 0: 0 by 2/3, 1 by 1/3; pixel 1: 2 by 5/6, 1 by 1/6;
    # pixel 2: 1 by 5/8, 2 by 3/8.
    p = torch.tensor([[6.0, 3, 1], [1, 1.5, 7.5], [2, 5, 3]], dtype=torch.float64) / 10
    logits = p.log().T.reshape(1, 3, 1, 3)
    nodes = soft_nodes(logits)
    assert nodes.pixel.tolist() == [0, 0, 1, 2, 1, 2]
    assert nodes.counts.tolist() == [[1], [3], [2]]
    assert nodes.node_index.tolist() == [[0, 1], [4, 2], [3, 5]]  # the most probable class first
    expected = torch.tensor([2 / 3, 1 / 3, 1 / 6, 5 / 8, 5 / 6, 3 / 8], dtype=torch.float64)
    torch.testing.assert_close(nodes.log_weight.exp(), expected)
    # Pixel 1 is ignored, pixel 2 padding.
    target = torch.tensor([[[2, 255, 0]]])
    valid = torch.tensor([[[True, True, False]]])
    nodes = soft_nodes(logits, target, valid=valid)
    assert nodes.pixel.tolist() == [0, 0]
    assert nodes.node_index.tolist() == [[0, 1], [-1, -1], [-1, -1]]
    assert len(nodes.log_weight) == 2


@settings(max_examples=40)
@given(st.integers(0, 2**16), st.integers(1, 3), st.integers(1, 5), st.integers(1, 4))
def test_soft_equals_the_table(seed, batch, classes, width):
    logits = torch.randn(batch, classes, 2, width, generator=torch.Generator().manual_seed(seed))
    logits = logits.double().requires_grad_()
    nodes = soft_nodes(logits)
    assert not nodes.log_weight.requires_grad
    sets = unpack(nodes, classes, batch, 2 * width)
    table = two_best(logits)
    assert sets == [
        [{i for i, row in enumerate(image.tolist()) if row[m] > 0} for m in range(classes)]
        for image in table
    ]
    owner = torch.arange(classes).repeat_interleave(nodes.counts.sum(1))
    torch.testing.assert_close(
        nodes.log_weight.exp(), torch.cat(table)[nodes.pixel, owner], rtol=1e-9, atol=0
    )
    assert nodes.disjoint == (classes == 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(3, 2, 3)}, r"3, 2, 3"),
        ({"target_map": TARGET[0]}, r"2, 3"),
        ({"target_map": TARGET.float()}, r"float"),
        ({"target_map": torch.where(TARGET == 255, 9, TARGET)}, r"\b9\b"),
        ({"valid": torch.ones(1, 2, 2, dtype=torch.bool)}, r"1, 2, 2"),
    ],
)
def test_soft_bad_input(change, message):
    good = {"logits": torch.zeros(1, 3, 2, 3), "target_map": TARGET}
    soft_nodes(**good)
    with pytest.raises(ValueError, match=message):
        soft_nodes(**{**good, **change})


# ------------------------------------------------------------------ bad input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coarse_map": COARSE[0]}, r"2, 3"),
        ({"coarse_map": COARSE.float()}, r"float"),
        ({"target_map": TARGET[0]}, r"2, 3"),
        ({"target_map": TARGET[:, :, :2]}, r"1, 2, 2"),
        ({"target_map": TARGET.expand(2, 2, 3)}, r"2, 2, 3"),
        ({"target_map": TARGET.float()}, r"float"),
        ({"valid": torch.ones(1, 2, 2, dtype=torch.bool)}, r"1, 2, 2"),
        ({"valid": torch.ones(2, 3, dtype=torch.bool)}, r"2, 3"),
        ({"target_map": None}, r"dynamic"),
        ({"nodes": "easy"}, r"easy"),
        ({"nodes": "soft"}, r"soft_nodes"),
        ({"samples": ()}, r"samples"),
        ({"samples": ("easy_positive", "easy_negative")}, r"easy_negative"),
        ({"easy_ratio": 1.5}, r"1\.5"),
        ({"easy_ratio": -0.1}, r"-0\.1"),
        ({"easy_ratio": float("nan")}, r"nan"),
        ({"num_classes": 0}, r"0"),
        ({"target_map": torch.where(TARGET == 255, 3, TARGET)}, r"\b3\b"),
        ({"target_map": torch.where(TARGET == 255, -1, TARGET)}, r"-1"),
        ({"target_map": torch.where(TARGET == 255, 200, TARGET)}, r"200"),
        ({"target_map": TARGET, "ignore_label": 254}, r"255"),
        ({"coarse_map": torch.where(COARSE == 1, 3, COARSE)}, r"\b3\b"),
        ({"coarse_map": COARSE - 1}, r"-1"),
    ],
)
def test_bad_input(change, message):
    good = {"coarse_map": COARSE, "target_map": TARGET, "num_classes": 3, "nodes": "dynamic"}
    select_nodes(**good)
    with pytest.raises(ValueError, match=message):
        select_nodes(**{**good, **change})


@pytest.mark.parametrize("logits", [torch.zeros(3, 2, 2), torch.zeros(1, 2, 3, 2, 2)])
def test_class_map_bad_shape(logits):
    with pytest.raises(ValueError, match="2, 2"):
        class_map(logits)


def test_resize_targets_bad_shape():
    with pytest.raises(ValueError, match="4, 4"):
        resize_targets(torch.zeros(4, 4, dtype=torch.int64), (2, 2), True)


def test_valid_nodes_by_hand():
    # 769 -> 97 aligned: node i reads pixel 8 i. An image of 512 x 769 holds the rows 8 i < 512,
    # i < 64; one of 513 rows holds row 64 too.
    sizes = [(769, 769), (512, 769), (513, 8)]
    valid = valid_nodes(sizes, (769, 769), (97, 97), True)
    assert valid.shape == (3, 97, 97)
    assert valid[0].all()
    assert valid[1].any(1).sum() == 64
    assert valid[1, :64].all()
    assert valid[2, :65, :1].all()
    assert valid[2].sum() == 65  # 8 columns: pixel 0 alone
