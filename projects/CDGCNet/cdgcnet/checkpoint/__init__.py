"""ImageNet ResNets of other projects in Detectron2's names, complete or refused.

| format | stem | published by |
|---|---|---|
| torchvision | 7x7, 64 | torchvision's ResNet-18 to -152 |
| deep stem | three 3x3, 64-64-128 | MIT's semantic-segmentation-pytorch, hszhao's semseg |
| v1c | three 3x3, 32-32-64 | OpenMMLab |
| detectron2 | either | Detectron2, R-52 and R-103 of its DeepLab among them |

Reading order: ``reading`` (their contents, and nothing run), ``formats`` (theirs to ours),
``completeness`` (a whole ResNet?), ``deepening`` (ResNet-50 to -101), ``provenance`` (what a config
must repeat), ``convert`` (all of it). The command is ``cdgcnet convert``.
"""
