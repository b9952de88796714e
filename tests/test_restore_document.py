"""docs/restore.md, taken at its word: its commands run in their order, and so does its Python."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from bdg.cli import main
from bdg.commands.explain import explainer_file
from bdg.restoration import PACKAGED
from datamodules.images import read_image, write_image

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs" / "restore.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    bdg (restore [^#\n]+)", DOCUMENT, re.MULTILINE)


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the pictures that the document speaks of."""
    for i, name in enumerate(("photo.jpg", "photos/1.png", "photos/deep/2.jpg")):
        write_image(tmp_path / name, np.random.default_rng(i).integers(0, 256, (24, 32, 3), np.uint8))
    shutil.copytree(ROOT / "bdg" / "pretrained", tmp_path / "bdg" / "pretrained")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_commands_of_the_document_run_in_their_order(reader: Path) -> None:
    assert len(COMMANDS) == 10
    for command in COMMANDS:
        if "explain" not in command or explainer_file(PACKAGED).is_file():
            assert main([*shlex.split(command)]) == 0
    for name in ("clear/deep/2.jpg", "small/1.jpg", "tiled.png", "soft.png", "clear.html", "rows.png"):
        assert (reader / name).is_file(), name


def test_python_of_the_document_runs(reader: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    exec(example, {})
    assert read_image("python.png").array.shape == (24, 32, 3)


def test_keys_of_the_document_are_those_of_the_verb() -> None:
    keys = (ROOT / "conf" / "restore.yaml").read_text() + (ROOT / "conf" / "inference.yaml").read_text()
    table = re.findall(r"^\| (`\w.+?`) \| ", DOCUMENT, re.MULTILINE)
    named = [name for row in table for name in re.findall(r"`(\w+)", row) if name != "device"]
    assert len(named) > 6
    for name in named:
        assert re.search(rf"\b{name}: ", keys), name
