"""Every file under configs/experiments: form, the paper's values, profiles, shared hashes."""

from pathlib import Path

import pytest

from cdgcnet.experiments.rows import (
    GROUPS,
    config_hash,
    find_rows,
    read_row,
    row_config,
)

ROOT = Path(__file__).resolve().parents[3] / "configs" / "experiments" / "profiles"
OTHERS = (
    "camvid",
    "camvid_cpu",
    "tiny",
    "voc_animals",
    "voc_animals_128_cpu",
    "voc_animals_cpu",
)
PROFILES = ("paper", *OTHERS)

# Tables 1 to 6 of the paper, typed from it; a row of a second reading has the value again.
PAPER = {
    "table1": [76.3, 78.2, 79.4],
    "table2": [76.3, 78.4, 79.4, 79.2, 79.9, 80.0],
    "table3": [78.4, 80.0, *[79.8, 80.3, 80.8, 80.9, 81.1] * 2],
    "table4": [81.1, 81.6, 81.4, 81.9],
    "table5": [79.9, 80.5, 80.0, 81.1] * 2,
    "table6": [82.0, 83.9, 40.7],
    "control": [None, None, 78.4],
    "baseline": [None] * 4,
    "ablation": [None] * 13,
    "default": [None] * 5,
}


@pytest.fixture(scope="module")
def configs():
    """(profile, row name) -> resolved config; loading each file is the test of it."""
    return {
        (profile, row.name): row_config(row)
        for profile in PROFILES
        for row in find_rows(ROOT / f"{profile}.yaml", "all")
    }


# Rows are the same files in all profiles, and hashing is slow: two profiles are enough.
HASHED = ("paper", "tiny")


@pytest.fixture(scope="module")
def hashes(configs):
    return {key: config_hash(cfg) for key, cfg in configs.items() if key[0] in HASHED}


def names(profile, without=()):
    return [r.name for r in find_rows(ROOT / f"{profile}.yaml", "all") if r.group not in without]


def named(profile, name):
    """One row of Table 3."""
    [row] = find_rows(ROOT / f"{profile}.yaml", "table3", [name])
    return row


def test_every_file_belongs_to_a_profile_or_a_row():
    assert {p.stem for p in ROOT.glob("*.yaml")} == set(PROFILES)
    assert names("paper") == sorted(p.stem for p in (ROOT.parent / "rows").glob("*.yaml"))


def test_a_row_changes_at_most_a_few_lines():
    for row in find_rows(ROOT / "paper.yaml", "all"):
        header, *rest = row.path.read_text(encoding="utf-8").splitlines()
        assert header.startswith("# ") and len(rest) <= 7, row.path


@pytest.mark.parametrize("group", GROUPS)
def test_the_papers_values(group):
    rows = find_rows(ROOT / "paper.yaml", group)
    assert [row.paper for row in rows] == PAPER[group]
    title = {"control": "Control", "baseline": "Baseline", "ablation": "Ablation"}
    title["default"] = "Default graph"
    for row in rows:
        line = row.path.read_text(encoding="utf-8").splitlines()[0]
        assert line.startswith(f"# {title.get(group, f'Table {group[-1]}')}, "), row.path


@pytest.mark.parametrize("profile", OTHERS)
def test_only_the_paper_profile_has_table_6(profile):
    assert names(profile) == names("paper", without=["table6"])


@pytest.mark.parametrize("profile", HASHED)
def test_rows_that_repeat_another_share_its_run(hashes, profile):
    def same(*rows):
        found = {hashes[profile, row] for row in rows}
        assert len(found) == 1, rows
        return found.pop()

    groups = [
        same("table1_01_baseline", "table2_01_baseline", "default_01_baseline"),
        same("table1_03_class_gcn", "table2_03_cdgc_concat"),
        same("table2_02_aspp", "table3_01_aspp", "control_03_aspp"),
        same("table2_06_aspp_cdgc_concat", "table3_02_sim"),
        same("table3_07_ds_10", "table5_04_all", "table4_01_single"),
        same("table3_12_ds_10_uniform", "table5_08_all_uniform"),
    ]
    assert len(set(groups)) == len(groups)
    repeated = 2 + 1 + 2 + 1 + 2 + 1
    rows = {h for (p, row), h in hashes.items() if p == profile and not row.startswith("table6")}
    assert len(rows) == len(names(profile, without=["table6"])) - repeated


@pytest.mark.parametrize("profile", HASHED)
def test_table_4_is_one_training_four_ways(configs, hashes, profile):
    rows = [row.name for row in find_rows(ROOT / f"{profile}.yaml", "table4")]
    assert len({hashes[profile, row] for row in rows}) == 4
    cfgs = [configs[profile, row] for row in rows]
    assert len({config_hash(cfg, training=True) for cfg in cfgs}) == 1
    ways = [(len(c.TEST.AUG.SCALES) > 1, c.TEST.AUG.FLIP) for c in cfgs if c.TEST.AUG.ENABLED]
    assert ways == [(True, False), (False, True), (True, True)]  # MS, flip, both
    assert not cfgs[0].TEST.AUG.ENABLED
    assert cfgs[3].TEST.AUG.SCALES == [0.75, 1.0, 1.25, 1.5, 1.75, 2.0]


