"""Writes networks as ONNX files or pt2 archives and compares each file with the eager model.

Shape shorthand: B images of H x W pixels, M classes, C channels, h x w feature map.
"""

import contextlib
import copy
import hashlib
import io
import logging
import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import cdgcnet
from cdgcnet.engine.export_metadata import METADATA_KEY, ExportMetadata
from cdgcnet.engine.onnx_predictor import open_session
from cdgcnet.engine.predictor import Predictor
from cdgcnet.export.graph import ExportableGraph
from cdgcnet.export.network import ExportableNetwork
from cdgcnet.modeling.cdgc_head import CDGCNetHead
from cdgcnet.utils.io import atomic_write

FORMATS = ("onnx", "pt2")
PARTS = ("network", "graph")
MAX_DIFFERENCE = 1e-4  # of logits or features, relative to their largest value where it exceeds 1
# (B, H, W) of the images that a written file is compared on. torch.export takes no side of a whole
# network for granted that is shorter than two nodes at stride 8, so pt2 is compared from there on.
_SIZES = ((1, 1, 1), (1, 1, 50), (2, 41, 67), (3, 64, 64), (1, 161, 193))
_MIN_PT2 = {"network": 9, "graph": 1}
_ATTEMPTS = 5

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Export:
    """A module with all that is needed to write it and to check what was written.

    Attributes:
        module: in evaluation mode, in exportable form.
        reference: what the eager model returns for the same inputs.
        make_inputs: random inputs of a batch size, height and width.
        inputs, outputs: their names in the file.
        dynamic_axes: of each input.
        metadata: written into the file.
    """

    module: nn.Module
    reference: Callable[..., tuple[Tensor, ...]]
    make_inputs: Callable[[int, int, int, torch.Generator], tuple[Tensor, ...]]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dynamic_axes: tuple[int, ...]
    metadata: ExportMetadata


