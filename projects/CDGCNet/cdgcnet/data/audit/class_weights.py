"""Weights for the loss that make up for rare classes.

Shape shorthand: M classes.
"""

import numpy as np


def class_weights(
    pixels: np.ndarray, images: np.ndarray, image_pixels: np.ndarray, num_images: int
) -> dict[str, np.ndarray]:
    """Class weights by three rules, each scaled so that the classes that occur have mean 1.

    - Inverse frequency: 1 / share of the class in all labeled pixels.
    - Median frequency (Eigen and Fergus, ICCV 2015): median of all f / f of the class, where f is
      the share of the class in the labeled pixels of the images that show it.
    - Effective number (Cui et al., CVPR 2019): (1 - beta) / (1 - beta^n), n the number of images
      that show the class and beta = (N - 1) / N for N images.

    Args:
        pixels: (M,) labeled pixels of each class.
        images: (M,) images that show each class.
        image_pixels: (M,) labeled pixels of all images that show each class.
        num_images: N, images with labels.

    Returns:
        Name of the rule -> (M,) weights; a class that never occurs has weight 1, which has no
        effect. Empty if fewer than two classes occur.
    """
    occurs = pixels > 0
    if occurs.sum() < 2:
        return {}
    frequency = pixels[occurs] / image_pixels[occurs]
    beta = (num_images - 1) / num_images
    rules = {
        "inverse frequency": pixels.sum() / pixels[occurs],
        "median frequency": np.median(frequency) / frequency,
        "effective number": (1 - beta) / (1 - beta ** images[occurs]),
    }
    weights = {}
    for name, values in rules.items():
        weights[name] = np.ones(len(pixels))
        weights[name][occurs] = values / values.mean()
    return weights
