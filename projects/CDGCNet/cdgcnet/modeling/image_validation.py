"""Checks of the images that reach a network, with messages that say how to convert them."""

from typing import Any

import numpy as np
import torch
from torch import Tensor


def check_bgr_image(image: Any) -> None:
    """Raise an error unless an array is an image as ``cv2.imread`` returns it.

    Args:
        image: expected to be a uint8 array (H, W, 3) in BGR order.

    Raises:
        TypeError: if it is not a NumPy array.
        ValueError: for another shape or dtype, saying how to convert the image.
    """
    expected = "expected a uint8 array (H, W, 3) in BGR order, as cv2.imread returns it"
    if image is None:
        raise TypeError(f"{expected}; got None, which cv2.imread returns if it cannot read a file")
    if not isinstance(image, np.ndarray):
        kind = f"{type(image).__module__.split('.')[0]} {type(image).__name__}"
        hint = ""
        if type(image).__module__.startswith("PIL."):
            hint = '; use np.asarray(image.convert("RGB"))[:, :, ::-1]'
        elif isinstance(image, Tensor):
            hint = "; use tensor.permute(1, 2, 0).cpu().numpy() and check the order of its channels"
        raise TypeError(f"{expected}; got {kind}{hint}")
    found = f"{expected}; got {image.dtype} of shape {image.shape}"
    if image.size == 0:
        raise ValueError(f"{found}: the image is empty")
    if image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 1):
        raise ValueError(f"{found}: for a gray image use cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)")
    if image.ndim == 3 and image.shape[2] == 4:
        raise ValueError(f"{found}: drop the alpha channel with image[:, :, :3]")
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(found)
    if image.dtype == np.uint8:
        return
    hint = ""
    if np.issubdtype(image.dtype, np.floating):
        if not np.isfinite(image).all():
            hint = ": it also contains NaN or infinite values"
        elif image.max() <= 1:
            hint = ": for values from 0 to 1 use (image * 255).round().astype(np.uint8)"
        else:
            hint = ": for values from 0 to 255 use image.round().astype(np.uint8)"
    elif image.dtype == np.uint16:
        hint = ": for values from 0 to 65535 use (image // 257).astype(np.uint8)"
    raise ValueError(found + hint)


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
