"""Pictures as text for a page: small WebP files in data URIs, of windows that show what matters."""

import base64
import io
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

QUALITY = 88
FULL_ERROR = 64
"""Levels of 255 that an error map shows as its brightest colour."""

Window = tuple[slice, slice]


def read(path: Path) -> NDArray[np.uint8] | None:
    """h w 3; None if there is no image there."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError, ValueError):
        return None


def webp(source: Path | NDArray[np.uint8], side: int = 320) -> str | None:
    """A data URI; of a file, its middle `side` pixels; None if that is not there."""
    if isinstance(source, Path):
        image = read(source)
        if image is None:
            return None
        top, left = (max(0, (size - side) // 2) for size in image.shape[:2])
        source = image[top : top + side, left : left + side]
    file = io.BytesIO()
    Image.fromarray(source).save(file, "WEBP", quality=QUALITY, method=2)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def error_map(restored: NDArray[np.uint8], clean: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Mean absolute error over channels in colours, from black over red to white at FULL_ERROR levels."""
    error = np.abs(restored.astype(np.int16) - clean).mean(2)
    levels = (error * (255 / FULL_ERROR)).clip(0, 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB).astype(np.uint8)


def window(difference: NDArray[np.float32], side: int) -> Window:
    """The square of `side` pixels with the largest sum of a non-negative map h w; all of a smaller image."""
    height, width = difference.shape
    rows, columns = min(side, height), min(side, width)
    sums = cv2.integral(difference)
    inside = sums[rows:, columns:] - sums[:-rows, columns:] - sums[rows:, :-columns] + sums[:-rows, :-columns]
    top, left = np.unravel_index(int(np.argmax(inside)), inside.shape)
    return slice(int(top), int(top) + rows), slice(int(left), int(left) + columns)
