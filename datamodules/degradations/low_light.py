"""Low light: a shorter exposure in linear light, with the shot and read noise that a sensor then has."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator

from datamodules.degradations.base import GAMMA, Degradation, Picture, Recipe, at, clip, draw_seed, unit_noise

STOPS = (1.0, 1.75, 2.5, 3.25, 4.0)  # a stop halves the light
FULL_WELL = 4000.0  # electrons of a white pixel at full exposure
READ_NOISE = 3.0  # electrons


@dataclass(frozen=True)
class LowLight(Degradation):
    name = "low_light"

    def draw(self, severity: float, rng: Generator) -> Recipe:
        return {"stops": at(severity, STOPS) + rng.uniform(-0.2, 0.2), "seed": draw_seed(rng)}

    def replay(self, x_hq: Picture, recipe: Mapping[str, Any]) -> Picture:
        """Electrons n = light * full well, with variance n (Poisson, taken as Gaussian) + read noise ** 2."""
        electrons = np.float32(FULL_WELL * 2.0 ** -recipe["stops"]) * x_hq ** np.float32(GAMMA)
        deviation = np.sqrt(electrons + np.float32(READ_NOISE**2))
        measured = electrons + deviation * unit_noise(x_hq.shape, recipe["seed"])
        return clip(measured / np.float32(FULL_WELL)) ** np.float32(1 / GAMMA)
