"""Scores: hand-worked numbers, laws, and agreement with Detectron2's own evaluator."""

import json
import math
import os
import socket
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from cdgcnet.evaluation.confusion import confusion_matrix
from cdgcnet.evaluation.evaluator import CDGCEvaluator
from cdgcnet.evaluation.metrics import segmentation_metrics
from cdgcnet.evaluation.report import format_table, write_results
from cdgcnet.evaluation.testing import evaluate
from cdgcnet.modeling.predictions import LabelPrediction, PredictionKind

SET = "cdgc_test_evaluation"


@pytest.fixture
def dataset(tmp_path):
    """A registered set of four classes; returns a function that writes labels as its images."""

    def write(label_maps: list[np.ndarray], num_classes: int = 4) -> list[dict]:
        dicts = []
        for i, labels in enumerate(label_maps):
            path = tmp_path / f"{i}_label.png"
            Image.fromarray(labels.astype(np.uint8)).save(path)
            dicts.append({"file_name": f"{i}.jpg", "sem_seg_file_name": str(path)})
        remove()
        DatasetCatalog.register(SET, lambda: dicts)
        MetadataCatalog.get(SET).set(
            stuff_classes=[f"c{i}" for i in range(num_classes)], ignore_label=255
        )
        return dicts

    def remove():
        if SET in DatasetCatalog.list():
            DatasetCatalog.remove(SET)
            MetadataCatalog.remove(SET)

    yield write
    remove()


def label_prediction(refined, coarse=None, node_counts=None) -> LabelPrediction:
    labels = {PredictionKind.REFINED: torch.from_numpy(refined)}
    if coarse is not None:
        labels[PredictionKind.COARSE] = torch.from_numpy(coarse)
    return LabelPrediction(labels, node_counts)


def one_hot(labels: np.ndarray, num_classes: int) -> torch.Tensor:
    """Logits (M, H, W) whose argmax is ``labels``."""
    return torch.nn.functional.one_hot(torch.from_numpy(labels).long(), num_classes).permute(
        2, 0, 1
    )


def evaluated(dicts: list[dict], outputs: list[dict], num_classes: int = 4) -> dict:
    evaluator = CDGCEvaluator(SET, num_classes)
    evaluator.reset()
    for x, output in zip(dicts, outputs, strict=True):
        evaluator.process([x], [output])
    return evaluator.evaluate()


# ---------------------------------------------------------------- numbers by hand

# Ground truth and prediction, ten pixels; class 3 is nowhere.
#   truth      0 0 0 0 1 1 255 255 1 1
#   predicted  0 0 0 1 1 1  0   2  2 0
TRUTH = np.array([[0, 0, 0, 0, 1], [1, 255, 255, 1, 1]], np.uint8)
GUESS = np.array([[0, 0, 0, 1, 1], [1, 0, 2, 2, 0]], np.uint8)
# Eight counted pixels. Rows are truth:
#            to 0  to 1  to 2  to 3
#   0          3     1     0     0
#   1          1     2     1     0
#   2, 3       0     0     0     0
CONFUSION = np.array([[3, 1, 0, 0], [1, 2, 1, 0], [0] * 4, [0] * 4])


def test_confusion_by_hand():
    np.testing.assert_array_equal(confusion_matrix(TRUTH, GUESS, 4, 255), CONFUSION)


