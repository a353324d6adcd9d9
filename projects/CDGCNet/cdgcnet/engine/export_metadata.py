"""What an exported file says about itself: classes, preprocessing, inference options, origin.

It is one JSON text in the file, under the name :data:`METADATA_KEY`: in the metadata of an ONNX
model, or among the extra files of a pt2 archive. This module needs the standard library only.
"""

import json
from dataclasses import asdict, dataclass, fields

METADATA_KEY = "cdgcnet"
FORMAT_VERSION = 1
OPSETS = range(17, 23)  # of ONNX, that a file can be written in


@dataclass(frozen=True)
class ExportMetadata:
    """
    Attributes:
        part: "network" (image to labels and logits) or "graph" (the class graph alone).
        cdgcnet, torch: versions that wrote the file.
        config_sha256: of the config, as the trained run stored it.
        num_classes: M.
        class_names, class_colors: of the M classes; empty if unknown.
        trained_format: the order of channels in training. The file's input is BGR in any case.
        pixel_mean, pixel_std: the normalization inside the file, per channel of ``trained_format``.
        min_size, max_size: the resize before the network; 0 keeps an image's own size.
        slide: crop and stride, (height, width) each, of sliding-window inference; None without.
        tta_scales, tta_flip: test-time augmentation.
        align_corners: how logits were resized to the size of the image.
        opset: of ONNX; None for pt2.
        format_version: of this description.
    """

    part: str
    cdgcnet: str
    torch: str
    config_sha256: str
    num_classes: int
    class_names: list[str]
    class_colors: list[list[int]]
    trained_format: str
    pixel_mean: list[float]
    pixel_std: list[float]
    min_size: int
    max_size: int
    slide: list[list[int]] | None
    tta_scales: list[float]
    tta_flip: bool
    align_corners: bool
    opset: int | None = None
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | None, path: str) -> "ExportMetadata":
        """
        Args:
            text: the JSON text of a file; None where it has none.
            path: named in messages.

        Raises:
            ValueError: if the text is missing, broken or of another version.
        """
        if text is None:
            raise ValueError(
                f"{path} was not written by `cdgcnet export`: it has no metadata {METADATA_KEY!r}"
            )
        try:
            values = json.loads(text)
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise ValueError(f"{path}: the metadata {METADATA_KEY!r} is damaged; export it again")
        version = values.get("format_version")
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{path} has export format {version}, expected {FORMAT_VERSION}; export the model "
                f"again with this version of cdgcnet, or install cdgcnet {values.get('cdgcnet')}"
            )
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            wrong = ", ".join(sorted(set(values) ^ names))
            raise ValueError(
                f"{path}: the metadata {METADATA_KEY!r} is damaged ({wrong}); export it again"
            )
        return cls(**values)
