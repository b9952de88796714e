"""Snow: flakes from far to near, all of one kind, and the veil of those too far to be seen one by one.

How a flake looks follows from its distance alone: size, path and circle of confusion grow as it comes nearer (a lens focused
on the scene), and what is spread over more pixels lets more of the scene through. As in Snow100K (Liu et al. 2018,
arXiv 1708.04512) there are tiny, medium and large flakes, translucent and opaque ones, and x_lq = A z + x_hq (1 - z).
"""

from collections.abc import Iterator, Mapping, Sequence
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
    uniform,
)
from datamodules.degradations.blur import path_kernel

SHARPEST_PX = 0.6  # radius of the farthest flakes, which are in focus
NUM_OCTAVES = 5  # of distance: in each the flakes are twice as large as in the one before
FEWER = 6.0  # times, in each; equal density in space would be 8, which leaves large ones too rare for Snow100K
SHAPES = 3  # different flakes in each octave
THICKEST, FAINTEST = 0.98, 0.002  # what a flake hides of what is behind it is never more, and not counted below


@dataclass(frozen=True)
class Snow(Degradation):
    """By severity: density, flakes in 100 x 100 pixels; veil. airlight: range of the grey value of flakes and veil."""

    density: Sequence[float] = (50.0, 100.0, 180.0, 270.0, 390.0)
    veil: Sequence[float] = (0.0, 0.02, 0.04, 0.07, 0.1)
    airlight: Sequence[float] = (0.85, 1.0)
    name = "snow"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_five(self.name, density=self.density, veil=self.veil)
        check_ranges(self.name, 0, 1, airlight=self.airlight)

    def draw(self, severity: float, rng: Generator) -> Recipe:
        return {
            "density": at(severity, self.density) * rng.uniform(0.9, 1.1),
            "veil": at(severity, self.veil),
            "airlight": uniform(self.airlight, rng),
            "angle_rad": rng.uniform(np.pi / 6, 5 * np.pi / 6),  # pi / 2: down
            "motion": rng.uniform(0.2, 2.0),
            "defocus": rng.uniform(0.3, 2.0),
            "seed": draw_seed(rng),
        }

    def replay(self, x_hq: Picture, recipe: Mapping[str, Any]) -> Picture:
        """x_lq = A + (x_hq - A) (1 - veil) exp(-tau), tau: the optical depth of all flakes in front of a pixel."""
        rng = np.random.default_rng(recipe["seed"])
        looks = recipe["angle_rad"], recipe["motion"], recipe["defocus"]
        tau = optical_depth(x_hq.shape[:2], recipe["density"], looks, rng)
        airlight = np.float32(recipe["airlight"])
        seen = np.float32(1 - recipe["veil"]) * np.exp(-tau)
        return clip(airlight + (x_hq - airlight) * seen[..., None])


def optical_depth(
    shape: tuple[int, ...], density: float, looks: tuple[float, float, float], rng: Generator
) -> NDArray[np.float32]:
    """Of all flakes, h w; `density` of them in 100 x 100 pixels, `looks` as `flakes` takes them."""
    stamps = [(octave, stamp) for _ in range(SHAPES) for octave, stamp in enumerate(flakes(*looks, rng))]
    margin = max(stamp.shape[0] for _, stamp in stamps)
    field = np.zeros((shape[0] + 2 * margin, shape[1] + 2 * margin), np.float32)
    farthest = density / SHAPES / sum(FEWER**-octave for octave in range(NUM_OCTAVES))
    for octave, stamp in stamps:
        first = margin + 1 - stamp.shape[0]  # where a flake reaches in over the edge with its last row
        height, width = shape[0] + margin - first, shape[1] + margin - first
        number = int(farthest * FEWER**-octave * height * width / 1e4 + rng.random())
        corner = (first + rng.integers(height, size=number)) * field.shape[1] + first + rng.integers(width, size=number)
        thickness = rng.uniform(0.5, 1, number).astype(np.float32)
        y, x = np.nonzero(stamp)
        places = corner[:, None] + (y * field.shape[1] + x)
        np.add.at(field.reshape(-1), places.reshape(-1), (thickness[:, None] * stamp[y, x]).reshape(-1))
    return field[margin:-margin, margin:-margin]


def flakes(angle_rad: float, motion: float, defocus: float, rng: Generator) -> Iterator[NDArray[np.float32]]:
    """One flake seen in each octave, from far to near: its optical depth, on odd squares.

    It falls towards `angle_rad` by `motion` of its diameters while the shutter is open, and is out of focus by `defocus` of
    its radius where it is near. What it hides amounts to its area, however far it is spread.
    """
    largest = SHARPEST_PX * 2 ** (NUM_OCTAVES - 1 + rng.random())
    length = max(0.1, 2 * largest * motion * rng.uniform(0.7, 1.3))
    path = path_kernel(length, angle_rad + 0.1 * rng.standard_normal(), 0.3 * rng.standard_normal(), 0.0)
    dented = disc(largest, dents=rng.uniform(-0.12, 0.12, (2, 3)))
    moved = cv2.filter2D(_padded(dented, path.shape[0] - 1), -1, path, borderType=cv2.BORDER_CONSTANT)
    for octave in range(NUM_OCTAVES):
        smaller = 2 ** (NUM_OCTAVES - 1 - octave)
        size = 2 * int(np.ceil((moved.shape[0] / smaller - 1) / 2)) + 1
        whole = _padded(moved, size * smaller - moved.shape[0])
        sharp = cv2.resize(whole, (size, size), interpolation=cv2.INTER_AREA)
        radius = largest / smaller
        blur = disc(max(0, defocus * (radius - SHARPEST_PX)))
        spread = cv2.filter2D(_padded(sharp, blur.shape[0] - 1), -1, blur, borderType=cv2.BORDER_CONSTANT)
        hidden = spread * np.float32(np.pi * radius**2 / spread.sum())
        yield np.where(hidden > FAINTEST, -np.log1p(-np.minimum(hidden, THICKEST)), np.float32(0))


def disc(radius: float, dents: NDArray[np.float64] | None = None) -> NDArray[np.float32]:
    """1 inside and 0 outside, on an odd square; `dents`: cosines and sines of 2, 3, ... waves around its edge."""
    half = int(radius + 1) if dents is None else int(1.4 * radius + 1)
    axis = np.arange(-half, half + 1, dtype=np.float32)
    edge: Any = 1.0
    if dents is not None:
        turns = np.arange(2, 2 + dents.shape[1])[:, None, None] * np.arctan2(axis[:, None], axis)
        edge = 1 + np.tensordot(dents[0], np.cos(turns), 1) + np.tensordot(dents[1], np.sin(turns), 1)
    return np.clip(radius * edge + 0.5 - np.hypot(axis[:, None], axis), 0, 1).astype(np.float32)


def _padded(x: NDArray[Any], more: int) -> NDArray[Any]:
    """With zeros around it, so that it is larger by so many pixels."""
    before, after = more // 2, more - more // 2
    return cv2.copyMakeBorder(x, before, after, before, after, cv2.BORDER_CONSTANT, value=0)
