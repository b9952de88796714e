"""Pictures through a restorer: in sRGB and [-1, 1] to the network, back into their own depth, profile and alpha."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bdg.types import Image
from datamodules.images import Picture, check_format, read_image, write_image

Restore = Callable[..., Image]
"""(x_lq, names) -> x_hq: `b 3 h w` in [-1, 1], a Restorer or one with its settings given."""


def to_image(pictures: Sequence[Picture]) -> Image:
    """x_lq of pictures that have one size: sRGB in [-1, 1], b 3 h w."""
    height, width = pictures[0].array.shape[:2]
    x_lq = torch.empty(len(pictures), 3, height, width)
    for x, picture in zip(x_lq, pictures, strict=True):
        x.copy_(torch.from_numpy(picture.to_srgb()).permute(2, 0, 1))
    return x_lq.mul_(2).sub_(1)


def from_image(pictures: Sequence[Picture], x_hq: Image) -> list[Picture]:
    """The pictures in the colour of x_hq; depth, gray, alpha and metadata stay."""
    return [
        picture.from_srgb(np.asarray(x.add(1).div_(2).permute(1, 2, 0).cpu()))
        for picture, x in zip(pictures, x_hq, strict=True)
    ]


def restored_picture(picture: Picture, restore: Restore, name: str, **settings: Any) -> Picture:
    """One picture; with the seed its name fixes the noise."""
    return from_image([picture], restore(to_image([picture]), [name], **settings))[0]


def restore_file(
    restore: Restore, source: str | os.PathLike[str], target: str | os.PathLike[str], quality: int = 95, **settings: Any
) -> Picture:
    """Reads a picture, restores it and writes it in the format of target's suffix; as `bdg restore` does.

    restore: a `bdg.restoration.Restorer`; settings: what it takes beside images and names, such as sample_steps, tile and
    seed. What is at target is replaced.

    Raises what `read_image` and `check_format` do.
    """
    picture = read_image(source)
    check_format(target, picture)
    result = restored_picture(picture, restore, Path(source).name, **settings)
    write_image(target, result, quality)
    return result
