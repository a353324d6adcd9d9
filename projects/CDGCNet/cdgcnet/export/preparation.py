"""Brings a trained model into a form that can be exported, with what checks the file.

Shape shorthand: B images of H x W pixels, M classes, C channels, h x w feature map.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import cdgcnet
from cdgc.validation import check_choice
from cdgcnet.engine.export_metadata import OPSETS, ExportMetadata
from cdgcnet.engine.predictor import Predictor
from cdgcnet.export.graph import ExportableGraph
from cdgcnet.export.network import ExportableNetwork
from cdgcnet.modeling.cdgc_head import CDGCNetHead
from cdgcnet.visualization.colors import class_colors

PARTS = ("network", "graph")


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
        opset: of ONNX, one of :data:`~cdgcnet.engine.export_metadata.OPSETS`; None for pt2.

    Raises:
        ValueError: if the model cannot be exported, saying why.
    """
    check_choice("part", part, PARTS)
    if opset is not None and opset not in OPSETS:
        raise ValueError(f"opset must be from {OPSETS[0]} to {OPSETS[-1]}, got {opset}")
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
        class_colors=[] if classes is None else [list(c) for c in class_colors(classes)],
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
