"""Suggested class weights, worked by hand."""

import numpy as np

from cdgcnet.data.audit.class_weights import class_weights


def test_three_rules_by_hand():
    # Two images of 100 pixels: 90 + 10 of classes 0 and 1, then 100 of class 0. Class 2 is absent.
    weights = class_weights(
        pixels=np.array([190, 10, 0]),
        images=np.array([2, 1, 0]),
        image_pixels=np.array([200, 100, 0]),
        num_images=2,
    )
    # 200 / 190 and 200 / 10, scaled to mean 1: 1 : 19.
    np.testing.assert_allclose(weights["inverse frequency"], [0.1, 1.9, 1])
    # f = 190 / 200 and 10 / 100: 0.10 : 0.95 = 1 : 9.5.
    np.testing.assert_allclose(weights["median frequency"], [2 / 10.5, 19 / 10.5, 1])
    # beta = 1 / 2: 0.5 / (1 - 0.25) and 0.5 / (1 - 0.5), 2 : 3.
    np.testing.assert_allclose(weights["effective number"], [0.8, 1.2, 1])


def test_equal_classes_get_equal_weights():
    equal = class_weights(np.array([5, 5]), np.array([1, 1]), np.array([10, 10]), 1)
    assert all(w.tolist() == [1, 1] for w in equal.values()) and len(equal) == 3


def test_a_single_class_has_nothing_to_weigh():
    assert class_weights(np.array([5, 0]), np.array([1, 0]), np.array([5, 0]), 1) == {}
