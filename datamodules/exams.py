"""What can be seen of one image, and of one pair, without knowing the others; nothing of the images themselves is kept."""

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from datamodules.alignment import Shift, shift
from datamodules.images import read_image
from datamodules.likeness import Signature, likeness, signature
from datamodules.scale import Size, enlarged, scale_of
from datamodules.sets import Entry, Fault

AREA = 512  # pixels: side of the centred square in which shift and texture are measured
SMALLEST = 32  # pixels: side of the smallest image in which they are
GAMMA = 2.2
TEXTURE = ("entropy", "contrast", "homogeneity", "energy", "correlation")

RGB = NDArray[np.uint8]
"""h w 3"""
Matrix = Callable[[torch.Tensor], torch.Tensor]
"""uint8 b 3 h w -> co-occurrence b c n n, each channel of sum 1: `bdg.glcm.MasGlcm.matrix`."""


@dataclass(frozen=True)
class Look:
    """What was seen of one image. texture: the values of TEXTURE; None if not asked for, or if the image is too small."""

    sha256: bytes
    size: Size
    signature: Signature
    texture: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Comparison:
    """What was seen of a pair; all but the likeness need sizes that fit.

    psnr: dB over all of RGB in 8 bits, infinite if identical. linear: whether a blurred image was averaged in linear light,
    as GoPro's blur_gamma (1 and more), or in display values, as GoPro's blur (0); None if it cannot be told.
    """

    likeness: float
    psnr: float | None = None
    shift: Shift | None = None
    linear: float | None = None


@dataclass(frozen=True)
class Exam:
    """What was seen of an entry. degradation: None for a clean image. hq, lq: None for what is not there or not readable."""

    entry: Entry
    faults: Sequence[Fault]
    degradation: str | None = None
    hq: Look | None = None
    lq: Look | None = None
    pair: Comparison | None = None


def examine(entry: Entry, matrix: Matrix | None = None, crop: int | None = None) -> Exam:
    """Looks at an entry. matrix: measures texture with it. crop: side in pixels of what must fit into the clean image."""
    try:
        hq_data, lq_data, info = entry.read()
    except (OSError, ValueError) as error:
        return Exam(entry, [("unreadable", str(error))])
    degradation = None if lq_data is None else str(info.get("degradation") or "pairs")
    faults: list[Fault] = []
    hq = _see(hq_data, entry.hq, matrix, faults)
    lq = None if lq_data is None else _see(lq_data, f"{entry.lq}", matrix, faults)
    if hq and crop and min(hq.look.size) < crop:
        faults.append(("too small", f"{entry.hq}: {_size(hq.rgb)}, the crop {crop}x{crop}"))
    pair = _compare(entry, hq, lq, f"{degradation}", faults) if hq and lq else None
    return Exam(entry, faults, degradation, hq and hq.look, lq and lq.look, pair)


def glance(entry: Entry) -> Exam:
    """Looks at the clean image only, and only for what tells whether another set has it too."""
    return examine(Entry(entry.hq, None, lambda: (entry.read()[0], None, {})))


class _Sight(NamedTuple):
    """An image while it is looked at, in 8 bits."""

    rgb: RGB
    look: Look


def _see(data: bytes, name: str, matrix: Matrix | None, faults: list[Fault]) -> _Sight | None:
    """Decodes an image and looks at it; adds to `faults` what is odd about its file."""
    try:
        picture = read_image(data, name)
    except ValueError as error:
        faults.append(("unreadable", str(error)))
        return None
    with Image.open(io.BytesIO(data)) as file:
        mode = file.mode  # before a palette became colours
    rgb = picture.to_uint8()
    opaque = not picture.has_alpha or bool((picture.array[..., -1] == np.iinfo(picture.array.dtype).max).all())
    odd = {
        "cut off": _cut_off(data, rgb),
        "16 bits": picture.bits == 16,
        "gray": picture.gray,
        "palette": mode in ("P", "PA"),
        "alpha": picture.has_alpha and opaque,
        "transparent": not opaque,
    }
    faults += [(what, f"{name}: {_size(rgb)}") for what, found in odd.items() if found]
    texture = None
    if matrix and min(rgb.shape[:2]) >= SMALLEST:
        square = torch.from_numpy(_centre(rgb).copy()).permute(2, 0, 1)
        texture = describe(matrix(square[None])[0].mean(0).double().numpy())
    return _Sight(rgb, Look(hashlib.sha256(data).digest(), rgb.shape[:2], signature(_luma(rgb)), texture))


