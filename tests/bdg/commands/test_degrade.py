"""`bdg degrade` writes what it drew, repeats it to the byte, and makes test sets and previews."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bdg.cli import main
from bdg.commands import degrade
from datamodules import layouts
from datamodules.images import Picture, read_image, write_image

RNG = np.random.default_rng(0)


def run(*words: object) -> int:
    return main(["degrade", *map(str, words)])


def picture(channels: int = 3, dtype: type = np.uint8, height: int = 37, width: int = 50) -> np.ndarray:
    return RNG.integers(0, np.iinfo(dtype).max + 1, (height, width, channels), dtype=dtype)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    write_image(tmp_path / "photo.png", picture())
    return tmp_path / "photo.png"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_image(tmp_path / "in" / "a.png", picture())
    write_image(tmp_path / "in" / "deep" / "b.jpg", picture())
    (tmp_path / "in" / "notes.txt").write_text("dear diary")
    (tmp_path / "in" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    return tmp_path / "in"


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_recipe_repeats_the_image_byte_for_byte(photo, tmp_path, capsys):
    out = [tmp_path / f"{i}.png" for i in range(3)]
    assert run(photo, out[0], "degradation=rain", "severity=4", "seed=3", f"json={tmp_path}/r.json") == 0
    record = json.loads((tmp_path / "r.json").read_text())
    assert (record["image"], record["entry"], record["recipe"]["severity"]) == ("photo.png", "rain", 4)
    assert run(photo, out[1], f"recipe={tmp_path}/r.json") == 0
    assert "1 of 1: bit for bit as recorded" in capsys.readouterr().out
    assert out[0].read_bytes() == out[1].read_bytes() != photo.read_bytes()
    assert run(photo, out[2], "degradation=rain", "severity=4", "seed=4") == 0
    assert out[2].read_bytes() != out[0].read_bytes()


@pytest.mark.parametrize("choice", ["cdd11", "real_esrgan"])
def test_packaged_recipes_need_no_choice_to_be_repeated(choice, photo, tmp_path):
    entry = {"cdd11": "low_haze_snow", "real_esrgan": "order_7"}[choice]
    assert run(photo, tmp_path / "a.png", f"degradation={choice}", f"entry={entry}", f"json={tmp_path}/r.json") == 0
    assert run(photo, tmp_path / "b.png", f"recipe={tmp_path}/r.json") == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_recipe_of_a_batch_will_do(photo, tmp_path):
    (tmp_path / "r.json").write_text(json.dumps({"degradation": "noise", "severity": 1.0, "sigma": 10.0, "seed": 5}))
    assert run(photo, tmp_path / "a.png", f"recipe={tmp_path}/r.json") == 0
    difference = read_image(tmp_path / "a.png").array.astype(float) - read_image(photo).array
    assert 7 < difference.std() < 11  # clipped at black and white


def test_recipe_of_another_image_is_followed_without_comparing(photo, tmp_path, capsys):
    write_image(tmp_path / "other.png", picture())
    assert run(photo, tmp_path / "a.png", "degradation=haze", f"json={tmp_path}/r.json") == 0
    assert run(tmp_path / "other.png", tmp_path / "b.png", f"recipe={tmp_path}/r.json") == 0
    assert "recorded" not in capsys.readouterr().out


def test_image_that_comes_out_otherwise_is_an_error_that_names_the_versions(photo, tmp_path, capsys):
    run(photo, tmp_path / "a.png", "degradation=noise", f"json={tmp_path}/r.json")
    record = json.loads((tmp_path / "r.json").read_text())
    record["versions"]["numpy"] = "1.0"
    (tmp_path / "r.json").write_text(json.dumps(record | {"lq_sha256": "0"}))
    assert run(photo, tmp_path / "b.png", f"recipe={tmp_path}/r.json") == 1
    error = capsys.readouterr().err
    assert "1 of 1 images (photo.png) are written, but not bit for bit as recorded with numpy 1.0" in error
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "a.png").read_bytes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "has no line for"),
        ('{"sigma": 3}', "holds no recipe"),
        ('{"entry": "../up", "recipe": {"degradation": "noise"}}', "'../up', which is no plain name"),
        ('{"degradation": "fog"}', "'fog', which is not among rain, haze"),
        ('{"degradation": "noise"}', "a recipe of 'noise' lacks 'sigma'"),
    ],
)
def test_files_that_are_no_recipes_are_clear_errors(text, message, photo, tmp_path, capsys):
    (tmp_path / "r.json").write_text(text)
    assert run(photo, tmp_path / "a.png", f"recipe={tmp_path}/r.json") == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "a.png").exists()


def test_a_recipe_that_is_not_there_is_named(photo, tmp_path, capsys):
    assert run(photo, tmp_path / "a.png", "recipe=gone.json") == 1
    assert "recipe=gone.json: no such file" in capsys.readouterr().err


def test_several_ways_are_a_question_for_one_image(photo, tmp_path, capsys):
    assert run(photo, tmp_path / "a.png") == 1
    error = capsys.readouterr().err
    assert "9 ways (rain, haze, blur" in error
    assert "choose one with entry=NAME, or do all, one after another, with compose=true" in error


def test_entries_are_composed_in_the_order_given(photo, tmp_path):
    common = ("compose=true", "severity=2", f"json={tmp_path}/r.json")
    assert run(photo, tmp_path / "a.png", "entry=[low_light,haze,rain]", *common) == 0
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["entry"] == "low_light_haze_rain"
    assert [part["degradation"] for part in record["recipe"]["parts"]] == ["low_light", "haze", "rain"]
    assert {part["severity"] for part in record["recipe"]["parts"]} == {2}
    assert run(photo, tmp_path / "b.png", f"recipe={tmp_path}/r.json") == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["entry=fog"], "entry=fog: the degradations chosen are rain, haze"),
        (["degradation=rain", "severity=9"], "severity=9 of 'rain'"),
        (["degradation=real_esrgan", "entry=order_2", "severity=3"], "'order_2' has none: leave severity out"),
        (["degradation=rain", "output=out.gif"], "unknown image format"),
    ],
)
def test_mistakes_are_one_line(overrides, message, photo, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = [] if any(o.startswith("output") for o in overrides) else ["out.png"]
    assert run(photo, *output, *overrides) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_nothing_is_overwritten_unless_asked(photo, tmp_path, capsys):
    write_image(tmp_path / "a.png", picture())
    before = (tmp_path / "a.png").read_bytes()
    assert run(photo, tmp_path / "a.png", "degradation=noise") == 1
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "a.png").read_bytes() == before
    assert run(photo, tmp_path / "a.png", "degradation=noise", "overwrite=true") == 0


@pytest.mark.parametrize("there", ["lq/a.png", "gt/a.png", "recipes.jsonl"])
def test_nothing_in_a_folder_is_overwritten_unless_asked(there, folder, tmp_path, capsys):
    path = tmp_path / "out" / "noise" / there
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    assert run(folder, tmp_path / "out", "degradation=noise") == 1
    assert f"{path}: exists already" in capsys.readouterr().err
    assert files(tmp_path / "out") == [f"noise/{there}"]
    assert path.read_text() == "mine"


@pytest.mark.parametrize(("channels", "dtype"), [(1, np.uint8), (3, np.uint16), (4, np.uint8)])
def test_depth_gray_alpha_and_profile_stay(channels, dtype, tmp_path):
    given = Picture(picture(channels, dtype), icc=b"a profile")
    write_image(tmp_path / "in.png", given)
    assert run(tmp_path / "in.png", tmp_path / "out.png", "degradation=blur", "severity=5") == 0
    out = read_image(tmp_path / "out.png")
    assert (out.array.shape, out.array.dtype, out.icc) == (given.array.shape, dtype, b"a profile")
    assert not np.array_equal(out.array[..., 0], given.array[..., 0])


def test_a_folder_becomes_pairs_of_every_entry_that_the_layouts_know(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(folder, out, "degradation=[rain,noise]", "severity=3") == 0
    each = ["gt/a.png", "gt/deep/b.jpg", "lq/a.png", "lq/deep/b.png", "recipes.jsonl"]
    assert files(out) == [f"{entry}/{name}" for entry in ("noise", "rain") for name in each]
    assert (out / "rain" / "gt" / "deep" / "b.jpg").read_bytes() == (folder / "deep" / "b.jpg").read_bytes()
    printed = capsys.readouterr().out
    assert "rain: degraded 2 images into" in printed
    assert "notes.txt: not an image" in printed
    assert "broken.png" in printed
    pairs = layouts.find(out)
    assert {(pair.degradation, pair.lq is not None) for pair in pairs} == {("rain", True), ("noise", True)}


def test_records_of_a_folder_make_the_same_folder_again(folder, tmp_path):
    assert run(folder, tmp_path / "out", "degradation=[rain,noise]") == 0
    for entry in ("rain", "noise"):
        assert run(folder, tmp_path / "again", f"recipe={tmp_path}/out/{entry}/recipes.jsonl") == 0
    assert files(tmp_path / "again") == files(tmp_path / "out")
    for name in files(tmp_path / "out"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_an_image_is_degraded_the_same_alone_and_in_a_folder(folder, tmp_path):
    assert run(folder, tmp_path / "out", "degradation=snow") == 0
    assert run(folder / "a.png", tmp_path / "alone.png", "degradation=snow") == 0
    assert (tmp_path / "alone.png").read_bytes() == (tmp_path / "out" / "snow" / "lq" / "a.png").read_bytes()


def test_one_line_of_many_serves_one_image(folder, tmp_path):
    shutil.rmtree(folder / "deep")
    write_image(folder / "c.png", picture())
    assert run(folder, tmp_path / "out", "degradation=noise") == 0
    assert run(folder / "c.png", tmp_path / "c.png", f"recipe={tmp_path}/out/noise/recipes.jsonl") == 0
    assert (tmp_path / "c.png").read_bytes() == (tmp_path / "out" / "noise" / "lq" / "c.png").read_bytes()


def test_records_of_images_that_are_not_there_are_named(folder, tmp_path, capsys):
    assert run(folder, tmp_path / "out", "degradation=noise") == 0
    (folder / "a.png").unlink()
    assert run(folder, tmp_path / "again", f"recipe={tmp_path}/out/noise/recipes.jsonl") == 1
    assert "is of a.png, not in" in capsys.readouterr().err


def test_images_that_differ_in_their_extension_only_are_refused(folder, tmp_path, capsys):
    write_image(folder / "a.jpg", picture())
    assert run(folder, tmp_path / "out", "degradation=noise") == 1
    assert "differ in their extension only" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_preview_is_a_grid_of_entries_and_severities(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("preview", "size=40", "severities=[1,5]", "json=r.json") == 0
    assert f"9 degradations of {degrade.PHOTOGRAPH.name} in {degrade.PREVIEW_FILE}" in capsys.readouterr().out
    height, width, _ = read_image(degrade.PREVIEW_FILE).array.shape
    assert width == pytest.approx(3 * 40, abs=20)  # clean, 1, 5
    assert height > 9 * 40
    recipes = [record["recipe"] for record in json.loads(Path("r.json").read_text())]
    assert [(r["degradation"], r["severity"]) for r in recipes[:4]] == [
        ("rain", 1),
        ("rain", 5),
        ("haze", 1),
        ("haze", 5),
    ]
    assert run("preview") == 1
    assert "exists already" in capsys.readouterr().err


def test_preview_of_what_has_no_severity_shows_several_draws(photo, tmp_path):
    overrides = (
        "degradation=real_esrgan",
        "entry=[order_1,order_8]",
        f"image={photo}",
        "severities=[1,2,3]",
        f"json={tmp_path}/r.json",
    )
    assert run("preview", tmp_path / "g.png", *overrides) == 0
    recipes = [record["recipe"] for record in json.loads((tmp_path / "r.json").read_text())]
    assert [r["stop_after"] for r in recipes] == [1] * 3 + [8] * 3
    assert len({json.dumps(r) for r in recipes}) == 6


def test_degradation_of_another_package_is_degraded_and_repeated(photo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("elsewhere.py").write_text(
        "from dataclasses import dataclass\nfrom datamodules.degradations.base import Degradation\n\n"
        "@dataclass(frozen=True)\nclass Negative(Degradation):\n    name = 'negative'\n\n"
        "    def draw(self, severity, rng):\n        return {}\n\n"
        "    def replay(self, x_hq, recipe):\n        return 1 - x_hq\n"
    )
    Path("conf/degradation").mkdir(parents=True)
    Path("conf/degradation/negative.yaml").write_text("negative:\n  _target_: elsewhere.Negative\n")
    words = ("degradation=[rain,negative]", "trust=[elsewhere]")
    assert run(photo, "a.png", *words, "entry=negative", "json=r.json") == 0
    assert np.array_equal(read_image("a.png").array, 255 - read_image(photo).array)
    assert run(photo, "b.png", *words, "recipe=r.json") == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    assert run(photo, "c.png", "recipe=r.json") == 1
    assert "'negative', which is not among" in capsys.readouterr().err
