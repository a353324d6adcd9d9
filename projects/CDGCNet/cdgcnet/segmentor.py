"""The native meta-architecture: like Detectron2's ``SemanticSegmentor``, but it knows sizes.

It carries coarse logits and node counts to the evaluator in the pass that also makes the refined
prediction, never lets batch padding become a node, and goes from stride-8 logits straight to
label maps.
"""

from collections import defaultdict

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.modeling.meta_arch.semantic_seg import build_sem_seg_head
from detectron2.structures import ImageList
from torch import Tensor, nn

from cdgc import valid_nodes

from .head import CDGCNetHead, HeadOutput, log_node_shares
from .postprocess import Sizes, full_size_logits, label_map

OUTPUTS = ("sem_seg", "labels")


@META_ARCH_REGISTRY.register()
class CDGCSegmentor(nn.Module):
    """Backbone and :class:`CDGCNetHead`, with Detectron2's input and output format."""

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: CDGCNetHead,
        pixel_mean: list[float],
        pixel_std: list[float],
    ):
        """
        Args:
            backbone: its features feed the head.
            sem_seg_head: has ``layers()`` and ``losses()``.
            pixel_mean, pixel_std: per channel, 0-255.
        """
        super().__init__()
        if not isinstance(sem_seg_head, CDGCNetHead):
            raise ValueError(
                "MODEL.META_ARCHITECTURE CDGCSegmentor needs MODEL.SEM_SEG_HEAD.NAME "
                f"CDGCNetHead, got {type(sem_seg_head).__name__}"
            )
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape()),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def _preprocess(self, batched_inputs: list[dict]) -> ImageList:
        images = [x["image"].to(self.device, torch.float32) for x in batched_inputs]
        channels = len(self.pixel_mean)
        for x, image in zip(batched_inputs, images, strict=True):
            if image.dim() != 3 or image.shape[0] != channels or 0 in image.shape:
                raise ValueError(
                    f'"image" must be ({channels}, H, W), got {tuple(image.shape)} '
                    f"({x.get('file_name', 'no file name')})"
                )
        images = [(x - self.pixel_mean) / self.pixel_std for x in images]
        return ImageList.from_tensors(images, self.backbone.size_divisibility)

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Losses in training, else what :meth:`inference` returns.

        Args:
            batched_inputs: one dict per image with "image" (3, H, W), in training "sem_seg"
                (H, W) too, and optionally "height", "width" of the output.
        """
        if not self.training:
            return self.inference(batched_inputs)
        if any("sem_seg" not in x for x in batched_inputs):
            raise ValueError('training needs ground truth: no "sem_seg" in the batch')
        images = self._preprocess(batched_inputs)
        for x in batched_inputs:
            if x["sem_seg"].shape != x["image"].shape[-2:]:
                raise ValueError(
                    f'"sem_seg" {tuple(x["sem_seg"].shape)} and "image" '
                    f"{tuple(x['image'].shape)} differ in size "
                    f"({x.get('file_name', 'no file name')})"
                )
        head = self.sem_seg_head
        targets = ImageList.from_tensors(
            [x["sem_seg"].to(self.device) for x in batched_inputs],
            self.backbone.size_divisibility,
            head.ignore_value,
        ).tensor
        features = self.backbone(images.tensor)
        output = head.layers(features, targets, self._valid(images, features))
        log_node_shares(output.nodes)
        return head.losses(output, targets)

    def _valid(self, images: ImageList, features: dict[str, Tensor]) -> Tensor | None:
        padded = images.tensor.shape[-2:]
        if all(tuple(size) == tuple(padded) for size in images.image_sizes):
            return None
        size = features[self.sem_seg_head.main_feature].shape[-2:]
        align_corners = self.sem_seg_head.align_corners
        return valid_nodes(images.image_sizes, padded, size, align_corners).to(self.device)

    def inference(self, batched_inputs: list[dict], output: str = "sem_seg") -> list[dict]:
        """Predict; images of unequal size never share a padded tensor.

        Args:
            batched_inputs: as in :meth:`forward`.
            output: "sem_seg" for logits, "labels" for label maps.

        Returns:
            One dict per image. "sem_seg": {"sem_seg": (M, H, W) refined logits}. "labels":
            {"labels": (H, W) uint8} and, with a graph, {"coarse_labels": (H, W) uint8,
            "node_counts": (M,) int64} from the same pass.

        Raises:
            ValueError: on an unknown output or a malformed image.
            MemoryError: if (M, H, W) logits cannot fit.
        """
        if output not in OUTPUTS:
            raise ValueError(f"output must be one of {OUTPUTS}, got {output!r}")
        by_size = defaultdict(list)
        for i, x in enumerate(batched_inputs):
            by_size[tuple(x["image"].shape[-2:])].append(i)
        results: list[dict] = [{} for _ in batched_inputs]
        for indices in by_size.values():
            images = self._preprocess([batched_inputs[i] for i in indices])
            features = self.backbone(images.tensor)
            predicted = self.sem_seg_head.layers(features, valid=self._valid(images, features))
            for row, i in enumerate(indices):
                image = tuple(images.image_sizes[row])
                x = batched_inputs[i]
                size = (x.get("height", image[0]), x.get("width", image[1]))
                sizes = Sizes(tuple(images.tensor.shape[-2:]), image, size)
                results[i] = self._result(predicted, row, sizes, output)
        return results

    def _result(self, predicted: HeadOutput, row: int, sizes: Sizes, output: str) -> dict:
        align_corners = self.sem_seg_head.align_corners
        if output == "sem_seg":
            return {"sem_seg": full_size_logits(predicted.refined[row], sizes, align_corners)}
        result = {"labels": label_map(predicted.refined[row], sizes, align_corners)}
        if predicted.coarse is not None and predicted.nodes is not None:
            result["coarse_labels"] = label_map(predicted.coarse[row], sizes, align_corners)
            result["node_counts"] = predicted.nodes.counts[:, row]
        return result
