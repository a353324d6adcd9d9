"""Config files: safe YAML, ``_BASE_``, overrides, and one line that names file and key."""

import pytest
import yaml
from detectron2.config import get_cfg

from cdgcnet import load_cfg
from cdgcnet.config.identity import complete_config

CPU = "MODEL: {DEVICE: cpu}\n"


@pytest.fixture
def write(tmp_path):
    """``write(text, name)``: a config file."""

    def write(text, name="a.yaml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def test_values_of_a_file_and_overrides(write):
    cfg = load_cfg(write("MODEL: {DEVICE: cpu, CDGC: {FUSION: sum}}\nVERSION: 2\n"), ["SEED", "3"])
    assert (cfg.MODEL.CDGC.FUSION, cfg.SEED) == ("sum", 3)
    assert not cfg.is_frozen()


def test_v06_reads_the_config_of_a_run_with_detectron2s_main_branch(write):
    expected = load_cfg("", ["MODEL.DEVICE", "cpu"])
    stored = yaml.safe_load(expected.dump())  # and all keys that only the main branch has
    stored["FLOAT32_PRECISION"] = ""
    stored["DATALOADER"]["REPEAT_SQRT"] = True
    stored["MODEL"]["ROI_BOX_HEAD"] |= {
        "FED_LOSS_FREQ_WEIGHT_POWER": 0.5,
        "FED_LOSS_NUM_CLASSES": 50,
        "USE_FED_LOSS": False,
        "USE_SIGMOID_CE": False,
    }
    stored["SOLVER"] |= {"BASE_LR_END": 0.0, "NUM_DECAYS": 3, "RESCALE_INTERVAL": False}
    text = yaml.safe_dump(stored)
    read = load_cfg(write(text), ["SOLVER.BASE_LR_END", "0.0"])
    assert complete_config(read) == complete_config(text) == complete_config(expected)


@pytest.mark.skipif("BASE_LR_END" in get_cfg().SOLVER, reason="Detectron2 has the key")
def test_a_value_that_v06_cannot_honor_is_refused(write):
    path = write(CPU + "SOLVER: {BASE_LR_END: 0.001}")
    with pytest.raises(ValueError, match=r"SOLVER\.BASE_LR_END is 0\.001; expected 0\.0 or no"):
        load_cfg(path)


def test_base_files_come_first(write):
    write("MODEL: {DEVICE: cpu, CDGC: {FUSION: sum, CHANNELS: 32}}\n", "base.yaml")
    write("MODEL: {CDGC: {CHANNELS: 64, TOPK: 5}}\n", "other.yaml")
    cdgc = load_cfg(write("_BASE_: base.yaml\nMODEL: {CDGC: {TOPK: 7}}\n")).MODEL.CDGC
    assert (cdgc.FUSION, cdgc.CHANNELS, cdgc.TOPK) == ("sum", 32, 7)
    cdgc = load_cfg(write("_BASE_: [base.yaml, other.yaml]\n")).MODEL.CDGC
    assert (cdgc.FUSION, cdgc.CHANNELS, cdgc.TOPK) == ("sum", 64, 5)


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("MODEL.CDGC.LOSS.OHEM_MIN_KEPT", "50000", 50000.0),
        ("MODEL.CDGC.EASY_RATIO", "1", 1.0),
        ("SOLVER.BASE_LR", "1e-3", 0.001),  # a text in YAML 1.1
        ("TEST.AUG.SCALES", "[1, 2]", [1.0, 2.0]),
        ("DATASETS.TRAIN", "['a']", ("a",)),
        ("MODEL.CDGC.SAMPLES", "['easy_positive']", ["easy_positive"]),
        ("MODEL.CDGC.SAMPLES", "[easy_positive]", ["easy_positive"]),  # as a shell leaves it
        ("DATASETS.TRAIN", "[a, b_2,]", ("a", "b_2")),
        ("OUTPUT_DIR", "[a]", "[a]"),
        ("INPUT.CROP.SIZE", "(65, 97)", [65, 97]),
        ("SOLVER.WEIGHT_DECAY_NORM", "0", 0.0),
        ("OUTPUT_DIR", "2024", "2024"),  # a folder may be called so
        ("MODEL.RPN.NMS_THRESH", "1", 1.0),  # of Detectron2, read by nobody here
    ],
)
def test_types_follow_the_key(write, key, text, expected):
    cfg = load_cfg("", ["MODEL.DEVICE", "cpu", key, text])
    for part in key.split("."):
        cfg = cfg[part]
    assert cfg == expected and type(cfg) is type(expected)
    if isinstance(expected, list):
        assert [type(v) for v in cfg] == [type(v) for v in expected]


