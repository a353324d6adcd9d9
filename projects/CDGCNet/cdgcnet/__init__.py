"""CDGCNet for Detectron2.

Importing registers the backbone builder, the head and the meta-architecture; it registers no data
set: call :func:`register_all` for that.
"""

from .backbone import build_dilated_resnet_backbone
from .config import add_cdgcnet_config, load_cfg
from .config_check import check_cfg
from .datasets import register_all, register_folders
from .evaluation import CDGCEvaluator
from .head import CDGCNetHead
from .mapper import SemSegMapper
from .predictor import Predictor
from .segmentor import CDGCSegmentor
from .trainer import Trainer
from .tta import SemanticSegmentorWithTTA

__all__ = [
    "CDGCEvaluator",
    "CDGCNetHead",
    "CDGCSegmentor",
    "Predictor",
    "SemSegMapper",
    "SemanticSegmentorWithTTA",
    "Trainer",
    "add_cdgcnet_config",
    "build_dilated_resnet_backbone",
    "check_cfg",
    "load_cfg",
    "register_all",
    "register_folders",
]
