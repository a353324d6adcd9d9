"""A CDGCNet small enough to run in milliseconds, and synthetic batches for it.

Fixtures return functions: under pytest's importlib mode test files cannot import each other.
"""

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from cdgcnet import load_cfg

CLASSES = 5
TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 8,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": CLASSES,
    "MODEL.SEM_SEG_HEAD.NORM": "BN",
    "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS": 8,
    "MODEL.SEM_SEG_HEAD.ASPP_DILATIONS": [1, 2, 3],
    "MODEL.CDGC.NORM": "BN",
    "MODEL.CDGC.NODES": "dynamic",
    "MODEL.CDGC.RECEIVERS": "nodes",
    "MODEL.CDGC.SOFTMAX": "class",
    "MODEL.CDGC.CHANNELS": 8,
    "MODEL.CDGC.AUX_CHANNELS": 8,
    "MODEL.CDGC.DROPOUT": 0.0,  # so that a training step is a function of its input
    "MODEL.CDGC.LOSS.OHEM_MIN_KEPT": 0.25,
}


@pytest.fixture(scope="session")
def tiny_cfg():
    """``tiny_cfg({key: value})``: ResNet-18 of 8 channels, 5 classes, CPU."""

    def make(changes=None):
        return load_cfg("", [x for pair in {**TINY, **(changes or {})}.items() for x in pair])

    return make


@pytest.fixture(scope="session")
def randomize():
    """Give norms random statistics, and classifiers weights that predict several classes."""

    def change(model, seed=0):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.running_mean.normal_(0, 0.1, generator=generator)
                    module.running_var.uniform_(0.5, 1.5, generator=generator)
                    module.weight.uniform_(0.5, 1.5, generator=generator)
                    module.bias.normal_(0, 0.1, generator=generator)
            for name, parameter in model.named_parameters():
                if "predictor" in name or "aux_head.1" in name:  # initialized to almost zero
                    parameter.normal_(0, 0.3, generator=generator)
        return model

    return change


@pytest.fixture(scope="session")
def build(randomize):
    """``build(cfg)``: the model of a config with reproducible random weights, in eval mode."""

    def make(cfg, seed=0):
        torch.manual_seed(seed)
        return randomize(build_model(cfg), seed).eval()

    return make


@pytest.fixture(scope="session")
def make_batch():
    """``make_batch((H, W), …)``: one dict per size, smooth noise and blocks of labels."""

    def make(*sizes, classes=CLASSES, seed=0, targets=True):
        generator = torch.Generator().manual_seed(seed)
        batch = []
        for height, width in sizes:
            coarse = torch.rand(1, 3, height // 8 + 2, width // 8 + 2, generator=generator)
            image = nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")[0]
            blocks = torch.randint(
                classes, (height // 16 + 1, width // 16 + 1), generator=generator
            )
            labels = blocks.repeat_interleave(16, 0).repeat_interleave(16, 1)[:height, :width]
            labels = labels.clone()
            labels[: height // 10] = 255  # some pixels are ignored
            sample = {"image": (image * 255).to(torch.uint8)}
            if targets:
                sample["sem_seg"] = labels
            batch.append(sample)
        return batch

    return make
