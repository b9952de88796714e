"""What the degradations share: a severity, drawn from a range, becomes a recipe, and the recipe becomes an image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Picture = NDArray[np.float32]  # h w 3, RGB with gamma (sRGB) in [0, 1]
Recipe = dict[str, Any]  # plain JSON

SEVERITIES = (1.0, 2.0, 3.0, 4.0, 5.0)
GAMMA = 2.2  # x ** GAMMA is proportional to light


@runtime_checkable
class Replayable(Protocol):
    """A degradation that can be repeated: `replay(x_hq, recipe)` gives the x_lq of the call, bit for bit.

    Recipes are plain JSON and name their degradation. `replay` takes what was drawn from the recipe alone, never from a
    field that a config may set: then every instance of a class replays the recipes of all others.
    """

    @property
    def name(self) -> str: ...

    def __call__(self, x_hq: Picture, rng: Generator) -> tuple[Picture, Recipe]: ...

    def replay(self, x_hq: Picture, recipe: Mapping[str, Any]) -> Picture: ...


@dataclass(frozen=True)
class Degradation:
    """A callable (x_hq, rng) -> (x_lq, recipe), both images h w 3 in [0, 1]; `severity` is one number or a range.

    A range is drawn from uniformly, once per image. `replay(x_hq, recipe)` gives the same x_lq, bit for bit. A new
    degradation gives `name`, `draw` and `replay`. One that has no severity implements `Replayable` instead.
    """

    severity: float | Sequence[float] = (1.0, 5.0)
    name: ClassVar[str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "severity", severity_range(self.severity, self.name))

    def __call__(self, x_hq: Picture, rng: Generator) -> tuple[Picture, Recipe]:
        severity = uniform(self.severity, rng)  # type: ignore[arg-type]  # a pair since __post_init__
        recipe = {"degradation": self.name, "severity": severity, **self.draw(severity, rng)}
        return self.replay(x_hq, recipe), recipe

    def draw(self, severity: float, rng: Generator) -> Recipe:
        """What is drawn beside the severity: everything that `replay` needs."""
        raise NotImplementedError

    def replay(self, x_hq: Picture, recipe: Mapping[str, Any]) -> Picture:
        """The degraded image, clipped to [0, 1] and not rounded."""
        raise NotImplementedError


def severity_range(severity: float | Sequence[float], name: str) -> tuple[float, float]:
    """One number, or two in rising order, as a range within [1, 5]; ValueError for anything else."""
    values = [severity, severity] if isinstance(severity, int | float) else list(severity)
    if len(values) != 2 or not SEVERITIES[0] <= values[0] <= values[1] <= SEVERITIES[-1]:
        raise ValueError(
            f"severity={severity} of '{name}': give one number from 1 to 5, or two of them in rising order"
        )
    return float(values[0]), float(values[1])


def check_five(name: str, **options: Sequence[float]) -> None:
    """Raises ValueError for an option that does not have one value for each severity."""
    for option, values in options.items():
        if np.shape(values) != (len(SEVERITIES),):
            raise ValueError(f"{option}={values} of '{name}': give five values, for severities 1, 2, 3, 4 and 5")


def check_ranges(name: str, lowest: float, highest: float, **options: Sequence[float]) -> None:
    """Raises ValueError for an option that is not two numbers in rising order within [lowest, highest]."""
    for option, values in options.items():
        if np.shape(values) != (2,) or not lowest <= values[0] <= values[1] <= highest:
            raise ValueError(
                f"{option}={values} of '{name}': give two numbers from {lowest:g} to {highest:g}, in rising order"
            )


def at(severity: float, five: Sequence[float]) -> float:
    """The value at a severity between those at severities 1, 2, 3, 4 and 5."""
    return float(np.interp(severity, SEVERITIES, five))


def uniform(within: Sequence[float], rng: Generator) -> float:
    low, high = within
    return float(rng.uniform(low, high))


def draw_seed(rng: Generator) -> int:
    """The seed of a noise field too large for a recipe."""
    return int(rng.integers(2**32))


def unit_noise(shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def clip(x: NDArray[Any]) -> Picture:
    return np.clip(x, 0, 1, out=x)


def luma(x: Picture) -> NDArray[Any]:
    """h w in [0, 1]: the grey value of BT.601."""
    return cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)


def to_bytes(x: Picture) -> NDArray[np.uint8]:
    """As an 8-bit file holds it: clipped and rounded."""
    return np.rint(np.clip(x, 0, 1) * np.float32(255)).astype(np.uint8)


def from_bytes(x: NDArray[np.uint8]) -> Picture:
    return x.astype(np.float32) / np.float32(255)
