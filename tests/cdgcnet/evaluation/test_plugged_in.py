"""A user's own evaluators along with or instead of CDGCNet's, as in any Detectron2 project."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, SemSegEvaluator
from torch import nn

from cdgcnet import Trainer
from cdgcnet.engine.defaults import run

SET = "cdgc_cityscapes_val"
pytestmark = pytest.mark.usefixtures("run_data", "clean_logging")


class MeanScore(DatasetEvaluator):
    """Reads the scores of the model, as an evaluator written for Detectron2 does."""

    def reset(self):
        self.values = []

    def process(self, inputs, outputs):
        for x, output in zip(inputs, outputs, strict=True):
            scores = output["sem_seg"]
            assert scores.shape == (19, x["height"], x["width"])
            self.values.append(float(scores.mean()))

    def evaluate(self):
        return {"my_task": {"mean_score": sum(self.values) / len(self.values)}}


class MyTrainer(Trainer):
    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_folder=None):
        theirs = super().build_evaluator(cfg, dataset_name, output_folder)
        return DatasetEvaluators([theirs, MeanScore()])


@pytest.fixture
def model(run_cfg):
    torch.manual_seed(0)
    return Trainer.build_model(run_cfg).eval()


def results_json(cfg) -> dict:
    return json.loads((Path(cfg.OUTPUT_DIR) / "results.json").read_text())


@pytest.mark.parametrize("tta", [False, True])
def test_an_evaluator_of_a_subclass_is_in_results_json(run_cfg, tta):
    run_cfg.SOLVER.MAX_ITER = 1
    run_cfg.TEST.AUG.ENABLED = tta
    Path(run_cfg.OUTPUT_DIR).mkdir(parents=True)
    run(run_cfg, trainer_class=MyTrainer)
    results = results_json(run_cfg)
    assert {"sem_seg", "sem_seg_coarse", "graph", "my_task"} <= results.keys()
    assert ("my_task_TTA" in results) == tta


def test_an_evaluator_given_as_argument_is_in_results_json(run_cfg):
    run_cfg.SOLVER.MAX_ITER = 1
    run_cfg.TEST.AUG.ENABLED = True
    Path(run_cfg.OUTPUT_DIR).mkdir(parents=True)
    run(run_cfg, evaluators=[MeanScore()])
    assert results_json(run_cfg).keys() == {"my_task", "my_task_TTA"}


def test_an_evaluation_builds_the_model_of_the_trainer(run_cfg, model, tmp_path):
    class Constant(nn.Module):
        """Always predicts the same class; its weights are those of the network that it wraps."""

        def __init__(self, network):
            super().__init__()
            self.backbone, self.sem_seg_head = network.backbone, network.sem_seg_head

        def forward(self, batched_inputs):
            return [{"sem_seg": torch.ones(19, x["height"], x["width"])} for x in batched_inputs]

    class ConstantTrainer(Trainer):
        @classmethod
        def build_model(cls, cfg):
            return Constant(super().build_model(cfg))

    run_cfg.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
    torch.save({"model": Constant(model).state_dict()}, run_cfg.MODEL.WEIGHTS)
    results = run(run_cfg, eval_only=True, trainer_class=ConstantTrainer, evaluators=[MeanScore()])
    assert results == {"my_task": {"mean_score": 1.0}}


def test_it_reads_the_scores_of_the_model(run_cfg, model):
    found = Trainer.test(run_cfg, model, MeanScore())["my_task"]["mean_score"]
    with torch.no_grad():
        means = [
            float(model(batch)[0]["sem_seg"].mean())
            for batch in Trainer.build_test_loader(run_cfg, SET)
        ]
    assert found == pytest.approx(sum(means) / 3)


def test_detectron2s_own_evaluator_agrees(run_cfg, model):
    theirs = Trainer.test(run_cfg, model, SemSegEvaluator(SET, distributed=False))
    ours = Trainer.test(run_cfg, model)
    assert theirs["sem_seg"]["pACC"] == pytest.approx(ours["sem_seg"]["pACC"], abs=0.03)


def test_the_number_of_evaluators_must_be_that_of_the_datasets(run_cfg, model):
    expected = r"2 evaluators for the 1 datasets of DATASETS\.TEST"
    two = [MeanScore(), MeanScore()]
    with pytest.raises(ValueError, match=expected):
        Trainer.test(run_cfg, model, two)
    with pytest.raises(ValueError, match=expected):  # not after hours of training
        Trainer(run_cfg, two)
    with pytest.raises(ValueError, match=expected):
        run(run_cfg, evaluators=two)
    assert not Path(run_cfg.OUTPUT_DIR).exists()


def test_it_never_sees_an_image_that_cannot_be_read(run_cfg, model, tmp_path):
    [first, *others] = DatasetCatalog.get(SET)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    name = "cdgc_test_plugged_in"
    DatasetCatalog.register(name, lambda: [{**first, "file_name": str(broken)}, *others])
    evaluator = MeanScore()
    run_cfg.DATASETS.TEST = (name,)
    try:
        with pytest.raises(ValueError, match=r"1 images could not be evaluated:\n.*broken\.png"):
            Trainer.test(run_cfg, model, evaluator)
    finally:
        DatasetCatalog.remove(name)
    assert len(evaluator.values) == 2


def test_it_cannot_be_resumed(run_cfg, model):
    run_cfg.TEST.RESUME = True
    with pytest.raises(ValueError, match=r"TEST\.RESUME keeps .*MeanScore must see every image"):
        MyTrainer.test(run_cfg, model)
