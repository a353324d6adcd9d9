"""Detectron2's own backbones below CDGCNet's head: they train, or the message says why not."""

import pytest
import torch
from detectron2.modeling import build_model

WIDE = {"MODEL.RESNETS.RES2_OUT_CHANNELS": 64}  # which Detectron2 wants of a ResNet-18
NO_DILATION = {**WIDE, "MODEL.RESNETS.RES4_DILATION": 1, "MODEL.RESNETS.RES5_DILATION": 1}
ALL = ["res2", "res3", "res4", "res5"]
PYRAMID = {
    **NO_DILATION,
    "MODEL.RESNETS.OUT_FEATURES": ALL,
    "MODEL.FPN.IN_FEATURES": ALL,
    "MODEL.FPN.OUT_CHANNELS": 16,
}
RETINANET = {**PYRAMID, "MODEL.FPN.IN_FEATURES": ALL[1:]}


@pytest.mark.parametrize(
    ("name", "features", "keys"),
    [
        ("build_resnet_backbone", ["res4", "res5"], NO_DILATION),
        ("build_resnet_fpn_backbone", ["p4", "p3"], PYRAMID),  # the main feature is the larger one
        ("build_resnet_fpn_backbone", ["p3", "p2"], PYRAMID),
        ("build_retinanet_resnet_fpn_backbone", ["p4", "p3"], RETINANET),
    ],
)
def test_a_step_and_a_prediction(tiny_cfg, name, features, keys):
    keys = {**keys, "MODEL.BACKBONE.NAME": name, "MODEL.SEM_SEG_HEAD.IN_FEATURES": features}
    cfg = tiny_cfg(keys)
    model, classes = build_model(cfg).train(), cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    batch = [
        {
            "image": torch.randint(256, (3, 65, 97), dtype=torch.uint8),
            "sem_seg": torch.randint(classes, (65, 97)),
        }
        for _ in range(2)
    ]
    sum(model(batch).values()).backward()
    assert model.sem_seg_head.graph.phi.grad is not None
    with torch.no_grad():
        [found] = model.eval()([{"image": batch[0]["image"]}])
    assert found["sem_seg"].shape[1:] == (65, 97)


@pytest.mark.parametrize(
    ("name", "features", "keys", "message"),
    [
        (
            "build_resnet_backbone",
            ["res4", "res5"],
            WIDE,
            "BACKBONE.NAME.*res5_dilation cannot be 4",
        ),
        (
            "build_resnet_fpn_backbone",
            ["res4", "p3"],
            PYRAMID,
            r"IN_FEATURES is \['res4', 'p3'\].*p2 \(16 channels, stride 4\), p3 \(16 channels",
        ),
    ],
)
def test_what_cannot_be_built(tiny_cfg, name, features, keys, message):
    keys = {**keys, "MODEL.BACKBONE.NAME": name, "MODEL.SEM_SEG_HEAD.IN_FEATURES": features}
    with pytest.raises(ValueError, match=message) as caught:
        build_model(tiny_cfg(keys))
    assert "\n" not in str(caught.value)
