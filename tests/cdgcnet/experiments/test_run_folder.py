"""What the experiments read from the folder of a training run."""

from pathlib import Path

import pytest
import torch

from cdgcnet.experiments.run_folder import has_final_weights, resumed_iteration


def save(folder: Path, name: str, iteration: int) -> None:
    torch.save({"model": {}, "trainer": {}, "iteration": iteration}, folder / name)
    (folder / "last_checkpoint").write_text(name)
    (folder / "config.yaml").touch()


def test_a_folder_without_checkpoints_begins_anew(tmp_path):
    assert resumed_iteration(tmp_path) == resumed_iteration(tmp_path / "missing") == 0
    assert not has_final_weights(tmp_path)


@pytest.mark.parametrize("tag", ["whole", "lost", "empty"])
def test_progress_does_not_depend_on_the_tag(tmp_path, tag):
    # A training run resumes without its tag, too; see engine/run_folder.py.
    def spoil_tag() -> None:
        path = tmp_path / "last_checkpoint"
        if tag == "lost":
            path.unlink()
        elif tag == "empty":
            path.write_text("")

    save(tmp_path, "model_0000004.pth", 4)
    spoil_tag()
    assert resumed_iteration(tmp_path) == 5 and not has_final_weights(tmp_path)
    save(tmp_path, "model_0000009.pth", 9)
    save(tmp_path, "model_final.pth", 9)
    spoil_tag()
    assert resumed_iteration(tmp_path) == 10 and has_final_weights(tmp_path)


def test_a_damaged_final_checkpoint_is_not_taken_for_the_result(tmp_path):
    save(tmp_path, "model_0000004.pth", 4)
    save(tmp_path, "model_final.pth", 9)
    whole = (tmp_path / "model_final.pth").read_bytes()
    (tmp_path / "model_final.pth").write_bytes(whole[: len(whole) // 2])
    assert resumed_iteration(tmp_path) == 5 and not has_final_weights(tmp_path)


def test_final_weights_need_the_config_of_their_training(tmp_path):
    save(tmp_path, "model_final.pth", 9)
    (tmp_path / "config.yaml").unlink()
    assert not has_final_weights(tmp_path)
