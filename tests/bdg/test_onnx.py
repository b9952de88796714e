"""The sampler in numpy restores what torch restores, and the exported graph is the network at any height and width."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bdg import samplers
from bdg.denoiser import Denoiser
from bdg.diffusion import Diffusion
from bdg.networks.unet import UNet
from bdg.onnx import export_onnx, schedule
from bdg.schedule import Schedule

onnxruntime = pytest.importorskip("onnxruntime")
ATOL = 1e-4
SIZES = [(32, 48), (33, 50), (3, 70)]
"""One of them in multiples of 16, one not, one too narrow to be reflected."""


def network(mults: tuple[int, ...] = (1, 2)) -> UNet:
    torch.manual_seed(0)
    made = UNet(8, mults, heads=1)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.1)
    return made.fold()


def denoiser(estimate: str = "both", clamp: bool = True, mults: tuple[int, ...] = (1, 2), **diffusion: Any) -> Denoiser:
    return Denoiser(network(mults), Diffusion(Schedule(20), estimate=estimate, **diffusion), clamp=clamp)


class Session:
    """Stands in for onnxruntime: the network in torch, at sizes that need no padding."""

    core: nn.Module

    def __init__(self, path: str, providers: list[str]) -> None:
        pass

    @torch.no_grad()
    def run(self, _: None, given: dict[str, np.ndarray]) -> list[np.ndarray]:
        assert {array.dtype for array in given.values()} == {np.dtype("float32")}
        assert all(side % 4 == 0 for side in given["x_t"].shape[2:])
        return [self.core(*map(torch.from_numpy, given.values()))[0].numpy()]


def images(h: int, w: int, b: int = 1) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.rand(b, 3, h, w, generator=g) * 2 - 1, torch.randn(b, 3, h, w, generator=g)


@torch.no_grad()
def in_torch(denoise: Denoiser, name: str, steps: int, x_lq: Tensor, noise: Tensor) -> Tensor:
    walk = getattr(samplers, name)
    return walk(denoise, denoise.diffusion, x_lq, noise, sample_steps=steps).clamp(-1, 1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("ddim", {}),
        ("ddim", {"estimate": "residual", "time": "index"}),
        ("ddim", {"clamp": False}),
        ("ddim", {"curves": ["alpha", "beta"]}),
        ("diffuir", {"estimate": "residual", "time": "alpha", "clamp": False}),
        ("diffuir", {}),
    ],
)
def test_numpy_walks_as_torch_does(
    name: str, given: dict[str, Any], size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bdg.onnx_restore import restore

    denoise = denoiser(**given)
    (tmp_path / "schedule.json").write_text(json.dumps(schedule(denoise, {"sampler": name, "sample_steps": 3})))
    monkeypatch.setattr(Session, "core", denoise.network, raising=False)
    monkeypatch.setattr("bdg.onnx_restore.onnxruntime.InferenceSession", Session)
    x_lq, noise = images(*size, b=2)

    restored = restore(x_lq.numpy(), noise.numpy(), tmp_path)

    torch.testing.assert_close(torch.from_numpy(restored), in_torch(denoise, name, 3, x_lq, noise), atol=ATOL, rtol=0)


@pytest.mark.parametrize(
    "settings", [{"sampler": "ddpm", "sample_steps": 2}, {"sampler": "diffuir", "eta": 1.0, "sample_steps": 2}]
)
def test_a_sampler_that_draws_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"has no sampler .*: give sampler=ddim or sampler=diffuir"):
        schedule(denoiser(), settings)


def test_the_sampler_is_as_short_as_promised() -> None:
    import bdg.onnx_restore as module

    lines = [line for line in Path(module.__file__).read_text().splitlines() if line.strip()]
    assert len(lines) <= 42


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without the checks of shapes and types: what is traced has symbols in place of numbers."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.slow
@pytest.mark.parametrize("condition", ["x_lq", "none"])
def test_exported_network_restores_as_torch_does(condition: str, tmp_path: Path, unchecked: None) -> None:
    from bdg.onnx_restore import restore

    denoise = denoiser(mults=(1,))
    denoise = Denoiser(denoise.network, denoise.diffusion, condition)
    found = export_onnx(denoise, tmp_path / "onnx", {"sampler": "ddim", "sample_steps": 2})

    assert found <= ATOL
    assert (tmp_path / "onnx" / "restore.py").is_file()
    for size in SIZES:
        x_lq, noise = images(*size, b=2)
        restored = torch.from_numpy(restore(x_lq.numpy(), noise.numpy(), tmp_path / "onnx"))
        torch.testing.assert_close(restored, in_torch(denoise, "ddim", 2, x_lq, noise), atol=ATOL, rtol=0)


def test_a_graph_that_differs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bdg.onnx.write_graph", lambda *_: None)
    monkeypatch.setattr("bdg.onnx.difference", lambda *_: 0.1)
    with pytest.raises(ValueError, match=r"restores other pixels than torch, by 0\.1"):
        export_onnx(denoiser(), tmp_path / "onnx", {"sampler": "ddim", "sample_steps": 1})
