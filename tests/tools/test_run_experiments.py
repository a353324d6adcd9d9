"""tools/run_experiments.py: what is run, what is not run again, and the numbers of the table.

Most tests replace the training by a script that writes what a training writes, in no time; the last
one trains.
"""

import json
import shutil
import sys
import time
from pathlib import Path

import pytest
import run_experiments

from cdgcnet import load_cfg
from cdgcnet.experiments import estimates, jobs, record, rows, table
from cdgcnet.experiments import plot as picture
from cdgcnet.experiments import process as launch
from cdgcnet.experiments import runner as workshop

FAKE = """
import json, os, sys, time
from pathlib import Path
import yaml

row, text, flags = sys.argv[1], Path(sys.argv[2]).read_text(), sys.argv[3:]
cfg = yaml.safe_load(text)
folder = Path(cfg["OUTPUT_DIR"])
plan = json.loads(Path(os.environ["FAKE_PLAN"]).read_text())
seed, tta = cfg["SEED"], cfg["TEST"]["AUG"]["ENABLED"]
begin = 0
if "--eval-only" not in flags:
    (folder / "config.yaml").write_text(text)
    last = folder / "last_checkpoint"
    if last.exists():
        assert "--resume" in flags
        begin = int(last.read_text()[6:13]) + 1
with open(os.environ["FAKE_STARTS"], "a") as starts:
    print(row, seed, "eval" if "--eval-only" in flags else begin, file=starts)
if row in plan.get("fail", []):
    sys.exit(f"train_net.py: error: {row} cannot be trained")
if "--eval-only" not in flags:
    for i in range(begin, cfg["SOLVER"]["MAX_ITER"]):
        with open(folder / "metrics.json", "a") as metrics:
            line = {"iteration": i, "time": plan.get("time", {}).get(row, 0.5), "total_loss": 1.0}
            print(json.dumps(line), file=metrics)
        if (i + 1) % cfg["SOLVER"]["CHECKPOINT_PERIOD"] == 0:
            last.write_text(f"model_{i:07d}.pth")
            (folder / f"model_{i:07d}.pth").write_text("weights")
            time.sleep(plan.get("sleep", 0))
    (folder / "model_final.pth").write_text("weights")
    last.write_text("model_final.pth")
    (folder / "cost.json").write_text('{"parameters": 1500000, "gflops": 2.0}')
score = plan.get("scores", {}).get(row, [50.0, 50.0, 50.0])[seed - 1]
results = {"sem_seg": {"mIoU": score, "IoU-road": float("nan")}, "sem_seg_coarse": {"mIoU": 40.0},
           "sem_seg_oracle": {"mIoU": 60.0}}
if tta:
    results["sem_seg_TTA"] = {"mIoU": score + 1}
if plan.get("unlabeled"):
    results = {}
(folder / "results.json").write_text(json.dumps(results).replace("NaN", "null"))
print("the end of", row)
"""


class Runner:
    """The command with a work folder, a results folder and a replaced training."""

    def __init__(self, folder: Path, capsys):
        self.folder = folder
        self.capsys = capsys
        self.work, self.results = folder / "work", folder / "results"

    def plan(self, **plan):
        (self.folder / "plan.json").write_text(json.dumps(plan))

    def __call__(self, *argv, code=0):
        paths = ("--work", self.work, "--results", self.results)
        words = [str(word) for word in (*argv, "--profile", "tiny", *paths)]
        assert run_experiments.main(words) == code
        out, err = self.capsys.readouterr()
        return out + err

    def starts(self) -> list[tuple[str, int, str]]:
        """(row, seed, first iteration or "eval") of every process so far."""
        path = self.folder / "starts.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(row, int(seed), begin) for row, seed, begin in map(str.split, lines)]

    def records(self) -> dict:
        return record.load_records(self.results / "tiny" / "val")

    def table(self, name: str) -> dict[str, dict[str, str]]:
        """Label of a row -> its cells by column."""
        found = {}
        for line in (self.results / "tiny" / f"{name}.md").read_text().splitlines():
            cells = [c.strip() for c in line.strip("|").split("|")]
            if len(cells) == len(table.HEADER) and not cells[0].startswith("-"):
                found[cells[0]] = dict(zip(table.HEADER[1:], cells[1:], strict=True))
        return found


