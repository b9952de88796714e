"""Colour profiles honoured: what a picture's numbers are in sRGB, and back; knows no files and no networks.

Most profiles are three curves and a matrix (ICC.1:2022, 8.3.3: Display P3, Adobe RGB, ProPhoto RGB, cameras; gray ones are one
curve): those are computed in floats, so that 16 bits stay 16 and colours outside of sRGB become numbers outside of [0, 1].
Profiles with tables of colours go through littleCMS in 8 bits, which ends at the border of sRGB.
"""

import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

Numbers = NDArray[np.float32]
"""h w c, c = 1 or 3; 0 is black and 1 white."""

SAME = 0.5 / 255
"""Profiles that differ less from sRGB are taken for it."""


class Profile(Protocol):
    """Numbers of a picture <-> numbers of the same colours in sRGB."""

    def to_srgb(self, own: Numbers) -> Numbers:
        """own: in [0, 1]. The result is outside where sRGB lacks the colour, as far as the profile's kind tells."""

    def from_srgb(self, srgb: Numbers) -> Numbers:
        """In [0, 1]: the nearest that the picture can hold."""


@lru_cache(maxsize=16)
def read_profile(icc: bytes, channels: int) -> Profile | None:
    """The profile of pictures with 1 (gray) or 3 colour channels; None if it is sRGB, which needs no conversion.

    Raises ValueError if it cannot be read, or is one of other channels.
    """
    try:
        found = _shaped(icc, channels) or _tabled(icc, channels)
    except (struct.error, ArithmeticError, ImageCms.PyCMSError, OSError, np.linalg.LinAlgError) as error:
        raise ValueError(f"the colour profile cannot be read ({error})") from None
    levels = np.linspace(0, 1, 6, dtype=np.float32)
    grid = np.stack(np.meshgrid(*[levels] * channels, indexing="ij"), -1).reshape(1, -1, channels)
    return None if np.abs(found.to_srgb(grid) - grid).max() < SAME else found


def profile_name(icc: bytes) -> str:
    """What a profile calls itself; empty if it does not say."""
    try:
        return ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(icc))).strip()
    except (ImageCms.PyCMSError, OSError):
        return ""


@dataclass(frozen=True)
class Shaped:
    """linear sRGB = matrix curves(own). curves: c n, the light of evenly spaced numbers; matrix: c c."""

    curves: NDArray[np.float64]
    matrix: NDArray[np.float64]

    def to_srgb(self, own: Numbers) -> Numbers:
        numbers = np.linspace(0, 1, self.curves.shape[1])
        light = np.stack([np.interp(own[..., c], numbers, curve) for c, curve in enumerate(self.curves)], -1)
        return encoded(light @ self.matrix.T).astype(np.float32)

    def from_srgb(self, srgb: Numbers) -> Numbers:
        numbers = np.linspace(0, 1, self.curves.shape[1])
        light = linear(srgb.astype(np.float64)) @ np.linalg.inv(self.matrix).T
        own = [np.interp(light[..., c], curve, numbers) for c, curve in enumerate(self.curves)]
        return np.stack(own, -1).astype(np.float32)


@dataclass(frozen=True)
class Tabled:
    """Conversions that littleCMS computes, in 8 bits."""

    forth: ImageCms.ImageCmsTransform
    back: ImageCms.ImageCmsTransform

    def to_srgb(self, own: Numbers) -> Numbers:
        return _converted(own, self.forth)

    def from_srgb(self, srgb: Numbers) -> Numbers:
        return _converted(srgb, self.back)


def encoded(light: NDArray[np.float64]) -> NDArray[np.float64]:
    """The curve of sRGB (IEC 61966-2-1), continued beyond [0, 1], through 0 as an odd function."""
    x = np.abs(light)
    return np.copysign(np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055), light)


