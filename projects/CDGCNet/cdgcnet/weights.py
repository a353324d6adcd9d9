"""Loading weights so that nothing is left random by accident.

Detectron2 only warns about unmatched keys; a backbone that was silently not loaded costs more
mIoU than the paper gains.
"""

import re
from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor

# The last layer of an ImageNet classifier, as MSRA, Detectron2 and torchvision name it.
_CLASSIFIER = re.compile(r"(^|\.)(fc\d*|linear|classifier|head)\.")
_TORCHVISION_PARTS = (
    (re.compile(r"^conv1\.(.+)$"), r"stem.conv1.\1"),
    (re.compile(r"^bn1\.(.+)$"), r"stem.conv1.norm.\1"),
    (re.compile(r"^(layer\d\.\d+)\.bn(\d)\.(.+)$"), r"\1.conv\2.norm.\3"),
    (re.compile(r"^(layer\d\.\d+)\.downsample\.0\.(.+)$"), r"\1.shortcut.\2"),
    (re.compile(r"^(layer\d\.\d+)\.downsample\.1\.(.+)$"), r"\1.shortcut.norm.\2"),
)


def is_torchvision_resnet(state: dict[str, Any]) -> bool:
    """Whether keys are those of torchvision's ResNets."""
    return "conv1.weight" in state and any(k.startswith("layer1.") for k in state)


def convert_torchvision_resnet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision ResNet keys -> Detectron2 ResNet keys, in float32; the classifier is dropped.

    Raises:
        ValueError: naming keys that are no part of a ResNet.
    """
    converted = {}
    unknown = []
    for key, value in state.items():
        if key.startswith("fc."):
            continue
        if not isinstance(value, Tensor):
            raise ValueError(f"{key}: expected a tensor, found {type(value).__name__}")
        new = key
        for pattern, replacement in _TORCHVISION_PARTS:
            new = pattern.sub(replacement, new)
        stage = re.match(r"^layer([1-4])\.(\d+\.(?:conv[123]|shortcut)\..+)$", new)
        if stage:
            new = f"res{int(stage[1]) + 1}.{stage[2]}"
        elif not new.startswith("stem."):
            unknown.append(key)
        converted[new] = value.float() if value.is_floating_point() else value
    if unknown:
        raise ValueError(f"not keys of a torchvision ResNet: {', '.join(unknown[:5])}")
    return converted


def check_weights_path(path: str) -> None:
    """Refuse a MODEL.WEIGHTS that is a local path without a file.

    Raises:
        FileNotFoundError: naming the path.
    """
    if path and "://" not in path and not Path(path).is_file():
        raise FileNotFoundError(f"MODEL.WEIGHTS: there is no file {Path(path).absolute()}")


class StrictCheckpointer(DetectionCheckpointer):
    """A checkpointer that reads torchvision backbones too and refuses weights that do not fit.

    A file without head parameters may initialise the backbone alone, if ``allow_backbone_only``.
    """

    allow_backbone_only = True

    def _load_file(self, filename: str) -> dict:
        try:
            loaded = super()._load_file(filename)
        except Exception as error:  # torch and pickle raise many types for files of other kinds
            raise ValueError(f"{filename}: not a readable checkpoint ({error})") from error
        state = loaded["model"]
        if is_torchvision_resnet(state):
            state = convert_torchvision_resnet(state)
            loaded["model"] = {f"backbone.{key}": value for key, value in state.items()}
            self.logger.info(f"Converted the torchvision ResNet in {filename}")
        loaded["file"] = filename
        return loaded

    def _load_model(self, checkpoint: dict) -> Any:
        has_head = any(key.startswith("sem_seg_head.") for key in checkpoint["model"])
        folded = not any(key.endswith("running_mean") for key in checkpoint["model"])
        incompatible = super()._load_model(checkpoint)  # takes "model" out of the checkpoint
        missing = [
            key
            for key in incompatible.missing_keys
            if not key.endswith("num_batches_tracked") and (has_head or key.startswith("backbone."))
        ]
        shapes = {key for key, *_ in incompatible.incorrect_shapes}
        problems = [
            f"{key}: file has shape {tuple(found)}, the model {tuple(expected)}"
            for key, found, expected in incompatible.incorrect_shapes
        ]
        problems += [f"{key}: not in the file" for key in missing if key not in shapes]
        problems += [
            f"{key}: not in the model"
            for key in incompatible.unexpected_keys
            if has_head or not _CLASSIFIER.search(key)
        ]
        file = checkpoint.get("file", "the weights")
        if problems:
            more = f"\n  and {len(problems) - 8} more" if len(problems) > 8 else ""
            raise ValueError(
                f"{file} does not fit the model of this config ({len(problems)} keys):\n  "
                + "\n  ".join(problems[:8])
                + more
                + (
                    "\nNo running_mean: the batch norms were folded away, as in Detectron2's MSRA "
                    "files; use torchvision's weights."
                    if folded
                    else ""
                )
                + "\nCheck MODEL.RESNETS.{DEPTH,STEM_TYPE}, MODEL.CDGC and "
                "MODEL.SEM_SEG_HEAD.NUM_CLASSES against the run that made the file."
            )
        if not has_head and not self.allow_backbone_only:
            raise ValueError(
                f"{file} holds a backbone only; evaluation and prediction need the weights of a "
                "trained CDGCNet (MODEL.WEIGHTS)"
            )
        return incompatible
