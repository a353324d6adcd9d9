"""Loads weights so that no parameter keeps a random value by accident.

Detectron2 only warns about keys that do not match; a backbone that was silently not loaded costs
more mIoU than the paper gains.
"""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager

from cdgcnet.checkpoint.class_metadata import check_same_classes, stored_classes
from cdgcnet.checkpoint.formats import describe_foreign, find_backbone
from cdgcnet.checkpoint.provenance import Provenance
from cdgcnet.checkpoint.reading import load_torch, read_weights
from cdgcnet.config.validation import FROM_SCRATCH

_CLASSIFIER = re.compile(r"(^|\.)(fc\d*|linear|classifier|head)\.")


def read_provenance(path: str) -> Provenance | None:
    """Where a weight file comes from, if ``cdgcnet convert`` made it.

    Args:
        path: of a local file; an address or "" has no provenance.
    """
    if not path or "://" in path or Path(path).suffix == ".pkl":
        return None
    try:
        loaded = load_torch(Path(path), in_place=True)
    except Exception:  # not a file of tensors, or torch's old format, which cannot be mapped
        return None
    stored = loaded.get("provenance") if isinstance(loaded, dict) else None
    return Provenance.from_stored(stored) if stored else None


def check_weights_path(path: str, key: str = "MODEL.WEIGHTS") -> None:
    """Refuse a local path without a file.

    Args:
        path: a local path, an address, "" or "from_scratch".
        key: that the path is the value of.

    Raises:
        FileNotFoundError: naming the path.
    """
    if path and path != FROM_SCRATCH and "://" not in path and not Path(path).is_file():
        raise FileNotFoundError(f"{key}: there is no file {Path(path).absolute()}")


def local_file(path: str, key: str = "MODEL.WEIGHTS") -> str:
    """A file, downloaded if ``path`` is an address such as https://… or detectron2://….

    Args:
        path: a local path or an address.
        key: that the path is the value of.

    Raises:
        ValueError: naming the address and why it cannot be read.
    """
    if "://" not in path:
        return path
    try:
        return str(PathManager.get_local_path(path))
    except Exception as error:  # handlers raise many types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{key} {path}: cannot be downloaded ({reason}); download it yourself and name the file"
        ) from error


