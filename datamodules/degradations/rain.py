"""Rain: bright streaks of falling drops, near and far, and the veil of drops too far to be seen one by one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from datamodules.degradations.base import Degradation, Picture, Recipe, at, clip, draw_seed

DENSITY = (25.0, 45.0, 70.0, 100.0, 140.0)  # drops in 100 x 100 pixels, both layers together
LENGTH_PX = (9.0, 11.0, 13.0, 16.0, 19.0)  # of a near streak
VEIL = (0.0, 0.02, 0.04, 0.07, 0.1)
NEAR_SHARE = 0.3  # of the drops; the far ones are half as long and darker
SLANT_DEG = 35.0  # at most, from the vertical


@dataclass(frozen=True)
class Rain(Degradation):
    name = "rain"

    def draw(self, severity: float, rng: Generator) -> Recipe:
        length = at(severity, LENGTH_PX) * rng.uniform(0.8, 1.2)
        return {
            "density": at(severity, DENSITY) * rng.uniform(0.9, 1.1),
            "length_px": length,
            "angle_deg": rng.uniform(-SLANT_DEG, SLANT_DEG),
            "veil": at(severity, VEIL),
            "seed": draw_seed(rng),
        }

    def replay(self, x_hq: Picture, recipe: Mapping[str, Any]) -> Picture:
        """x_lq = 1 - (1 - x_hq) (1 - veil) (1 - near) (1 - far): light added by screen blending, white at most."""
        rng = np.random.default_rng(recipe["seed"])
        shape, density, length = x_hq.shape[:2], recipe["density"], recipe["length_px"]
        near = streaks(shape, NEAR_SHARE * density, length, recipe["angle_deg"], (0.3, 0.7), rng)
        far = streaks(shape, (1 - NEAR_SHARE) * density, length / 2, recipe["angle_deg"], (0.15, 0.4), rng)
        dark = np.float32(1 - recipe["veil"]) * (1 - near) * (1 - far)
        return clip(1 - (1 - x_hq) * dark[..., None])


def streaks(
    shape: tuple[int, ...],
    density: float,
    length_px: float,
    angle_deg: float,
    brightness: tuple[float, float],
    rng: Generator,
) -> NDArray[np.float32]:
    """A layer h w in [0, 1] of parallel streaks at random places, `density` of them in 100 x 100 pixels."""
    kernel = streak(length_px, angle_deg)
    margin = kernel.shape[0] // 2  # streaks also come in over the edge
    height, width = shape[0] + 2 * margin, shape[1] + 2 * margin
    num_drops = round(density * height * width / 1e4)
    drops = np.zeros((height, width), np.float32)
    place = rng.integers(height, size=num_drops), rng.integers(width, size=num_drops)
    drops[place] = rng.uniform(*brightness, num_drops)
    layer = cv2.filter2D(drops, -1, kernel, borderType=cv2.BORDER_CONSTANT)
    return np.clip(layer[margin : margin + shape[0], margin : margin + shape[1]], 0, 1)


def streak(length_px: float, angle_deg: float) -> NDArray[np.float32]:
    """One streak, brightness 1 along its middle, on an odd square; sharp to the subpixel."""
    radius = int(np.ceil(length_px / 2)) + 1
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    angle = np.deg2rad(angle_deg)
    along, across = x * np.sin(angle) + y * np.cos(angle), x * np.cos(angle) - y * np.sin(angle)
    ends = np.clip(length_px / 2 + 0.5 - np.abs(along), 0, 1)
    return (ends * np.exp(-2 * across**2)).astype(np.float32)
