"""Every YAML under configs/: it resolves, its datasets exist, it builds; each network trains."""

import hashlib
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model

from cdgcnet import load_cfg, register_all
from cdgcnet.config.adaptation import adapt_cfg
from cdgcnet.data.preflight import check_datasets
from cdgcnet.experiments.rows import find_rows

ROOT = Path(__file__).resolve().parents[3] / "configs"
# A recipe is one file. A row of the experiments is merged on top of a profile: two profiles stand
# for all of them here, test_rows.py loads every row.
PROFILES = ROOT / "experiments" / "profiles"
FILES = [
    (p,)
    for p in sorted(ROOT.rglob("*.yaml"))
    if not p.name.startswith("Base") and "experiments" not in p.parts
]
FILES += [
    row.config_files
    for p in ("tiny", "camvid_cpu")
    for row in find_rows(PROFILES / f"{p}.yaml", "all")
]
# What a GPU recipe needs to be read on any machine.
HERE = ["MODEL.DEVICE", "cpu"]


def load(files):
    return load_cfg([str(p) for p in files], HERE)


def shrunk(files):
    """The config's network with few channels; its structure is untouched."""
    cfg = load(files)
    adapt_cfg(cfg)
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 8
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8 if cfg.MODEL.RESNETS.DEPTH < 50 else 32
    cfg.MODEL.SEM_SEG_HEAD.ASPP_CHANNELS = 16
    cfg.MODEL.CDGC.CHANNELS = 16
    cfg.MODEL.CDGC.AUX_CHANNELS = 16
    return cfg


def architecture(cfg):
    """A hash of what decides the network and its losses; norms are the machine's choice."""
    cfg = cfg.MODEL.clone()
    for node in (cfg.RESNETS, cfg.SEM_SEG_HEAD, cfg.CDGC):
        node.NORM = ""
    return hashlib.sha256(cfg.dump().encode()).hexdigest()


# One file per architecture: a dict keeps the last, so go backwards to keep the first.
DISTINCT = sorted({architecture(shrunk(p)): p for p in reversed(FILES)}.values())
DISTINCT_FULL = sorted({architecture(load(p)): p for p in reversed(FILES)}.values())


def name_of(files):
    return "+".join(str(p.relative_to(ROOT)) for p in files)


def test_there_are_configs():
    assert len(FILES) >= 4


@pytest.mark.parametrize("files", FILES, ids=name_of)
def test_resolves_and_names_registered_datasets(files, tmp_path):
    cfg = load(files)  # runs check_cfg
    register_all(tmp_path)
    own = {folder["NAME"] for folder in cfg.DATASETS.FOLDERS}
    if own:  # their class list lies with the images
        assert {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST} <= own
        return
    assert len(cfg.DATASETS.TRAIN) and len(cfg.DATASETS.TEST)
    assert {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST} <= set(DatasetCatalog.list())
    check_datasets(cfg, train=True)  # the number of classes too


@pytest.mark.parametrize("files", DISTINCT_FULL, ids=name_of)
def test_builds_at_full_size(files):
    cfg = load(files)
    adapt_cfg(cfg)
    cfg.MODEL.DEVICE = "meta"  # no memory, no time: shapes only
    with torch.device("meta"):
        model = build_model(cfg)
    head = model.sem_seg_head
    refines = head.graph is not None or head.context_module is not None
    last = head.refined_predictor if refines else head.coarse_predictor
    assert last[-1].out_channels == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    assert refines == cfg.MODEL.CDGC.ENABLED
    with_graph = cfg.MODEL.CDGC.ENABLED and cfg.MODEL.CDGC.CONTEXT_MODULE == "graph"
    assert (head.graph is not None) == with_graph
    assert head.stride == 8


@pytest.mark.parametrize("files", DISTINCT, ids=name_of)
def test_trains_and_predicts_at_reduced_size(files, make_batch):
    cfg = shrunk(files)
    torch.manual_seed(0)
    model = build_model(cfg).train()
    batch = make_batch((65, 65), (65, 65), classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    before = {k: v.clone() for k, v in model.named_parameters() if v.requires_grad}
    losses = model(batch)
    total = sum(losses.values())
    assert torch.isfinite(total) and total > 0
    total.backward()
    optimizer.step()
    changed = [k for k, v in model.named_parameters() if k in before and not v.equal(before[k])]
    assert len(changed) > 0.9 * len(before)
    model.eval()
    with torch.no_grad():
        (result,) = model(batch[:1])
    assert result["sem_seg"].shape == (cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, 65, 65)
    assert torch.isfinite(result["sem_seg"]).all()