class StrictCheckpointer(DetectionCheckpointer):
    """A checkpointer that refuses weights that do not fit.

    Attributes:
        allow_backbone_only: whether a file without a head may initialize the backbone alone.
        reinitialized: names of tensors that keep their initial values when a training run starts
            from MODEL.WEIGHTS (MODEL.WEIGHTS_PARTIAL); a resumed run loads them all.
        metadata: stored in every checkpoint, see :func:`.class_metadata.class_metadata`.
    """

    allow_backbone_only = True
    reinitialized: Collection[str] = ()

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.metadata: dict[str, Any] = {}

    def save(self, name: str, **kwargs: Any) -> None:
        super().save(name, **self.metadata, **kwargs)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        if resume and self.has_checkpoint():
            self.reinitialized = ()
        return super().resume_or_load(path, resume=resume)

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a file or an address; "" and "from_scratch" load nothing.

        Raises:
            FileNotFoundError, ValueError: naming the file and what is wrong with it.
        """
        path = "" if path == FROM_SCRATCH else local_file(path or "")
        if path and not Path(path).exists():
            raise FileNotFoundError(f"{path}: there is no such file")
        return super().load(path, *args, **kwargs)

    def _load_file(self, filename: str) -> dict[str, Any]:
        file = read_weights(filename)
        try:
            backbone = find_backbone(file.state)
        except ValueError as error:
            raise ValueError(f"{filename}: {error}") from error
        state = file.state
        if backbone is not None:
            state = {f"backbone.{key}": value for key, value in backbone.state.items()}
            if backbone.left_out:
                self.logger.info(
                    f"{filename}: the backbone is used; left out are {', '.join(backbone.left_out)}"
                )
            if "provenance" not in file.extra and backbone.format != "detectron2":
                self.logger.info(
                    f"{filename}: a ResNet in {backbone.format} format. The file does not state "
                    "the position of its strides, mean and std; `cdgcnet convert` adds them"
                )
        elif not any(key.startswith("sem_seg_head.") for key in state):
            raise ValueError(
                f"{filename} does not fit: expected a ResNet or a trained CDGCNet, found "
                f"{describe_foreign(state)}. The weights of a timm backbone go into "
                "MODEL.TIMM.PRETRAINED"
            )
        # Names are matched exactly; Detectron2's heuristics would skip tensors of another shape.
        extra = {k: v for k, v in file.extra.items() if k != "matching_heuristics"}
        return {**extra, "model": state, "file": filename}

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        file = checkpoint.get("file", "the weights")
        state = checkpoint["model"]
        has_head = any(key.startswith("sem_seg_head.") for key in state)
        if not has_head and not self.allow_backbone_only:
            raise ValueError(
                f"{file} holds a backbone only; evaluation and prediction need the weights of a "
                "trained CDGCNet (MODEL.WEIGHTS)"
            )
        skipped = frozenset(self.reinitialized) if has_head else frozenset()
        try:
            if "provenance" in checkpoint:
                provenance = Provenance.from_stored(checkpoint.pop("provenance"))
                self.logger.info(f"Weights: {provenance.line()}")
                provenance.check(self.model)
            if has_head and not skipped:
                names, _ = stored_classes(checkpoint)
                check_same_classes(
                    names,
                    self.metadata.get("class_names", []),
                    training=self.allow_backbone_only,
                )
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file}: {error}") from error
        checkpoint["model"] = {key: value for key, value in state.items() if key not in skipped}
        loaded = len(checkpoint["model"])
        folded = not any(key.endswith("running_mean") for key in state)
        incompatible = super()._load_model(checkpoint)  # takes "model" out of the checkpoint
        self._refuse_misfits(file, incompatible, has_head, skipped, folded)
        if skipped:
            self.logger.info(
                f"MODEL.WEIGHTS_PARTIAL: {loaded} tensors loaded from {file}; these depend on the "
                f"classes and are initialized anew: {', '.join(sorted(skipped))}"
            )
            incompatible.missing_keys[:] = [
                key for key in incompatible.missing_keys if key not in skipped
            ]
        return incompatible

    def _refuse_misfits(
        self,
        file: str,
        incompatible: Any,
        has_head: bool,
        skipped: Collection[str],
        folded: bool,
    ) -> None:
        """Refuse weights of which something is missing, left over or of another shape.

        Raises:
            ValueError: naming the file and up to eight keys.
        """
        missing = [
            key
            for key in incompatible.missing_keys
            if not key.endswith("num_batches_tracked")
            and key not in skipped
            and (has_head or key.startswith("backbone."))
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
        if not problems:
            return
        classes_differ = bool(shapes) and all(key.startswith("sem_seg_head.") for key in shapes)
        more = f"\n  and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ValueError(
            f"{file} does not fit the model of this config ({len(problems)} keys):\n  "
            + "\n  ".join(problems[:8])
            + more
            + (
                "\nNo running_mean: the batch norms were folded away, as in Detectron 1's "
                "files; use torchvision's weights."
                if folded
                else ""
            )
            + "\nCheck MODEL.RESNETS.{DEPTH,STEM_TYPE}, MODEL.CDGC and "
            "MODEL.SEM_SEG_HEAD.NUM_CLASSES against config.yaml of the run that made the file. "
            "CHANGELOG.md names keys whose defaults have changed."
            + (
                "\nTo fine-tune on other classes, set MODEL.WEIGHTS_PARTIAL True."
                if classes_differ and len(problems) == len(shapes)
                else ""
            )
        )
