"""Writes networks as ONNX files or pt2 archives and compares each file with the eager model.

Shape shorthand: B images of H x W pixels, M classes, C channels, h x w feature map.
"""

import contextlib
import copy
import io
import logging
import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cdgc.validation import check_choice
from cdgcnet.engine.export_metadata import METADATA_KEY, ExportMetadata
from cdgcnet.engine.onnx_predictor import open_session
from cdgcnet.export.preparation import Export
from cdgcnet.utils.io import atomic_write

FORMATS = ("onnx", "pt2")
MAX_DIFFERENCE = 1e-4  # of logits or features, relative to their largest value where it exceeds 1
# (B, H, W) of the images that a written file is compared on. torch.export takes no side of a whole
# network for granted that is shorter than two nodes at stride 8, so pt2 is compared from there on.
_SIZES = ((1, 1, 1), (1, 1, 50), (2, 41, 67), (3, 64, 64), (1, 161, 193))
_MIN_PT2 = {"network": 9, "graph": 1}
_ATTEMPTS = 5

_logger = logging.getLogger(__name__)


@torch.no_grad()
def write_export(export: Export, path: Path, file_format: str) -> float:
    """Write a file and compare it with the eager model before it gets its name.

    Args:
        export: from :func:`cdgcnet.export.preparation.prepare_export`.
        path: file to write; it is replaced only by a file that passed.
        file_format: one of :data:`FORMATS`.

    Returns:
        The largest difference of logits or features that was found.

    Raises:
        ValueError: if PyTorch cannot export the model, the file does not compute what the eager
            model does, or the packages of the extra ``export`` are missing.
        OSError: if it cannot be written.
    """
    check_choice("the format", file_format, FORMATS)
    if file_format == "onnx":
        _require_onnx()
    # PyTorch cannot differentiate the loops of the graph: without this, a pt2 archive would run
    # inside torch.no_grad() only.
    module = copy.deepcopy(export.module).requires_grad_(False)
    example = export.make_inputs(2, 41, 67, torch.Generator().manual_seed(0))
    dynamic = tuple(dict.fromkeys(export.dynamic_axes, torch.export.Dim.DYNAMIC) for _ in example)
    with atomic_write(path) as tmp_path:
        with _quiet():
            with _as_value_error(export.metadata.part):
                program = torch.export.export(module, example, dynamic_shapes=dynamic)
            if file_format == "onnx":
                _save_onnx(program, export, tmp_path)
            else:
                _save_pt2(program, export, tmp_path)
        return verify(export, tmp_path, file_format)


def _save_onnx(program: torch.export.ExportedProgram, export: Export, path: Path) -> None:
    import onnx
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    from cdgcnet.export.opset_conversion import convert_to_opset_17

    opset = export.metadata.opset
    assert opset is not None
    with _as_value_error(export.metadata.part):
        onnx_program = torch.onnx.export(
            program,
            dynamo=True,
            input_names=export.inputs,
            output_names=export.outputs,
            opset_version=max(opset, 18),
            verbose=False,
        )
        assert onnx_program is not None
    model = onnx_program.model
    if opset == 17:
        convert_to_opset_17(model)
    if model.opset_imports[""] != opset:  # PyTorch only warns of a conversion that failed
        raise ValueError(
            f"PyTorch {torch.__version__} wrote opset {model.opset_imports['']} instead of {opset}"
        )
    # Stack traces with paths of this machine, a third of a small file.
    ClearMetadataAndDocStringPass()(model)
    model.metadata_props[METADATA_KEY] = export.metadata.to_json()
    onnx_program.save(str(path), external_data=False)
    with _as_value_error(export.metadata.part):
        onnx.checker.check_model(str(path), full_check=True)


def _save_pt2(program: torch.export.ExportedProgram, export: Export, path: Path) -> None:
    metadata = {METADATA_KEY: export.metadata.to_json()}
    with _as_value_error(export.metadata.part):
        _replace_symbolic_sums(program)
        torch.export.save(program, path, extra_files=metadata)


