"""Runs are measured on their own test images, once, and `bdg compare` and `bdg stats` do it where it is missing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from bdg.cli import main
from bdg.commands.compose import compose
from bdg.networks.unet import UNet
from bdg.weights import save_weights
from datamodules.images import write_image
from datamodules.pack import pack
from jobs.evaluation import evaluations

A, B = "a" * 12, "b" * 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that are done, on three small photographs."""
    folder = tmp_path_factory.mktemp("measured")
    random = np.random.default_rng(0)
    for name in range(3):
        write_image(folder / "photos" / f"{name}.png", random.integers(0, 256, (40, 48, 3), dtype=np.uint8))
    pack(folder / "photos", folder / "shards", parts={"test": 1.0})
    words = [
        "stage=restoration",
        "degradation=[noise]",
        "network=smoke",
        f"data.test_shards={folder}/shards/test-*.tar",
    ]
    config = compose("train", [*words, "data.val_severities=[1,5]", "data.num_workers=0", "data.val_crop=32"])
    config.run_folder = ""
    for seed, name in enumerate((A, B)):
        torch.manual_seed(seed)
        run = folder / "runs" / "demo" / "restoration" / name
        network = UNet(dim=8, mults=(1, 2))
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.05)
        about = {
            "stage": "restoration",
            "identity": name,
            "network": {"_target_": "bdg.networks.unet.UNet", "dim": 8, "mults": [1, 2]},
            "diffusion": {"_target_": "bdg.diffusion.Diffusion"},
        }
        save_weights(
            run / "weights" / "ema.safetensors", {f"network.{n}": v for n, v in network.state_dict().items()}, about
        )
        (run / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))
        (run / "STATUS").write_text("done\n")
        (run / "metrics.json").write_text("{}")
    return folder


def test_compare_measures_what_is_missing_and_stats_reads_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(folder)

    assert main(["compare", A, B, "sample_steps=1"]) == 0

    (found,) = evaluations(folder / "runs" / "demo" / "restoration" / A)
    assert len(found.images) == 6  # photographs x severities
    assert found.name.startswith("test-")
    assert len([*(folder / "runs/demo/evaluation" / found.name / "clean").rglob("*.png")]) == 6
    monkeypatch.setattr("bdg.commands.measure.evaluate", None)  # nothing is left to measure
    assert main(["compare", A, B, "sample_steps=1"]) == 0
    assert main(["stats", A, B, "sample_steps=1", "measure=true", "json=stats.json"]) == 0
    written = json.loads(Path("stats.json").read_text())
    assert "6 images" in written["source"]
    assert written["comparisons"][0]["n"] == 3
    assert f"against {A}" in capsys.readouterr().out


def test_another_protocol_is_another_evaluation(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert main(["compare", A, B, "sample_steps=1", "protocol=y", "crop=24"]) == 0
    assert len({each.protocol for each in evaluations(folder / "runs" / "demo" / "restoration" / A)}) == 2


def test_what_restores_nothing_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(folder)
    run = folder / "runs" / "demo" / "generation" / ("c" * 12)
    (run / "weights").mkdir(parents=True)
    (run / "weights" / "ema.safetensors").write_text("")
    (run / "config.yaml").write_text("stage: {condition: none}\ndata: {test_shards: x}\n")
    assert main(["compare", A, "cccc"]) == 1
    assert "restores nothing: name a restoration run" in capsys.readouterr().err
