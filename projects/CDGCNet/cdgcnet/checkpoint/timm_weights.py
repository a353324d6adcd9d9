"""Loads a weight file of timm into a backbone of timm (MODEL.TIMM.PRETRAINED)."""

import logging
import re
from pathlib import Path

from torch import nn

from cdgcnet.checkpoint.reading import read_weights


def load_timm_weights(net: nn.Module, path: str | Path) -> None:
    """Load the weights of a whole timm network into one that returns features.

    Layers behind the last feature, such as the classifier, are left out, and the log says which.

    Args:
        net: made by timm with ``features_only``, which renames layers.
        path: of a state dict, as timm publishes it.

    Raises:
        FileNotFoundError, ValueError: naming the file and up to eight tensors that do not fit.
    """
    found = read_weights(path).state
    state, left_out = {}, set()
    expected = net.state_dict()
    for key, value in found.items():
        name = next((name for name in _names(key) if name in expected), None)
        if name is None:
            left_out.add(key.split(".")[0])
        else:
            state[name] = value
    problems = [
        f"{name}: file has shape {tuple(value.shape)}, the model {tuple(expected[name].shape)}"
        for name, value in state.items()
        if value.shape != expected[name].shape
    ]
    problems += [
        f"{name}: not in the file"
        for name in expected
        if name not in state and not name.endswith("num_batches_tracked")
    ]
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ValueError(
            f"MODEL.TIMM.PRETRAINED {path} does not fit MODEL.TIMM.NAME: "
            f"{'; '.join(problems[:8])}{more}"
        )
    net.load_state_dict({**expected, **state})
    logger = logging.getLogger(__name__)
    logger.info(f"{path}: {len(state)} tensors of the backbone are used")
    if left_out:
        logger.info(f"{path}: left out are {', '.join(sorted(left_out))}")


def _names(key: str) -> tuple[str, ...]:
    """What timm's feature networks may call a tensor: "stages.0.x" is "stages_0.x" in some."""
    return key, f"model.{key}", re.sub(r"^(\w+)\.(\d+)\.", r"\1_\2.", key)