@pytest.fixture
def pictures(monkeypatch):
    """The pictures that would have been drawn; drawing takes its time."""
    drawn = []
    monkeypatch.setattr(run_experiments, "write_picture", lambda *args: drawn.append(args))
    return drawn


@pytest.fixture
def runner(tmp_path, monkeypatch, capsys, pictures):
    script = tmp_path / "fake.py"
    script.write_text(FAKE)

    def command(config, options, num_gpus=1):
        flags = [o for o in options if o.startswith("--")]
        cfg = load_cfg(str(config), [o for o in options if not o.startswith("--")])
        text = tmp_path / "resolved.yaml"
        text.write_text(cfg.dump())
        return [sys.executable, str(script), config.stem, str(text), *flags]

    monkeypatch.setattr(workshop, "train_command", command)
    monkeypatch.setattr(launch, "POLL_SECONDS", 0.02)
    monkeypatch.setenv("FAKE_PLAN", str(tmp_path / "plan.json"))
    monkeypatch.setenv("FAKE_STARTS", str(tmp_path / "starts.txt"))
    made = Runner(tmp_path, capsys)
    made.plan()
    return made


# ---------------------------------------------------------------- what is run
def test_missing_rows_are_run_and_finished_ones_never_again(runner):
    runner("table1", "--seeds", 2)
    names = ("table1_01_baseline", "table1_02_plain_gcn", "table1_03_class_gcn")
    # All rows of the first seed, then those of the second.
    assert runner.starts() == [(name, seed, "0") for seed in (1, 2) for name in names]
    before = {p: p.stat().st_mtime_ns for p in runner.results.rglob("*.json")}
    assert len(before) == 6
    runner("table1", "--seeds", 2)
    shutil.rmtree(runner.work)  # the records alone count
    runner("table1", "--seeds", 2)
    assert len(runner.starts()) == 6
    assert {p: p.stat().st_mtime_ns for p in runner.results.rglob("*.json")} == before
    runner("table1", "--seeds", 3, "--rows", "plain")
    assert runner.starts()[6:] == [("table1_02_plain_gcn", 3, "0")]


def test_a_record_holds_what_its_number_needs(runner):
    runner.plan(scores={"table1_01_baseline": [12.34567]})
    runner("table1", "--rows", "baseline", "--opts", "SOLVER.MAX_ITER", 15)
    (one,) = runner.records().values()
    assert (one.row, one.seed, one.label) == ("table1_01_baseline", 1, "ResNet baseline")
    assert one.overrides == ["SOLVER.MAX_ITER", "15"]
    assert one.scores["sem_seg"] == {"mIoU": 12.3457}  # NaN of an absent class is left out
    assert one.cost["peak_memory"] > 1 << 20 and one.cost["peak_memory_of"] == "process"
    assert one.weights == "random weights"
    assert set(one.circumstances) == {"command", "commit", "versions", "hardware", "date"}
    assert all(one.circumstances.values())
    assert str(runner.folder) not in json.dumps(one.circumstances)  # nothing of this machine
    text = next((runner.results / "tiny").glob("table1-*.md")).read_text()
    assert "Changed in all rows: `SOLVER.MAX_ITER 15`" in text
    for value in (one.hash, one.circumstances["commit"], one.circumstances["hardware"]):
        assert value in text


def test_only_the_last_checkpoint_of_a_finished_training_is_kept(runner):
    runner("table1", "--rows", "baseline")
    (folder,) = (runner.work / "tiny" / "val").iterdir()
    assert [p.name for p in folder.glob("*.pth")] == ["model_final.pth"]


def test_overrides_without_effect_leave_the_table_its_name(runner):
    runner("table1", "--rows", "baseline", "--opts", "DATALOADER.NUM_WORKERS", 1)
    assert runner.table("table1")["ResNet baseline"]["mIoU"] == "50.00 (1)"
    assert "Changed" not in (runner.results / "tiny" / "table1.md").read_text()


