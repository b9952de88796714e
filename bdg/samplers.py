"""Reverse loops as plain functions of a denoiser; they know no network, no stage and no file.

Every sampler takes (denoise, diffusion, x_lq, noise) and returns x_hq. `noise` is the unit z of the start, in the shape of
x_lq; `draw` gives the unit noise of later steps where a sampler adds any. They differ in what one step from t to s does.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch

from bdg.diffusion import Diffusion
from bdg.types import Estimate, Image, Timestep

Denoise = Callable[[Image, Image, Timestep], Estimate]
Draw = Callable[[Image], Image]
"""Unit noise in the shape of an image."""

BAND = 2**22
"""Numbers in a band of an image that is too large for temporaries of its size."""


def times(num_steps: int, sample_steps: int) -> list[tuple[int, int]]:
    """Jumps (t, s) from num_steps - 1 down to -1, the clean image: reversed(int(linspace(-1, num_steps - 1, K + 1)))."""
    if not 1 <= sample_steps <= num_steps:
        raise ValueError(f"sample_steps={sample_steps}: choose 1 to {num_steps}, the number of training steps")
    points = torch.linspace(-1, num_steps - 1, sample_steps + 1).int().tolist()[::-1]
    return list(pairwise(points))


def ddim(
    denoise: Denoise,
    diffusion: Diffusion,
    x_lq: Image,
    noise: Image,
    sample_steps: int = 3,
    draw: Draw = torch.randn_like,
) -> Image:
    """Deterministic: at every step the forward process is applied to the current estimate at the next time."""
    return _walk(denoise, diffusion, x_lq, noise, sample_steps, eta=0.0, draw=torch.zeros_like)


def ddpm(
    denoise: Denoise,
    diffusion: Diffusion,
    x_lq: Image,
    noise: Image,
    sample_steps: int = 3,
    draw: Draw = torch.randn_like,
) -> Image:
    """Ancestral: eta = 1, which for s = t - 1 has exactly the paper's coefficients plus the noise that belongs to them."""
    return _walk(denoise, diffusion, x_lq, noise, sample_steps, eta=1.0, draw=draw)


def paper(
    denoise: Denoise,
    diffusion: Diffusion,
    x_lq: Image,
    noise: Image,
    sample_steps: int = 3,
    draw: Draw = torch.randn_like,
) -> Image:
    """The update as the paper prints it: the mean of `ddpm` without its noise. Removes noise too fast in many steps."""
    return _walk(denoise, diffusion, x_lq, noise, sample_steps, eta=1.0, draw=torch.zeros_like)


def diffuir(
    denoise: Denoise,
    diffusion: Diffusion,
    x_lq: Image,
    noise: Image,
    sample_steps: int = 3,
    draw: Draw = torch.randn_like,
    eta: float = 0.0,
) -> Image:
    """DiffUIR's sampler, for parity with its weights: no noise estimate, start noise 0.1, residual clamped to [-1, 1].

    x_s = x_t - (A_t - A_s) r + (D_t - D_s) x_lq + sigma z: the noise of the start is never removed but by the last step.
    It is DiffUIR's to the digit with `Denoiser(clamp=False)`; a denoiser that clamps x_hq moves the residual before.
    """
    _, _, delta_bar_T = diffusion.at(_batch(x_lq, diffusion.num_steps - 1), x_lq.dtype)
    x_t = in_bands(lambda x_lq, z: (1 - delta_bar_T) * x_lq + 0.1 * z, x_lq, noise)
    for t, s in _jumps(diffusion, x_lq, sample_steps):
        residual = denoise(x_t, x_lq, t).residual.clamp(-1, 1)
        now, then = diffusion.at(t, x_lq.dtype), diffusion.at(s, x_lq.dtype)
        alpha, delta = now.alpha_bar - then.alpha_bar, now.delta_bar - then.delta_bar
        x_t = in_bands(lambda x_t, r, x_lq, a=alpha, d=delta: x_t - (a * r - d * x_lq), x_t, residual, x_lq)
        x_t = _noised(diffusion, x_t, t, s, eta, draw)
    return x_lq - residual


def in_bands(pointwise: Callable[..., Image], *images: Image) -> Image:
    """pointwise(*images), some rows of large images at a time: the same, without temporaries of the images' size."""
    first, height = images[0], images[0].shape[-2]
    rows = BAND * height // first.numel() + 1
    if rows >= height:
        return pointwise(*images)
    result = torch.empty_like(first)
    for top in range(0, height, rows):
        band = slice(top, top + rows)
        result[..., band, :] = pointwise(*(image[..., band, :] for image in images))
    return result


def _walk(
    denoise: Denoise, diffusion: Diffusion, x_lq: Image, noise: Image, sample_steps: int, eta: float, draw: Draw
) -> Image:
    x_t = in_bands(diffusion.start, x_lq, noise)
    for t, s in _jumps(diffusion, x_lq, sample_steps):
        x_t = _mean(diffusion, denoise(x_t, x_lq, t), x_lq, t, s, eta)
        x_t = _noised(diffusion, x_t, t, s, eta, draw)
    return x_t  # at s = -1 all coefficients are 0, so this is the x_hq of the last estimate


def _mean(diffusion: Diffusion, estimate: Estimate, x_lq: Image, t: Timestep, s: Timestep, eta: float) -> Image:
    def mean(x_hq: Image, residual: Image, noise: Image, x_lq: Image) -> Image:
        return diffusion.reverse_mean(Estimate(x_hq, residual, noise), x_lq, t, s, eta)

    return in_bands(mean, estimate.x_hq, estimate.residual, estimate.noise, x_lq)


def _noised(diffusion: Diffusion, mean: Image, t: Timestep, s: Timestep, eta: float, draw: Draw) -> Image:
    if eta == 0:
        return mean
    std = diffusion.reverse_std(t, s, eta, mean.dtype)
    return in_bands(lambda mean, z: mean + std * z, mean, draw(mean))


def _jumps(diffusion: Diffusion, x: Image, sample_steps: int) -> Iterator[tuple[Timestep, Timestep]]:
    for t, s in times(diffusion.num_steps, sample_steps):
        yield _batch(x, t), _batch(x, s)


def _batch(x: Image, t: int) -> Timestep:
    return torch.full((x.shape[0],), t, device=x.device)
