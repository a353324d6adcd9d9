"""CDGCNet for Detectron2.

Importing registers the backbone builder, the head and the meta-architecture; it registers no data
set: call :func:`register_all` for that.
"""

from cdgcnet.config.defaults import add_cdgcnet_config, load_cfg
from cdgcnet.config.validation import check_cfg
from cdgcnet.data.dataset_mapper import SemSegMapper
from cdgcnet.data.datasets import register_all, register_folders
from cdgcnet.engine.predictor import Predictor
from cdgcnet.engine.trainer import Trainer
from cdgcnet.evaluation.evaluator import CDGCEvaluator
from cdgcnet.modeling.backbone import build_dilated_resnet_backbone
from cdgcnet.modeling.cdgc_head import CDGCNetHead
from cdgcnet.modeling.meta_arch import CDGCSegmentor
from cdgcnet.modeling.test_time_augmentation import SemanticSegmentorWithTTA

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
