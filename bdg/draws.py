"""Randomness that belongs to a sample: a generator of (seed, stream, step, index), whatever rank or worker asks."""

from collections.abc import Callable
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from bdg.types import Image, Timestep


class Stream(IntEnum):
    """What the numbers are for; two streams of one seed never share a number."""

    TRAIN = 0
    VALIDATE = 1
    PRIOR = 2


def generator(device: torch.device, *entropy: int) -> torch.Generator:
    """A generator that is a function of these non-negative numbers. CPU and CUDA draw different values from it."""
    seed = np.random.SeedSequence(entropy).generate_state(1, np.uint64).item()
    return torch.Generator(device).manual_seed(seed >> 1)  # torch takes 63 bits


def each(index: Tensor, device: torch.device, *entropy: int) -> list[torch.Generator]:
    """One generator for each sample of a batch, by its position in the stream of samples."""
    return [generator(device, *entropy, i) for i in index.tolist()]


def noise_like(x: Image, generators: list[torch.Generator]) -> Image:
    """Unit noise in the shape of x, each image from its own generator."""
    return torch.stack([torch.randn(x.shape[1:], generator=g, dtype=x.dtype, device=x.device) for g in generators])


def noise_drawer(generators: list[torch.Generator]) -> Callable[[Image], Image]:
    """The `draw` of a sampler."""
    return lambda x: noise_like(x, generators)


def times(num_steps: int, generators: list[torch.Generator], device: torch.device) -> Timestep:
    """A time of 0 .. num_steps - 1 for each image, uniform."""
    return torch.cat([torch.randint(num_steps, (1,), generator=g, device=device) for g in generators])
