"""Which tensors are refused as images, and what the message says."""

import numpy as np
import pytest
import torch

from cdgcnet.modeling.image_validation import check_image_tensor

BGR = np.full((4, 5, 3), 128, np.uint8)
CHW = torch.full((3, 4, 5), 128, dtype=torch.uint8)


@pytest.mark.parametrize(
    "image",
    [
        CHW,
        CHW.float(),  # as DefaultPredictor passes images
        torch.zeros(3, 4, 5),  # black
        torch.ones(3, 4, 5),  # almost black, but whole numbers
        CHW.half() + 0.25,
    ],
)
def test_image_tensors_are_accepted(image):
    check_image_tensor(image, 3, "a.png")


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (BGR, TypeError, r"tensor \(3, H, W\), got ndarray"),
        (CHW[:1], ValueError, r"\(3, H, W\), got \(1, 4, 5\)"),
        (CHW[None], ValueError, r"got \(1, 3, 4, 5\)"),
        (CHW[:, :0], ValueError, r"got \(3, 0, 5\)"),
        (CHW > 3, ValueError, r"torch\.bool"),
        (CHW.int(), ValueError, r"torch\.int32"),
        (torch.full((3, 4, 5), float("nan")), ValueError, "NaN or infinite"),
        (torch.full((3, 4, 5), float("inf")), ValueError, "NaN or infinite"),
        (CHW / 255, ValueError, "0 to 255, got 0.502 to 0.502.*scaled to 0 to 1"),
        ((CHW - 118.3) / 58 - torch.arange(5), ValueError, "normalized already"),
    ],
)
def test_other_tensors_are_refused(image, error, message):
    with pytest.raises(error, match=rf"{message}.*a\.png"):
        check_image_tensor(image, 3, "a.png")
