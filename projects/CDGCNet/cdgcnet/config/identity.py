"""Which keys make two runs, rows of an experiment or evaluations the same: one list for all.

The weights themselves are compared by their contents, never by the path in MODEL.WEIGHTS.
"""

import hashlib
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, Literal

import torch
import yaml
from detectron2.config import CfgNode
from torch import nn

from cdgcnet.config.reading import flatten
from cdgcnet.config.rules import NEWER_DEFAULTS
from cdgcnet.utils.digests import digest

# "run": a resumed training run must repeat the key. "row": it changes what a row of an experiment
# measures. "evaluation": it changes what an evaluation predicts and counts for given weights.
Scope = Literal["run", "row", "evaluation"]

# Keys or their beginnings -> what the keys identify; the longest match counts.
_IDENTIFIES: dict[str, tuple[Scope, ...]] = {
    "": ("run", "row"),
    "CUDNN_BENCHMARK": (),
    "DATALOADER.": (),  # NUM_WORKERS, and keys of Detectron2's own loader
    "DATASETS.CHECK": (),
    "INPUT.CACHE": (),
    "INPUT.MAX_PIXELS": (),
    "INPUT.FORMAT": ("run", "row", "evaluation"),
    "INPUT.MAX_SIZE_TEST": ("run", "row", "evaluation"),
    "INPUT.MIN_SIZE_TEST": ("run", "row", "evaluation"),
    "MODEL.": ("run", "row", "evaluation"),
    "MODEL.CDGC.CHECK_FINITE": (),  # changes no number
    "MODEL.CDGC.LOSS.": ("run", "row"),
    "MODEL.CHANNELS_LAST": ("run", "evaluation"),  # changes rounding and time only
    "MODEL.CLASS_COLORS": (),
    "MODEL.CLASS_NAMES": (),  # copied from the dataset
    "MODEL.DEVICE": (),
    # Belongs to the weights: records carry both.
    "MODEL.RESNETS.STRIDE_IN_1X1": ("run", "evaluation"),
    "MODEL.TIMM.PRETRAINED": (),
    "MODEL.WEIGHTS": (),  # and WEIGHTS_PARTIAL
    "OUTPUT_DIR": (),
    "SEED": ("run",),
    "SOLVER.CHECKPOINT_PERIOD": (),
    "SOLVER.EXTEND_SCHEDULE": (),
    "SOLVER.RECIPE_": ("run",),  # only for a warning
    "TEST.": ("row", "evaluation"),
    "TEST.BOUNDARY_RATIO": ("evaluation",),
    "TEST.CHANNELS_LAST": (),  # an earlier name of MODEL.CHANNELS_LAST, in finished runs
    "TEST.EVAL_PERIOD": (),
    "TEST.EXPECTED_RESULTS": (),
    "TEST.ORACLE": ("evaluation",),
    "TEST.PICTURES": (),
    "TEST.RESUME": (),
    "TEST.SAVE_": ("evaluation",),
    "TEST.WORST_IMAGES": (),
    "VERSION": ("run",),
    "VIS_PERIOD": (),
    "WANDB_PROJECT": (),
}
NORM_KEYS = ("MODEL.RESNETS.NORM", "MODEL.SEM_SEG_HEAD.NORM", "MODEL.CDGC.NORM")


def identifies(key: str, scope: Scope) -> bool:
    """Whether two runs, rows or evaluations that differ in a key are different ones."""
    longest = max((known for known in _IDENTIFIES if key.startswith(known)), key=len)
    return scope in _IDENTIFIES[longest]


def merge_sync_bn(cfg: CfgNode) -> list[str]:
    """Set SyncBN to BN, in place; in a single process both compute the same.

    Returns:
        The keys that were changed.
    """
    changed = []
    for key in NORM_KEYS:
        node = cfg
        *sections, last = key.split(".")
        for section in sections:
            node = node[section]
        if node[last] == "SyncBN":
            node[last] = "BN"
            changed.append(key)
    return changed


def _plain(value: Any) -> Any:
    """A value as YAML would store it: tuples are lists."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def flat_config(cfg: CfgNode | str) -> dict[str, Any]:
    """Dotted keys -> plain values.

    Args:
        cfg: a config, or one as YAML text.
    """
    loaded = yaml.safe_load(cfg) if isinstance(cfg, str) else cfg
    return {key: _plain(value) for key, value in flatten(loaded)}


def _without_sync_bn(flat: dict[str, Any]) -> dict[str, Any]:
    return {k: "BN" if k in NORM_KEYS and v == "SyncBN" else v for k, v in flat.items()}


@cache
def _defaults() -> dict[str, Any]:
    from cdgcnet.config.defaults import default_cfg

    return {**NEWER_DEFAULTS, **_without_sync_bn(flat_config(default_cfg()))}


def complete_config(cfg: CfgNode | str) -> dict[str, Any]:
    """Flat config in which keys newer than the run have their defaults and SyncBN is BN."""
    return {**_defaults(), **_without_sync_bn(flat_config(cfg))}


def changed_keys(flat: dict[str, Any]) -> dict[str, Any]:
    """The entries of a flat config, or a part of one, that differ from their defaults, sorted.

    What is identified by them stays the same when a later version has more keys.
    """
    defaults = _defaults()
    return {key: v for key, v in sorted(flat.items()) if v != defaults.get(key)}


def row_hash(
    config: CfgNode | str | dict[str, Any], *, training: bool = False, tta: bool | None = None
) -> str:
    """Ten hexadecimal digits that identify what a config measures.

    Only keys that differ from their defaults enter, so a new key leaves finished rows finished.
    The seed is not part of it.

    Args:
        config: resolved, as the YAML text of a run's config.yaml, or by :func:`complete_config`.
        training: leave out all of TEST: configs with this hash in common share their weights.
        tta: as if TEST.AUG.ENABLED had this value.
    """
    flat = dict(config) if type(config) is dict else complete_config(config)
    if tta is not None:
        flat["TEST.AUG.ENABLED"] = tta
    left_out: tuple[str, ...] = ()
    if training:
        left_out = ("TEST.",)
    elif not flat["TEST.AUG.ENABLED"]:
        left_out = ("TEST.AUG.",)  # without effect
    kept = {
        key: value
        for key, value in changed_keys(flat).items()
        if identifies(key, "row") and not key.startswith(left_out)
    }
    return hashlib.blake2b(repr(kept).encode(), digest_size=5).hexdigest()


def _weights(model: nn.Module) -> Iterable[bytes]:
    for name, value in sorted(model.state_dict().items()):
        yield name.encode()
        yield value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def evaluation_fingerprint(
    cfg: CfgNode, model: nn.Module, dataset_name: str, dicts: Sequence[dict]
) -> dict[str, Any]:
    """Dataset, images, weights and keys that decide the outcome of an evaluation.

    Args:
        cfg: of the evaluation.
        model: with its weights.
        dataset_name: for messages and comparison.
        dicts: of the dataset.
    """
    listed = (repr(sorted(d.items())).encode() for d in dicts)
    return {
        "dataset": dataset_name,
        "images": f"{len(dicts)}, {digest(listed, size=16)}",
        "weights": digest(_weights(model), size=16),
        **{k: v for k, v in complete_config(cfg).items() if identifies(k, "evaluation")},
    }