def test_metrics_by_hand():
    metrics = segmentation_metrics(CONFUSION, ["a", "b", "c", "d"])
    # Union = row + column - hit: 0: 4 + 4 - 3 = 5; 1: 4 + 3 - 2 = 5; 2: 0 + 1 - 0 = 1; 3: 0.
    assert metrics["IoU-a"] == pytest.approx(60.0)  # 3/5
    assert metrics["IoU-b"] == pytest.approx(40.0)  # 2/5
    assert metrics["IoU-c"] == 0.0  # only predicted
    assert math.isnan(metrics["IoU-d"])  # nowhere
    assert metrics["mIoU"] == pytest.approx(50.0)  # (60 + 40) / 2
    assert metrics["mIoU_union"] == pytest.approx(100 / 3)  # (60 + 40 + 0) / 3
    assert metrics["fwIoU"] == pytest.approx(50.0)  # 4/8 * 60 + 4/8 * 40
    assert metrics["ACC-a"] == pytest.approx(75.0)  # 3 of 4
    assert metrics["ACC-b"] == pytest.approx(50.0)  # 2 of 4
    assert math.isnan(metrics["ACC-c"]) and math.isnan(metrics["ACC-d"])
    assert metrics["mACC"] == pytest.approx(62.5)
    assert metrics["pACC"] == pytest.approx(62.5)  # 5 of 8


def test_frequency_weights_are_the_ground_truths():
    # 6 pixels of class 0 (4 right), 2 of class 1 (both right): IoU 4/6 and 2/4.
    metrics = segmentation_metrics(np.array([[4, 2], [0, 2]]), ["a", "b"])
    assert metrics["fwIoU"] == pytest.approx(100 * (6 / 8 * 4 / 6 + 2 / 8 * 2 / 4))  # 62.5
    assert metrics["mIoU"] == pytest.approx(100 * (4 / 6 + 2 / 4) / 2)


def test_nothing_to_count_is_nan_not_zero():
    metrics = segmentation_metrics(np.zeros((2, 2), int), ["a", "b"])
    assert all(math.isnan(v) for v in metrics.values())


# ---------------------------------------------------------------- laws

M = 4
truths = hnp.arrays(np.uint8, (5, 6), elements=st.sampled_from([0, 1, 2, 3, 255]))
guesses = hnp.arrays(np.uint8, (5, 6), elements=st.integers(0, M - 1))


@given(truths, guesses)
def test_confusion_counts_each_valid_pixel_once(truth, guess):
    counts = confusion_matrix(truth, guess, M, 255)
    assert counts.sum() == (truth != 255).sum()
    for t in range(M):
        for p in range(M):
            assert counts[t, p] == ((truth == t) & (guess == p)).sum()


@given(truths, guesses, guesses)
def test_predictions_at_ignored_pixels_never_count(truth, guess, other):
    changed = np.where(truth == 255, other, guess)
    np.testing.assert_array_equal(
        confusion_matrix(truth, guess, M, 255), confusion_matrix(truth, changed, M, 255)
    )


@given(truths)
def test_a_perfect_prediction_scores_100(truth):
    metrics = segmentation_metrics(
        confusion_matrix(truth, np.where(truth == 255, 0, truth), M, 255), list("abcd")
    )
    for i, name in enumerate("abcd"):
        present = (truth == i).any()
        assert metrics[f"IoU-{name}"] == 100 if present else math.isnan(metrics[f"IoU-{name}"])
    if (truth != 255).any():
        for key in ("mIoU", "mIoU_union", "fwIoU", "mACC", "pACC"):
            assert metrics[key] == pytest.approx(100)


@given(truths, guesses, st.permutations(range(M)))
def test_renaming_the_classes_renames_the_scores(truth, guess, permutation):
    table = np.arange(256, dtype=np.uint8)
    table[:M] = permutation
    names = np.array(list("abcd"))
    renamed = np.empty(M, dtype=object)
    renamed[list(permutation)] = names  # class i is now called permutation[i]
    before = segmentation_metrics(confusion_matrix(truth, guess, M, 255), list(names))
    after = segmentation_metrics(
        confusion_matrix(table[truth], table[guess], M, 255), list(renamed)
    )
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert after[key] == pytest.approx(value, nan_ok=True)


@given(truths, guesses)
def test_bounds_and_the_two_means(truth, guess):
    metrics = segmentation_metrics(confusion_matrix(truth, guess, M, 255), list("abcd"))
    for value in metrics.values():
        assert math.isnan(value) or 0 <= value <= 100 + 1e-9
    # Classes that are only predicted add zeros to the mean.
    if not math.isnan(metrics["mIoU"]):
        assert metrics["mIoU_union"] <= metrics["mIoU"] + 1e-9


