"""What the degradations share: a severity, drawn from a range, becomes a recipe, and the recipe becomes an image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Picture = NDArray[np.float32]  # h w 3, RGB with gamma (sRGB) in [0, 1]
Recipe = dict[str, Any]  # plain JSON

SEVERITIES = (1.0, 2.0, 3.0, 4.0, 5.0)
GAMMA = 2.2  # x ** GAMMA is proportional to light


@dataclass(frozen=True)
class Degradation:
    """A callable (x_hq, rng) -> (x_lq, recipe), both images h w 3 in [0, 1]; `severity` is one number or a range.

    A range is drawn from uniformly, once per image. `replay(x_hq, recipe)` gives the same x_lq, bit for bit. A new
    degradation gives `name`, `draw` and `replay`.
    """

    severity: float | Sequence[float] = (1.0, 5.0)
    name: ClassVar[str]

    def __post_init__(self) -> None:
        severity = self.severity
        low, high = (severity, severity) if isinstance(severity, int | float) else severity
        if not SEVERITIES[0] <= low <= high <= SEVERITIES[-1]:
            raise ValueError(
                f"severity={severity} of '{self.name}': give one number from 1 to 5, or two of them in rising order"
            )
        object.__setattr__(self, "severity", (float(low), float(high)))

    def __call__(self, x_hq: Picture, rng: Generator) -> tuple[Picture, Recipe]:
        low, high = self.severity  # type: ignore[misc]  # a pair since __post_init__
        severity = rng.uniform(low, high)
        recipe = {"degradation": self.name, "severity": severity, **self.draw(severity, rng)}
        return self.replay(x_hq, recipe), recipe

    def draw(self, severity: float, rng: Generator) -> Recipe:
        """What is drawn beside the severity: everything that `replay` needs."""
        raise NotImplementedError

    def replay(self, x_hq: Picture, recipe: Mapping[str, Any]) -> Picture:
        """The degraded image, clipped to [0, 1] and not rounded."""
        raise NotImplementedError


def at(severity: float, five: Sequence[float]) -> float:
    """The value at a severity between those at severities 1, 2, 3, 4 and 5."""
    return float(np.interp(severity, SEVERITIES, five))


def draw_seed(rng: Generator) -> int:
    """The seed of a noise field too large for a recipe."""
    return int(rng.integers(2**32))


def unit_noise(shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def clip(x: NDArray[Any]) -> Picture:
    return np.clip(x, 0, 1, out=x)
