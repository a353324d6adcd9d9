"""A check of the image tensors that reach a network."""

from typing import Any

import numpy as np
import torch
from torch import Tensor


def check_image_tensor(image: Any, channels: int, file_name: str) -> None:
    """Raise an error unless a tensor is an image as Detectron2's mappers return it.

    Values of floating-point tensors are inspected, which waits for their device; uint8 tensors
    cannot be wrong.

    Args:
        image: expected to be (channels, H, W) with values from 0 to 255.
        channels: number of channels of the network's input.
        file_name: named in the message.

    Raises:
        TypeError: if it is not a tensor.
        ValueError: for another shape or dtype, NaN, infinite or rescaled values.
    """
    if not isinstance(image, Tensor):
        raise TypeError(
            f'"image" must be a tensor ({channels}, H, W), got {type(image).__name__} ({file_name})'
        )
    if image.dim() != 3 or image.shape[0] != channels or 0 in image.shape:
        raise ValueError(
            f'"image" must be ({channels}, H, W), got {tuple(image.shape)} ({file_name})'
        )
    if image.dtype == torch.uint8:
        return
    if not image.is_floating_point():
        raise ValueError(
            f'"image" must be uint8 or floating point with values from 0 to 255, got {image.dtype} '
            f"({file_name})"
        )
    low, high = (float(x) for x in torch.aminmax(image.detach()))
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f'"image" contains NaN or infinite values ({file_name})')
    # A dark image can have a small range too, but then its values are whole numbers.
    if high <= 10 and bool((image != image.round()).any()):
        cause = "normalized already" if low < 0 else "scaled to 0 to 1" if high <= 1 else ""
        if cause:
            raise ValueError(
                f'"image" must have values from 0 to 255, got {low:.3g} to {high:.3g}, as if it '
                f"were {cause}; the network normalizes its input itself ({file_name})"
            )
