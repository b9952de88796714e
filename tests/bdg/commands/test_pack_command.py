import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from bdg.cli import main
from bdg.commands.compose import build, compose
from datamodules.degradations.base import Degradation
from datamodules.pack import packed_samples
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


@pytest.fixture
def lol(tmp_path: Path) -> Path:
    """LOL with three training pairs, one of which has lost its clean image, and a test pair; beside them a thumbnail."""
    for i, name in enumerate(("our485/2", "our485/5", "our485/7", "eval15/1")):
        for side in ("low", "high"):
            path = tmp_path / "LOLdataset" / name.replace("/", f"/{side}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            image = np.random.default_rng(i).integers(0, 256, (20, 20, 3), np.uint8)
            assert cv2.imwrite(f"{path}.png", image)
    (tmp_path / "LOLdataset" / "our485" / "high" / "7.png").rename(tmp_path / "LOLdataset" / "thumbnail.png")
    return tmp_path / "LOLdataset"


def test_dry_run_says_what_there_is_and_writes_nothing(lol, tmp_path, capsys):
    assert main(["pack", f"{lol}", "dry_run=true", f"json={tmp_path}/found.json"]) == 0
    said = capsys.readouterr().out
    assert "layout lol" in said
    assert "1 of 3 images in" in said
    assert "have no partner of the same name" in said
    assert "not used: images that this layout does not speak of, 1 in LOLdataset/" in said
    assert json.loads((tmp_path / "found.json").read_text()) == {
        "layout": "lol",
        "sets": [
            {"set": "LOL", "part": "test", "degradation": "low_light", "pairs": 1, "clean": 0},
            {"set": "LOL", "part": "train", "degradation": "low_light", "pairs": 2, "clean": 0},
        ],
        "unpaired": 1,
        "unused": {"LOLdataset": 1},
    }
    assert {path.name for path in tmp_path.iterdir()} == {"LOLdataset", "found.json"}


def test_images_without_a_partner_stop_unless_told_otherwise(lol, tmp_path, capsys):
    command = ["pack", f"{lol}", f"{tmp_path}/out", f"json={tmp_path}/new/pack.json"]
    assert main(command) == 1
    assert "or leave them out with on_unpaired=skip" in capsys.readouterr().err
    assert main([*command, "on_unpaired=skip", "workers=2"]) == 0
    said = capsys.readouterr().out
    assert "without a partner: 1 of 3" in said
    table = json.loads((tmp_path / "new" / "pack.json").read_text())
    assert (table["unpaired"], [(row["part"], row["images"]) for row in table["parts"]]) == (
        1,
        [("train", 2), ("test", 1)],
    )


def test_images_that_cannot_be_read_are_named_and_counted(folder, tmp_path, capsys):
    for i in range(7):
        (folder / f"broken{i}.png").write_bytes(b"no image")
    assert main(["pack", f"{folder}", f"{tmp_path}/out", "on_error=skip", f"json={tmp_path}/pack.json"]) == 0
    said = capsys.readouterr().out
    assert said.count("skipped: broken") == 5
    assert "skipped: 2 more, see the manifest" in said
    assert json.loads((tmp_path / "pack.json").read_text())["skipped"] == 7


def test_scales_and_leaks_are_said(lol, tmp_path, capsys):
    (lol / "thumbnail.png").unlink()
    (lol / "our485" / "low" / "7.png").unlink()
    for side, size in (("low", 10), ("high", 20)):
        image = np.random.default_rng(3).integers(0, 256, (size, size, 3), np.uint8)  # the clean image of eval15/1
        assert cv2.imwrite(f"{lol}/our485/{side}/9.png", image)
    assert main(["pack", f"{lol}", f"{tmp_path}/out"]) == 0
    said = capsys.readouterr().out
    assert "super-resolution: 1 pairs whose degraded image is 2 times smaller" in said
    assert "leak: 1 clean images are in several parts, by the data set's own split" in said


def test_a_choice_is_asked_for_by_its_option(tmp_path, capsys):
    for blur in ("blur", "blur_gamma", "sharp"):
        (tmp_path / "in/train/GOPR0372_07_00" / blur).mkdir(parents=True)
        assert cv2.imwrite(f"{tmp_path}/in/train/GOPR0372_07_00/{blur}/1.png", np.zeros((8, 8, 3), np.uint8))
    command = ["pack", f"{tmp_path}/in", "dry_run=true"]
    assert main(command) == 1
    assert "choose gopro=blur or gopro=blur_gamma" in capsys.readouterr().err
    assert main([*command, "gopro=blur_gamma"]) == 0


@pytest.mark.parametrize(
    ("folder", "pairs", "scale"), [("derain/rain100l", 16, None), ("realsr/realsr_x4_crop128", 12, 4)]
)
def test_real_pairs_are_packed(shared, tmp_path, folder, pairs, scale):
    assert main(["pack", f"{shared}/data/{folder}", f"{tmp_path}/out"]) == 0
    samples = list(packed_samples(tmp_path / "out"))
    assert (len(samples), {sample.get("scale") for sample in samples}) == (pairs, {scale})


@pytest.mark.parametrize(("choice", "names"), [("five", FIVE), *((name, [name]) for name in FIVE)])
def test_every_choice_of_degradation_can_be_built_in_its_order(choice, names):
    config = compose("train", [f"degradation={choice}"])
    degradations = build(config.degradation)
    assert list(degradations) == names
    assert all(isinstance(d, Degradation) and d.name == name for name, d in degradations.items())
