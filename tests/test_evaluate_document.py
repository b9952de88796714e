"""docs/evaluate.md, taken at its word: its commands run, on a few small images, metrics with weights drawn at random."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from bdg.cli import main
from bdg.perceptual import ALEXNET, weights_path
from bdg.weights import save_weights
from datamodules.images import write_image

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs" / "evaluate.md").read_text(encoding="utf-8")
SECTIONS = {
    title: [line for block in re.findall(r"```sh\n(.*?)```", text, re.S) for line in block.splitlines()]
    for title, text in re.findall(r"^##? (.+?)\n(.*?)(?=^## |\Z)", DOCUMENT, re.M | re.S)
}
"""Title -> its commands."""
FAST = ["tile=null", "sample_steps=1", "seed=0"]


def metric_weights() -> None:
    lpips, channels = {}, 3
    for place, (out, side, _, _) in enumerate(ALEXNET):
        lpips |= {f"weight_{place}": torch.randn(out, channels, side, side) / 10, f"bias_{place}": torch.zeros(out)}
        lpips[f"head_{place}"] = torch.rand(1, out, 1, 1)
        channels = out
    save_weights(weights_path("lpips"), lpips, {"metric": "lpips"})
    niqe = {"mu": torch.zeros(36), "cov": torch.eye(36), "window": torch.full((7, 7), 1 / 49)}
    save_weights(weights_path("niqe"), {name: tensor.double() for name, tensor in niqe.items()}, {"metric": "niqe"})


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder with what the document speaks of."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BDG_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    sides = ["pairs/rain/lq", "pairs/rain/gt", "pairs/haze/lq", "pairs/haze/gt"]
    sides += [
        f"{method}/{degradation}" for method in ("PromptIR", "DiffUIR", "AirNet") for degradation in ("rain", "haze")
    ]
    sides += [f"Restoration/syn_rain/test/Rain100L/{side}" for side in ("input", "target")]
    for name in (f"{side}/{i}.png" for side in sides for i in (1, 2)):
        write_image(Path(name), rng.integers(0, 256, (32, 40, 3), np.uint8))
    write_image(Path("photos/1.png"), rng.integers(0, 256, (96, 192, 3), np.uint8))
    Path("mine.safetensors").symlink_to(ROOT / "bdg" / "pretrained" / "demo.safetensors")
    metric_weights()


@pytest.mark.parametrize("title", [title for title, commands in SECTIONS.items() if commands])
def test_commands_of_a_section_run_in_their_order(reader: None, title: str) -> None:
    if title == "Tables and values":
        pytest.importorskip("pyarrow")
    for command in SECTIONS[title]:
        _, verb, *words = shlex.split(command)
        more = FAST if verb == "evaluate" else []
        assert main([verb, *words, *more]) == 0, command


def test_every_protocol_and_measure_of_the_package_is_in_the_tables() -> None:
    named = set(re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| (`.+?) \|", DOCUMENT, re.M))))
    files = {path.stem for folder in ("protocol", "metrics") for path in (ROOT / "conf" / folder).glob("*.yaml")}
    assert files - named == {"psnr", "ssim", "ssim_skimage", "ssim_matlab"}
    assert all(name in DOCUMENT for name in ("ssim_matlab", "skimage"))
