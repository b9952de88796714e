"""docs/degradations.md, taken at its word: its numbers are those of the code; its commands, YAML and Python run."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from bdg.cli import main
from bdg.commands.compose import build, compose
from datamodules.degradations.base import SEVERITIES
from datamodules.degradations.composition import Composition
from datamodules.images import write_image

DOCUMENT = (Path(__file__).parents[1] / "docs" / "degradations.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(\w+)` \|.*\| (?:\w+ )?((?:[\d.]+ ){5}|(?:[\d.]+ ){4}[\d.]+).*\|$", DOCUMENT, re.MULTILINE)
DRAWN = {
    "rain": "density",
    "haze": "beta",
    "blur": "length_px",
    "noise": "sigma",
    "low_light": "stops",
    "snow": "density",
    "jpeg": "quality",
    "downsample": "factor",
    "poisson": "photons",
}


def test_table_has_every_single_degradation_in_the_order_of_its_label() -> None:
    assert [name for name, _ in ROWS] == list(compose("train", ["degradation=all"]).degradation)


@pytest.mark.parametrize(("name", "numbers"), ROWS)
def test_numbers_of_the_table_are_those_drawn(name: str, numbers: str) -> None:
    (node,) = compose("train", [f"degradation={name}"]).degradation.values()
    for severity, number in zip(SEVERITIES, map(float, numbers.split()), strict=True):
        degrade = build(node, severity=severity)
        drawn = [degrade.draw(severity, np.random.default_rng(i))[DRAWN[name]] for i in range(50)]
        assert np.mean(drawn) == pytest.approx(number, rel=0.04)


def test_commands_of_the_document_run_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i, name in enumerate(("photo.jpg", "photos/1.png", "photos/2.jpg")):
        write_image(tmp_path / name, np.random.default_rng(i).integers(0, 256, (40, 50, 3), np.uint8))
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"(?:^    |`)bdg (degrade [^#`\n]+)", DOCUMENT, re.MULTILINE)
    assert len(commands) == 5

    for command in commands:
        assert main([*shlex.split(command), *(["size=40"] if "preview" in command else [])]) == 0

    assert Path("rainy.png").read_bytes() == Path("again.png").read_bytes()
    for name in ("degradations.png", "storm.png", "testset/snow/lq/2.png", "testset/rain/recipes.jsonl"):
        assert Path(name).is_file()


def test_yaml_of_the_document_composes(tmp_path: Path) -> None:
    for block in re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL):
        path = tmp_path / block.splitlines()[0].removeprefix("# conf/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block)
    (storm,) = build(compose("train", ["degradation=storm"], str(tmp_path)).degradation).values()
    assert isinstance(storm, Composition)
    assert [part.name for part in storm.parts] == ["low_light", "haze", "rain"]
    assert storm.parts[2].severity == (3, 5)  # type: ignore[attr-defined]
    noisier = build(compose("train", ["degradation=noisier"], str(tmp_path)).degradation)
    assert [d.stop_after for d in noisier.values()] == list(range(1, 9))
    assert {tuple(d.noise_range) for d in noisier.values()} == {(1, 50)}


def test_python_of_the_document_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    exec(example, {})