def test_rows_of_one_config_share_a_run(runner):
    runner("table3", "--rows", "aspp", "sim")
    runner("table2", "--rows", "aspp")
    ran = [row for row, _, _ in runner.starts()]
    # Table 2 adds ASPP + CDGC (sum); its ASPP and ASPP + CDGC (concat) are Table 3's rows.
    assert ran == ["table3_01_aspp", "table3_02_sim", "table2_05_aspp_cdgc_sum"]
    assert runner.table("table2")["ResNet + ASPP"] == runner.table("table3")["ASPP"]
    assert runner.table("table2")["ResNet + ASPP + CDGC (concat)"]["mIoU"] == "50.00 (1)"


def test_table_4_is_one_training_and_two_evaluations(runner):
    runner("table4")
    kinds = [(row, begin) for row, _, begin in runner.starts()]
    # The training's own evaluation gives the single scale and MS + flip.
    assert kinds == [
        ("table4_04_ms_flip", "0"),
        ("table4_02_ms", "eval"),
        ("table4_03_flip", "eval"),
    ]
    table = runner.table("table4")
    assert table["CDGCNet, single scale"]["mIoU"] == "50.00 (1)"
    for way in ("MS", "flip", "MS + flip"):
        assert table[f"CDGCNet, {way}"]["mIoU"] == "51.00 (1)"
    assert len(runner.records()) == 4


def test_a_row_without_labels_is_finished_without_a_number(runner):
    # Table 6 on a test set whose labels a server keeps.
    runner.plan(unlabeled=True)
    runner("table1", "--rows", "baseline")
    runner("table1", "--rows", "baseline")
    assert len(runner.starts()) == len(runner.records()) == 1
    measured = runner.table("table1")["ResNet baseline"]
    assert {measured[c] for c in ("mIoU", "coarse", "refined", "TTA", "− best control")} == {""}


def test_tta_is_measured_on_request_without_another_training(runner):
    runner("table1", "--rows", "baseline")
    assert runner.table("table1")["ResNet baseline"]["TTA"] == ""
    runner("table1", "--rows", "baseline", "--tta")
    assert [begin for _, _, begin in runner.starts()] == ["0", "eval"]
    assert runner.table("table1")["ResNet baseline"]["TTA"] == "51.00"


# ---------------------------------------------------------------- kills and failures
def test_a_killed_run_goes_on_from_its_checkpoint(runner, monkeypatch):
    runner.plan(sleep=20)

    def interrupt(self, folder, now=False):
        if (folder / "last_checkpoint").is_file():
            raise KeyboardInterrupt

    begun = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(run_experiments.Progress, "look", interrupt)
        with pytest.raises(KeyboardInterrupt):
            runner("table1", "--rows", "baseline")
    assert time.monotonic() - begun < 15  # the training was ended, not waited for
    assert not runner.results.exists()
    out = runner("table1", "--rows", "baseline", "--dry-run")
    assert "to go on at iteration 5 of 10" in out and "5 iterations to train" in out
    runner.plan()
    runner("table1", "--rows", "baseline")
    assert [begin for _, _, begin in runner.starts()] == ["0", "5"]
    assert len(runner.records()) == 1


def test_time_budget(runner):
    runner.plan(sleep=20)
    out = runner("table1", "--time-budget", 0.02)  # 1.2 seconds
    assert "goes on from the last checkpoint" in out and "0 of 3 rows finished" in out
    runner.plan()
    runner("table1")
    assert [begin for _, _, begin in runner.starts()] == ["0", "5", "0", "0"]


def test_a_failing_row_is_survived_and_reported(runner):
    runner.plan(fail=["table1_02_plain_gcn"])
    out = runner("table1", code=1)
    assert "2 of 3 rows finished" in out
    assert "exit status 1" in out
    assert "train_net.py: error: table1_02_plain_gcn cannot be trained" in out  # its log's end
    table = runner.table("table1")
    failed = table["ResNet + plain GCN"]
    assert failed.pop("paper") == "78.2" and set(failed.values()) == {""}
    assert table["ResNet + class GCN"]["mIoU"] == "50.00 (1)"
    runner.plan()
    runner("table1")  # mended: only that row is run
    assert [row for row, _, _ in runner.starts()][3:] == ["table1_02_plain_gcn"]


