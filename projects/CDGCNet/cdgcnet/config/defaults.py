"""Every configuration key of CDGCNet: default, unit and where it comes from."""

from pathlib import Path

import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.projects.deeplab import add_deeplab_config

from cdgc import SAMPLES
from cdgcnet.config.validation import check_cfg


def add_cdgcnet_config(cfg: CfgNode) -> None:
    """Add the keys of CDGCNet, and of Detectron2's DeepLab project, to a Detectron2 config.

    ``spec`` below means projects/CDGCNet/README.md, "What the paper leaves open".
    """
    add_deeplab_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "CDGCSegmentor"  # or Detectron2's "SemanticSegmentor"
    cfg.MODEL.BACKBONE.NAME = "build_dilated_resnet_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0  # spec
    cfg.MODEL.PIXEL_MEAN = [123.675, 116.28, 103.53]  # RGB, ImageNet
    cfg.MODEL.PIXEL_STD = [58.395, 57.12, 57.375]
    cfg.INPUT.FORMAT = "RGB"
    cfg.MODEL.RESNETS.DEPTH = 101  # Sec. 4.2
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res4", "res5"]
    cfg.MODEL.RESNETS.RES4_DILATION = 2  # output stride 8, Sec. 3.2
    cfg.MODEL.RESNETS.RES5_DILATION = 4
    cfg.MODEL.RESNETS.RES5_MULTI_GRID = [1, 1, 1]  # spec
    cfg.MODEL.RESNETS.STEM_TYPE = "basic"  # torchvision's 7x7; "deeplab" is the deep stem
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False  # True for MSRA/Caffe weights
    cfg.MODEL.RESNETS.NORM = "SyncBN"
    cfg.MODEL.SEM_SEG_HEAD.NAME = "CDGCNetHead"
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["res4", "res5"]  # auxiliary head, main path
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 19
    cfg.MODEL.SEM_SEG_HEAD.NORM = "SyncBN"
    cfg.MODEL.SEM_SEG_HEAD.ASPP_DILATIONS = [12, 24, 36]  # DeepLabv3 at output stride 8
    cfg.MODEL.SEM_SEG_HEAD.ASPP_CHANNELS = 256

    # Memory layout of convolutions and activations, in training and inference (CDGCSegmentor).
    cfg.MODEL.CHANNELS_LAST = True

    cfg.MODEL.CDGC = CfgNode()
    # False leaves the basic network alone (Tables 1-3, rows without CDGC).
    cfg.MODEL.CDGC.ENABLED = True
    # What refines: "graph", or in its place "non_local", "danet", "ocr", "psp" (other papers') or
    # "pixelwise" (1x1 convolutions with as many parameters, the control).
    cfg.MODEL.CDGC.CONTEXT_MODULE = "graph"
    cfg.MODEL.CDGC.CONTEXT = "aspp"  # or "none" (Table 2)
    cfg.MODEL.CDGC.CHANNELS = 256  # C, of X and of the refined features
    # Training nodes: Eq. 4, or "coarse" (Table 3 "sim"). "soft", an extension: the two most
    # probable classes of each pixel, by their probabilities, in training and inference: up to
    # twice the nodes of "coarse". Not run on CUDA yet.
    cfg.MODEL.CDGC.NODES = "dynamic"
    cfg.MODEL.CDGC.EASY_RATIO = 1.0  # share of the easy positives kept (Table 3 "ds")
    cfg.MODEL.CDGC.SAMPLES = list(SAMPLES)  # parts of Eq. 4 that enter (Table 5)
    # Hard positives are full "nodes" (Eq. 4), or "context": seen by others, without a feature of
    # their own from the true class's graph, which would tell their label.
    cfg.MODEL.CDGC.HARD_POSITIVES = "nodes"
    cfg.MODEL.CDGC.EDGES = "similarity"  # Eqs. 2-3, or "uniform", "topk"
    cfg.MODEL.CDGC.TOPK = 64  # neighbors, for EDGES "topk"
    cfg.MODEL.CDGC.TOPK_WEIGHTS = "softmax"  # or "equal", the paper's binary matrix
    cfg.MODEL.CDGC.SCALE = "none"  # factor on the similarity; "sqrt" is C**-0.5
    cfg.MODEL.CDGC.SHARED_PHI = True  # one phi, phi' for all classes
    cfg.MODEL.CDGC.SCOPE = "class"  # "image" is the plain GCN (Table 1)
    cfg.MODEL.CDGC.NORM = "SyncBN"  # after the merge; "" for none
    cfg.MODEL.CDGC.RELU = True  # after that norm
    cfg.MODEL.CDGC.FUSION = "concat"  # or "sum" (Table 2)
    cfg.MODEL.CDGC.FUSE_CONV = False  # a 1x1 conv-norm-ReLU before the last classifier
    cfg.MODEL.CDGC.AUX_CHANNELS = 256  # width of the auxiliary head
    cfg.MODEL.CDGC.DROPOUT = 0.1  # before every classifier
    cfg.MODEL.CDGC.ALIGN_CORNERS = True  # of every resize of logits and targets
    # For debugging: stop at NaN or infinity in what the graph is given; costs time.
    cfg.MODEL.CDGC.CHECK_FINITE = False

    cfg.MODEL.CDGC.LOSS = CfgNode()
    cfg.MODEL.CDGC.LOSS.COARSE_WEIGHT = 0.6  # alpha of Eq. 5
    cfg.MODEL.CDGC.LOSS.REFINED_WEIGHT = 0.7  # beta
    cfg.MODEL.CDGC.LOSS.AUX_WEIGHT = 0.4  # gamma; 0 builds no auxiliary head
    cfg.MODEL.CDGC.LOSS.BASELINE_WEIGHT = 1.0  # of the only prediction when ENABLED is False
    cfg.MODEL.CDGC.LOSS.BASELINE = "ce"  # that prediction's loss, or "ohem"
    cfg.MODEL.CDGC.LOSS.OHEM_THRESH = 0.7
    # Pixels kept per GPU batch; below 1 a share of the batch's pixels (0.085 at the paper's crop).
    cfg.MODEL.CDGC.LOSS.OHEM_MIN_KEPT = 100000.0
    cfg.MODEL.CDGC.LOSS.CLASS_WEIGHTS = []  # one factor per class, or empty

    cfg.INPUT.SCALE_JITTER = [0.5, 2.0]
    cfg.INPUT.COLOR_JITTER = False  # brightness, contrast, saturation within 0.75-1.25
    # Shortest edge in pixels before jitter (training) and for testing; 0 keeps the image's size.
    cfg.INPUT.MIN_SIZE_TRAIN = (0,)
    cfg.INPUT.MIN_SIZE_TEST = 0
    cfg.INPUT.MAX_SIZE_TEST = 4096
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE = "absolute"
    cfg.INPUT.CROP.SIZE = [769, 769]

    # Larger images and labels (height x width) are refused; 100 million take 300 MB as RGB.
    cfg.INPUT.MAX_PIXELS = 100_000_000
    # A folder for decoded training images (the mapper fills it, 4 bytes per pixel); "" for none.
    cfg.INPUT.CACHE = ""

    # Own datasets, each a mapping; docs/own_data.md.
    cfg.DATASETS.FOLDERS = []
    # Before a run starts: read all labels and image headers, "all": images too, or "none".
    cfg.DATASETS.CHECK = "labels"

    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupPolyLR"
    cfg.SOLVER.WARMUP_ITERS = 0  # spec; Detectron2 warms up for 1000 iterations
    cfg.SOLVER.OPTIMIZER = "SGD"  # Sec. 4.2; or "ADAMW"
    cfg.SOLVER.HEAD_LR_FACTOR = 1.0
    # Batch and rate that belong together in the recipe, to warn of a batch too small for its rate;
    # 0: not stated.
    cfg.SOLVER.RECIPE_IMS_PER_BATCH = 0
    cfg.SOLVER.RECIPE_BASE_LR = 0.0
    cfg.SOLVER.WEIGHT_DECAY_NORM = None  # as all other weights
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    cfg.TEST.EVAL_PERIOD = 5000
    cfg.TEST.AUG.SCALES = [0.75, 1.0, 1.25, 1.5, 1.75, 2.0]  # Sec. 4.3, ratios
    cfg.TEST.AUG.FLIP = True

    # ---- inference: evaluation, TTA, DefaultPredictor and Predictor alike ----
    cfg.TEST.SLIDE = CfgNode()
    cfg.TEST.SLIDE.ENABLED = False  # sliding window; overlaps average their probabilities
    cfg.TEST.SLIDE.CROP = [769, 769]  # height, width in pixels of the network's input
    cfg.TEST.SLIDE.STRIDE = [513, 513]
    cfg.TEST.PRECISION = "fp32"  # or "bf16", "fp16": autocast of backbone and head
    # Where probabilities are summed up (TTA, sliding window): "model" is the model's device.
    cfg.TEST.ACCUMULATE = CfgNode()
    cfg.TEST.ACCUMULATE.DEVICE = "model"  # or "cpu"
    cfg.TEST.ACCUMULATE.DTYPE = "fp32"  # or "fp16"

    # ---- evaluation ----
    cfg.TEST.BOUNDARY_RATIO = 0.02  # boundary width as a share of the diagonal; 0: no boundary IoU
    cfg.TEST.ORACLE = True  # a row with the ground truth as the graph's classes
    cfg.TEST.WORST_IMAGES = 4  # the worst images, and as many that the graph fixed and broke most
    cfg.TEST.PICTURES = True  # of these images, and of the matrices
    cfg.TEST.SAVE_LABELS = False  # predicted label maps as PNG
    cfg.TEST.SAVE_RLE = False  # Detectron2's sem_seg_predictions.json
    cfg.TEST.RESUME = False  # keep per-image results; go on with those there are


