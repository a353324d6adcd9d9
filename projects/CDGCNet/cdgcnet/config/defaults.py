"""Every configuration key of CDGCNet: default, unit and where it comes from."""

import os
import re
import warnings
from ast import literal_eval
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, get_cfg
from detectron2.projects.deeplab import add_deeplab_config

from cdgc import DEFAULT_GRAPH, SAMPLES
from cdgcnet.config.reading import flatten, read_config_file
from cdgcnet.config.rule_types import Items, Number, Text, show
from cdgcnet.config.rules import NEWER_DEFAULTS, RULES
from cdgcnet.config.validation import ConfigError, check_cfg, suggest, value_of


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

    # A network of the timm library, for MODEL.BACKBONE.NAME "build_timm_backbone".
    cfg.MODEL.TIMM = CfgNode()
    cfg.MODEL.TIMM.NAME = "resnet50"
    # A file of timm's weights to start a training run from, in place of MODEL.WEIGHTS.
    cfg.MODEL.TIMM.PRETRAINED = ""
    # The features that the backbone returns, by timm's indices. MODEL.SEM_SEG_HEAD.IN_FEATURES
    # names two of them as timm names the layers: ["layer3", "layer4"].
    cfg.MODEL.TIMM.OUT_INDICES = [-2, -1]
    # How features reach OUTPUT_STRIDE: by "dilation" (convolutional networks), by "interpolation"
    # of the feature maps (Swin, ViT), or not at all ("none").
    cfg.MODEL.TIMM.STRIDE_ADAPTER = "dilation"
    cfg.MODEL.TIMM.OUTPUT_STRIDE = 8

    cfg.MODEL.SEM_SEG_HEAD.NAME = "CDGCNetHead"
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["res4", "res5"]  # auxiliary head, main path
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 19
    cfg.MODEL.SEM_SEG_HEAD.NORM = "SyncBN"
    cfg.MODEL.SEM_SEG_HEAD.ASPP_DILATIONS = [12, 24, 36]  # DeepLabv3 at output stride 8
    cfg.MODEL.SEM_SEG_HEAD.ASPP_CHANNELS = 256

    # Weights to start from: a file, or "from_scratch" for random weights. Training refuses "".
    cfg.MODEL.WEIGHTS = ""
    # Fine-tuning on other classes: initialize the tensors whose shape depends on the classes and
    # load all others.
    cfg.MODEL.WEIGHTS_PARTIAL = False
    # Names and [R, G, B] of the classes. Training copies them from the dataset, so that a run's
    # config and weights are all that prediction needs.
    cfg.MODEL.CLASS_NAMES = []
    cfg.MODEL.CLASS_COLORS = []

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
    # Training nodes: those of the "coarse" prediction (Table 3 "sim"), or "dynamic" (Eq. 4, in the
    # paper's configs), which needs a long schedule. "soft", an extension: the two most probable
    # classes of each pixel, in training and inference: up to twice the nodes of "coarse".
    cfg.MODEL.CDGC.NODES = DEFAULT_GRAPH["nodes"]
    cfg.MODEL.CDGC.EASY_RATIO = 1.0  # share of the easy positives kept (Table 3 "ds")
    cfg.MODEL.CDGC.SAMPLES = list(SAMPLES)  # parts of Eq. 4 that enter (Table 5)
    # Hard positives are full "nodes" (Eq. 4), or "keys_only": seen by others, without a feature of
    # their own from the true class's graph, which would tell their label.
    cfg.MODEL.CDGC.HARD_POSITIVES = "nodes"
    # Pixels that a class's graph sends to: "all" valid pixels of the image, or its "nodes" only
    # (the paper's text, and its configs).
    cfg.MODEL.CDGC.RECEIVERS = DEFAULT_GRAPH["receivers"]
    # Weight of each class's message to a pixel, for RECEIVERS "all": "one", "mean" (divided by the
    # number of classes present) or "probability" (of the coarse prediction).
    cfg.MODEL.CDGC.MESSAGE_WEIGHTS = "one"
    # For RECEIVERS "all": one softmax over the nodes of all classes of the "image", or one for each
    # "class" (Eq. 2). HEADS and DISTANCE_BIAS have an effect with "image" only.
    cfg.MODEL.CDGC.SOFTMAX = DEFAULT_GRAPH["softmax"]
    cfg.MODEL.CDGC.HEADS = DEFAULT_GRAPH["heads"]  # of the attention
    # Each head learns which distances it prefers.
    cfg.MODEL.CDGC.DISTANCE_BIAS = DEFAULT_GRAPH["distance_bias"]
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
    cfg.MODEL.CDGC.LOSS.REFINED = "ohem"  # the refined prediction's loss; or "ce"
    cfg.MODEL.CDGC.LOSS.AUX_WEIGHT = 0.4  # gamma; 0 builds no auxiliary head
    cfg.MODEL.CDGC.LOSS.BASELINE_WEIGHT = 1.0  # of the only prediction when ENABLED is False
    cfg.MODEL.CDGC.LOSS.BASELINE = "ce"  # that prediction's loss, or "ohem"
    cfg.MODEL.CDGC.LOSS.OHEM_THRESH = 0.7
    # Pixels kept per GPU batch; below 1 a share of the batch's pixels (0.085 at the paper's crop).
    cfg.MODEL.CDGC.LOSS.OHEM_MIN_KEPT = 100000.0
    # With several processes: mean over the pixels of each "process", or "global": over those of all
    # processes, with OHEM_MIN_KEPT pixels of all, as one process with the whole batch would.
    cfg.MODEL.CDGC.LOSS.REDUCE = "process"
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
    cfg.SOLVER.AMP.PRECISION = "fp16"  # Detectron2's; or "bf16", which needs no scaled gradients
    cfg.SOLVER.OPTIMIZER = "SGD"  # Sec. 4.2; or "ADAMW"
    cfg.SOLVER.HEAD_LR_FACTOR = 1.0
    # Batch and rate that belong together in the recipe, to warn of a batch too small for its rate;
    # 0: not stated.
    cfg.SOLVER.RECIPE_IMS_PER_BATCH = 0
    cfg.SOLVER.RECIPE_BASE_LR = 0.0
    # Lets --resume train longer, to a larger MAX_ITER, with the learning rates of the new schedule.
    cfg.SOLVER.EXTEND_SCHEDULE = False
    cfg.SOLVER.WEIGHT_DECAY_NORM = None  # as all other weights
    # A project of Weights & Biases that gets the scalars and pictures of a training run; "": none.
    cfg.WANDB_PROJECT = ""
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
    cfg.TEST.RESUME = False  # keep per-image results, and resume from them