# ---------------------------------------------------------------- against Detectron2


@pytest.mark.parametrize("seed", range(4))
def test_equals_detectron2s_evaluator(dataset, tmp_path, seed):
    rng = np.random.default_rng(seed)
    # Class 3 is never in the ground truth; predicted for odd seeds only.
    maps = [rng.choice([0, 1, 2, 255], (9, 7)) for _ in range(3)]
    guesses_ = [rng.integers(0, 4 if seed % 2 else 3, (9, 7)) for _ in maps]
    dicts = dataset(maps)
    outputs = [{"sem_seg": one_hot(g, 4)} for g in guesses_]
    ours = evaluated(dicts, outputs)["sem_seg"]

    reference = SemSegEvaluator(SET, distributed=False)
    reference.reset()
    for x, output in zip(dicts, outputs, strict=True):
        reference.process([x], [output])
    theirs = reference.evaluate()["sem_seg"]

    for key in ("fwIoU", "mACC", "pACC"):
        assert ours[key] == pytest.approx(theirs[key])
    for i in range(3):
        assert ours[f"IoU-c{i}"] == pytest.approx(theirs[f"IoU-c{i}"])
        assert ours[f"ACC-c{i}"] == pytest.approx(theirs[f"ACC-c{i}"])
    # v0.6 divides by the classes of the union, today's version by those of the ground truth.
    assert theirs["mIoU"] == pytest.approx(ours["mIoU_union"]) or theirs["mIoU"] == pytest.approx(
        ours["mIoU"]
    )
    if seed % 2 == 0:
        assert ours["mIoU"] == pytest.approx(ours["mIoU_union"])
    else:
        assert ours["mIoU_union"] == pytest.approx(ours["mIoU"] * 3 / 4)  # c3: 0 of one more


# ---------------------------------------------------------------- mmsegmentation's formula


@given(truths, guesses)
def test_equals_mmsegmentations_formula(truth, guess):
    # IoUMetric: histograms of intersection, prediction and label over the pixels not ignored;
    # IoU = intersection / union, mean over what is not 0 / 0.
    mask = truth != 255
    kept_truth, kept = truth[mask], guess[mask]

    def histogram(values):
        values = torch.from_numpy(values.astype(np.float32))
        return torch.histc(values, bins=M, min=0, max=M - 1)

    intersection = histogram(kept[kept == kept_truth])
    label = histogram(kept_truth)
    union = histogram(kept) + label - intersection
    metrics = segmentation_metrics(confusion_matrix(truth, guess, M, 255), list("abcd"))
    expected = {
        "mIoU_union": torch.nanmean(intersection / union),
        "mACC": torch.nanmean(intersection / label),
        "pACC": intersection.sum() / label.sum(),
    }
    for key, value in expected.items():
        assert metrics[key] == pytest.approx(100 * float(value), abs=1e-4, nan_ok=True)


# ---------------------------------------------------------------- the evaluator


def test_several_images_add_up(dataset):
    dicts = dataset([TRUTH, TRUTH])
    outputs = [label_prediction(g) for g in (GUESS, np.zeros_like(GUESS))]
    together = confusion_matrix(
        np.concatenate([TRUTH, TRUTH]), np.concatenate([GUESS, np.zeros_like(GUESS)]), 4, 255
    )
    expected = segmentation_metrics(together, ["c0", "c1", "c2", "c3"])
    assert evaluated(dicts, outputs)["sem_seg"] == pytest.approx(expected, nan_ok=True)


def test_logits_and_labels_score_the_same(dataset):
    dicts = dataset([TRUTH])
    labels = evaluated(dicts, [label_prediction(GUESS)])
    logits = evaluated(dicts, [{"sem_seg": one_hot(GUESS, 4) * 7.0 - 3.0}])
    probabilities = evaluated(dicts, [{"sem_seg": (one_hot(GUESS, 4) * 7.0).softmax(0)}])
    for other in (logits, probabilities):
        assert other["sem_seg"] == pytest.approx(labels["sem_seg"], nan_ok=True)
    assert "sem_seg_coarse" not in labels


