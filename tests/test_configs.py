"""Configs by name: those of the repository's folder, and light until one is used."""

import subprocess
import sys
from pathlib import Path

import pytest

from twelve_in_one import configs

FOLDER = Path(__file__).resolve().parents[1] / "configs"


def test_names_are_the_files():
    assert sorted(configs.names()) == sorted(path.stem for path in FOLDER.glob("*.py"))
    assert configs.names()[0] == "world"


def test_the_listing_has_a_line_a_config():
    lines = configs.listing().splitlines()
    assert [line.split()[0] for line in lines] == list(configs.names())
    assert all(len(line.split()) > 5 for line in lines), lines


def test_arguments_reach_the_config():
    assert configs.get("world").data.world_images > configs.get("world:small").data.world_images
    assert configs.get("group:G1,G4").tasks == ("vqa", "vgqa", "gqa", "nlvr2", "snli_ve")
    with pytest.raises(ValueError, match="G1, G2, G3, G4 and debug, got 'G5'"):
        configs.get("group:G5")


def test_a_setting_that_does_not_exist_cannot_be_set():
    config = configs.get("world")
    config.schedule.num_rounds = 3
    with pytest.raises(AttributeError, match="num_round"):
        config.schedule.num_round = 3


def test_paths_work(tmp_path, monkeypatch):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "import ml_collections\n"
        "def get_config(argument='nothing'):\n"
        "    return ml_collections.ConfigDict({'argument': argument})\n"
    )
    assert configs.get(str(mine)).argument == "nothing"
    assert configs.get(f"{mine}:a:b").argument == "a:b"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert configs.get("~/mine.py:x").argument == "x"
    assert configs.get(str(FOLDER / "world.py")) == configs.get("world")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("wrld", "no config 'wrld'; did you mean world"),
        ("qqq:debug", "no config 'qqq'; known: world, "),
        ("folder/twelve.py", "no file folder/twelve.py; the one that ships is called twelve"),
        ("mine.py:debug", "no file mine.py"),
    ],
)
def test_what_is_not_there(config, message):
    with pytest.raises(ValueError, match=message):
        configs.locate(config)


def test_looking_at_them_is_light():
    code = "import sys; from twelve_in_one import configs; configs.listing(); print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"jax", "ml_collections", "numpy", "tensorflow"} & set(run.stdout.split())
