"""docs/weights.md, taken at its word: its commands run in their order, on small pictures; what trains is composed."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from network import Straightforward

import bdg.commands.export as export
from bdg.cli import main
from bdg.commands.chain import parent_of
from bdg.commands.compose import compose
from bdg.commands.request import Request
from bdg.networks.unet import UNet
from bdg.restoration import Restorer
from bdg.weights import save_weights
from datamodules.images import read_image, write_image

DOCUMENT = (Path(__file__).parents[1] / "docs" / "weights.md").read_text(encoding="utf-8")
COMMANDS = [
    re.sub(r"\s+#.*", "", line)
    for block in re.findall(r"```sh\n(.*?)```", DOCUMENT, re.S)
    for line in block.splitlines()
]
SMALL = {"export": ["side=32", "degradation=noise"], "evaluate": ["sample_steps=1"], "restore": ["sample_steps=1"]}
"""What makes a verb faster."""


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a photograph, pairs, weights and a checkpoint of DiffUIR's trainer."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    for name in ("photo.jpg", *(f"pairs/{part}/{i}.png" for part in ("lq", "gt") for i in range(2))):
        write_image(tmp_path / name, rng.integers(0, 256, (40, 48, 3), np.uint8))
    about = {
        "stage": "restoration",
        "identity": "0123456789ab",
        "network": {"_target_": "bdg.networks.unet.UNet", "dim": 8, "mults": [1], "heads": 1},
        "diffusion": {"_target_": "bdg.diffusion.Diffusion"},
    }
    tensors = UNet(8, (1,), heads=1).state_dict()
    save_weights(tmp_path / "mine.safetensors", {f"network.{name}": w for name, w in tensors.items()}, about)
    theirs = {f"model.unet0.{name}": w for name, w in Straightforward(8, (1, 1), out_channels=3).state_dict().items()}
    torch.save({"step": 1, "model": theirs}, tmp_path / "model-300.pt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def follow(command: str) -> None:
    program, *words = shlex.split(command)
    if program == "python":
        assert (Path.cwd() / words[0]).is_file()
        return
    verb, *rest = words
    if verb == "train":
        config = compose(verb, rest)
        assert parent_of(config, Request(verb, tuple(rest))) is not None
        return
    assert main([verb, *rest, *SMALL.get(verb, [])]) == 0, command


def graph(*_: object) -> float:
    """In place of the exporter, which takes long."""
    from bdg.onnx import SAMPLER

    folder = next(Path.cwd().glob(".mymodel.*")) / export.ONNX
    folder.mkdir()
    (folder / SAMPLER).write_text("")
    return 0.0


def test_commands_of_the_document_run_in_their_order(reader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(export, "need_onnx", lambda: None)
    monkeypatch.setattr(export, "export_onnx", graph)
    assert len(COMMANDS) == 11

    for command in COMMANDS:
        follow(command)

    assert read_image("restored.png").array.shape == (40, 48, 3)
    assert Restorer.load("mymodel/model.safetensors").about["identity"] == "0123456789ab"


@pytest.mark.slow
def test_onnx_of_the_document_restores_a_photograph(reader: Path) -> None:
    """In processes of its own: what is traced has symbols in place of numbers, which the checks of our types do not know."""
    pytest.importorskip("onnxscript")
    first, second = (shlex.split(command)[1:] for command in COMMANDS[-2:])
    for words in (["-m", "bdg", *first, *SMALL["export"]], second):
        subprocess.run([sys.executable, *words], cwd=reader, check=True)
    assert read_image("restored.png").array.shape == (40, 48, 3)


def test_table_of_the_document_has_what_an_export_may_hold() -> None:
    assert set(re.findall(r"^\| `([\w.]+)/?` \|", DOCUMENT, re.M)) == set(export.PARTS)