def load_cfg(config_file: str, overrides: list[str] | None = None) -> CfgNode:
    """A checked, unfrozen config from a YAML file and ``KEY VALUE`` overrides.

    Raises:
        FileNotFoundError, ValueError: naming the file or the key.
    """
    cfg = get_cfg()
    add_cdgcnet_config(cfg)
    if config_file:
        if not Path(config_file).is_file():
            raise FileNotFoundError(f"--config-file {config_file}: there is no such file")
        try:
            cfg.merge_from_file(config_file)
        # What yacs, fvcore and PyYAML raise for unknown keys, wrong types and broken files.
        except (AssertionError, AttributeError, KeyError, yaml.YAMLError, OSError) as error:
            raise ValueError(f"{config_file}: {_message(error)}") from error
    if overrides:
        if len(overrides) % 2:
            raise ValueError(f"overrides come in pairs KEY VALUE; found {overrides}")
        for key, value in zip(overrides[::2], overrides[1::2], strict=True):
            try:
                cfg.merge_from_list([key, value])
            except (AssertionError, KeyError, ValueError) as error:
                raise ValueError(f"override {key} {value}: {_message(error)}") from error
    check_cfg(cfg)
    return cfg


def _message(error: Exception) -> str:
    # str() of a KeyError is the repr of its message.
    return str(error.args[0]) if isinstance(error, KeyError) else str(error)
