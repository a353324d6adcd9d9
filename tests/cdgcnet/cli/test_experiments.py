"""cdgcnet experiments: what it runs, what it never runs again, and the numbers of the tables.

Most tests replace the training by a script that writes the same files at once. The last one trains.
"""

import json
import shutil
import sys
import time
from pathlib import Path

import pytest
import torch

from cdgcnet import load_cfg
from cdgcnet.cli import experiments
from cdgcnet.cli.main import main
from cdgcnet.evaluation import estimates
from cdgcnet.experiments import jobs, plot, process, progress, record, render, rows, runner, table
from cdgcnet.experiments.progress import Progress
from cdgcnet.utils.io import atomic_write

PROFILES = experiments.PROFILES

FAKE = """
import json, os, shutil, sys, time
from pathlib import Path
import yaml

row, text, flags = sys.argv[1], Path(sys.argv[2]).read_text(), sys.argv[3:]
cfg = yaml.safe_load(text)
folder = Path(cfg["OUTPUT_DIR"])
plan = json.loads(Path(os.environ["FAKE_PLAN"]).read_text())
seed, tta = cfg["SEED"], cfg["TEST"]["AUG"]["ENABLED"]
begin = 0

def save(name, iteration):
    # Loading torch to write a checkpoint would take longer than all the rest.
    shutil.copy(Path(os.environ["FAKE_CHECKPOINTS"]) / f"{iteration}.pth", folder / name)
    last.write_text(name)

if "--eval-only" not in flags:
    (folder / "config.yaml").write_text(text)
    last = folder / "last_checkpoint"
    if last.exists():
        assert "--resume" in flags
        begin = int(last.read_text()[6:13]) + 1
with open(os.environ["FAKE_STARTS"], "a") as starts:
    print(row, seed, "eval" if "--eval-only" in flags else begin, file=starts)
while len(Path(os.environ["FAKE_STARTS"]).read_text().splitlines()) < plan.get("together", 0):
    time.sleep(0.05)
if row in plan.get("fail", []):
    sys.exit(f"train_net.py: error: {row} cannot be trained")
if "--eval-only" not in flags:
    for i in range(begin, cfg["SOLVER"]["MAX_ITER"]):
        with open(folder / "metrics.json", "a") as metrics:
            line = {"iteration": i, "time": plan.get("time", {}).get(row, 0.5), "total_loss": 1.0}
            print(json.dumps(line), file=metrics)
        if (i + 1) % cfg["SOLVER"]["CHECKPOINT_PERIOD"] == 0:
            save(f"model_{i:07d}.pth", i)
            time.sleep(plan.get("sleep", 0))
    save("model_final.pth", cfg["SOLVER"]["MAX_ITER"] - 1)
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


class Command:
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
        assert main(["experiments", *words]) == code
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
    """Collects the calls that would draw pictures, because drawing is slow."""
    drawn = []
    monkeypatch.setattr(render, "write_picture", lambda *args: drawn.append(args))
    return drawn


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A folder of checkpoints without weights; ITERATION.pth is the one saved after it."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for iteration in range(20):
        state = {"model": {}, "trainer": {}, "iteration": iteration}
        torch.save(state, folder / f"{iteration}.pth")
    return folder


@pytest.fixture
def command(tmp_path, monkeypatch, capsys, pictures, checkpoints):
    script = tmp_path / "fake.py"
    script.write_text(FAKE)

    def fake_command(config_files, options, num_gpus=1):
        flags = [o for o in options if o.startswith("--")]
        pairs = [o for o in options if not o.startswith("--")]
        cfg = load_cfg([str(path) for path in config_files], pairs)
        text = tmp_path / f"{config_files[-1].stem}-{cfg.SEED}.yaml"
        text.write_text(cfg.dump())
        return [sys.executable, str(script), config_files[-1].stem, str(text), *flags]

    monkeypatch.setattr(runner, "train_command", fake_command)
    monkeypatch.setattr(process, "POLL_SECONDS", 0.02)
    monkeypatch.setenv("FAKE_PLAN", str(tmp_path / "plan.json"))
    monkeypatch.setenv("FAKE_STARTS", str(tmp_path / "starts.txt"))
    monkeypatch.setenv("FAKE_CHECKPOINTS", str(checkpoints))
    made = Command(tmp_path, capsys)
    made.plan()
    return made


# ---------------------------------------------------------------- what is run
def test_missing_rows_are_run_and_finished_ones_never_again(command):
    command("table1", "--seeds", 2)
    names = ("table1_01_baseline", "table1_02_plain_gcn", "table1_03_class_gcn")
    # All rows of the first seed, then those of the second.
    assert command.starts() == [(name, seed, "0") for seed in (1, 2) for name in names]
    before = {p: p.stat().st_mtime_ns for p in command.results.rglob("*.json")}
    assert len(before) == 6
    command("table1", "--seeds", 2)
    shutil.rmtree(command.work)  # the records alone count
    command("table1", "--seeds", 2)
    assert len(command.starts()) == 6
    assert {p: p.stat().st_mtime_ns for p in command.results.rglob("*.json")} == before
    command("table1", "--seeds", 3, "--rows", "plain")
    assert command.starts()[6:] == [("table1_02_plain_gcn", 3, "0")]


def test_several_runs_go_on_at_once(command):
    # Each run waits until all three have begun. Those that share a training follow each other.
    command.plan(together=3)
    out = command("table1", "--seeds", 3, "--rows", "baseline", "--jobs", 3, "--tta")
    assert "6 of 6 rows finished" in out
    assert sorted(command.starts()) == [("table1_01_baseline", seed, "0") for seed in (1, 2, 3)]
    assert len(command.records()) == 6


def test_a_record_holds_what_its_number_needs(command):
    command.plan(scores={"table1_01_baseline": [12.34567]})
    command("table1", "--rows", "baseline", "--opts", "SOLVER.MAX_ITER", 15)
    (one,) = command.records().values()
    assert (one.row, one.seed, one.label) == ("table1_01_baseline", 1, "ResNet baseline")
    assert one.overrides == ["SOLVER.MAX_ITER", "15"]
    assert one.scores["sem_seg"] == {"mIoU": 12.3457}  # NaN of an absent class is left out
    assert one.cost["peak_memory"] > 1 << 20 and one.cost["peak_memory_of"] == "process"
    assert one.weights == "random weights"
    assert set(one.run_metadata) == {"command", "commit", "versions", "hardware", "date"}
    assert all(one.run_metadata.values())
    assert str(command.folder) not in json.dumps(one.run_metadata)  # nothing of this machine
    text = next((command.results / "tiny").glob("table1-*.md")).read_text()
    assert "Changed in all rows: `SOLVER.MAX_ITER 15`" in text
    for value in (one.hash, one.run_metadata["commit"], one.run_metadata["hardware"]):
        assert value in text


def test_only_the_last_checkpoint_of_a_finished_training_is_kept(command):
    command("table1", "--rows", "baseline")
    (folder,) = (command.work / "tiny" / "val").iterdir()
    assert [p.name for p in folder.glob("*.pth")] == ["model_final.pth"]


def test_overrides_without_effect_leave_the_table_its_name(command):
    command("table1", "--rows", "baseline", "--opts", "DATALOADER.NUM_WORKERS", 1)
    assert command.table("table1")["ResNet baseline"]["mIoU"] == "50.00 (1)"
    assert "Changed" not in (command.results / "tiny" / "table1.md").read_text()


def test_rows_of_one_config_share_a_run(command):
    command("table3", "--rows", "aspp", "sim")
    command("table2", "--rows", "aspp")
    ran = [row for row, _, _ in command.starts()]
    # Table 2 adds ASPP + CDGC (sum); its ASPP and ASPP + CDGC (concat) are Table 3's rows.
    assert ran == ["table3_01_aspp", "table3_02_sim", "table2_05_aspp_cdgc_sum"]
    assert command.table("table2")["ResNet + ASPP"] == command.table("table3")["ASPP"]
    assert command.table("table2")["ResNet + ASPP + CDGC (concat)"]["mIoU"] == "50.00 (1)"


def test_table_4_is_one_training_and_two_evaluations(command):
    command("table4")
    kinds = [(row, begin) for row, _, begin in command.starts()]
    # The training's own evaluation gives the single scale and MS + flip.
    assert kinds == [
        ("table4_04_ms_flip", "0"),
        ("table4_02_ms", "eval"),
        ("table4_03_flip", "eval"),
    ]
    table = command.table("table4")
    assert table["CDGCNet, single scale"]["mIoU"] == "50.00 (1)"
    for way in ("MS", "flip", "MS + flip"):
        assert table[f"CDGCNet, {way}"]["mIoU"] == "51.00 (1)"
    assert len(command.records()) == 4


def test_a_row_without_labels_is_finished_without_a_number(command):
    # Table 6 on a test set whose labels a server keeps.
    command.plan(unlabeled=True)
    command("table1", "--rows", "baseline")
    command("table1", "--rows", "baseline")
    assert len(command.starts()) == len(command.records()) == 1
    measured = command.table("table1")["ResNet baseline"]
    assert {measured[c] for c in ("mIoU", "coarse", "refined", "TTA", "− best control")} == {""}


def test_tta_is_measured_on_request_without_another_training(command):
    command("table1", "--rows", "baseline")
    assert command.table("table1")["ResNet baseline"]["TTA"] == ""
    command("table1", "--rows", "baseline", "--tta")
    assert [begin for _, _, begin in command.starts()] == ["0", "eval"]
    assert command.table("table1")["ResNet baseline"]["TTA"] == "51.00"


# ---------------------------------------------------------------- kills and failures
def test_a_killed_run_resumes_from_its_checkpoint(command, monkeypatch):
    command.plan(sleep=20)

    def interrupt(self, folder, now=False):
        if (folder / "last_checkpoint").is_file():
            raise KeyboardInterrupt

    begun = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "look", interrupt)
        command("table1", "--rows", "baseline", code=130)
    assert time.monotonic() - begun < 15  # the training was ended, not waited for
    assert not command.results.exists()
    (tag,) = command.work.glob("tiny/val/*/last_checkpoint")
    name = tag.read_text()
    tag.unlink()  # the training would resume without it
    out = command("table1", "--rows", "baseline", "--dry-run")
    assert "resumes at iteration 5 of 10" in out and "5 iterations to train" in out
    tag.write_text(name)  # the replaced training needs it
    command.plan()
    command("table1", "--rows", "baseline")
    assert [begin for _, _, begin in command.starts()] == ["0", "5"]
    assert len(command.records()) == 1


def test_all_runs_end_with_the_command(command, monkeypatch):
    command.plan(sleep=20)

    def interrupt(futures):
        while len(command.starts()) < 3:
            time.sleep(0.05)
        raise KeyboardInterrupt

    begun = time.monotonic()
    monkeypatch.setattr(progress, "as_completed", interrupt)
    command("table1", "--jobs", 3, code=130)
    assert time.monotonic() - begun < 15
    for folder in (command.work / "tiny" / "val").iterdir():
        with process.locked(folder):  # nothing works there any longer
            pass


def test_time_budget(command):
    command.plan(sleep=20)
    out = command("table1", "--time-budget", 0.02)  # 1.2 seconds
    assert "resumes from the last checkpoint" in out and "0 of 3 rows finished" in out
    command.plan()
    command("table1")
    assert [begin for _, _, begin in command.starts()] == ["0", "5", "0", "0"]


def test_a_failing_row_is_survived_and_reported(command):
    command.plan(fail=["table1_02_plain_gcn"])
    out = command("table1", code=1)
    assert "2 of 3 rows finished" in out
    assert "exit status 1" in out
    assert "train_net.py: error: table1_02_plain_gcn cannot be trained" in out  # its log's end
    table = command.table("table1")
    failed = table["ResNet + plain GCN"]
    assert failed.pop("paper") == "78.2" and set(failed.values()) == {""}
    assert table["ResNet + class GCN"]["mIoU"] == "50.00 (1)"
    command.plan()
    command("table1")  # mended: only that row is run
    assert [row for row, _, _ in command.starts()][3:] == ["table1_02_plain_gcn"]


def test_a_folder_that_another_process_works_in_is_left_alone(command):
    command.plan(fail=["table1_01_baseline"])
    command("table1", "--rows", "baseline", code=1)
    (folder,) = (command.work / "tiny" / "val").iterdir()
    command.plan()
    with process.locked(folder):
        assert "another process works there" in command("table1", "--rows", "baseline", code=1)
    command("table1", "--rows", "baseline")


def test_dry_run_runs_and_writes_nothing(command):
    out = command("table3", "--dry-run", "--seeds", 2)
    assert "24 of 24 rows missing, 240 iterations to train" in out
    assert not command.starts() and not command.results.exists() and not command.work.exists()


# ---------------------------------------------------------------- the numbers of the table
def test_mean_error_and_paired_difference_worked_by_hand(command, pictures):
    command.plan(
        scores={
            "control_01_aspp_ohem": [50, 52, 51],  # mean 51, the best control
            "control_02_pixelwise": [50, 50, 50],
            "control_03_aspp": [49, 51, 50],
            "table3_02_sim": [52, 54, 54],
            "table3_07_ds_10": [51, 50, 52],
        },
        time={"control_03_aspp": 0.5, "table3_02_sim": 0.75},
    )
    command("control", "--seeds", 3)
    command("table3", "--rows", "sim", "ds_10", "--seeds", 3)
    sim = command.table("table3")["sim"]
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
    ds = command.table("table3")["ds 1.0 (similarity reading)"]
    assert ds["− best control"] == "+0.00 ± 1.00, no difference shown"
    aspp = command.table("table3")["ASPP"]
    assert (aspp["mIoU"], aspp["TTA"], aspp["− best control"]) == (
        "50.00 ± 0.58 (3)",
        "",
        "control",
    )
    empty = command.table("table3")["ds 0.2 (similarity reading)"]
    assert empty.pop("paper") == "79.8" and set(empty.values()) == {""}
    text = (command.results / "tiny" / "table3.md").read_text()
    assert "sim: ASPP with OHEM, 51.00 ± 0.58" in text
    path, title, lines, controls = next(p for p in reversed(pictures) if p[0].stem == "table3")
    plot.write_picture(path, title, lines, controls)
    assert path == command.results / "tiny" / "table3.png" and path.stat().st_size > 10000


def test_a_verdict_needs_seeds_enough(command):
    command.plan(scores={"table3_02_sim": [52.0, 53.0, 52.5]})
    # Two seeds, 2 and 3 above 50: mean 2.5, standard error 0.5; five of them are less than
    # Student's 12.71. Three: deviations -0.5, 0.5, 0: standard error sqrt(0.25/3) = 0.29, 8.7 of
    # them are more than 4.30.
    for seeds, expected in (
        (1, "+2.00, one seed"),
        (2, "+2.50 ± 0.50, no difference shown"),
        (3, "+2.50 ± 0.29, beats"),
    ):
        command("control", "--seeds", seeds)
        command("table3", "--rows", "sim", "--seeds", seeds)
        assert command.table("table3")["sim"]["− best control"] == expected


def test_two_seeds_need_12_7_standard_errors():
    # Student's t for one degree of freedom, two-sided 5 %, is 12.706.
    assert estimates.verdict(estimates.Estimate(12.6, 1.0, 2)) == "no difference shown"
    assert estimates.verdict(estimates.Estimate(12.8, 1.0, 2)) == "beats"
    assert estimates.verdict(estimates.Estimate(-12.8, 1.0, 2)) == "falls behind"


def test_a_loss_is_reported_as_one(command):
    command.plan(scores={"table3_02_sim": [48.0, 48.5, 48.0]})
    command("control", "--seeds", 3)
    command("table3", "--rows", "sim", "--seeds", 3)
    # Differences -2, -1.5, -2 to 50: mean -11/6, variance 1/12, standard error 1/6.
    assert command.table("table3")["sim"]["− best control"] == "−1.83 ± 0.17, falls behind"


def test_no_verdict_where_a_control_is_missing(command, pictures):
    # A weak control alone would be beaten by anything.
    command.plan(scores={"control_03_aspp": [10, 20, 30], "table3_02_sim": [11, 21, 31]})
    command("control", "--rows", "control_03", "--seeds", 3)
    command("table3", "--rows", "sim", "--seeds", 3)
    assert command.table("table3")["sim"]["− best control"] == "+1.00 ± 0.00, 1 of 3 controls"
    text = (command.results / "tiny" / "table3.md").read_text()
    assert "sim: ASPP, 20.00 ± 5.77 (of 1 of 3 controls)" in text
    # The others score 50 in two of the three seeds. Their mean says nothing beside ASPP's of three.
    command("control", "--seeds", 2)
    assert command.table("table3")["sim"]["− best control"] == "+1.00 ± 0.00, 1 of 3 controls"
    controls = pictures[-1][3]
    assert plot.comparable_means(controls) == [20.0]


def test_only_seeds_in_common_are_compared(command):
    command.plan(scores={"control_03_aspp": [10, 20, 30], "table3_02_sim": [11, 21, 99]})
    command("control", "--rows", "control_03", "--seeds", 2)
    command("table3", "--rows", "sim", "--seeds", 3)
    assert command.table("table3")["sim"]["− best control"] == "+1.00 ± 0.00, 0 of 3 controls"


def test_tables_alone(command):
    command("table3", "--rows", "aspp")
    (command.results / "tiny" / "table3.md").unlink()
    out = command("table3", "--render")
    assert "table3.md" in out and len(command.starts()) == 1
    assert command.table("table3")["ASPP"]["mIoU"] == "50.00 (1)"


def test_tables_that_are_there_follow_a_new_record(command):
    command("table3", "--rows", "aspp")
    before = command.table("table3")["ASPP"]["− best control"]
    command("control", "--rows", "ohem")
    assert before == "control" and not (command.results / "tiny" / "table1.md").exists()
    text = (command.results / "tiny" / "table3.md").read_text()
    assert "control_01_aspp_ohem" in text  # its run is among the sources now


# ---------------------------------------------------------------- refusals
def refused(capsys, *argv) -> str:
    try:
        code = main(["experiments", *map(str, argv)])
    except SystemExit as stop:  # a usage error
        code = stop.code
    assert code in (1, 2)
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["table7"], "table7"),
        (["table6", "--profile", "tiny"], "no rows of table6"),
        (["table3", "--profile", "mine"], "mine"),
        (["table3", "--rows", "ds_12"], "--rows ds_12"),
        (["table3", "--seeds", "0"], "--seeds: 0: expected 1 or more"),
        (["table3", "--num-gpus", "0"], "--num-gpus: 0: expected 1 or more"),
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
def test_records_from_different_weights_are_never_mixed(command, capsys, dry):
    command("table1", "--rows", "baseline")
    weights = command.folder / "resnet.pth"
    weights.write_bytes(b"other")
    paths = ("--work", command.work, "--results", command.results, "--profile", "tiny")
    more = ["--dry-run"] if dry else []
    # A finished row is no answer either: it started from other weights than were asked for.
    for row in ("plain", "baseline"):
        argv = ("table1", "--rows", row, *more, *paths, "--opts", "MODEL.WEIGHTS", weights)
        said = refused(capsys, *argv)
        assert "resnet.pth (sha256 d9298a10d1b0)" in said and "random weights" in said
    argv = ("table1", *more, *paths, "--opts", "MODEL.WEIGHTS", command.folder / "none.pth")
    assert "MODEL.WEIGHTS: there is no file" in refused(capsys, *argv)
    assert len(command.starts()) == 1


def test_weights_are_found_from_the_callers_folder(command, monkeypatch):
    (command.folder / "here.pth").write_bytes(b"here")
    monkeypatch.chdir(command.folder)
    command("table1", "--rows", "baseline", "--opts", "MODEL.WEIGHTS", "here.pth")
    [path] = command.work.rglob("config.yaml")
    assert f"WEIGHTS: {command.folder / 'here.pth'}" in path.read_text()
    [one] = command.records().values()
    assert one.weights.startswith("here.pth (sha256 ")
    assert str(command.folder) not in json.dumps(one.run_metadata) + json.dumps(one.overrides)


def test_the_same_weights_may_have_another_name(command):
    for name, row in (("a.pth", "baseline"), ("b.pth", "plain")):
        (command.folder / name).write_bytes(b"the same")
        command("table1", "--rows", row, "--opts", "MODEL.WEIGHTS", command.folder / name)
    assert {r.weights[:6] for r in command.records().values()} == {"a.pth ", "b.pth "}


def test_a_row_that_another_process_finished_is_done(command, monkeypatch):
    original = runner.launch

    def with_another_process(words, folder, **options):
        outcome = original(words, folder, **options)
        with monkeypatch.context() as patch:  # the other process has just recorded it
            patch.setattr(runner, "launch", original)
            own = runner.Runner(command.work / "tiny" / "val", command.results / "tiny" / "val")
            folder_rows = rows.find_rows(PROFILES / "tiny.yaml", "table1", ["baseline"])
            [job] = jobs.make_jobs(folder_rows, 1, "val", [])
            own.run_job(job, [job])
        return outcome

    monkeypatch.setattr(runner, "launch", with_another_process)
    assert "1 of 1 rows finished" in command("table1", "--rows", "baseline")
    assert len(command.starts()) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": 5}, "scores is 5"),
        ({"scores": {"sem_seg": {"mIoU": "x"}}}, "scores.sem_seg.mIoU is 'x'"),
        ({"scores": {"sem_seg": [1]}}, "scores.sem_seg is [1]"),
        ({"run_metadata": {}}, "run_metadata.command"),
        ({"cost": None}, "cost is None"),
        ({"cost": {"gflops": "2"}}, "cost.gflops is '2'"),
        ({"seed": "1"}, "seed is '1'"),
        ({"seed": True}, "seed is True"),
        ({"overrides": "none"}, "overrides is 'none'"),
        ({"overrides": [1]}, "overrides.0 is 1"),
        ({"scores": {"sem_seg": {"mIoU": float("nan")}}}, "scores.sem_seg.mIoU is nan"),
        ({"weights": 3}, "weights is 3"),
        ({"color": 3}, "color"),
    ],
)
def test_an_edited_record_is_named_with_its_value(command, capsys, change, message):
    command("table1", "--rows", "baseline")
    [path] = (command.results / "tiny" / "val").glob("*.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    paths = ("--work", command.work, "--results", command.results, "--profile", "tiny")
    said = refused(capsys, "table1", *paths)
    assert path.name in said and message in said


def test_a_record_that_is_being_written_is_not_read(command):
    command("table1", "--rows", "baseline")
    [path] = (command.results / "tiny" / "val").glob("*.json")
    with atomic_write(path.with_stem(f"{path.stem}0")) as unfinished:
        unfinished.touch()
        command("table1", "--rows", "baseline")
        assert len(command.records()) == 1


@pytest.mark.parametrize("content", ["", "{}", '{"row": 1}'])
def test_a_broken_record_is_named(command, capsys, content):
    path = command.results / "tiny" / "val" / "0123456789-seed1.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    paths = ("--work", command.work, "--results", command.results)
    assert str(path) in refused(capsys, "table1", "--profile", "tiny", *paths)


# ---------------------------------------------------------------- CamVid's held-out part
def test_dev_trains_and_tests_within_the_training_list():
    [row] = rows.find_rows(PROFILES / "camvid_cpu.yaml", "table3", ["sim"])
    pairs = jobs.split_overrides(row, "dev", ["SOLVER.MAX_ITER", "10"])
    cfg = rows.row_config(row, pairs)
    assert cfg.DATASETS.TRAIN == ("cdgc_camvid_fit",)
    assert cfg.DATASETS.TEST == ("cdgc_camvid_dev",)
    assert cfg.SOLVER.MAX_ITER == 10
    assert rows.config_hash(cfg) != rows.config_hash(rows.row_config(row))


# ---------------------------------------------------------------- the real training
@pytest.mark.usefixtures("run_data", "clean_logging")
def test_a_real_row(tmp_path, monkeypatch, run_yaml, capsys):
    profiles, folder = tmp_path / "experiments" / "profiles", tmp_path / "experiments" / "rows"
    folder.mkdir(parents=True)
    profiles.mkdir()
    (profiles / "tiny.yaml").write_text(f"_BASE_: {run_yaml}\n")
    for name, label in (("control_03_aspp", "Control, ASPP"), ("table3_02_sim", "Table 3, sim")):
        switch = "False" if "aspp" in name else "True"
        (folder / f"{name}.yaml").write_text(
            f"# {label}; paper: 80.0\nMODEL:\n  CDGC:\n    ENABLED: {switch}\n    NODES: coarse\n"
        )
    monkeypatch.setattr(experiments, "PROFILES", profiles)
    results = tmp_path / "results"
    argv = ["table3", "--profile", "tiny", "--tta", "--work", tmp_path / "work"]
    assert main(["experiments", *map(str, argv), "--results", str(results)]) == 0
    records = record.load_records(results / "tiny" / "val")
    assert len(records) == 2  # without and with TTA, one training run
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
