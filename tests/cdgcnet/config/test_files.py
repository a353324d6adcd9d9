"""Finding shipped configs by name."""

from pathlib import Path

import pytest

from cdgcnet import config_path, load_cfg
from cdgcnet.config.files import find_config

NAME = "Streets-SemanticSegmentation/cdgcnet_r18_cpu.yaml"


def test_config_path_gives_a_file_that_loads():
    assert load_cfg(config_path(NAME)).MODEL.META_ARCHITECTURE == "CDGCSegmentor"


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("Streets-SemanticSegmentation/cdgcnet_r18.yaml", NAME),
        ("Streets/x.yaml", "Streets-SemanticSegmentation"),
        ("", "Base-CDGCNet-R101-OS8.yaml"),
    ],
)
def test_a_wrong_name_lists_what_there_is(name, near):
    with pytest.raises(FileNotFoundError, match="no shipped config is named") as caught:
        config_path(name)
    assert near in str(caught.value)


def test_a_file_comes_before_a_shipped_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config(NAME) == find_config(f"configs/{NAME}") == Path(config_path(NAME))
    mine = tmp_path / "configs" / NAME
    mine.parent.mkdir(parents=True)
    mine.write_text("VERSION: 2")
    assert find_config(f"configs/{NAME}").read_text() == "VERSION: 2"


@pytest.mark.parametrize("name", ["no.yaml", "/no.yaml", "configs", "configs/no.yaml"])
def test_neither_a_file_nor_a_name(name):
    with pytest.raises(FileNotFoundError, match=f"--config-file {name}: there is no such file"):
        find_config(name)