def test_a_folder_that_another_process_works_in_is_left_alone(runner):
    runner.plan(fail=["table1_01_baseline"])
    runner("table1", "--rows", "baseline", code=1)
    (folder,) = (runner.work / "tiny" / "val").iterdir()
    runner.plan()
    with launch.holding(folder):
        assert "another process works there" in runner("table1", "--rows", "baseline", code=1)
    runner("table1", "--rows", "baseline")


def test_dry_run_runs_and_writes_nothing(runner):
    out = runner("table3", "--dry-run", "--seeds", 2)
    assert "24 of 24 rows missing, 240 iterations to train" in out
    assert not runner.starts() and not runner.results.exists() and not runner.work.exists()


# ---------------------------------------------------------------- runs made by hand
@pytest.fixture
def by_hand(runner):
    """A run of Table 1's baseline as train_net.py leaves it, in a folder of another name."""
    runner("table1", "--rows", "baseline")
    (folder,) = (runner.work / "tiny" / "val").iterdir()
    mine = folder.rename(folder.with_name("my trial"))
    for name in ("model_0000004.pth", "model_0000009.pth"):
        (mine / name).write_text("weights")
    for name in ("launches.json", ".lock", "run.txt"):
        (mine / name).unlink()
    (mine / "log.txt").write_text(
        "[11/24] cdgcnet INFO: Environment:\n"
        "Python                 3.12.1 (main)\n"
        "detectron2             0.6 @/somewhere/detectron2\n"
        "PyTorch                2.6.0 @/somewhere/torch\n"
        "  - CPU capability usage: AVX2\n"
        "[11/24] cdgcnet INFO: Command line: Namespace(config_file='configs/experiments/tiny/"
        "table1_01_baseline.yaml', resume=False, eval_only=False, num_gpus=1, "
        "opts=['SEED', '1', 'OUTPUT_DIR', '/home/me/run'])\n"
    )
    shutil.rmtree(runner.results)
    return mine


def test_a_run_made_by_hand_becomes_a_record(runner, by_hand):
    (by_hand / "commit.txt").write_text("abc1234\n")
    runner("table1", "--rows", "baseline")
    assert len(runner.starts()) == 1  # nothing was trained again
    (one,) = runner.records().values()
    assert len(list(by_hand.glob("model_0*.pth"))) == 2  # somebody else's files
    assert one.circumstances["commit"] == "abc1234"
    assert one.circumstances["versions"] == "Python 3.12.1, torch 2.6.0, detectron2 0.6"
    assert one.circumstances["hardware"] == "CPU with AVX2; no GPU (from the log)"
    assert one.circumstances["command"] == (
        "python train_net.py --config-file configs/experiments/tiny/table1_01_baseline.yaml SEED 1"
    )
    assert "peak_memory" not in one.cost  # nobody measured it


def test_without_a_commit_the_record_says_so(runner, by_hand):
    runner("table1", "--rows", "baseline")
    (one,) = runner.records().values()
    assert one.circumstances["commit"] == "not recorded"


@pytest.mark.parametrize("what", ["unfinished", "another config", "another seed", "evaluated"])
def test_a_run_that_is_not_the_row_is_not_taken_for_it(runner, by_hand, what):
    if what == "unfinished":
        lines = (by_hand / "metrics.json").read_text().splitlines(keepends=True)
        (by_hand / "metrics.json").write_text("".join(lines[:6]))
        (by_hand / "last_checkpoint").write_text("model_0000004.pth")
    elif what == "evaluated":  # results.json may be of other TEST keys than config.yaml's
        with (by_hand / "log.txt").open("a") as log:
            log.write("Command line: Namespace(config_file='x', eval_only=True, opts=[])\n")
    else:
        old, new = {
            "another config": ("BASE_LR: 0.006", "BASE_LR: 0.5"),
            "another seed": ("SEED: 1", "SEED: 7"),
        }[what]
        text = (by_hand / "config.yaml").read_text()
        assert text.count(old) == 1
        (by_hand / "config.yaml").write_text(text.replace(old, new))
    runner("table1", "--rows", "baseline")
    begins = [begin for _, _, begin in runner.starts()]
    expected = {"unfinished": "5", "evaluated": "eval"}.get(what, "0")
    assert begins == ["0", expected]


