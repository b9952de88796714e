"""Rain: bright streaks of falling drops, near and far, and the veil of drops too far to be seen one by one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from datamodules.degradations.base import Degradation, Picture, Recipe, at, check_five, check_ranges, clip, draw_seed

NEAR_SHARE = 0.3  # of the drops; the far ones are half as long

BLENDS: dict[str, Callable[[Picture, NDArray[np.float32]], Picture]] = {  # dark: 1 - the light of the rain, h w 1
    "screen": lambda x, dark: 1 - (1 - x) * dark,  # less where it is bright already: white at most
    "add": lambda x, dark: x + (1 - dark),
}


@dataclass(frozen=True)
class Rain(Degradation):
    """By severity: density, drops in 100 x 100 pixels, near and far together; length_px of a near streak; veil.

    near, far: ranges of the brightness of one streak. slant_deg: from the vertical, at most. blend: screen or add.
    """

    density: Sequence[float] = (25.0, 45.0, 70.0, 100.0, 140.0)
    length_px: Sequence[float] = (9.0, 11.0, 13.0, 16.0, 19.0)
    veil: Sequence[float] = (0.0, 0.02, 0.04, 0.07, 0.1)
    near: Sequence[float] = (0.3, 0.7)
    far: Sequence[float] = (0.15, 0.4)
    slant_deg: float = 35.0
    blend: str = "screen"
    name = "rain"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_five(self.name, density=self.density, length_px=self.length_px, veil=self.veil)
        check_ranges(self.name, 0, 1, near=self.near, far=self.far)
        if self.blend not in BLENDS:
            raise ValueError(f"blend={self.blend} of '{self.name}': give one of {', '.join(BLENDS)}")

    def draw(self, severity: float, rng: Generator) -> Recipe:
        length = at(severity, self.length_px) * rng.uniform(0.8, 1.2)
        return {
            "density": at(severity, self.density) * rng.uniform(0.9, 1.1),
            "length_px": length,
            "angle_deg": rng.uniform(-self.slant_deg, self.slant_deg),
            "veil": at(severity, self.veil),
            "near": list(self.near),
            "far": list(self.far),
            "blend": self.blend,
            "seed": draw_seed(rng),
        }

    def replay(self, x_hq: Picture, recipe: Mapping[str, Any]) -> Picture:
        """x_lq = blend(x_hq, (1 - veil) (1 - near) (1 - far)): light of the drops on top of the scene's."""
        rng = np.random.default_rng(recipe["seed"])
        shape, density, length = x_hq.shape[:2], recipe["density"], recipe["length_px"]
        near = streaks(shape, NEAR_SHARE * density, length, recipe["angle_deg"], recipe["near"], rng)
        far = streaks(shape, (1 - NEAR_SHARE) * density, length / 2, recipe["angle_deg"], recipe["far"], rng)
        dark = np.float32(1 - recipe["veil"]) * (1 - near) * (1 - far)
        return clip(BLENDS[recipe["blend"]](x_hq, dark[..., None]))


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