def _cut_off(data: bytes, rgb: RGB) -> bool:
    """Whether the file is a JPEG that ends in zeros, or the image in the gray that decoders put where a JPEG has no data."""
    zeros = data.startswith(b"\xff\xd8") and not any(data[-512:])
    return zeros or bool((rgb[-16:, -16:] == 128).all() and (rgb != 128).any())


def describe(matrix: NDArray[np.float64]) -> tuple[float, ...]:
    """The values of TEXTURE of a co-occurrence matrix of sum 1, as `skimage.feature.graycoprops` has them; entropy in bits."""
    i, j = np.indices(matrix.shape)
    di, dj = i - (matrix * i).sum(), j - (matrix * j).sum()
    variances = (matrix * di**2).sum() * (matrix * dj**2).sum()
    filled = matrix[matrix > 0]
    return (
        float(-(filled * np.log2(filled)).sum()),
        float((matrix * (i - j) ** 2).sum()),
        float((matrix / (1 + (i - j) ** 2)).sum()),
        float(np.sqrt((matrix**2).sum())),
        float((matrix * di * dj).sum() / np.sqrt(variances)) if variances > 1e-12 else 1.0,
    )


def _compare(entry: Entry, hq: _Sight, lq: _Sight, degradation: str, faults: list[Fault]) -> Comparison:
    """Compares the images of a pair; adds to `faults` what they tell by themselves."""
    own = likeness(hq.look.signature, lq.look.signature)
    x_hq, x_lq = hq.rgb, lq.rgb
    sizes = f"{entry.lq}: {_size(x_lq)}, {entry.hq}: {_size(x_hq)}"
    scale = scale_of(hq.look.size, lq.look.size)
    if scale is None:
        faults.append(("sizes differ", sizes))
        return Comparison(own)
    if scale > 1:
        faults.append(("scale", f"{sizes}, x{scale}"))
        x_lq = enlarged(x_lq, hq.look.size)
    if (x_hq == x_lq).all():
        faults.append(("identical", f"{entry.lq}, {entry.hq}"))
        return Comparison(own, np.inf)
    if _is_gray(x_hq) != _is_gray(x_lq):
        faults.append(("half gray", f"{entry.lq}, {entry.hq}"))
    if contrary := _contrary(x_hq, x_lq, degradation):
        faults.append(("exchanged", f"{entry.lq}: {degradation}, but {contrary} than {entry.hq}"))
    return Comparison(
        own,
        cv2.PSNR(x_hq, x_lq),
        shift(_luma(_centre(x_hq)), _luma(_centre(x_lq))) if min(hq.look.size) >= SMALLEST else None,
        _linear(x_hq, x_lq) if degradation == "blur" else None,
    )


def _contrary(hq: RGB, lq: RGB, degradation: str) -> str | None:
    """What the degraded image is and cannot have become by its degradation."""
    match degradation:
        case "low_light" | "low":
            return "brighter" if lq.mean() > hq.mean() else None
        case "blur":
            return "sharper" if _detail(lq) > _detail(hq) else None
        case "noise":
            return "smoother" if _detail(lq) < _detail(hq) else None
    return None


def _detail(rgb: RGB) -> float:
    return float(cv2.Laplacian(_luma(rgb), cv2.CV_32F).std())


def _linear(hq: RGB, lq: RGB) -> float | None:
    """Whether a blurred image is an average in linear light (1) or in display values (0), from the means of both images.

    An average in one scale keeps that scale's mean (but for what moves in and out of the picture); then in display values it
    must be brighter than the sharp image, or in linear light darker, by as much as contrast was lost. None if that is little.
    """
    levels = np.arange(256) / 255
    shares = [np.bincount(image.ravel(), minlength=256) / image.size for image in (lq, hq)]
    display, light = ((shares[0] - shares[1]) @ scale for scale in (levels, levels**GAMMA))
    lost = display - light
    return float(display / lost) if lost > 1e-3 else None


def _luma(rgb: RGB) -> NDArray[np.float32]:
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32)


def _centre(rgb: RGB) -> RGB:
    top, left = (max(0, (n - AREA) // 2) for n in rgb.shape[:2])
    return rgb[top : top + AREA, left : left + AREA]


def _is_gray(rgb: RGB) -> bool:
    return bool((rgb[..., 0] == rgb[..., 1]).all() and (rgb[..., 1] == rgb[..., 2]).all())


def _size(rgb: RGB) -> str:
    return f"{rgb.shape[1]}x{rgb.shape[0]}"