# ---------------------------------------------------------------- the numbers of the table
def test_mean_error_and_paired_difference_worked_by_hand(runner, pictures):
    runner.plan(
        scores={
            "control_01_aspp_ohem": [50, 52, 51],  # mean 51, the best control
            "control_02_pixelwise": [50, 50, 50],
            "control_03_aspp": [49, 51, 50],
            "table3_02_sim": [52, 54, 54],
            "table3_07_ds_10": [51, 50, 52],
        },
        time={"control_03_aspp": 0.5, "table3_02_sim": 0.75},
    )
    runner("control", "--seeds", 3)
    runner("table3", "--rows", "sim", "ds_10", "--seeds", 3)
    sim = runner.table("table3")["sim"]
    # 52, 54, 54: mean 160/3 = 53.33; deviations -4/3, 2/3, 2/3; variance 24/9/2 = 4/3; standard
    # error sqrt(4/3/3) = 2/3.
    assert sim["paper"] == "80.0"
    assert sim["mIoU"] == "53.33 ± 0.67 (3)"
    assert sim["coarse"] == "40.00 ± 0.00"
    assert sim["refined"] == "53.33 ± 0.67"
    assert sim["oracle"] == "60.00 ± 0.00"
    # Differences to 50, 52, 51: 2, 2, 3; mean 7/3; variance 1/3, standard error sqrt(1/9) = 1/3.
    assert sim["− best control"] == "+2.33 ± 0.33, beats"
    assert (sim["parameters"], sim["GFLOPs"]) == ("1.50 M", "2.00")
    assert sim["peak memory"].endswith("GiB (process)")
    assert sim["s/iter ÷ ASPP"] == "1.50"  # 0.75 s over 0.5 s
    # Differences 1, -2, 1: mean 0, variance 3, standard error 1.
    ds = runner.table("table3")["ds 1.0 (similarity reading)"]
    assert ds["− best control"] == "0.00 ± 1.00, no difference shown"
    aspp = runner.table("table3")["ASPP"]
    assert (aspp["mIoU"], aspp["TTA"], aspp["− best control"]) == (
        "50.00 ± 0.58 (3)",
        "",
        "control",
    )
    empty = runner.table("table3")["ds 0.2 (similarity reading)"]
    assert empty.pop("paper") == "79.8" and set(empty.values()) == {""}
    text = (runner.results / "tiny" / "table3.md").read_text()
    assert "sim: ASPP with OHEM, 51.00 ± 0.58" in text
    path, title, lines, controls = next(p for p in reversed(pictures) if p[0].stem == "table3")
    picture.write_picture(path, title, lines, controls)
    assert path == runner.results / "tiny" / "table3.png" and path.stat().st_size > 10000


def test_a_verdict_needs_seeds_enough(runner):
    runner.plan(scores={"table3_02_sim": [52.0, 53.0, 52.5]})
    # Two seeds, 2 and 3 above 50: mean 2.5, standard error 0.5; five of them are less than
    # Student's 12.71. Three: deviations -0.5, 0.5, 0: standard error sqrt(0.25/3) = 0.29, 8.7 of
    # them are more than 4.30.
    for seeds, expected in (
        (1, "+2.00, one seed"),
        (2, "+2.50 ± 0.50, no difference shown"),
        (3, "+2.50 ± 0.29, beats"),
    ):
        runner("control", "--seeds", seeds)
        runner("table3", "--rows", "sim", "--seeds", seeds)
        assert runner.table("table3")["sim"]["− best control"] == expected


