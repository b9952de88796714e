"""JPEG: what libjpeg leaves of an image at one quality, with colour at half resolution as almost all files have it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from datamodules.degradations.base import Degradation, Picture, Recipe, at, from_bytes, to_bytes

QUALITY = (50.0, 40.0, 30.0, 20.0, 10.0)  # libjpeg's, 1 to 100; the field tests at 40, 30, 20 and 10


@dataclass(frozen=True)
class Jpeg(Degradation):
    name = "jpeg"

    def draw(self, severity: float, rng: Generator) -> Recipe:
        return {"quality": round(at(severity, QUALITY))}

    def replay(self, x_hq: Picture, recipe: Mapping[str, Any]) -> Picture:
        return compressed(x_hq, recipe["quality"])


def compressed(x: Picture, quality: int) -> Picture:
    """x, rounded to 8 bits, encoded and decoded again."""
    return from_bytes(decoded(encoded(to_bytes(x), quality)))


def encoded(rgb: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """The bytes of a baseline JPEG file, colour 4:2:0."""
    options = [
        cv2.IMWRITE_JPEG_QUALITY,
        quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    ]
    return cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), options)[1]


def decoded(data: NDArray[np.uint8]) -> NDArray[Any]:
    bgr = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert bgr is not None
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
