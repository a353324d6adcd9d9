"""CDGCNet for Detectron2: class-wise dynamic graph convolution for semantic segmentation.

``import cdgcnet`` loads neither PyTorch nor Detectron2. The first use of a public name does, and
registers the backbone builder, the head and the meta-architecture with Detectron2, so
``from cdgcnet import load_cfg`` is enough. ``Predictor`` loads them when it is created, and
``Predictor.from_onnx`` never does. Datasets are registered by :func:`register_all` only.
"""

TYPE_CHECKING = False  # as a plain name it means the same to type checkers
if TYPE_CHECKING:
    from typing import Any

    from cdgcnet.config.defaults import add_cdgcnet_config, load_cfg
    from cdgcnet.config.files import config_path
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

__version__ = "0.1.0"

_MODULES = {
    "CDGCEvaluator": "evaluation.evaluator",
    "CDGCNetHead": "modeling.cdgc_head",
    "CDGCSegmentor": "modeling.meta_arch",
    "Predictor": "engine.predictor",
    "SemSegMapper": "data.dataset_mapper",
    "SemanticSegmentorWithTTA": "modeling.test_time_augmentation",
    "Trainer": "engine.trainer",
    "add_cdgcnet_config": "config.defaults",
    "build_dilated_resnet_backbone": "modeling.backbone",
    "check_cfg": "config.validation",
    "config_path": "config.files",
    "load_cfg": "config.defaults",
    "register_all": "data.datasets",
    "register_folders": "data.datasets",
}

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
    "config_path",
    "load_cfg",
    "register_all",
    "register_folders",
]


def __getattr__(name: str) -> "Any":
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    import importlib

    if name != "Predictor":
        importlib.import_module("cdgcnet.modeling")  # registers the network with Detectron2
    value = getattr(importlib.import_module(f"cdgcnet.{_MODULES[name]}"), name)
    globals()[name] = value  # from now on found without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
