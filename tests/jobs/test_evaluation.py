"""Which measurements may stand in one table, and what damaged ones do to it."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.evaluation import Evaluation, bases, evaluations, image_name, pictures, read_evaluation

PROTOCOL = "RGB, border 0"


def image(key: str, psnr: float = 20.0, psnr_input: float = 15.0, **more: Any) -> dict[str, Any]:
    return {"key": key, "degradation": "rain", "severity": 3.0, "psnr": psnr, "psnr_input": psnr_input, **more}


def evaluation(*images: dict[str, Any], protocol: str = PROTOCOL) -> Evaluation:
    return Evaluation("test", Path("x"), protocol, {}, images or (image("a"), image("b")))


def write(path: Path, images: list[Any], protocol: Any = None) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"protocol": protocol or {"text": PROTOCOL}, "images": images}))


def test_runs_measured_alike_may_be_compared() -> None:
    assert evaluation().differs(evaluation(image("a", 30.0), image("b"))) == ""


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (evaluation(protocol="Y, border 4"), "the protocols differ: 'RGB, border 0' and 'Y, border 4'"),
        (evaluation(image("a")), "1 images were measured in one of them only, such as b"),
        (
            evaluation(image("a"), image("b", psnr_input=15.5)),
            "the degraded images differ: b with rain had 15.00 dB and 15.50",
        ),
    ],
)
def test_what_differs_is_told(other: Evaluation, why: str) -> None:
    assert why in evaluation().differs(other)


def test_runs_are_grouped_by_what_may_be_compared_the_largest_group_first() -> None:
    y = evaluation(protocol="Y")
    groups = bases({"one": [y], "two": [evaluation(), y], "three": [evaluation()], "four": [y]})
    assert [(group.head.protocol, list(group.of)) for group in groups] == [
        ("Y", ["one", "two", "four"]),
        (PROTOCOL, ["two", "three"]),
    ]
    assert "2 images" in groups[0].text


def test_the_digest_tells_degraded_images_apart() -> None:
    assert evaluation().data == evaluation(image("a", 31.0), image("b")).data
    assert evaluation().data != evaluation(image("a", psnr_input=16.0), image("b")).data


@pytest.mark.parametrize(
    "images",
    [[], ["no row"], [image("a"), {"key": "b"}], [image("a") | {"psnr": "x"}], [image("a") | {"severity": "x"}]],
)
def test_damaged_values_are_no_evaluation(images: list[Any], tmp_path: Path) -> None:
    write(tmp_path / "evaluation" / "test" / "per_image.json", images)
    assert evaluations(tmp_path) == []


def test_a_file_that_is_half_written_is_no_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "per_image.json"
    path.write_text('{"protocol": {"text": "RGB"}, "images": [{"key": "a", ')
    assert read_evaluation("test", path) is None


def test_the_measurement_of_a_pipeline_counts_too(tmp_path: Path) -> None:
    write(tmp_path / "run" / "summary.json", [image("a")])
    assert [found.name for found in evaluations(tmp_path / "run")] == ["pipeline"]


def test_pictures_lie_beside_the_run_and_what_they_were_made_of_beside_the_project() -> None:
    folder = Path("runs/demo/restoration/0123456789ab/evaluation/test-1")
    found = pictures(Evaluation("test-1", folder, PROTOCOL, {}, [image("a")]), ("rain", "a", 3.0))
    assert found["restored"] == folder / "images/rain/a_3.png"
    assert found["clean"] == Path("runs/demo/evaluation/test-1/clean/rain/a_3.png")
    assert image_name("rain", "a", None) == "rain/a.png"
