from collections.abc import Callable
from functools import partial

import pytest
import torch

from bdg import samplers
from bdg.diffusion import Diffusion
from bdg.types import Estimate, Image, Timestep

SAMPLERS = [samplers.ddim, samplers.ddpm, samplers.paper, samplers.diffuir]
BRIDGING, RESTORATION = ["alpha", "beta"], ["alpha", "beta", "delta"]


def pair() -> tuple[Image, Image]:
    """x_hq and x_lq with |residual| <= 1, which DiffUIR's sampler clamps."""
    g = torch.Generator().manual_seed(0)
    x_hq, x_lq = torch.rand(2, 2, 3, 8, 8, dtype=torch.float64, generator=g) - 0.5
    return x_hq, x_lq


def oracle(diffusion: Diffusion, x_hq: Image) -> samplers.Denoise:
    """Knows x_hq and reads the noise off x_t at each step."""

    def denoise(x_t: Image, x_lq: Image, t: Timestep) -> Estimate:
        return diffusion.complete(x_hq, x_t, x_lq, t)

    return denoise


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("curves", [BRIDGING, RESTORATION])
@pytest.mark.parametrize("sample_steps", [1, 3, 10])
def test_sampler_with_the_true_denoiser_returns_x_hq(
    sampler: Callable[..., Image], curves: list[str], sample_steps: int
) -> None:
    (x_hq, x_lq), diffusion = pair(), Diffusion(curves=curves)

    restored = sampler(oracle(diffusion, x_hq), diffusion, x_lq, torch.randn_like(x_lq), sample_steps=sample_steps)

    torch.testing.assert_close(restored, x_hq)


def test_generation_walked_back_with_the_true_denoiser_returns_x_hq() -> None:
    """Generation is never sampled from x_lq, but its reverse steps must undo its forward process."""
    (x_hq, x_lq), diffusion = pair(), Diffusion(curves=["beta"])
    truth = Estimate(x_hq, x_lq - x_hq, torch.randn_like(x_hq))
    x_t = diffusion.q_sample(truth, x_lq, torch.full((2,), 999))

    for t, s in samplers.times(1000, 4):
        estimate = oracle(diffusion, x_hq)(x_t, x_lq, torch.full((2,), t))
        x_t = diffusion.reverse_mean(estimate, x_lq, torch.full((2,), t), torch.full((2,), s), eta=0.0)

    torch.testing.assert_close(x_t, x_hq)


def test_times_fall_from_the_last_step_to_the_clean_image() -> None:
    assert samplers.times(1000, 3) == [(999, 665), (665, 332), (332, -1)]


@pytest.mark.parametrize("sample_steps", [0, 1001])
def test_steps_out_of_range_are_refused_with_the_range(sample_steps: int) -> None:
    with pytest.raises(ValueError, match=r"choose 1 to 1000"):
        samplers.times(1000, sample_steps)


def steps_of(sampler: Callable[..., Image], sample_steps: int, belief: float = 0.9, **options: object) -> list[Image]:
    """The noisy images that a denoiser gets to see which always believes in `belief` x_hq."""
    (x_hq, x_lq), diffusion, seen = pair(), Diffusion(), []

    def believing(x_t: Image, x_lq: Image, t: Timestep) -> Estimate:
        seen.append(x_t)
        return diffusion.complete(belief * x_hq, x_t, x_lq, t)

    noise = torch.randn(x_lq.shape, dtype=x_lq.dtype, generator=torch.Generator().manual_seed(3))
    sampler(believing, diffusion, x_lq, noise, sample_steps=sample_steps, **options)
    return seen


def test_ddim_is_deterministic_and_ddpm_draws() -> None:
    torch.manual_seed(1)
    first, again = steps_of(samplers.ddim, 3), steps_of(samplers.ddim, 3)
    drawn, otherwise = steps_of(samplers.ddpm, 3), steps_of(samplers.ddpm, 3)

    assert torch.equal(first[-1], again[-1])
    assert not torch.equal(drawn[-1], otherwise[-1])


def test_paper_is_ddpm_without_its_noise() -> None:
    silent = steps_of(samplers.ddpm, 5, draw=torch.zeros_like)

    assert all(map(torch.equal, steps_of(samplers.paper, 5), silent))


def test_paper_removes_noise_faster_than_ddim() -> None:
    """Why it is not the default: in many steps its images are less noisy than their time says."""
    x_hq, x_lq = pair()
    diffusion = Diffusion()
    t = torch.full((2,), samplers.times(1000, 50)[45][0])

    paper, ddim = (
        diffusion.complete(x_hq, steps_of(sampler, 50, belief=1.0)[45], x_lq, t).noise.std()
        for sampler in (samplers.paper, samplers.ddim)
    )

    assert paper < 0.5 * ddim


@pytest.mark.parametrize("height", [1, 7, 50])
def test_bands_change_nothing(monkeypatch: pytest.MonkeyPatch, height: int) -> None:
    x, y = torch.rand(2, 2, 3, height, 9)
    seen = []

    def pointwise(x: Image, y: Image) -> Image:
        seen.append(x.shape[-2])
        return x * y - x

    monkeypatch.setattr(samplers, "BAND", 400)
    assert torch.equal(samplers.in_bands(pointwise, x, y), x * y - x)
    assert sum(seen) == height
    assert max(seen) <= 8


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_give_the_same_in_bands(monkeypatch: pytest.MonkeyPatch, sampler: Callable[..., Image]) -> None:
    (x_hq, x_lq), diffusion = pair(), Diffusion()
    draw = partial(torch.full_like, fill_value=0.3)
    walk = partial(sampler, oracle(diffusion, 0.9 * x_hq), diffusion, x_lq, x_hq, draw=draw)
    whole = walk()
    monkeypatch.setattr(samplers, "BAND", 100)
    assert torch.equal(walk(), whole)