def test_coarse_and_refined_in_one_pass(dataset):
    dicts = dataset([TRUTH])
    perfect = np.where(TRUTH == 255, 0, TRUTH)
    output = label_prediction(perfect, GUESS)
    results = evaluated(dicts, [output])
    assert results["sem_seg"]["mIoU"] == 100
    assert results["sem_seg_coarse"]["mIoU"] == pytest.approx(50)  # by hand above


def test_reset_forgets(dataset):
    dicts = dataset([TRUTH])
    evaluator = CDGCEvaluator(SET, 4)
    evaluator.process(dicts, [label_prediction(GUESS)])
    evaluator.reset()
    evaluator.process(dicts, [label_prediction(np.where(TRUTH == 255, 0, TRUTH))])
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == 100


def test_image_without_labels_is_an_error(dataset):
    dataset([TRUTH])
    with pytest.raises(ValueError, match=rf"0\.jpg: {SET} has no ground truth"):
        evaluated([{"file_name": "0.jpg"}], [label_prediction(GUESS)])


def test_label_out_of_range_is_an_error_not_another_class(dataset):
    # K + 1 silently counts as another class in Detectron2's evaluator.
    dicts = dataset([np.where(TRUTH == 1, 4, TRUTH)])
    with pytest.raises(ValueError, match=r"0_label\.png: label value 4"):
        evaluated(dicts, [label_prediction(GUESS)])


def test_prediction_of_another_size_is_an_error(dataset):
    dicts = dataset([TRUTH])
    with pytest.raises(ValueError, match=r"0_label\.png: labels are 2 x 5"):
        evaluated(dicts, [label_prediction(GUESS[:, :4])])


def test_class_count_must_match_the_data_set(dataset):
    dataset([TRUTH])
    with pytest.raises(ValueError, match=rf"NUM_CLASSES is 5; {SET} has 4"):
        CDGCEvaluator(SET, 5)


# ---------------------------------------------------------------- files and tables


def test_results_json_has_null_for_nan_and_is_valid_json(tmp_path):
    path = tmp_path / "results.json"
    results = {"sem_seg": segmentation_metrics(CONFUSION, list("abcd"))}
    write_results(path, results)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    read = json.loads(path.read_text(), parse_constant=refuse)["sem_seg"]
    assert read["IoU-d"] is None and read["ACC-c"] is None
    assert read["IoU-a"] == pytest.approx(60)
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]  # nothing else is left


def test_table_leaves_out_classes_that_do_not_count():
    # "c" is not in the ground truth; the second result predicts it. Its 0 is not in mIoU.
    first = segmentation_metrics(np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0]]), list("abc"))
    second = segmentation_metrics(np.array([[1, 0, 0], [0, 0, 1], [0, 0, 0]]), list("abc"))
    lines = format_table({"x": first, "y": second}, {"x": "one", "y": "two"}).splitlines()
    cells = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    assert lines[0].split() == ["one", "two"]
    assert cells["a"] == ["100.00", "100.00"]
    assert cells["b"] == ["100.00", "0.00"]
    assert "c" not in cells
    assert cells["mean"] == ["(mIoU)", "100.00", "50.00"]
    # b is 0 of 1, c is 0 of 1: (100 + 0 + 0) / 3
    assert cells["with"] == ["absent", "(mIoU_union)", "100.00", "33.33"]


# ---------------------------------------------------------------- the model's own path


