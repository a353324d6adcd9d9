"""The network: backbone, head, meta-architecture, sliding window, test-time augmentation.

Importing this package registers the backbone builders, the head and the meta-architecture with
Detectron2, which then finds them by the names in the config.
"""

from cdgcnet.modeling import backbone, cdgc_head, meta_arch, timm_backbone

__all__ = ["backbone", "cdgc_head", "meta_arch", "timm_backbone"]
