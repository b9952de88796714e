"""Poisson noise: a pixel counts photons, so that its variance grows with its brightness."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator

from datamodules.degradations.base import Degradation, Picture, Recipe, at, clip, draw_seed

PHOTONS = (320.0, 160.0, 80.0, 40.0, 20.0)  # of a white pixel; mid-grey then has the sigma 10, 14, 20, 29, 40 of 255


@dataclass(frozen=True)
class PoissonNoise(Degradation):
    name = "poisson"

    def draw(self, severity: float, rng: Generator) -> Recipe:
        return {"photons": at(severity, PHOTONS), "seed": draw_seed(rng)}

    def replay(self, x_hq: Picture, recipe: Mapping[str, Any]) -> Picture:
        """x_lq = Poisson(photons x_hq) / photons, in display values as the field has it (`LowLight` counts linear light)."""
        counts = np.random.default_rng(recipe["seed"]).poisson(recipe["photons"] * x_hq)
        return clip(counts.astype(np.float32) / np.float32(recipe["photons"]))