def linear(srgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of `encoded`."""
    x = np.abs(srgb)
    return np.copysign(np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4), srgb)


@lru_cache(maxsize=1)
def _srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _shaped(icc: bytes, channels: int) -> Shaped | None:
    """None for a profile with tables of colours. Raises ValueError for what is no profile of such pictures."""
    space = icc[16:20]
    if icc[36:40] != b"acsp" or len(icc) < 132:
        raise ValueError("the colour profile cannot be read (no ICC profile)")
    if space not in ((b"GRAY", b"RGB ") if channels == 1 else (b"RGB ",)):
        raise ValueError(f"the colour profile is one of {space.decode('latin-1').strip()}, not of the picture")
    tags = _tags(icc)
    if space == b"GRAY" or channels == 1:  # a gray picture with a profile of RGB: equal numbers are gray
        curve = tags.get(b"kTRC" if space == b"GRAY" else b"gTRC")
        return Shaped(_curve(curve)[None], np.eye(1)) if curve else None
    if b"A2B0" in tags or not {b"rXYZ", b"gXYZ", b"bXYZ", b"rTRC", b"gTRC", b"bTRC"} <= tags.keys():
        return None
    curves = [_curve(tags[name]) for name in (b"rTRC", b"gTRC", b"bTRC")]
    numbers = np.linspace(0, 1, most := max(map(len, curves)))
    even = [
        curve if len(curve) == most else np.interp(numbers, np.linspace(0, 1, len(curve)), curve) for curve in curves
    ]
    return Shaped(np.stack(even), np.linalg.inv(_matrix(_tags(_srgb()))) @ _matrix(tags))


def _tabled(icc: bytes, channels: int) -> Tabled:
    if channels == 1:
        raise ValueError("the colour profile cannot be read (gray, but without a curve)")
    own, srgb = (ImageCms.ImageCmsProfile(io.BytesIO(data)) for data in (icc, _srgb()))
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    forth, back = (ImageCms.buildTransform(*ends, "RGB", "RGB", intent) for ends in ((own, srgb), (srgb, own)))
    return Tabled(forth, back)


def _converted(numbers: Numbers, transform: ImageCms.ImageCmsTransform) -> Numbers:
    levels = np.rint(numbers.clip(0, 1) * 255).astype(np.uint8)
    image = ImageCms.applyTransform(Image.fromarray(levels), transform)
    return np.asarray(image).astype(np.float32) / np.float32(255)


def _tags(icc: bytes) -> dict[bytes, bytes]:
    """Signature -> data of each element (ICC.1:2022, 7.3)."""
    (count,) = struct.unpack_from(">I", icc, 128)
    tags = {}
    for k in range(min(count, (len(icc) - 132) // 12)):
        name, start, size = struct.unpack_from(">4sII", icc, 132 + 12 * k)
        tags[name] = icc[start : start + size]
    return tags


def _matrix(tags: Mapping[bytes, bytes]) -> NDArray[np.float64]:
    """Columns: X, Y, Z under D50 of full red, green and blue."""
    columns = [struct.unpack_from(">3i", tags[name], 8) for name in (b"rXYZ", b"gXYZ", b"bXYZ")]
    return np.array(columns).T / 65536


def _curve(data: bytes, num_samples: int = 4096) -> NDArray[np.float64]:
    """Light at evenly spaced numbers of a curveType or parametricCurveType (10.6, 10.18), rising."""
    kind = data[:4]
    if kind == b"curv":
        (count,) = struct.unpack_from(">I", data, 8)
        if count > 1:
            table = np.array(struct.unpack_from(f">{count}H", data, 12)) / 65535
            return _rising(table)
        gamma = struct.unpack_from(">H", data, 12)[0] / 256 if count else 1.0
        return _rising(np.linspace(0, 1, num_samples) ** gamma)
    if kind != b"para":
        raise ValueError(f"the colour profile cannot be read (a curve of kind {kind!r})")
    (function,) = struct.unpack_from(">H", data, 8)
    if function > 4:
        raise ValueError(f"the colour profile cannot be read (parametric curve {function})")
    number = (1, 3, 4, 5, 7)[function]
    given = [value / 65536 for value in struct.unpack_from(f">{number}i", data, 12)]
    g, a, b = (*given, 1.0, 0.0)[:3] if function == 0 else given[:3]
    # light = (a x + b)^g + e from x = d on, and c x + f below
    c, d, e, f = {
        0: lambda: (0.0, 0.0, 0.0, 0.0),
        1: lambda: (0.0, -b / a, 0.0, 0.0),
        2: lambda: (0.0, -b / a, given[3], given[3]),
        3: lambda: (given[3], given[4], 0.0, 0.0),
        4: lambda: (given[3], given[4], given[5], given[6]),
    }[function]()
    x = np.linspace(0, 1, num_samples)
    with np.errstate(all="ignore"):  # `_rising` refuses what comes of it
        return _rising(np.where(x >= d, np.maximum(a * x + b, 0) ** g + e, c * x + f))


def _rising(curve: NDArray[np.float64]) -> NDArray[np.float64]:
    """The curve, made never to fall, in [0, 1]. Raises ValueError for one that holds no light."""
    curve = np.maximum.accumulate(curve.clip(0, 1))
    if not np.isfinite(curve).all() or curve[-1] - curve[0] < 0.1:
        raise ValueError("the colour profile cannot be read (a curve that does not rise)")
    return curve
