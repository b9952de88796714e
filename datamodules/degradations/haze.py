"""Haze by atmospheric scattering: light of the scene fades with depth and the light of the air takes its place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from datamodules.degradations.base import Degradation, Picture, Recipe, at, check_five, check_ranges, clip, uniform

NUM_WAVES = 3
PERIOD_PX = (150.0, 800.0)  # fixed in pixels: a crop sees the piece of depth it would see in the whole image


@dataclass(frozen=True)
class Haze(Degradation):
    """scattering: beta, the optical thickness at depth 1, by severity. airlight: range of its grey value; tint: how far, at
    most, each channel is from it. depth: the nearest and the farthest."""

    scattering: Sequence[float] = (0.3, 0.55, 0.8, 1.15, 1.6)
    airlight: Sequence[float] = (0.75, 0.95)
    tint: float = 0.02
    depth: Sequence[float] = (0.4, 1.0)
    name = "haze"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_five(self.name, scattering=self.scattering)
        check_ranges(self.name, 0, 1, airlight=self.airlight, depth=self.depth)

    def draw(self, severity: float, rng: Generator) -> Recipe:
        period = rng.uniform(*PERIOD_PX, NUM_WAVES)
        angle = rng.uniform(0, 2 * np.pi, NUM_WAVES)
        air = uniform(self.airlight, rng) + rng.uniform(-self.tint, self.tint, 3)
        waves = np.stack([np.sin(angle) / period, np.cos(angle) / period, rng.uniform(0, 1, NUM_WAVES)], axis=1)
        beta = at(severity, self.scattering)
        return {"beta": beta, "airlight": air.tolist(), "depth": list(self.depth), "waves": waves.tolist()}

    def replay(self, x_hq: Picture, recipe: Mapping[str, Any]) -> Picture:
        """x_lq = x_hq t + A (1 - t) with t = exp(-beta depth): Koschmieder's law, in display values as RESIDE has it."""
        airlight = np.float32(recipe["airlight"])
        distance = depth(x_hq.shape[:2], recipe["waves"], *recipe["depth"])
        transmission = np.exp(np.float32(-recipe["beta"]) * distance)[..., None]
        return clip(airlight + (x_hq - airlight) * transmission)


def depth(shape: tuple[int, ...], waves: list[list[float]], nearest: float, farthest: float) -> NDArray[np.float32]:
    """A smooth depth h w: the mean of plane waves (cycles per pixel down, across; phase in cycles)."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    # cos(a + b) = cos a cos b - sin a sin b: two small products instead of a cosine per pixel
    down, across, phase = (2 * np.pi * np.array(waves)).T[..., None]
    a, b = down * y.ravel() + phase, across * x.ravel()
    field = np.cos(a).T @ np.cos(b) - np.sin(a).T @ np.sin(b)
    return (nearest + (farthest - nearest) * (0.5 + 0.5 * field / len(waves))).astype(np.float32)
