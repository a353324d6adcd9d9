"""A check of the images that reach a predictor, with messages that say how to convert them."""

from typing import Any

import numpy as np


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
        elif type(image).__module__ == "torch":
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
