"""Every command of README.md runs, in the order in which a reader meets it, on small pictures and the smallest demo."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from network import Straightforward
from omegaconf import OmegaConf

import conf
from bdg.commands.verbs import VERBS
from datamodules.images import read_image, write_image

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    re.sub(r"\s+#.*", "", line) for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines()
]
PARTITION = "gpu*|up|2-00:00:00|4|64|515000|gpu:4|(null)"
EXPERIMENTS = Path(conf.__file__).parent / "experiment"


def small_demo() -> str:
    """The demo under its own name with the sizes of demo_smoke, as a config that the reader's ./conf would hold."""
    demo, smoke = (OmegaConf.load(EXPERIMENTS / f"{name}.yaml") for name in ("demo", "demo_smoke"))
    merged = OmegaConf.merge(demo, smoke, {"project": "demo"})
    merged.defaults = [*demo.defaults, *(choice for choice in smoke.defaults if choice != "demo")]
    return "# @package _global_\n" + OmegaConf.to_yaml(merged)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photographs, pairs and a picture, where the README is followed."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "conf" / "experiment").mkdir(parents=True)
    (folder / "conf" / "experiment" / "demo.yaml").write_text(small_demo())
    photographs = sorted((ROOT / "datamodules" / "photographs").glob("*.jpg"))[:6]
    sinfo = folder / "bin" / "sinfo"  # `bdg cluster init` asks it; tests/slurm has a real one
    sinfo.parent.mkdir()
    sinfo.write_text(f"#!/bin/sh\necho '{PARTITION}'\n")
    sinfo.chmod(0o755)
    (folder / "photos").mkdir()
    for path in photographs:
        shutil.copy(path, folder / "photos")
    shutil.copy(photographs[0], folder / "photo.jpg")
    rng = np.random.default_rng(0)
    for i in range(2):
        for part in ("lq", "gt"):
            write_image(folder / "pairs" / part / f"{i}.png", rng.integers(0, 256, (48, 56, 3), np.uint8))
    shutil.copytree(folder / "pairs" / "gt", folder / "theirs")
    network = Straightforward(8, (1, 1), out_channels=3)  # DiffUIR's
    torch.save({f"model.unet0.{name}": w for name, w in network.state_dict().items()}, folder / "model-300.pt")
    return folder


def test_readme_has_commands_for_every_verb() -> None:
    verbs = {command.split()[1] for command in COMMANDS if command.startswith("bdg ")}

    assert verbs == set(VERBS)


def test_make_commands_are_targets() -> None:
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    for command in COMMANDS:
        if command.startswith("make "):
            assert re.search(rf"^{command} ", listed, re.M), command


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("bdg ")])
def test_command_runs_as_written(command: str, reader: Path) -> None:
    path = os.pathsep.join([str(reader / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    env = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}

    if command.startswith("bdg demo-server"):  # it would not end
        command += " port=0 stop_after_s=1"
    done = subprocess.run(command, shell=True, cwd=reader, env=env, capture_output=True, text=True, timeout=300)

    assert done.returncode == 0, done.stderr


def test_python_example_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "photo.jpg", np.full((64, 48, 3), 99, np.uint8))
    (example,) = re.findall(r"```python\n(.*?)```", README, re.S)

    exec(example, {})

    assert read_image(tmp_path / "restored.png").array.shape == (64, 48, 3)
