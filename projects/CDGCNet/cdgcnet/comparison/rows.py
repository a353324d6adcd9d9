"""What is compared: heads in contexts, each a config.

A row is a head such as ``graph:HEADS=1`` on the features themselves (context "none") or on
an ASPP of them (context "aspp"). Its config is the user's with the instrument's settings and then
the head's keys, which are those below MODEL.CDGC.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode

from cdgcnet.comparison.options import Schedule
from cdgcnet.config.defaults import decode
from cdgcnet.config.identity import changed_keys, flat_config, identifies
from cdgcnet.config.validation import check_cfg
from cdgcnet.modeling.context_modules import CONTEXT_MODULES
from cdgcnet.utils.digests import digest_of

CONTEXTS = ("none", "aspp")
CONTROL = "pixelwise"
PEERS = tuple(name for name in CONTEXT_MODULES if name != CONTROL)
HEADS = ("plain", CONTROL, "aspp", *PEERS, "graph")
# Set by the head's name, by --context or by the instrument.
_FIXED = ("ENABLED", "CONTEXT_MODULE", "CONTEXT", "CHANNELS", "ALIGN_CORNERS", "LOSS.AUX_WEIGHT")


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        head: as the user wrote it, "graph:HEADS=1".
        context: "none" or "aspp".
        cfg: decides the network and its losses.
    """

    head: str
    context: str
    cfg: CfgNode

    @property
    def kind(self) -> str:
        """One of :data:`HEADS`."""
        return self.head.partition(":")[0]

    @property
    def label(self) -> str:
        """Name in tables."""
        if self.context == "none":
            return self.head
        if self.kind == "plain":
            return "aspp" + self.head.removeprefix("plain")
        return f"aspp + {self.head}"

    def settings(self) -> dict[str, Any]:
        """The keys that decide the row's network and losses."""
        head, flat = self.cfg.MODEL.SEM_SEG_HEAD, flat_config(self.cfg)
        cdgc = {
            k: v for k, v in flat.items() if k.startswith("MODEL.CDGC.") and identifies(k, "row")
        }
        return {
            **cdgc,
            "MODEL.SEM_SEG_HEAD.NAME": head.NAME,
            "MODEL.SEM_SEG_HEAD.NORM": head.NORM,
            "MODEL.SEM_SEG_HEAD.NUM_CLASSES": head.NUM_CLASSES,
            "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS": head.ASPP_CHANNELS,
        }


def split_heads(text: str) -> list[str]:
    """The heads of ``--heads``: "plain,graph:A=1,B=[2,3],ocr" -> plain | graph:A=1,B=[2,3] | ocr.

    A part "KEY=VALUE" belongs to the head before it; commas in brackets separate nothing.
    """
    heads: list[str] = []
    for part in re.split(r",(?![^\[(]*[\])])", text):
        part = part.strip()
        if "=" in part.partition(":")[0] and heads:
            heads[-1] += f",{part}"
        else:
            heads.append(part)
    return heads


def _changes(head: str) -> list[tuple[str, str]]:
    """KEY and VALUE of each change behind a head's name.

    Raises:
        ValueError: naming the head.
    """
    kind, colon, text = head.partition(":")
    if kind not in HEADS:
        raise ValueError(f"--heads {head}: unknown head {kind!r}; expected one of {list(HEADS)}")
    changes = []
    for part in re.split(r",(?![^\[(]*[\])])", text) if colon else []:
        key, equals, value = part.partition("=")
        if not (key and equals and value):
            raise ValueError(f"--heads {head}: found {part!r}; expected KEY=VALUE after the colon")
        if key in _FIXED:
            raise ValueError(
                f"--heads {head}: {key} cannot be set here; the head's name, --context and the "
                "instrument's own options set it"
            )
        changes.append((key, value))
    return changes


def _row_cfg(cfg: CfgNode, head: str, context: str, schedule: Schedule) -> CfgNode:
    kind = head.partition(":")[0]
    cfg = cfg.clone()
    cfg.defrost()
    node, sem_seg = cfg.MODEL.CDGC, cfg.MODEL.SEM_SEG_HEAD
    sem_seg.NAME, sem_seg.NORM, sem_seg.ASPP_CHANNELS = "CDGCNetHead", "BN", schedule.width
    sem_seg.ASPP_DILATIONS = list(schedule.aspp_dilations)
    node.CHANNELS, node.NORM = schedule.width, node.NORM and "BN"
    node.DROPOUT, node.ALIGN_CORNERS = 0.0, True
    node.ENABLED = kind != "plain"
    node.CONTEXT_MODULE = kind if kind in CONTEXT_MODULES else "graph"
    node.CONTEXT = context
    node.LOSS.AUX_WEIGHT = 0.0  # one feature map is cached
    # Cross entropy over all pixels: OHEM keeps every pixel of a batch. A head may change that.
    node.LOSS.REFINED = "ohem"
    node.LOSS.OHEM_MIN_KEPT = 1.0 * schedule.batch * (4 * schedule.crop) ** 2
    for key, value in _changes(head):
        try:
            cfg.merge_from_list([f"MODEL.CDGC.{key}", decode(value)])
        except (AssertionError, KeyError) as error:
            parent = node.LOSS if key.startswith("LOSS.") else node
            known = [k for k in parent if k not in _FIXED]
            raise ValueError(
                f"--heads {head}: MODEL.CDGC has no key {key!r}; expected one of {known}"
            ) from error
        except ValueError as error:
            raise ValueError(f"--heads {head}: {key}={value}: {error}") from error
    try:
        check_cfg(cfg)
    except ValueError as error:
        raise ValueError(f"--heads {head}: {error}") from error
    cfg.freeze()
    return cfg


def make_rows(
    cfg: CfgNode, heads: Sequence[str], contexts: Sequence[str], schedule: Schedule
) -> list[Row]:
    """Every head in every context; "aspp" is the plain head on an ASPP, and no row comes twice.

    Args:
        cfg: the user's.
        heads: as :func:`split_heads` gives them.
        contexts: out of :data:`CONTEXTS`.
        schedule: of all rows.

    Raises:
        ValueError: naming a head, key or context that does not exist, or a value that
            :func:`cdgcnet.config.validation.check_cfg` refuses.
    """
    for context in contexts:
        if context not in CONTEXTS:
            raise ValueError(f"--context {context}: expected one of {list(CONTEXTS)}")
    rows: dict[str, Row] = {}
    for context in contexts:
        for head in heads:
            kind, colon, changes = head.partition(":")
            name, place = head, context
            if kind == "aspp":
                name, place = f"plain{colon}{changes}", "aspp"
            row = Row(name, place, _row_cfg(cfg, name, place, schedule))
            rows.setdefault(digest_of(changed_keys(row.settings())), row)
    return list(rows.values())
