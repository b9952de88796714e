"""Gaussian noise of one standard deviation, independent per pixel and channel."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator

from datamodules.degradations.base import Degradation, Picture, Recipe, at, clip, draw_seed, unit_noise

SIGMA = (10.0, 20.0, 30.0, 40.0, 50.0)  # grey levels of 255


@dataclass(frozen=True)
class GaussianNoise(Degradation):
    name = "noise"

    def draw(self, severity: float, rng: Generator) -> Recipe:
        return {"sigma": at(severity, SIGMA), "seed": draw_seed(rng)}

    def replay(self, x_hq: Picture, recipe: Mapping[str, Any]) -> Picture:
        """x_lq = x_hq + sigma / 255 * z"""
        return clip(x_hq + np.float32(recipe["sigma"] / 255) * unit_noise(x_hq.shape, recipe["seed"]))