def test_native_model_gives_both_tasks_and_agrees_with_its_logits(run_data, run_cfg):
    from cdgcnet import Trainer

    torch.manual_seed(0)
    model = Trainer.build_model(run_cfg).eval()
    name = run_cfg.DATASETS.TEST[0]
    results = evaluate(run_cfg, model, Trainer.build_test_loader(run_cfg, name), name)
    assert set(results) == {"sem_seg", "sem_seg_coarse", "sem_seg_oracle", "graph"}

    class Logits(torch.nn.Module):
        """Hides the native interface: any segmentor of Detectron2."""

        def forward(self, batch):
            return model(batch)

    model.eval()
    plain = evaluate(run_cfg, Logits().eval(), Trainer.build_test_loader(run_cfg, name), name)
    assert set(plain) == {"sem_seg"}
    # Up to rounding ties: 3 scenes of 64 x 96 are 18432 pixels, 5 of them are 0.03 %.
    assert plain["sem_seg"]["pACC"] == pytest.approx(results["sem_seg"]["pACC"], abs=0.03)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("tta", [False, True])
def test_evaluation_leaves_the_model_in_the_mode_it_was_in(run_data, run_cfg, training, tta):
    from cdgcnet import SemanticSegmentorWithTTA, Trainer

    model = Trainer.build_model(run_cfg).train(training)
    name = run_cfg.DATASETS.TEST[0]
    loader = Trainer.build_test_loader(run_cfg, name)
    evaluate(run_cfg, SemanticSegmentorWithTTA(run_cfg, model) if tta else model, loader, name)
    assert {m.training for m in model.modules()} == {training}


# ---------------------------------------------------------------- several processes

SHARES = ((5, 1), (4, 2, 0))  # how many of six images each process gets


def _evaluate_share(rank: int, port: int, folder: str, shares: tuple[int, ...]) -> None:
    """One of several gloo processes: counts its images, writes what evaluate() returned."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    warnings.filterwarnings("ignore", message="TypedStorage is deprecated")  # Detectron2's comm
    torch.distributed.init_process_group("gloo", rank=rank, world_size=len(shares))
    MetadataCatalog.get(SET).set(stuff_classes=["c0", "c1", "c2", "c3"], ignore_label=255)
    evaluator = CDGCEvaluator(SET, 4, boundary_ratio=0.1)
    first = sum(shares[:rank])
    for i in range(first, first + shares[rank]):
        x = {"file_name": f"{i}.jpg", "sem_seg_file_name": f"{folder}/{i}_label.png"}
        evaluator.process([x], [_output(np.load(f"{folder}/{i}.npy"), i)])
    results = evaluator.evaluate()
    Path(folder, f"rank{rank}.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


def _output(guess: np.ndarray, index: int) -> LabelPrediction:
    counts = torch.bincount(torch.from_numpy(guess).flatten(), minlength=4)
    coarse = None if index == 1 else 3 - guess  # one image has no coarse prediction
    return label_prediction(guess, coarse, counts)


@pytest.mark.parametrize("shares", SHARES, ids=str)
def test_several_processes_give_the_numbers_of_one(dataset, tmp_path, shares):
    rng = np.random.default_rng(0)
    maps = [rng.choice([0, 1, 2, 3, 255], (8, 8)) for _ in range(6)]
    predictions = [rng.integers(0, 4, (8, 8)).astype(np.uint8) for _ in maps]
    dicts = dataset(maps)
    for i, guess in enumerate(predictions):
        np.save(tmp_path / f"{i}.npy", guess)
    single = CDGCEvaluator(SET, 4, boundary_ratio=0.1)
    single.process(dicts, [_output(g, i) for i, g in enumerate(predictions)])
    expected = single.evaluate()
    assert set(expected) == {"sem_seg", "sem_seg_coarse", "graph"}

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    # Fork: a spawned process could not import this module (--import-mode=importlib).
    context = torch.multiprocessing.get_context("fork")
    workers = [
        context.Process(target=_evaluate_share, args=(rank, port, str(tmp_path), shares))
        for rank in range(len(shares))
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    for rank in range(1, len(shares)):
        assert json.loads((tmp_path / f"rank{rank}.json").read_text()) is None
    found = json.loads((tmp_path / "rank0.json").read_text())
    assert found == expected  # whole counts are summed: not only about equal
