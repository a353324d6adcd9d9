"""Loading weights so that nothing is left random by accident.

Detectron2 only warns about unmatched keys; a backbone that was silently not loaded costs more
mIoU than the paper gains.
"""

import re
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor

from cdgcnet.checkpoint.formats import convert_names, recognize, unwrap
from cdgcnet.checkpoint.provenance import Provenance

# The last layer of an ImageNet classifier, as MSRA, Detectron2 and torchvision name it.
_CLASSIFIER = re.compile(r"(^|\.)(fc\d*|linear|classifier|head)\.")


def is_torchvision_resnet(state: dict[str, Any]) -> bool:
    """Whether keys are those of torchvision's ResNets."""
    return recognize(state) == "torchvision"


def convert_torchvision_resnet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision ResNet keys -> Detectron2 ResNet keys, in float32; the classifier is dropped.

    Raises:
        ValueError: naming keys that are no part of a ResNet.
    """
    return convert_names(state, "torchvision")


def read_provenance(path: str) -> Provenance | None:
    """Where a weight file is from, if ``cdgcnet convert`` made it.

    Args:
        path: of a local file or an address, which says nothing.
    """
    if not path or "://" in path or Path(path).suffix == ".pkl":
        return None
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # no file of tensors, or of torch's old format that cannot be mapped
        return None
    stored = loaded.get("provenance") if isinstance(loaded, dict) else None
    return Provenance.from_stored(stored) if stored else None


def check_weights_path(path: str) -> None:
    """Refuse a MODEL.WEIGHTS that is a local path without a file.

    Raises:
        FileNotFoundError: naming the path.
    """
    if path and "://" not in path and not Path(path).is_file():
        raise FileNotFoundError(f"MODEL.WEIGHTS: there is no file {Path(path).absolute()}")


class StrictCheckpointer(DetectionCheckpointer):
    """A checkpointer that reads torchvision backbones too and refuses weights that do not fit.

    A file without head parameters may initialize the backbone alone, if ``allow_backbone_only``.
    """

    allow_backbone_only = True

    def _load_file(self, filename: str) -> dict:
        try:
            loaded = super()._load_file(filename)
        except Exception as error:  # torch and pickle raise many types for files of other kinds
            raise ValueError(f"{filename}: not a readable checkpoint ({error})") from error
        if not isinstance(loaded["model"], dict):
            found = type(loaded["model"]).__name__
            raise ValueError(f"{filename}: expected a state dict, found {found}")
        if isinstance(loaded["model"].get("state_dict"), dict):  # as OpenMMLab wraps it
            loaded["model"] = unwrap(loaded["model"])
        file_format = recognize(loaded["model"])
        if file_format not in (None, "detectron2"):
            state = convert_names(loaded["model"], file_format)
            loaded["model"] = {f"backbone.{key}": value for key, value in state.items()}
            self.logger.info(
                f"Converted the {file_format} ResNet in {filename}. The file does not tell the "
                "position of its strides nor mean and std; `cdgcnet convert` states them"
            )
        loaded["file"] = filename
        return loaded

    def _load_model(self, checkpoint: dict) -> Any:
        if "provenance" in checkpoint:
            provenance = Provenance.from_stored(checkpoint.pop("provenance"))
            self.logger.info(f"Weights: {provenance.line()}")
            provenance.check(self.model)
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