def test_bounds_of_the_verdict_are_students():
    stats = pytest.importorskip("scipy.stats", reason="needs SciPy (pip install -e '.[data]')")
    exact = [stats.t.ppf(0.975, df) for df in range(1, 11)]
    assert list(estimates._STUDENT) == pytest.approx(exact, abs=0.006)
    assert estimates._STUDENT[-1] > stats.t.ppf(0.975, 11)  # what holds for more, too


def test_a_loss_is_told_as_one(runner):
    runner.plan(scores={"table3_02_sim": [48.0, 48.5, 48.0]})
    runner("control", "--seeds", 3)
    runner("table3", "--rows", "sim", "--seeds", 3)
    # Differences -2, -1.5, -2 to 50: mean -11/6, variance 1/12, standard error 1/6.
    assert runner.table("table3")["sim"]["− best control"] == "−1.83 ± 0.17, falls behind"


def test_no_verdict_where_a_control_is_missing(runner):
    # A weak control alone would be beaten by anything.
    runner.plan(scores={"control_03_aspp": [10, 20, 30], "table3_02_sim": [11, 21, 31]})
    runner("control", "--rows", "control_03", "--seeds", 3)
    runner("table3", "--rows", "sim", "--seeds", 3)
    assert runner.table("table3")["sim"]["− best control"] == "+1.00 ± 0.00, 1 of 3 controls"
    text = (runner.results / "tiny" / "table3.md").read_text()
    assert "sim: ASPP, 20.00 ± 5.77 (of 1 of 3 controls)" in text
    runner("control", "--seeds", 2)  # the others have two of the three seeds
    assert runner.table("table3")["sim"]["− best control"].endswith("1 of 3 controls")


def test_only_seeds_in_common_are_compared(runner):
    runner.plan(scores={"control_03_aspp": [10, 20, 30], "table3_02_sim": [11, 21, 99]})
    runner("control", "--rows", "control_03", "--seeds", 2)
    runner("table3", "--rows", "sim", "--seeds", 3)
    assert runner.table("table3")["sim"]["− best control"] == "+1.00 ± 0.00, 0 of 3 controls"


def test_tables_alone(runner):
    runner("table3", "--rows", "aspp")
    (runner.results / "tiny" / "table3.md").unlink()
    out = runner("table3", "--render")
    assert "table3.md" in out and len(runner.starts()) == 1
    assert runner.table("table3")["ASPP"]["mIoU"] == "50.00 (1)"


def test_tables_that_are_there_follow_a_new_record(runner):
    runner("table3", "--rows", "aspp")
    before = runner.table("table3")["ASPP"]["− best control"]
    runner("control", "--rows", "ohem")
    assert before == "control" and not (runner.results / "tiny" / "table1.md").exists()
    text = (runner.results / "tiny" / "table3.md").read_text()
    assert "control_01_aspp_ohem" in text  # its run is among the sources now


# ---------------------------------------------------------------- refusals
def refused(capsys, *argv) -> str:
    with pytest.raises(SystemExit) as stop:
        run_experiments.main([str(a) for a in argv])
    assert stop.value.code in (1, 2)
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["table7"], "table7"),
        (["table6", "--profile", "tiny"], "no rows of table6"),
        (["table3", "--profile", "mine"], "mine"),
        (["table3", "--rows", "ds_12"], "--rows ds_12"),
        (["table3", "--seeds", "0"], "--seeds is 0"),
        (["table3", "--num-gpus", "0"], "--num-gpus is 0"),
        (["table3", "--time-budget", "-1"], "--time-budget is -1"),
        (["table3", "--opts", "MODEL.CDGC.EDGES"], "pairs KEY VALUE"),
        (["table3", "--opts", "MODEL.CDGC.EDGES", "magic"], r"EDGES"),
        (["table3", "--opts", "SEED", "3"], "--opts SEED"),
        (["table3", "--opts", "TEST.AUG.ENABLED", "True"], "--opts TEST.AUG.ENABLED"),
        (["table3", "--split", "dev", "--profile", "tiny"], "--split dev"),
        (["table3", "--profile", "camvid"], "MODEL.WEIGHTS"),
        (["table3", "--profile", "paper"], "MODEL.WEIGHTS"),
    ],
)
def test_bad_arguments(capsys, tmp_path, argv, message):
    paths = ("--work", tmp_path / "w", "--results", tmp_path / "r")
    assert message in refused(capsys, *argv, *paths)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("dry", [False, True])