def test_the_papers_recipe_to_the_letter(configs):
    for (profile, name), cfg in configs.items():
        if profile == "paper" and not name.startswith("table6"):
            solver = cfg.SOLVER
            assert (solver.BASE_LR, solver.WEIGHT_DECAY, solver.MOMENTUM) == (0.01, 5e-4, 0.9)
            assert (solver.IMS_PER_BATCH, solver.MAX_ITER) == (8, 30000)
            assert solver.LR_SCHEDULER_NAME == "WarmupPolyLR" and solver.POLY_LR_POWER == 0.9
            assert solver.OPTIMIZER == "SGD" and solver.WARMUP_ITERS == 0
            assert cfg.INPUT.CROP.SIZE == [769, 769] and cfg.MODEL.RESNETS.DEPTH == 101
            loss = cfg.MODEL.CDGC.LOSS
            weights = (loss.COARSE_WEIGHT, loss.REFINED_WEIGHT, loss.AUX_WEIGHT)
            assert weights == (0.1 if "coarse_weight" in name else 0.6, 0.7, 0.4)
            assert cfg.DATASETS.TRAIN == ("cdgc_cityscapes_train",)


def test_table_6_is_never_scored_on_what_it_was_trained_on(configs):
    for name in names("paper"):
        if name.startswith("table6"):
            cfg = configs["paper", name]
            assert cfg.TEST.AUG.ENABLED
            assert all(set_.endswith("_test") for set_ in cfg.DATASETS.TEST)
    assert configs["paper", "table6_01_cityscapes"].DATASETS.TRAIN == ("cdgc_cityscapes_trainval",)
    assert configs["paper", "table6_02_voc"].DATASETS.TRAIN == ("cdgc_voc_trainval_aug",)


# ---------------------------------------------------------------- the hash
def test_hash_ignores_what_does_not_change_the_measurement(configs):
    row = named("camvid", "sim")
    base = config_hash(configs["camvid", "table3_02_sim"])
    for overrides in (
        ("SEED", "5", "OUTPUT_DIR", "elsewhere"),
        ("MODEL.WEIGHTS", "a.pth", "MODEL.RESNETS.STRIDE_IN_1X1", "True"),
        ("MODEL.RESNETS.NORM", "BN", "MODEL.CDGC.NORM", "BN", "MODEL.SEM_SEG_HEAD.NORM", "BN"),
        ("TEST.AUG.SCALES", "[1.0, 2.0]"),  # not switched on
    ):
        assert config_hash(row_config(row, overrides)) == base, overrides
    for overrides in (
        ("SOLVER.MAX_ITER", "100"),
        ("MODEL.CDGC.NORM", "GN"),
        ("TEST.AUG.ENABLED", "True"),
        ("DATASETS.TEST", "('cdgc_camvid_train',)"),
        ("SOLVER.AMP.ENABLED", "True"),
    ):
        assert config_hash(row_config(row, overrides)) != base, overrides


def test_hash_of_training_ignores_the_evaluation():
    row = named("camvid", "sim")
    once = config_hash(row_config(row), training=True)
    overrides = ("TEST.AUG.ENABLED", "True", "TEST.PRECISION", "bf16")
    assert config_hash(row_config(row, overrides), training=True) == once
    assert config_hash(row_config(row, ("SOLVER.BASE_LR", "0.1")), training=True) != once


# ---------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("table3_02_sim.yaml", "_BASE_: Base.yaml"),
        ("table3_02_sim.yaml", "# Table 3, sim"),
        ("table3_02_sim.yaml", "# Table 3, sim; paper: high"),
        ("tabel3_02_sim.yaml", "# Table 3, sim; paper: 80.0"),
    ],
)
def test_a_file_of_another_form_is_named(tmp_path, name, line):
    path = tmp_path / name
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match=name):
        read_row(path, ROOT / "tiny.yaml")


def test_unknown_rows_are_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"--rows ds_12: .*table3_03_ds_02"):
        find_rows(ROOT / "tiny.yaml", "table3", ["ds_12"])
    with pytest.raises(ValueError, match="no rows of table6"):
        find_rows(ROOT / "tiny.yaml", "table6")
    found = find_rows(ROOT / "tiny.yaml", "table3", ["sim", "table3_07"])
    assert [row.name for row in found] == ["table3_02_sim", "table3_07_ds_10"]


def test_a_wrong_override_names_row_and_key():
    row = named("tiny", "sim")
    with pytest.raises(ValueError, match=r"table3_02_sim\.yaml.*MODEL\.CDGC\.EDGES"):
        row_config(row, ["MODEL.CDGC.EDGES", "magic"])
    with pytest.raises(ValueError, match="pairs"):
        row_config(row, ["MODEL.CDGC.EDGES"])
