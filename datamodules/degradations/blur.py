"""Motion blur: the light of the scene gathered along the smooth path of a moving camera."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from datamodules.degradations.base import GAMMA, Degradation, Picture, Recipe, at, clip

LENGTH_PX = (4.0, 7.0, 10.0, 14.0, 18.0)  # of the path
TURN_RAD = 1.5  # standard deviation of the turn between its ends


@dataclass(frozen=True)
class MotionBlur(Degradation):
    name = "blur"

    def draw(self, severity: float, rng: Generator) -> Recipe:
        return {
            "length_px": at(severity, LENGTH_PX) * rng.uniform(0.85, 1.15),
            "angle_rad": rng.uniform(0, np.pi),
            "turn_rad": TURN_RAD * rng.standard_normal(),
            "wobble_rad": 0.5 * TURN_RAD * rng.standard_normal(),
        }

    def replay(self, x_hq: Picture, recipe: Mapping[str, Any]) -> Picture:
        """x_lq = (kernel * x_hq ** gamma) ** (1 / gamma): what a sensor sums is light."""
        kernel = path_kernel(recipe["length_px"], recipe["angle_rad"], recipe["turn_rad"], recipe["wobble_rad"])
        light = x_hq ** np.float32(GAMMA)
        blurred = cv2.filter2D(light, -1, kernel, borderType=cv2.BORDER_REFLECT_101)
        return clip(blurred) ** np.float32(1 / GAMMA)


def path_kernel(length_px: float, angle_rad: float, turn_rad: float, wobble_rad: float) -> NDArray[np.float32]:
    """The path of constant speed with direction angle + turn s + wobble sin(2 pi s), as weights that sum to 1.

    Its middle is the centre of mass, so that the blurred image is not shifted.
    """
    s = np.linspace(-0.5, 0.5, 8 * int(np.ceil(length_px)))
    direction = angle_rad + turn_rad * s + wobble_rad * np.sin(2 * np.pi * s)
    path = np.cumsum(np.stack([np.sin(direction), np.cos(direction)]), axis=1) * (length_px / s.size)
    path -= path.mean(axis=1, keepdims=True)
    radius = int(np.ceil(np.abs(path).max())) + 1
    kernel = np.zeros((2 * radius + 1, 2 * radius + 1))
    corner = np.floor(path).astype(int)
    fraction = path - corner
    for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):  # each point shared by the four pixels around it
        weight = np.abs(1 - dy - fraction[0]) * np.abs(1 - dx - fraction[1])
        np.add.at(kernel, (corner[0] + dy + radius, corner[1] + dx + radius), weight)
    return (kernel / s.size).astype(np.float32)
