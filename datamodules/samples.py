"""What becomes of an item in a shard: its images, checked and perhaps encoded anew, and the JSON that says what they are."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
from numpy.typing import NDArray

from datamodules.images import Picture, encode, read_image
from datamodules.parts import Source
from datamodules.scale import Size, scale_of

ENCODINGS = {"original": None, "png": ".png", "webp": ".webp", "jpeg": ".jpg"}
"""How images are stored -> the suffix. WebP is lossless."""


@dataclass(frozen=True)
class Encoding:
    """What is done to an image before it is stored: see `pack`."""

    name: str = "original"
    quality: int = 95
    max_size: int | None = None

    def __post_init__(self) -> None:
        if self.name not in ENCODINGS:
            raise ValueError(f"encoding={self.name}: choose one of {', '.join(ENCODINGS)}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality={self.quality}: give the quality of JPEG, from 1 to 100")
        if self.max_size is not None and self.max_size < 1:
            raise ValueError(
                f"max_size={self.max_size}: give the longer side in pixels, or null to keep every image as it is"
            )

    def __str__(self) -> str:
        return f"{self.name} {self.quality}" if self.name == "jpeg" else self.name


@dataclass(frozen=True)
class NewSample:
    """The files of a sample, and its line in the manifest, which says what it is; without files, why it is left out."""

    files: Sequence[tuple[str, bytes]]
    line: Mapping[str, Any]


@dataclass(frozen=True)
class Image:
    """An image with the bytes of its file, existing or to be."""

    path: Path
    data: bytes
    picture: Picture

    @property
    def size(self) -> Size:
        return self.picture.array.shape[0], self.picture.array.shape[1]


def make_sample(each: Source, source: Path, how: Encoding, skip: bool) -> NewSample:
    """Reads the images of an item and makes the files of its sample.

    Raises OSError for a file that is not what it was when it was hashed, and ValueError for images that cannot be read or
    stored or are no pair, unless `skip`: then the line says so.
    """
    item, key = each.item, each.item.key
    try:
        images = {"hq": _read(item.hq, each.hq_sha256)}
        if item.lq:
            images["lq"] = _read(item.lq, f"{each.lq_sha256}")
            item = replace(item, scale=_scale(**images))
        stored = {side: _stored(image, how) for side, image in images.items()}
        if item.scale > 1 and stored["hq"].size != images["hq"].size:
            raise ValueError(
                f"{item.lq} is {item.scale} times smaller than {item.hq}, which would no longer hold where max_size="
                f"{how.max_size} reduces it: leave max_size out"
            )
    except ValueError as error:
        if not skip:
            raise
        return NewSample([], {"key": key, "error": f"{error}".replace(f"{source}{os.sep}", "")})
    described = describe(source, replace(each, item=item))
    files = [(f"{key}.{side}{image.path.suffix.lower()}", image.data) for side, image in stored.items()]
    files.append((f"{key}.json", json.dumps(described, sort_keys=True).encode()))
    height, width = stored["hq"].size
    return NewSample(files, {"key": key, "height": height, "width": width, **described})


def describe(source: Path, each: Source) -> dict[str, Any]:
    """What the JSON member of a sample says."""
    item = each.item
    described: dict[str, Any] = {"source": item.hq.relative_to(source).as_posix(), "source_sha256": each.hq_sha256}
    if item.set:
        described["set"] = item.set
    if item.lq:
        described["source_lq"] = item.lq.relative_to(source).as_posix()
        described["source_lq_sha256"] = f"{each.lq_sha256}"
        described["degradation"] = f"{item.degradation}"
    if item.scale > 1:
        described["scale"] = item.scale
    return described


def _read(path: Path, sha256: str) -> Image:
    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data).hexdigest() != sha256:
        raise OSError(
            f"{path} was changed or removed while its folder was packed: wait until nothing writes there any more, "
            "and pack again into another folder"
        )
    return Image(path, data, read_image(data, str(path)))


def _scale(hq: Image, lq: Image) -> int:
    """How many times smaller the degraded image is; ValueError where this is no whole number."""
    scale = scale_of(hq.size, lq.size)
    if scale is None:
        (height, width), (h, w) = hq.size, lq.size
        raise ValueError(
            f"{lq.path} is {w}x{h}, its clean partner {hq.path} {width}x{height}: a pair must have one size, or in "
            "super-resolution the degraded image a whole number of times less"
        )
    return scale


def _stored(image: Image, how: Encoding) -> Image:
    """The image as it goes into the shard: as it is, unless it is too large or another encoding is asked for."""
    picture, suffix = _reduced(image.picture, how.max_size), image.path.suffix.lower()
    lossless = how.name in ("png", "webp") and suffix == f".{how.name}"
    if picture is image.picture and (how.name == "original" or lossless):
        return image
    path = image.path.with_suffix(ENCODINGS[how.name] or ".png")
    try:
        return Image(path, encode(path, picture, how.quality), picture)
    except ValueError as error:
        raise ValueError(f"{error}, or leave the images as they are with encoding=original") from None


def _reduced(picture: Picture, max_size: int | None) -> Picture:
    height, width = picture.array.shape[:2]
    if max_size is None or max(height, width) <= max_size:
        return picture
    scale = max_size / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    array: NDArray[Any] = cv2.resize(picture.array, size, interpolation=cv2.INTER_AREA)
    return replace(picture, array=array.reshape(size[1], size[0], -1))
