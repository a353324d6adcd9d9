"""A trained model as a folder that others can use: weights, config and model card."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdgcnet.config.rules import DILATED_RESNET, TIMM
from cdgcnet.utils.io import atomic_write

if TYPE_CHECKING:
    from detectron2.config import CfgNode
    from torch import Tensor

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.yaml", "README.md"
# Paths of the machine that trained the model, which mean nothing elsewhere.
_LOCAL = {
    "OUTPUT_DIR": "./output",
    "MODEL.WEIGHTS": "",
    "MODEL.TIMM.PRETRAINED": "",
    "INPUT.CACHE": "",
    "DATASETS.FOLDERS": [],
}
_SCORES = {
    "mIoU": "mIoU",
    "mIoU_union": "mIoU with absent classes",
    "mBIoU": "boundary mIoU",
    "pACC": "pixel accuracy",
}


def save_folder(
    folder: Path,
    cfg: CfgNode,
    state: Mapping[str, Tensor],
    scores: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> None:
    """Write the three files. The weights come last: without them the folder is not a model.

    Args:
        folder: new or empty.
        cfg: of the model, with MODEL.CLASS_NAMES and CLASS_COLORS.
        state: parameters and buffers by name.
        scores: dataset -> task -> metrics, for the model card.

    Raises:
        ValueError: for a folder that holds files.
        OSError: naming a file that cannot be written.
    """
    from safetensors.torch import save_file

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not an empty folder; choose another one")
    shared = cfg.clone()
    shared.defrost()
    for key, value in _LOCAL.items():
        shared.merge_from_list([key, value])
    for name, text in ((CONFIG, shared.dump()), (CARD, model_card(shared, scores))):
        with atomic_write(folder / name) as tmp_path:
            tmp_path.write_text(text, encoding="utf-8")
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    with atomic_write(folder / WEIGHTS) as tmp_path:
        save_file(tensors, tmp_path, metadata={"format": "pt"})


def find_folder(name: str | Path, *, download: bool = False) -> Path:
    """The folder of a shared model.

    Args:
        name: a folder, or "OWNER/NAME" of a repository on the Hugging Face Hub.
        download: fetch what is not in the Hub's local cache yet; otherwise nothing is loaded from
            the network.

    Raises:
        FileNotFoundError, ValueError: saying what is missing.
    """
    folder = Path(name)
    if not folder.is_dir():
        folder = _from_hub(str(name), download)
    for part in (CONFIG, WEIGHTS):
        if not (folder / part).is_file():
            raise FileNotFoundError(f"{folder} has no {part}; expected a folder of save_pretrained")
    return folder


def _from_hub(name: str, download: bool) -> Path:
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise FileNotFoundError(f"{name}: there is no such folder")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
        )
    except ImportError as error:
        raise ValueError(
            f"{name} is not a folder. To load it from the Hugging Face Hub: "
            "pip install 'cdgcnet[hub]'"
        ) from error
    try:
        found = snapshot_download(
            name, local_files_only=not download, allow_patterns=[WEIGHTS, CONFIG, CARD]
        )
    except LocalEntryNotFoundError as error:
        hint = "check the network" if download else "add download=True to fetch it from the Hub"
        raise FileNotFoundError(
            f"{name}: there is no such folder, and the Hub's local cache does not hold it; {hint}"
        ) from error
    except (HFValidationError, HfHubHTTPError) as error:
        raise ValueError(f"{name}: {str(error).strip().splitlines()[0]}") from error
    return Path(found)


def upload_folder(
    name: str, write: Callable[[Path], None], *, private: bool | None, commit_message: str
) -> str:
    """Make a repository on the Hugging Face Hub, or add a commit to it.

    Args:
        name: "OWNER/NAME".
        write: writes the files of the model to a folder.
        private: visibility of a new repository; None leaves it to the owner's settings.
        commit_message: of the upload.

    Returns:
        The address of the repository.

    Raises:
        ValueError: without huggingface_hub or a token, or saying what the Hub refused.
    """
    try:
        from huggingface_hub import HfApi, get_token
    except ImportError as error:
        raise ValueError(
            "uploading needs huggingface_hub; run `pip install 'cdgcnet[hub]'`"
        ) from error
    if get_token() is None:
        raise ValueError("you are not logged in to the Hugging Face Hub; run `hf auth login`")
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp) / "model"
        write(folder)
        try:
            api = HfApi()
            repository = api.create_repo(name, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=repository.repo_id, folder_path=folder, commit_message=commit_message
            )
        # The errors of the Hub, of its HTTP client and of the network have no common base class.
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(f"{name} was not uploaded: {reason}") from error
    return str(repository)


def model_card(cfg: CfgNode, scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """A model card in Markdown, with what the config and the scores say.

    Args:
        cfg: of the model.
        scores: dataset -> task -> metrics in percent; may be empty.
    """
    from cdgcnet.evaluation.report import COLUMNS

    names = list(cfg.MODEL.CLASS_NAMES)
    cdgc = cfg.MODEL.CDGC
    refinement = cdgc.CONTEXT_MODULE if cdgc.ENABLED else "none"
    batches = f"{cfg.SOLVER.MAX_ITER} iterations of {cfg.SOLVER.IMS_PER_BATCH} images"
    facts = [
        ("backbone", _backbone(cfg)),
        ("refinement", refinement),
        ("training data", ", ".join(cfg.DATASETS.TRAIN) or "not recorded"),
        ("schedule in the config", batches),
        ("classes", f"{cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES}"),
    ]
    lines = [
        *("---", "library_name: cdgcnet", "pipeline_tag: image-segmentation", "---", ""),
        *("# CDGCNet", ""),
        "Semantic segmentation with class-wise dynamic graph convolution "
        "([paper](https://arxiv.org/abs/2007.09690)).",
        *("", "| | |", "|---|---|", *(f"| {key} | {_cell(value)} |" for key, value in facts)),
        *("", "```python", "import cv2", "from cdgcnet import Predictor", ""),
        'predictor = Predictor.from_pretrained("FOLDER")',
        'labels = predictor.labels(cv2.imread("image.jpg"))  # (H, W), the class of every pixel',
        *("```", "", "## Scores", ""),
    ]
    if not scores:
        lines.append("No measured scores were given when this model was saved.")
    for dataset, tasks in scores.items():
        columns = [task for task in COLUMNS if task in tasks]
        lines += [f"On `{dataset}`, in percent:", ""]
        lines.append(_row(["", *(COLUMNS[task] for task in columns)]))
        lines.append("|---|" + "---:|" * len(columns))
        for key, title in _SCORES.items():
            values = [tasks[task].get(key, math.nan) for task in columns]
            if not all(math.isnan(value) for value in values):
                lines.append(_row([title, *("–" if math.isnan(v) else f"{v:.2f}" for v in values)]))
        lines.append("")
    if names:
        lines += ["", "## Classes", "", ", ".join(_cell(name) for name in names)]
    return "\n".join(lines) + "\n"


def _backbone(cfg: CfgNode) -> str:
    name = cfg.MODEL.BACKBONE.NAME
    if name == DILATED_RESNET:
        return f"ResNet-{cfg.MODEL.RESNETS.DEPTH}"
    return f"{cfg.MODEL.TIMM.NAME} (timm)" if name == TIMM else name


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: Any) -> str:
    """A text as one line of Markdown that is neither markup nor the end of a cell."""
    text = " ".join(str(value).split())
    for character in "\\`*_[]<>|":
        text = text.replace(character, f"\\{character}")
    return text