def default_cfg() -> CfgNode:
    """Detectron2's defaults and those of CDGCNet, unchecked."""
    cfg = get_cfg()
    add_cdgcnet_config(cfg)
    return cfg


def load_cfg(config_file: str | Sequence[str], overrides: Sequence[str] | None = None) -> CfgNode:
    """A checked, unfrozen config from YAML files and ``KEY VALUE`` overrides.

    Args:
        config_file: one file, or several, each merged on top of those before it; "" for the
            defaults alone.
        overrides: keys and values in turn, merged last.

    Raises:
        FileNotFoundError, ValueError: naming the file or the override, the key, what was found
            and what was expected.
    """
    cfg = default_cfg()
    overrides = overrides or []
    if len(overrides) % 2:
        raise ValueError(f"overrides come in pairs KEY VALUE; found {overrides}")
    known = {key for key, _ in flatten(cfg)}
    set_by: dict[str, str] = {}  # what gave a key its value
    for name in [config_file] if isinstance(config_file, str) else config_file:
        if not name:
            continue
        path = Path(name).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"--config-file {name}: there is no such file")
        for file, key, value in read_config_file(path):
            set_by[key] = str(file)
            _set(cfg, key, value, str(file), known)
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        set_by[key] = "overrides"
        _set(cfg, key, value, set_by[key], known)
    for key in ("OUTPUT_DIR", "INPUT.CACHE", "MODEL.WEIGHTS", "MODEL.TIMM.PRETRAINED"):
        path_text = value_of(cfg, key)
        if path_text.startswith("~"):
            _put(cfg, key, os.path.expanduser(path_text))  # an unknown user's "~" stays
    try:
        check_cfg(cfg)
    except ConfigError as error:
        if error.key in set_by:
            raise ValueError(f"{set_by[error.key]}: {error}") from error
        raise
    return cfg