def test_records_from_different_weights_are_never_mixed(runner, capsys, dry):
    runner("table1", "--rows", "baseline")
    weights = runner.folder / "resnet.pth"
    weights.write_bytes(b"other")
    paths = ("--work", runner.work, "--results", runner.results, "--profile", "tiny")
    more = ["--dry-run"] if dry else []
    # A finished row is no answer either: it started from other weights than were asked for.
    for row in ("plain", "baseline"):
        argv = ("table1", "--rows", row, *more, *paths, "--opts", "MODEL.WEIGHTS", weights)
        said = refused(capsys, *argv)
        assert "resnet.pth (sha256 d9298a10d1b0)" in said and "random weights" in said
    argv = ("table1", *more, *paths, "--opts", "MODEL.WEIGHTS", runner.folder / "none.pth")
    assert "MODEL.WEIGHTS: there is no file" in refused(capsys, *argv)
    assert len(runner.starts()) == 1


def test_weights_are_found_from_the_callers_folder(runner, monkeypatch):
    (runner.folder / "here.pth").write_bytes(b"here")
    monkeypatch.chdir(runner.folder)
    runner("table1", "--rows", "baseline", "--opts", "MODEL.WEIGHTS", "here.pth")
    [path] = runner.work.rglob("config.yaml")
    assert f"WEIGHTS: {runner.folder / 'here.pth'}" in path.read_text()
    [one] = runner.records().values()
    assert one.weights.startswith("here.pth (sha256 ")
    assert str(runner.folder) not in json.dumps(one.circumstances) + json.dumps(one.overrides)


def test_the_same_weights_may_have_another_name(runner):
    for name, row in (("a.pth", "baseline"), ("b.pth", "plain")):
        (runner.folder / name).write_bytes(b"the same")
        runner("table1", "--rows", row, "--opts", "MODEL.WEIGHTS", runner.folder / name)
    assert {r.weights[:6] for r in runner.records().values()} == {"a.pth ", "b.pth "}


