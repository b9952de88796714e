"""Pairs for super-resolution: how many times smaller the degraded image is, and how it is brought to the clean one's size."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Size = tuple[int, int]
"""Height and width in pixels."""


def scale_of(hq: Size, lq: Size) -> int | None:
    """How many times smaller `lq` is, 1 or more; None where this is no whole number, the same in height and width."""
    scale = hq[0] // lq[0]
    return scale if (lq[0] * scale, lq[1] * scale) == hq else None


def enlarged(x_lq: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """h w 3 in another size, by Pillow's bicubic: what training, validation and `bdg evaluate` give the network."""
    height, width = size
    return np.asarray(Image.fromarray(x_lq).resize((width, height), Image.Resampling.BICUBIC))