def _put(cfg: CfgNode, key: str, value: Any) -> None:
    *sections, last = key.split(".")
    node = value_of(cfg, ".".join(sections)) if sections else cfg
    node[last] = value


def _set(cfg: CfgNode, key: str, value: Any, origin: str, known: set[str]) -> None:
    """Set one key to a value from a file or the command line.

    Raises:
        ValueError: naming the origin, for an unknown key or a value that the key cannot have.
    """
    if key not in known:
        if key in NEWER_DEFAULTS:
            if decode(value) == NEWER_DEFAULTS[key]:
                return
            raise ValueError(
                f"{origin}: {key} is {show(value)}; expected {show(NEWER_DEFAULTS[key])} or no "
                "such key, which only the main branch of Detectron2 has"
            )
        if any(k.startswith(f"{key}.") for k in known):
            if value is None:  # a section without entries
                return
            raise ValueError(f"{origin}: {key} is {show(value)}; expected a section of keys")
        raise ValueError(f"{origin}: there is no key {key}{suggest(key, sorted(known))}")
    default = value_of(cfg, key)
    rule = RULES.get(key)
    value = decode(value, keep_text=isinstance(rule, Text))
    if rule is None:  # a key that only other projects' models read: any value of its type
        if type(default) is float and type(value) is int:
            value = float(value)
        try:
            cfg.merge_from_list([key, value])
        except Exception as error:  # yacs asserts and raises several types
            raise ValueError(f"{origin}: {key} is {show(value)}: {error}") from error
        return
    if not rule.accepts(value):
        raise ValueError(f"{origin}: {ConfigError(key, value, rule.expected)}")
    _put(cfg, key, _convert(value, default, rule))


def decode(value: Any, keep_text: bool = False) -> Any:
    """A string as the Python literal it stands for, such as "(1, 2)", as yacs does.

    A list of names needs no quotes, because a shell takes them away: "[easy_positive]".

    Args:
        value: from YAML or the command line.
        keep_text: leave a string that is a number or a list as it is, since a text is wanted.
    """
    if not isinstance(value, str):
        return value
    try:
        with warnings.catch_warnings():  # Python's hints on doubtful literals
            warnings.simplefilter("ignore")
            decoded = literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value if keep_text else _names(value.strip()) or value
    return value if keep_text and not (decoded is None or isinstance(decoded, str)) else decoded


def _names(text: str) -> list[str]:
    """The names in "[easy_positive, hard_positive]"; empty for any other text."""
    if not (text.startswith("[") and text.endswith("]")):
        return []
    names = [name.strip() for name in text[1:-1].split(",")]
    names = names[:-1] if names[-1] == "" else names
    return names if all(re.fullmatch(r"[a-zA-Z_][\w./-]*", name) for name in names) else []


def _convert(value: Any, default: Any, rule: Any) -> Any:
    """An accepted value in the type of the default: whole numbers as floats, lists as tuples."""
    if type(value) is int and (isinstance(rule, Number) or type(default) is float):
        return float(value)
    if isinstance(rule, Items):
        items = (_convert(item, None, rule.item) for item in value)
        return tuple(items) if isinstance(default, tuple) else list(items)
    return value
