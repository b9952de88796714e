"""Downsampling: an image made small and large again, which is what a network for super-resolution is given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from PIL import Image

from datamodules.degradations.base import Degradation, Picture, Recipe, at, from_bytes, to_bytes

FACTOR = (2.0, 3.0, 4.0, 6.0, 8.0)

METHODS = {  # Pillow's, which average over what a pixel covers, as MATLAB's imresize does and the benchmarks of the field
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "area": Image.Resampling.BOX,
}


@dataclass(frozen=True)
class Downsample(Degradation):
    """down, up: the method, or several of which one is drawn: bicubic, bilinear, area. Severity 3 is a factor of 4."""

    down: str | Sequence[str] = ("bicubic", "bilinear", "area")
    up: str | Sequence[str] = "bicubic"
    name = "downsample"

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("down", "up"):
            given = getattr(self, option)
            methods = (given,) if isinstance(given, str) else tuple(given)
            if not methods or set(methods) - METHODS.keys():
                raise ValueError(f"{option}={given} of '{self.name}': give some of {', '.join(METHODS)}")
            object.__setattr__(self, option, methods)

    def draw(self, severity: float, rng: Generator) -> Recipe:
        down, up = (str(rng.choice(methods)) for methods in (self.down, self.up))
        return {"factor": at(severity, FACTOR), "down": down, "up": up}

    def replay(self, x_hq: Picture, recipe: Mapping[str, Any]) -> Picture:
        """The small image is rounded to 8 bits, as it would be stored."""
        height, width = x_hq.shape[:2]
        small = (max(1, round(width / recipe["factor"])), max(1, round(height / recipe["factor"])))
        x = Image.fromarray(to_bytes(x_hq)).resize(small, METHODS[recipe["down"]])
        return from_bytes(np.asarray(x.resize((width, height), METHODS[recipe["up"]])))
