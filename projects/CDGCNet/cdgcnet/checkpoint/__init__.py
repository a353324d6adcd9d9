"""Weights of this and other projects: read safely, recognized, complete or refused.

| format | stem | published by |
|---|---|---|
| torchvision | 7x7, 64 | torchvision's ResNet-18 to -152 |
| deep stem | three 3x3, 64-64-128 | MIT's semantic-segmentation-pytorch, hszhao's semseg |
| v1c | three 3x3, 32-32-64 | OpenMMLab |
| detectron2 | either | Detectron2, R-52 and R-103 of its DeepLab among them |

Reading order: ``reading`` (files to tensors, nothing executed), ``formats`` (names to
Detectron2's), ``completeness`` (a whole ResNet?), ``deepening`` (ResNet-50 to -101),
``provenance`` (what the config must repeat), ``class_metadata`` (names, colors and tensors of the
classes), ``strict_checkpointer`` (into the model), ``convert`` (``cdgcnet convert``).
"""
