import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from bdg.cli import main
from bdg.commands.compose import build, compose
from datamodules.degradations.base import Degradation
from datamodules.restoration import RestorationData
from datamodules.shards import index

FIVE = ["rain", "haze", "blur", "noise", "low_light"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten small images."""
    (tmp_path / "in").mkdir()
    for i in range(10):
        image = np.random.default_rng(i).integers(0, 256, (20, 20, 3), np.uint8)
        assert cv2.imwrite(str(tmp_path / "in" / f"{i}.png"), image)
    return tmp_path / "in"


def test_folder_becomes_shards_and_a_table_that_is_also_written(folder, tmp_path, capsys):
    out = tmp_path / "out"
    command = [
        "pack",
        f"{folder}",
        f"{out}",
        "parts={val:0.2,test:['3']}",
        "shard_size=4",
        f"json={tmp_path}/pack.json",
    ]
    assert main(command) == 0
    table = json.loads((tmp_path / "pack.json").read_text())
    assert [(row["part"], row["shards"], row["images"]) for row in table["parts"]] == [
        ("train", 2, 7),
        ("val", 1, 2),
        ("test", 1, 1),
    ]
    assert table["digest"] == json.loads((out / "manifest.json").read_text())["digest"]
    assert table["digest"][:12] in capsys.readouterr().out
    assert [sample.key for sample in index([f"{out}/test-000000.tar"])] == ["3"]


def test_same_command_again_finds_everything_done_and_another_one_is_refused(folder, tmp_path, capsys):
    command = ["pack", f"{folder}", f"{tmp_path}/out"]
    assert main(command) == main(command) == 0
    assert main([*command, "seed=1"]) == 1
    assert "holds shards of other images or settings: name another folder" in capsys.readouterr().err


def test_missing_words_are_asked_for(capsys):
    assert main(["pack"]) == 1
    assert "source" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["nowhere", "pkg://nobody/photographs"])
def test_source_that_does_not_exist_is_a_clear_error(source, tmp_path, capsys):
    assert main(["pack", f"source={source}", f"{tmp_path}/out"]) == 1
    error = capsys.readouterr().err
    assert f"source={source}" in error
    assert "name a folder" in error


def test_photographs_of_the_package_are_packed_by_their_split(tmp_path):
    assert main(["pack", "pkg://datamodules/photographs", f"{tmp_path}/out", "parts=photographs"]) == 0
    counts = [len(index([f"{tmp_path}/out/{part}-000000.tar"])) for part in ("train", "val", "test")]
    assert counts == [16, 3, 5]


@pytest.mark.parametrize(("choice", "names"), [("five", FIVE), *((name, [name]) for name in FIVE)])
def test_every_choice_of_degradation_can_be_built_in_its_order(choice, names):
    config = compose("train", [f"degradation={choice}"])
    degradations = build(config.degradation)
    assert list(degradations) == names
    assert all(isinstance(d, Degradation) and d.name == name for name, d in degradations.items())


@pytest.mark.parametrize(
    "overrides",
    [
        ["data=shards", "data.shards='x/train-{000000..000099}.tar'"],
        ["data=packed", "data.root=x"],
        ["data=photographs", "data.batch_size=4", "data.val_severities=[3]", "degradation=haze"],
    ],
)
def test_every_choice_of_data_can_be_built(overrides):
    data = build(compose("train", overrides).data)
    assert isinstance(data, RestorationData)
    assert all(isinstance(degrade, Degradation) for degrade in data.degradations.values())