def prepare_export(
    predictor: Predictor,
    part: str = "network",
    *,
    coarse: bool = False,
    opset: int | None = 18,
) -> Export:
    """Bring a trained model into exportable form.

    Args:
        predictor: of the trained model, on the CPU.
        part: one of :data:`PARTS`.
        coarse: whether a network also returns its coarse logits.
        opset: recorded in the metadata; None for pt2.

    Raises:
        ValueError: if the model cannot be exported, saying why.
    """
    if part not in PARTS:
        raise ValueError(f"part must be one of {PARTS}, got {part!r}")
    metadata = _metadata(predictor, part, opset)
    if part == "graph":
        return _graph_export(predictor.model, metadata)
    model, input_format = predictor.model, predictor.input_format
    module = ExportableNetwork(model, input_format, coarse=coarse)

    def make_inputs(b: int, h: int, w: int, generator: torch.Generator) -> tuple[Tensor]:
        blocks = torch.rand(b, 3, h // 8 + 2, w // 8 + 2, generator=generator)
        smooth = nn.functional.interpolate(blocks, (h, w), mode="bilinear")
        noise = 0.2 * torch.rand(b, 3, h, w, generator=generator)
        return ((smooth + noise).mul(212).permute(0, 2, 3, 1).contiguous().to(torch.uint8),)

    def reference(image: Tensor) -> tuple[Tensor, ...]:
        pixels = image.permute(0, 3, 1, 2).float()
        pixels = pixels.flip(1) if input_format == "RGB" else pixels
        features = model.backbone((pixels - model.pixel_mean) / model.pixel_std)
        out = model.sem_seg_head.predict_logits(features)
        size, aligned = image.shape[1:3], model.sem_seg_head.align_corners
        logits = [
            nn.functional.interpolate(x, size, mode="bilinear", align_corners=aligned)
            for x in (out.refined, out.coarse if coarse else None)
            if x is not None
        ]
        return logits[0].max(1).indices.to(torch.uint8), *logits

    outputs = ("labels", "logits", "coarse_logits") if coarse else ("labels", "logits")
    return Export(module.eval(), reference, make_inputs, ("image",), outputs, (0, 1, 2), metadata)


def _graph_export(model: nn.Module, metadata: ExportMetadata) -> Export:
    head = model.sem_seg_head
    graph = head.graph if isinstance(head, CDGCNetHead) else None
    if graph is None:
        raise ValueError(
            "the model has no class graph to export alone (MODEL.CDGC.ENABLED is False, or "
            "MODEL.CDGC.CONTEXT_MODULE is another module)"
        )

    def make_inputs(b: int, h: int, w: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        # Never all 0, where all similarities would tie.
        features = torch.randn(b, graph.in_channels, h, w, generator=generator).abs()
        return features, torch.randn(b, graph.num_classes, h, w, generator=generator)

    return Export(
        ExportableGraph(graph).eval(),
        lambda *inputs: (graph(*inputs),),
        make_inputs,
        ("features", "coarse_logits"),
        ("refined_features",),
        (0, 2, 3),
        metadata,
    )


def _metadata(predictor: Predictor, part: str, opset: int | None) -> ExportMetadata:
    cfg, classes = predictor.cfg, predictor.metadata
    slide = cfg.TEST.SLIDE
    return ExportMetadata(
        part=part,
        cdgcnet=cdgcnet.__version__,
        torch=torch.__version__,
        config_sha256=hashlib.sha256(cfg.dump().encode()).hexdigest(),
        num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        class_names=[] if classes is None else list(classes.stuff_classes),
        class_colors=[] if classes is None else [list(map(int, c)) for c in classes.stuff_colors],
        trained_format=cfg.INPUT.FORMAT,
        pixel_mean=list(map(float, cfg.MODEL.PIXEL_MEAN)),
        pixel_std=list(map(float, cfg.MODEL.PIXEL_STD)),
        min_size=cfg.INPUT.MIN_SIZE_TEST,
        max_size=cfg.INPUT.MAX_SIZE_TEST,
        slide=[list(slide.CROP), list(slide.STRIDE)] if slide.ENABLED else None,
        tta_scales=list(map(float, cfg.TEST.AUG.SCALES)),
        tta_flip=bool(cfg.TEST.AUG.FLIP),
        align_corners=bool(cfg.MODEL.CDGC.ALIGN_CORNERS),
        opset=opset,
    )


@torch.no_grad()
def write_export(export: Export, path: Path, file_format: str) -> float:
    """Write a file and compare it with the eager model before it gets its name.

    Args:
        export: from :func:`prepare_export`.
        path: file to write; it is replaced only by a file that passed.
        file_format: one of :data:`FORMATS`.

    Returns:
        The largest difference of logits or features that was found.

    Raises:
        ModuleNotFoundError: without the packages of the extra ``export``.
        ValueError: if the file does not compute what the eager model does.
        OSError: if it cannot be written.
    """
    if file_format not in FORMATS:
        raise ValueError(f"the format must be one of {FORMATS}, got {file_format!r}")
    if file_format == "onnx":
        _require_onnx()
    example = export.make_inputs(2, 41, 67, torch.Generator().manual_seed(0))
    dynamic = tuple(dict.fromkeys(export.dynamic_axes, torch.export.Dim.DYNAMIC) for _ in example)
    # PyTorch cannot differentiate the loops of the graph: without this, a pt2 archive would run
    # inside torch.no_grad() only.
    module = copy.deepcopy(export.module).requires_grad_(False)
    with _quiet():
        program = torch.export.export(module, example, dynamic_shapes=dynamic)
    with atomic_write(path) as tmp_path:
        if file_format == "onnx":
            with _quiet():
                onnx_program = torch.onnx.export(
                    program,
                    dynamo=True,
                    input_names=export.inputs,
                    output_names=export.outputs,
                    opset_version=export.metadata.opset,
                    verbose=False,
                )
                assert onnx_program is not None
                onnx_program.model.metadata_props[METADATA_KEY] = export.metadata.to_json()
                onnx_program.save(str(tmp_path), external_data=False)
        else:
            _replace_symbolic_sums(program)
            with _quiet():
                torch.export.save(
                    program, tmp_path, extra_files={METADATA_KEY: export.metadata.to_json()}
                )
        return verify(export, tmp_path, file_format)


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
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch._export", "torch.onnx")]
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
