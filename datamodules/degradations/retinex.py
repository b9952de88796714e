"""Low light as CDD-11 makes it: reflectance kept, illumination dimmed by a power, noise on top.

Source: OneRestore (ECCV 2024, arXiv 2407.04621) and its published script of synthesis; powers from 2 to 3, noise of 0.03
to 0.08 of white. Its illumination maps come from LIME and are not published but for one example; ours has a correlation of
0.97 with that one. **open**
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from datamodules.degradations.base import (
    Degradation,
    Picture,
    Recipe,
    at,
    check_five,
    check_ranges,
    clip,
    draw_seed,
    luma,
    uniform,
    unit_noise,
)

WINDOW_PX = 61  # within which illumination changes only where the image has an edge
FLATNESS = 0.1  # variance below which a place counts as flat


@dataclass(frozen=True)
class RetinexDarkening(Degradation):
    """power: of the illumination, by severity. sigma: range of the noise in grey levels of 255, whatever the severity."""

    power: Sequence[float] = (2.0, 2.25, 2.5, 2.75, 3.0)
    sigma: Sequence[float] = (7.65, 20.4)
    name = "low"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_five(self.name, power=self.power)
        check_ranges(self.name, 0, 255, sigma=self.sigma)

    def draw(self, severity: float, rng: Generator) -> Recipe:
        return {"power": at(severity, self.power), "sigma": uniform(self.sigma, rng), "seed": draw_seed(rng)}

    def replay(self, x_hq: Picture, recipe: Mapping[str, Any]) -> Picture:
        """x_lq = (x_hq / L) L ** power + sigma / 255 z"""
        dimmed = illumination(x_hq)[..., None] ** np.float32(recipe["power"] - 1)
        return clip(x_hq * dimmed + np.float32(recipe["sigma"] / 255) * unit_noise(x_hq.shape, recipe["seed"]))


def illumination(x: Picture) -> NDArray[np.float32]:
    """L, h w in [0, 1]: the brightest channel of each pixel, smoothed by a guided filter (He et al. 2010), guide: luma."""

    def mean(a: NDArray[np.float32]) -> NDArray[Any]:
        return cv2.blur(a, (WINDOW_PX, WINDOW_PX), borderType=cv2.BORDER_REFLECT)

    guide, brightest = luma(x), x.max(axis=2)
    guide_mean, brightest_mean = mean(guide), mean(brightest)
    variance = mean(guide * guide) - guide_mean**2
    slope = (mean(guide * brightest) - guide_mean * brightest_mean) / (variance + np.float32(FLATNESS))
    return clip(mean(slope) * guide + mean(brightest_mean - slope * guide_mean))
