"""What is refused as an image, and whether the message says how to convert it."""

import numpy as np
import pytest
import torch
from PIL import Image

from cdgcnet.utils.image_validation import check_bgr_image

BGR = np.full((4, 5, 3), 128, np.uint8)
CHW = torch.full((3, 4, 5), 128, dtype=torch.uint8)


def with_nan(image):
    image = np.array(image, np.float32)
    image[0, 0, 0] = np.nan
    return image


def test_uint8_images_are_accepted():
    check_bgr_image(BGR)
    check_bgr_image(BGR[:, ::-1, ::-1])
    check_bgr_image(np.zeros((1, 1, 3), np.uint8))


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (None, TypeError, "cannot read a file"),
        (Image.fromarray(BGR), TypeError, r'PIL Image.*np\.asarray\(image\.convert\("RGB"\)\)'),
        (CHW, TypeError, r"torch Tensor.*permute\(1, 2, 0\)"),
        ([[1, 2, 3]], TypeError, "builtins list"),
        (BGR[:0], ValueError, r"\(0, 5, 3\).*empty"),
        (BGR[:, :, 0], ValueError, "gray image.*COLOR_GRAY2BGR"),
        (BGR[:, :, :1], ValueError, "gray image.*COLOR_GRAY2BGR"),
        (np.zeros((4, 5, 4), np.uint8), ValueError, r"alpha.*image\[:, :, :3\]"),
        (np.zeros((3, 4, 5), np.uint8), ValueError, r"shape \(3, 4, 5\)"),
        (np.zeros((1, 4, 5, 3), np.uint8), ValueError, r"shape \(1, 4, 5, 3\)"),
        (BGR / 255, ValueError, r"float64.*image \* 255"),
        (BGR.astype(np.float32), ValueError, r"float32.*image\.round\(\)"),
        (with_nan(BGR), ValueError, "NaN"),
        (BGR.astype(np.uint16), ValueError, r"uint16.*image // 257"),
        (BGR > 3, ValueError, "bool"),
        (BGR.astype(np.int64), ValueError, "int64"),
    ],
)
def test_other_images_are_refused_with_a_hint(image, error, message):
    with pytest.raises(error, match=rf"expected a uint8 array \(H, W, 3\) in BGR order.*{message}"):
        check_bgr_image(image)