@contextlib.contextmanager
def _as_value_error(part: str) -> Iterator[None]:
    """Failures of PyTorch's exporters, which differ by version, as one line."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"PyTorch {torch.__version__} cannot export the {part}: {reason} (exporting is tested "
            "with PyTorch 2.14)"
        ) from error


def _replace_symbolic_sums(program: torch.export.ExportedProgram) -> None:
    """Write sums of sizes as additions, because ``torch.export.save`` does not know ``sym_sum``."""
    for module in program.graph_module.modules():
        if not isinstance(module, torch.fx.GraphModule):
            continue
        for node in list(module.graph.nodes):
            if node.target is not torch.sym_sum:
                continue
            total, *others = node.args[0]
            with module.graph.inserting_before(node):
                for other in others:
                    total = module.graph.call_function(operator.add, (total, other))
            total.meta.update(node.meta)
            node.replace_all_uses_with(total)
            module.graph.erase_node(node)
        module.recompile()


@torch.no_grad()
def verify(
    export: Export,
    path: Path,
    file_format: str,
    sizes: Sequence[tuple[int, int, int]] = _SIZES,
) -> float:
    """Compare a file with the eager model.

    Args:
        export, path, file_format: as in :func:`write_export`.
        sizes: (B, height, width) of the inputs.

    Returns:
        The largest difference of logits or features.

    Raises:
        ValueError: naming the size, if a difference exceeds :data:`MAX_DIFFERENCE`, or labels
            differ where the two best classes do not tie within it.
    """
    run = _load(path, file_format, export)
    largest = 0.0
    smallest = _MIN_PT2[export.metadata.part] if file_format == "pt2" else 1
    for batch, height, width in sizes:
        size = batch, max(height, smallest), max(width, smallest)
        # Rounding may decide a tie of the coarse classes either way, and then the graphs differ.
        # No file fails because of that; a wrong one differs for every image.
        for seed in range(_ATTEMPTS):
            inputs = export.make_inputs(*size, torch.Generator().manual_seed(seed))
            difference, wrong_labels = compare(export.reference(*inputs), run(*inputs))
            if difference <= MAX_DIFFERENCE and not wrong_labels:
                break
        else:
            raise ValueError(
                f"the exported {export.metadata.part} differs from the model by {difference:.2g} "
                f"for a batch {' x '.join(map(str, size))}, expected at most {MAX_DIFFERENCE:g}"
                f" ({wrong_labels} labels differ); the file was not kept. Please report this with "
                "the config"
            )
        largest = max(largest, difference)
    return largest


def compare(expected: Sequence[Tensor], found: Sequence[Tensor]) -> tuple[float, int]:
    """The largest difference of scores and the number of labels that differ beyond float ties.

    Args:
        expected, found: outputs of the same order; labels are of an integer dtype and come right
            before the logits that they are the argmax of.

    Returns:
        The difference, relative to the largest score where that exceeds 1, and the number.
    """
    difference, wrong_labels = 0.0, 0
    for i, (a, b) in enumerate(zip(expected, found, strict=True)):
        if a.shape != b.shape or a.dtype != b.dtype:
            return float("inf"), a.numel()
        if a.is_floating_point():
            error = (a - b).abs().max() / a.abs().max().clamp(min=1)
            difference = max(difference, float(error.nan_to_num(float("inf"))))
        else:
            scores = expected[i + 1]
            best, chosen = scores.max(dim=1).values, scores.gather(1, b.long()[:, None])[:, 0]
            tolerance = MAX_DIFFERENCE * scores.abs().max().clamp(min=1)
            wrong_labels += int((best - chosen > tolerance).sum())
    return difference, wrong_labels


def _load(path: Path, file_format: str, export: Export) -> Callable[..., list[Tensor]]:
    if file_format == "onnx":
        session, metadata = open_session(path, torch.get_num_threads())

        def run(*inputs: Tensor) -> list[Tensor]:
            feed = {name: x.numpy() for name, x in zip(export.inputs, inputs, strict=True)}
            return [torch.from_numpy(x) for x in session.run(list(export.outputs), feed)]

    else:
        module, metadata = load_pt2(path)

        def run(*inputs: Tensor) -> list[Tensor]:
            out = module(*inputs)
            return [out] if isinstance(out, Tensor) else list(out)

    if metadata != export.metadata:
        raise ValueError(f"{path}: the metadata that was read is not what was written")
    return run


def load_pt2(path: str | Path) -> tuple[nn.Module, ExportMetadata]:
    """The module and the metadata of a pt2 archive that ``cdgcnet export`` wrote.

    The network maps images (B, H, W, 3) uint8 in BGR order, of 9 pixels or more on each side, to
    labels (B, H, W) uint8, logits (B, M, H, W) and, if they were requested, coarse logits.

    Only load archives that you trust: ``torch.export.load`` can run code that is in them.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if PyTorch cannot load it, or ``cdgcnet export`` did not write it.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    files = {METADATA_KEY: ""}
    try:
        with _quiet():
            program = torch.export.load(path, extra_files=files)
    except Exception as error:  # from zipfile, json or PyTorch
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{path} is no pt2 archive that PyTorch {torch.__version__} can load: {reason}"
        ) from error
    stored: Any = files[METADATA_KEY]  # torch gives bytes or text, by version
    text = stored.decode() if isinstance(stored, bytes) else stored
    metadata = ExportMetadata.from_json(text or None, str(path))
    return program.module(), metadata


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{error.name} is not installed; run `pip install 'cdgcnet[export]'`"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' progress texts and warnings about their own code."""
    names = ("torch.export", "torch._export", "torch.onnx", "onnx_ir", "onnxscript")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