def test_a_row_that_another_process_finished_is_done(runner, monkeypatch):
    original = workshop.launch

    def beside(command, folder, **options):
        outcome = original(command, folder, **options)
        with monkeypatch.context() as patch:  # the other process has just recorded it
            patch.setattr(workshop, "launch", original)
            own = workshop.Runner(runner.work / "tiny" / "val", runner.results / "tiny" / "val")
            folder_rows = rows.find_rows(run_experiments.CONFIGS / "tiny", "table1", ["baseline"])
            [job] = jobs.make_jobs(folder_rows, 1, "val", [])
            own.do(job, [job])
        return outcome

    monkeypatch.setattr(workshop, "launch", beside)
    assert "1 of 1 rows finished" in runner("table1", "--rows", "baseline")
    assert len(runner.starts()) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": 5}, "scores is 5, expected a mapping"),
        ({"scores": {"sem_seg": {"mIoU": "x"}}}, "scores.sem_seg.mIoU is 'x', expected a number"),
        ({"scores": {"sem_seg": [1]}}, r"scores.sem_seg is [1], expected a mapping"),
        ({"circumstances": {}}, "circumstances.command is None, expected a text"),
        ({"cost": None}, "cost is None, expected a mapping"),
        ({"cost": {"gflops": "2"}}, "cost.gflops is '2', expected a number"),
        ({"cost": {"peak_memory": 2}}, "cost.peak_memory_of is None, expected a text"),
        ({"seed": "1"}, "seed is '1', expected a whole number"),
        ({"seed": True}, "seed is True, expected a whole number"),
        ({"overrides": "none"}, "overrides is 'none', expected a list"),
        ({"overrides": [1]}, "overrides[0] is 1, expected a text"),
        ({"scores": {"sem_seg": {"mIoU": float("nan")}}}, "scores.sem_seg.mIoU is nan"),
        ({"weights": 3}, "weights is 3, expected a text"),
        ({"color": 3}, "color"),
    ],
)
def test_an_edited_record_is_named_with_its_value(runner, capsys, change, message):
    runner("table1", "--rows", "baseline")
    [path] = (runner.results / "tiny" / "val").glob("*.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    paths = ("--work", runner.work, "--results", runner.results, "--profile", "tiny")
    said = refused(capsys, "table1", *paths)
    assert path.name in said and message in said


def test_a_run_by_hand_from_other_weights_is_no_record(runner):
    weights = runner.folder / "resnet.pth"
    weights.write_bytes(b"other")
    runner("table1", "--rows", "baseline", "--opts", "MODEL.WEIGHTS", weights)
    shutil.rmtree(runner.results)
    runner("table1", "--rows", "plain")
    assert "resnet.pth" in runner("table1", "--rows", "baseline", code=1)
    assert len(runner.records()) == 1  # readable, of one kind


@pytest.mark.parametrize("content", ["", "{}", '{"row": 1}'])
def test_a_broken_record_is_named(runner, capsys, content):
    path = runner.results / "tiny" / "val" / "0123456789-seed1.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    paths = ("--work", runner.work, "--results", runner.results)
    assert str(path) in refused(capsys, "table1", "--profile", "tiny", *paths)


# ---------------------------------------------------------------- CamVid's held-out part
def test_dev_trains_and_tests_within_the_training_list():
    row = rows.read_row(run_experiments.CONFIGS / "camvid_cpu" / "table3_02_sim.yaml")
    pairs = jobs.split_overrides(row, "dev", ["SOLVER.MAX_ITER", "10"])
    cfg = rows.row_config(row, pairs)
    assert cfg.DATASETS.TRAIN == ("cdgc_camvid_fit",)
    assert cfg.DATASETS.TEST == ("cdgc_camvid_dev",)
    assert cfg.SOLVER.MAX_ITER == 10
    assert rows.config_hash(cfg) != rows.config_hash(rows.row_config(row))


# ---------------------------------------------------------------- the real training
@pytest.mark.usefixtures("run_data", "clean_logging")
def test_a_real_row(tmp_path, monkeypatch, run_yaml, capsys):
    folder = tmp_path / "configs" / "tiny"
    folder.mkdir(parents=True)
    for name, label in (("control_03_aspp", "Control, ASPP"), ("table3_02_sim", "Table 3, sim")):
        switch = "False" if "aspp" in name else "True"
        (folder / f"{name}.yaml").write_text(
            f"# {label}; paper: 80.0\n_BASE_: {run_yaml}\n"
            f"MODEL:\n  CDGC:\n    ENABLED: {switch}\n    NODES: coarse\n"
        )
    monkeypatch.setattr(run_experiments, "CONFIGS", tmp_path / "configs")
    results = tmp_path / "results"
    argv = ["table3", "--profile", "tiny", "--tta", "--work", tmp_path / "work"]
    assert run_experiments.main([str(a) for a in (*argv, "--results", results)]) == 0
    records = record.load_records(results / "tiny" / "val")
    assert len(records) == 2  # without and with TTA, one training
    plain, tta = sorted(records.values(), key=lambda r: "sem_seg_TTA" in r.scores)
    assert {"sem_seg", "sem_seg_coarse"} <= set(plain.scores)
    assert set(tta.scores) == {"sem_seg_TTA"}
    assert plain.cost == tta.cost
    assert plain.cost["gflops"] > 0 and plain.cost["parameters"] > 10000
    assert plain.cost["peak_memory"] > 100 << 20
    assert plain.cost["seconds_per_iteration"] > 0
    assert "sim" in (results / "tiny" / "table3.md").read_text()
    (work,) = (tmp_path / "work" / "tiny" / "val").iterdir()
    assert not list(work.glob("eval-*"))
