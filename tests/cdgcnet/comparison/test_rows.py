"""From the words of ``--heads`` to networks."""

import pytest

from cdgcnet.comparison.options import Schedule
from cdgcnet.comparison.rows import HEADS, make_rows, split_heads


def rows(tiny_cfg, heads, contexts=("none",), **changes):
    return make_rows(tiny_cfg(changes), split_heads(heads), contexts, Schedule())


def test_commas_separate_heads_keys_and_nothing_in_brackets():
    text = "plain, graph:EDGES=uniform,SAMPLES=['easy_positive','hard_negative'],TOPK=3,ocr"
    assert split_heads(text) == [
        "plain",
        "graph:EDGES=uniform,SAMPLES=['easy_positive','hard_negative'],TOPK=3",
        "ocr",
    ]


def test_every_head_and_context(tiny_cfg):
    found = rows(tiny_cfg, ",".join(HEADS), ("none", "aspp"))
    labels = [row.label for row in found]
    # "aspp" is the plain head on an ASPP: asked for in both contexts, it is one row.
    assert labels == [
        "plain", "pixelwise", "aspp", "non_local", "danet", "ocr", "psp", "graph",
        "aspp + pixelwise", "aspp + non_local", "aspp + danet", "aspp + ocr", "aspp + psp",
        "aspp + graph",
    ]  # fmt: skip
    assert {row.context for row in found if "aspp" in row.label} == {"aspp"}
    assert [row.cfg.MODEL.CDGC.ENABLED for row in found[:4]] == [False, True, False, True]


def test_keys_reach_the_config_and_make_another_row(tiny_cfg):
    plain, uniform = rows(
        tiny_cfg, "graph,graph:EDGES=uniform,SAMPLES=[easy_positive],LOSS.COARSE_WEIGHT=1.0"
    )
    assert uniform.cfg.MODEL.CDGC.SAMPLES == ["easy_positive"]
    assert uniform.cfg.MODEL.CDGC.EDGES == "uniform"
    assert uniform.cfg.MODEL.CDGC.LOSS.COARSE_WEIGHT == 1.0
    assert plain.settings() != uniform.settings()
    assert plain.kind == uniform.kind == "graph"


def test_the_same_network_is_one_row(tiny_cfg):
    [row] = rows(tiny_cfg, "graph,graph:EDGES=similarity", **{"MODEL.CDGC.EDGES": "similarity"})
    assert row.label == "graph"


def test_the_instrument_sets_widths_and_losses(tiny_cfg):
    schedule = Schedule(width=32, batch=2, crop=5)
    [row] = make_rows(tiny_cfg(), ["graph"], ["aspp"], schedule)
    assert row.cfg.MODEL.CDGC.CHANNELS == row.cfg.MODEL.SEM_SEG_HEAD.ASPP_CHANNELS == 32
    assert row.cfg.MODEL.CDGC.LOSS.AUX_WEIGHT == 0
    # OHEM that keeps at least every pixel is cross entropy.
    pixels = 2 * (4 // 2 * (5 - 1) + 1) ** 2
    assert pixels <= row.cfg.MODEL.CDGC.LOSS.OHEM_MIN_KEPT


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ("plain,grpah", "unknown head 'grpah'; expected one of"),
        ("", "unknown head ''"),
        ("graph:EDGE=uniform", r"no key 'EDGE'; expected one of \[.*'EDGES'"),
        ("graph:LOSS.COARSE=1", r"no key 'LOSS.COARSE'; expected one of \[.*'COARSE_WEIGHT'"),
        ("graph:EDGES=squared", r"graph:EDGES=squared: MODEL.CDGC.EDGES is 'squared'"),
        ("graph:TOPK=many", "graph:TOPK=many: TOPK=many"),
        ("graph:EDGES", "found 'EDGES'; expected KEY=VALUE"),
        ("graph:", "expected KEY=VALUE"),
        ("graph:CONTEXT=aspp", "CONTEXT cannot be set here"),
    ],
)
def test_bad_heads_are_named(tiny_cfg, heads, message):
    with pytest.raises(ValueError, match=message):
        rows(tiny_cfg, heads)


def test_bad_context_is_named(tiny_cfg):
    with pytest.raises(ValueError, match="--context psp: expected one of"):
        rows(tiny_cfg, "plain", ("psp",))
