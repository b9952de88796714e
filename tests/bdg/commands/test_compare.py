"""`bdg compare`: what its page is given of runs whose pictures are known, and which runs it refuses to compare."""

import base64
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report import made_up_pictures, write

from bdg.cli import main
from bdg.commands.pictures import error_map, webp, window

A, B, C = "a" * 12, "b" * 12, "c" * 12


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/demo/restoration")
    for name, better in ((A, 0.5), (B, 0.7), (C, 0.3)):
        made_up_pictures(folder / name, better, photographs=8, seed=ord(name[0]))
    return folder


def compare(*words: str) -> int:
    return main(["compare", *words, "evaluation=shown"])


def given(what: str = "facts") -> Any:
    text = re.search(rf'id="{what}">(.*?)</script>', Path("compare.html").read_text(), re.DOTALL)
    assert text
    return json.loads(text[1])


def picture(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_the_page_has_all_images_the_largest_regression_first(runs: Path, capsys: Any) -> None:
    assert compare(A, B, C, "json=tables.json") == 0

    page, images = given(), given("images")
    assert [run["name"] for run in page["runs"]] == [A, B, C]
    assert len(page["rows"]) == 32
    changes = [min(v["psnr"] - row["values"][0]["psnr"] for v in row["values"][1:]) for row in page["rows"]]
    assert changes == sorted(changes)
    first = page["rows"][0]["pictures"]
    assert first["size"] == [128, 96]
    texts = images[
        first["first"] : first["first"] + 8
    ]  # degraded, clean, and of each run the restored one and its error
    assert [picture(text).size for text in texts] == [(128, 96)] * 8
    said = capsys.readouterr().out
    assert f"{B} against {A}: better overall by" in said
    assert f"{C} against {A}: worse overall by" in said
    comparisons = json.loads(Path("tables.json").read_text())["comparisons"]
    assert {(each["setting"], each["part"]) for each in comparisons} >= {(B, "mean"), (C, "rain")}


def test_few_photographs_and_one_seed_are_told(runs: Path, capsys: Any) -> None:
    for name in (A, B):
        shutil.rmtree(runs / name)
        made_up_pictures(runs / name, 0.5 + 0.1 * (name == B), photographs=3)
    assert compare(A, B) == 0
    said = capsys.readouterr().out
    assert "3 photographs and one seed cannot show a difference: p is 0.25 at least" in said
    assert "no difference shown overall (+" in said


def test_images_beyond_the_bounds_are_listed_but_not_shown(runs: Path) -> None:
    assert compare(A, B, "images=5") == 0
    assert [bool(row["pictures"]) for row in given()["rows"]] == [True] * 5 + [False] * 27


def test_the_page_stays_below_its_bound(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bdg.commands.compare.webp", lambda image: "x" * 100_000)
    assert compare(A, B, "size_mb=2") == 0
    assert Path("compare.html").stat().st_size < 2.2e6
    assert "images are not shown" in given()["notes"][-1]


def test_missing_pictures_are_told(runs: Path) -> None:
    (runs / A / "evaluation/shown/images/rain/photo_0_1.png").unlink()
    (runs / B / "evaluation/shown/images/rain/photo_1_1.png").write_text("no picture")
    (runs.parent / "evaluation/shown/clean/haze/photo_0_3.png").unlink()
    assert compare(A, B) == 0
    page, images = given(), given("images")
    assert "1 images are not shown" in page["notes"][-1]
    row = next(
        row for row in page["rows"] if (row["degradation"], row["key"], row["severity"]) == ("rain", "photo_0", 1.0)
    )
    assert images[row["pictures"]["first"] + 2] is None


def test_other_protocols_are_refused(runs: Path, capsys: Any) -> None:
    path = runs / B / "evaluation/shown/per_image.json"
    write(path, json.loads(path.read_text()) | {"protocol": {"text": "Y"}})
    assert compare(A, B) == 1
    assert f"{A} and {B} cannot be compared: the protocols differ" in capsys.readouterr().err


def test_other_degraded_images_are_refused(runs: Path, capsys: Any) -> None:
    path = runs / B / "evaluation/shown/per_image.json"
    found = json.loads(path.read_text())
    found["images"][3]["psnr_input"] += 0.5
    write(path, found)
    assert compare(A, B) == 1
    assert "the degraded images differ: photo_0 with haze had 11.00 dB and 11.50 dB" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([A], "name two runs or more"),
        ([A, "bbbbbbbbbbbd"], "no run 'bbbbbbbbbbbd'"),
        ([A, "aaaa"], "are the same run"),
        ([A, B, "size_mb=0"], "size_mb=0: give 1 or more"),
        ([A, B, "metric=lpips"], "metric=lpips: choose one of psnr, ssim"),
    ],
)
def test_mistakes_are_told(words: list[str], text: str, runs: Path, capsys: Any) -> None:
    assert compare(*words) == 1
    shown = capsys.readouterr().err
    assert text in shown
    assert "Traceback" not in shown


def test_a_name_that_no_run_has_is_told(runs: Path, capsys: Any) -> None:
    assert main(["compare", A, B, "evaluation=mine"]) == 1
    assert "evaluation=mine: runs/demo/restoration/aaaaaaaaaaaa has none of that name: there are shown" in (
        capsys.readouterr().err
    )


def test_a_run_that_is_not_done_is_told(runs: Path, capsys: Any) -> None:
    assert main(["compare", A, B]) == 1
    assert "the run must be done before it is measured" in capsys.readouterr().err


def test_a_window_shows_where_runs_differ() -> None:
    difference = np.zeros((60, 80), np.float32)
    difference[50, 70] = 1
    rows, columns = window(difference, 20)
    assert (50 in range(rows.start, rows.stop), 70 in range(columns.start, columns.stop)) == (True, True)
    assert window(difference, 200) == (slice(0, 60), slice(0, 80))


def test_errors_are_dark_where_there_are_none() -> None:
    clean = np.full((4, 4, 3), 100, np.uint8)
    restored = clean.copy()
    restored[0, 0] = 200
    found = error_map(restored, clean)
    assert found[0, 0].min() > 100
    assert found[1:].max() < 10


def test_a_picture_that_is_gone_is_none(tmp_path: Path) -> None:
    assert webp(tmp_path / "gone.png") is None
