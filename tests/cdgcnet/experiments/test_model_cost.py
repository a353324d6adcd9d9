"""Parameters and multiply-adds of a network, against counts worked by hand."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from cdgcnet.experiments.model_cost import logged_cost, network_cost

IMAGE = np.random.default_rng(0).integers(256, size=(40, 60, 3), dtype=np.uint8)


@pytest.fixture
def cost_of(tiny_cfg):
    def count(changes=None, favoured=None):
        """Costs with all pixels given to one class, if one is named."""
        cfg = tiny_cfg({"INPUT.CROP.SIZE": [64, 96], **(changes or {})})
        torch.manual_seed(0)
        weights = build_model(cfg).state_dict()
        if favoured is not None:
            weights["sem_seg_head.coarse_predictor.1.bias"][favoured] = 1000
        return network_cost(cfg, IMAGE, weights)

    return count


def test_parameters_of_the_graph_by_hand(cost_of):
    # 8 channels, 5 classes: φ, φ' 64 each and W 5·64, U 5·64 and its bias 8, norm 2·8; the refined
    # classifier sees 16 channels: 16·5 + 5.
    extra = cost_of()["parameters"] - cost_of({"MODEL.CDGC.ENABLED": False})["parameters"]
    assert extra == 64 + 64 + 5 * 64 + 5 * 64 + 8 + 16 + 85


def test_the_graph_costs_the_squares_of_its_classes(cost_of):
    # 8 x 12 nodes, all of one class, 8 channels. Similarity: φ φ'ᵀ once and its product with x,
    # then q xᵀ and A x; W and U work on 96 rows. Edges of equal weight need W and U for one row,
    # the class's mean.
    similarity = cost_of(favoured=2)["gflops"] * 1e9
    uniform = cost_of({"MODEL.CDGC.EDGES": "uniform"}, favoured=2)["gflops"] * 1e9
    square = 8 * 8
    assert similarity - uniform == pytest.approx(
        8 * square + 96 * square + 2 * 96 * 96 * 8 + 2 * 96 * square - 2 * 1 * square
    )


def test_gflops_of_a_plain_network_scale_with_its_image(cost_of):
    plain = {"MODEL.CDGC.ENABLED": False}
    small = cost_of(plain)["gflops"]
    large = cost_of({**plain, "INPUT.CROP.SIZE": [128, 192]})["gflops"]
    assert large / small == pytest.approx(4, rel=0.01)  # global pooling is a constant


def test_without_weights_parameters_alone(tiny_cfg):
    assert set(network_cost(tiny_cfg(), IMAGE)) == {"parameters"}


def test_what_a_run_noted(tmp_path):
    (tmp_path / "metrics.json").write_text(
        '{"time": 0.3, "iteration": 19}\n{"time": 0.1, "iteration": 39}\n{"time": 0.2}\n{"ti'
    )
    assert logged_cost(tmp_path) == {"seconds_per_iteration": 0.2}  # the median, whole lines only
    (tmp_path / "log.txt").write_text("iter: 19  max_mem: 700M\niter: 39  max_mem: 1024M\n")
    assert logged_cost(tmp_path) == {
        "seconds_per_iteration": 0.2,
        "peak_memory": 1 << 30,
        "peak_memory_of": "GPU",
    }
    assert logged_cost(tmp_path / "nowhere") == {}
