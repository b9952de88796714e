"""docs/extend.md, taken at its word: its files are written, its commands are run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

DOCUMENT = Path(__file__).parents[1] / "docs" / "extend.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the files of the document; the first line of a block names its file."""
    folder = tmp_path_factory.mktemp("outside")
    for block in blocks("python") + blocks("yaml"):
        name, text = block.split("\n", 1)
        path = folder / name.removeprefix("# ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def shell(command: str, folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": ".", "WANDB_MODE": "disabled"}
    done = subprocess.run(
        ["bash", "-euc", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """The folder after the commands of the document."""
    (commands,) = blocks("sh")
    shell(commands, folder)
    return folder


def test_commands_of_the_document_train_the_parts_of_the_document(trained: Path) -> None:
    weights = {path.parents[2].name: path for path in trained.glob("runs/*/*/*/weights/ema.safetensors")}
    assert set(weights) == {"generation", "bridging", "polishing"}


def test_without_leave_the_parts_are_refused(trained: Path) -> None:
    with pytest.raises(AssertionError, match=r"code of the package 'mine'.*trust=\[mine\]"):
        shell("bdg train stage=polishing experiment=mine inherit.from=none trust=[] seed=1", trained)


def test_their_configs_are_among_the_choices(folder: Path) -> None:
    choices, _, _ = shell("bdg train --help", folder).partition("\nKeys, ")
    rows = {line.split()[0]: line.split()[1:] for line in choices.splitlines() if line}
    assert {"network": "plain", "degradation": "mosaic"}.items() <= {
        group: choice for group in rows for choice in rows[group] if choice in ("plain", "mosaic")
    }.items()