def test_paths_may_begin_with_a_tilde(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    cfg = load_cfg("", ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", "~/x", "MODEL.WEIGHTS", "~/w.pth"])
    assert (cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS) == ("/home/me/x", "/home/me/w.pth")


def nested(levels):
    """A few lines whose aliases stand for 9**levels values."""
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    for i in range(1, levels):
        lines.append(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]")
    return "\n".join(lines)


BROKEN = {
    "a tag that would run code": (
        "SEED: !!python/object/apply:os.system ['touch X']",
        "tag !!python",
    ),
    "a Python name": ("SEED: !!python/name:os.system", "tag !!python"),
    "empty": ("", "empty"),
    "comments only": ("# nothing\n", "empty"),
    "a list": ("[1, 2]", "mapping"),
    "a text": ("hello", "mapping"),
    "not YAML": ("MODEL: [1, 2", "line 1"),
    "a key twice": ("SEED: 1\nSEED: 2\n", "SEED occurs twice"),
    "an earlier version": (CPU + "VERSION: 1\n", "VERSION is 1; expected 2"),
    "bytes": (b"\x80\x04\x95", "not a text"),
    "aliases without end": (nested(9), "values"),
    "an alias of itself": ("SEED: &a [*a]", "values"),
    "deep nesting": ("SEED: " + "[" * 5000, "not a valid config"),
    "an integer of 5000 digits": ("SEED: " + "1" * 5000, "not a valid config"),
    "base of itself": ("_BASE_: a.yaml\n", "includes itself"),
    "base that is missing": ("_BASE_: b.yaml\n", r"there is no file .*b\.yaml"),
    "base that is no path": ("_BASE_: 3\n", "_BASE_ is 3"),
    "unknown key": (
        "MODEL: {CDGC: {FUSON: sum}}",
        r"no key MODEL\.CDGC\.FUSON.*MODEL\.CDGC\.FUSION",
    ),
    "key in the wrong section": ("FUSION: sum", r"no key FUSION.*MODEL\.CDGC\.FUSION"),
    "value for a section": ("MODEL: 3", "MODEL is 3; expected a section"),
    "section for a value": ("SEED: {a: 1}", r"no key SEED\.a"),
    "wrong type": ("MODEL: {CDGC: {CHANNELS: wide}}", r"MODEL\.CDGC\.CHANNELS is 'wide'; expected"),
    "null": ("OUTPUT_DIR: ~", "OUTPUT_DIR is None"),
    "wrong type of an unused key": (
        "MODEL: {RPN: {NMS_THRESH: x}}",
        r"MODEL\.RPN\.NMS_THRESH is 'x'",
    ),
    "values that do not fit": (
        CPU + "SOLVER: {NESTEROV: True, MOMENTUM: 0}",
        r"SOLVER\.NESTEROV is True",
    ),
}


@pytest.mark.parametrize(("text", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_named_in_one_line(write, tmp_path, monkeypatch, text, reason):
    monkeypatch.chdir(tmp_path)
    path = write(text)
    with pytest.raises((ValueError, FileNotFoundError), match=reason) as raised:
        load_cfg(path)
    assert str(raised.value).startswith(path) and "\n" not in str(raised.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.yaml"]  # nothing was run


def test_a_broken_base_is_named_not_the_file_above_it(write):
    base = write("SEED: x\n", "base.yaml")
    with pytest.raises(ValueError, match=f"^{base}: SEED is 'x'"):
        load_cfg(write("_BASE_: base.yaml\nSEED: 3\n"))


def test_a_loop_of_two_files(write):
    write("_BASE_: a.yaml\n", "b.yaml")
    with pytest.raises(ValueError, match=r"b\.yaml: _BASE_ a\.yaml includes itself"):
        load_cfg(write("_BASE_: b.yaml\n"))


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["SEED"], "pairs KEY VALUE"),
        (["MODEL.CDGC.CHANNELS", "wide"], r"MODEL\.CDGC\.CHANNELS is 'wide'"),
        (["SEED", "3", "MODEL.CDGC.CHANELS", "64"], r"no key MODEL\.CDGC\.CHANELS; did you mean"),
        (["SEED", "True"], "SEED is True; expected a whole number"),
        (["OUTPUT_DIR", ""], "OUTPUT_DIR is ''"),
        (["OUTPUT_DIR", "None"], "OUTPUT_DIR is None"),
        (["SEED", "(" * 5000], "SEED is "),
    ],
)
def test_a_wrong_override_is_named(overrides, reason):
    with pytest.raises(ValueError, match=rf"^overrides.*{reason}") as raised:
        load_cfg("", overrides)
    assert "\n" not in str(raised.value)
