"""Pictures on disk, read and written with bit depth, ICC profile, EXIF and XMP kept; knows nothing of tensors."""

import io
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from bdg.files import replacing
from datamodules.profiles import Profile, read_profile

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")
"""What Pillow may take a file for, whatever its name says; for EPS it would start another program."""
MAX_PIXELS = 180_000_000
"""Of a picture: more are refused before they are decoded, unless $BDG_MAX_PIXELS allows them."""
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # BT.601

Box = tuple[int, int, int, int]
"""Part of a picture: top, left, height, width in pixels."""

Image.MAX_IMAGE_PIXELS = None  # `_open` counts in its place: Pillow only warns up to twice its own number

_DEEP_SUFFIXES = (".png", ".tif", ".tiff")  # can hold 16 bits
_ALPHA_SUFFIXES = (".png", ".webp", ".tif", ".tiff")
_LONGEST = {".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383}  # sides in pixels
_STRIP = 256  # rows that are converted at a time, to bound memory
_EXIF_HEADER = b"Exif\0\0"
_XMP_PNG = "XML:com.adobe.xmp"
_XMP_TIFF = 700
_LONGEST_XMP = 65_504  # in one marker of a JPEG; what is longer is left out
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation="\d"|<tiff:Orientation>\d</tiff:Orientation>')
_TIFF_TAGS_KEPT = tuple(
    ExifTags.Base[name] for name in ("ImageDescription", "Make", "Model", "Software", "DateTime", "Artist", "Copyright")
)
_UPRIGHT: dict[int, Callable[[NDArray], NDArray]] = {  # EXIF orientation -> what makes the array upright
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


@dataclass(frozen=True)
class Picture:
    """An upright picture: `array` is h w c, uint8 or uint16; c = 1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha."""

    array: NDArray[np.uint8] | NDArray[np.uint16]
    icc: bytes | None = None  # profile of the colour channels
    exif: bytes | None = None  # begins with "Exif\0\0"; its orientation is already applied and removed
    xmp: bytes | None = None  # XML; its orientation is removed, too

    @property
    def bits(self) -> int:
        return 8 * self.array.itemsize

    @property
    def gray(self) -> bool:
        return self.array.shape[2] < 3

    @property
    def has_alpha(self) -> bool:
        return self.array.shape[2] in (2, 4)

    def to_rgb(self) -> NDArray[np.float32]:
        """Colour as h w 3 in [0, 1]; gray is repeated, alpha left out."""
        colour = self.array[..., :1] if self.gray else self.array[..., :3]
        rgb = colour.astype(np.float32) / np.float32(np.iinfo(self.array.dtype).max)
        return np.repeat(rgb, 3, axis=2) if self.gray else rgb

    def to_uint8(self) -> NDArray[np.uint8]:
        """Colour as h w 3: alpha left out, gray repeated, 16 bits scaled to 8."""
        colour: NDArray = self.array[..., :1] if self.gray else self.array[..., :3]
        if colour.dtype == np.uint16:
            colour = (colour.astype(np.uint32) + 128) // 257  # round(x * 255 / 65535)
        return np.ascontiguousarray(np.broadcast_to(colour, (*colour.shape[:2], 3)), np.uint8)

    def from_rgb(self, rgb: NDArray[np.float32]) -> "Picture":
        """This picture in other colour (h w 3, clipped to [0, 1], rounded); depth, alpha, gray and metadata stay."""
        return self._coloured(lambda rows: rgb[rows] @ LUMA[:, None] if self.gray else rgb[rows])

    @property
    def profile(self) -> Profile | None:
        """What its numbers mean, unless that is sRGB. Raises ValueError for a profile that cannot be read."""
        return read_profile(self.icc, 1 if self.gray else 3) if self.icc else None

    def to_srgb(self) -> NDArray[np.float32]:
        """Colour as h w 3 in [0, 1] as sRGB has it, clipped at its border; where the profile cannot be read, as `to_rgb`."""
        if (profile := self._readable) is None:
            return self.to_rgb()
        srgb = np.empty((*self.array.shape[:2], 3), np.float32)
        for rows in self._strips():
            srgb[rows] = profile.to_srgb(self._numbers(rows)).clip(0, 1)  # gray: one number for all three
        return srgb

    def from_srgb(self, srgb: NDArray[np.float32]) -> "Picture":
        """This picture in other colour, as `to_srgb` gives it; depth, alpha, gray and metadata stay.

        The picture moves as `srgb` does: colours that sRGB lacks keep their distance from its border, and `to_srgb` unchanged
        gives the same picture.
        """
        if (profile := self._readable) is None:
            return self.from_rgb(srgb)

        def moved(rows: slice) -> NDArray[np.float32]:
            own = self._numbers(rows)
            before = profile.to_srgb(own)
            after = srgb[rows] @ LUMA[:, None] if self.gray else srgb[rows]
            # what a conversion there and back loses, it loses twice, and that cancels
            return own + profile.from_srgb(before + (after - before.clip(0, 1))) - profile.from_srgb(before)

        return self._coloured(moved)

    def beyond_srgb(self) -> float:
        """Share of the pixels whose colour sRGB lacks."""
        if (profile := self._readable) is None or self.gray:
            return 0.0
        tolerance = 1 / 255
        outside = 0
        for rows in self._strips():
            srgb = profile.to_srgb(self._numbers(rows))
            outside += int(((srgb < -tolerance) | (srgb > 1 + tolerance)).any(-1).sum())
        return outside / (self.array.shape[0] * self.array.shape[1])

    def reduced(self) -> "Picture":
        """The same in 8 bits."""
        if self.bits == 8:
            return self
        array = np.empty(self.array.shape, np.uint8)
        for rows in self._strips():
            array[rows] = (self.array[rows].astype(np.uint32) + 128) // 257  # round(x * 255 / 65535)
        return replace(self, array=array)

    @property
    def _readable(self) -> Profile | None:
        try:
            return self.profile
        except ValueError:
            return None

    def _strips(self) -> Iterator[slice]:
        return (slice(top, top + _STRIP) for top in range(0, len(self.array), _STRIP))

    def _numbers(self, rows: slice) -> NDArray[np.float32]:
        """Colour of some rows, h w 1 or h w 3, in [0, 1]."""
        colour = self.array[rows, :, : 1 if self.gray else 3]
        return colour.astype(np.float32) / np.float32(np.iinfo(self.array.dtype).max)

    def _coloured(self, colour: Callable[[slice], NDArray[np.float32]]) -> "Picture":
        """This picture with the colour that `colour` gives for some rows, clipped and rounded."""
        array, top = self.array.copy(), np.iinfo(self.array.dtype).max
        for rows in self._strips():
            array[rows, :, : 1 if self.gray else 3] = np.rint(np.clip(colour(rows), 0, 1) * top)
        return replace(self, array=array)


def read_image(source: str | os.PathLike[str] | bytes, name: str = "", box: Box | None = None) -> Picture:
    """The picture in a file or in its bytes, made upright by its EXIF orientation; `name` stands for bytes in messages.

    box: the part of the upright picture that is wanted, which must lie inside; what is left out is not converted.

    Palettes become RGB (with alpha where an entry is transparent), bilevel becomes gray; CMYK and other colour spaces
    become RGB and lose their profile, which does not describe RGB.

    Raises FileNotFoundError, and ValueError for what is not an image, is cut off, holds several, has 32-bit samples, or more
    pixels than $BDG_MAX_PIXELS.
    """
    if isinstance(source, bytes):
        data, name = source, name or "image"
    else:
        data, name = _read_bytes(Path(source)), name or str(source)
    try:
        with _open(io.BytesIO(data), name) as image:
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":  # MPO: a JPEG with previews behind it
                raise ValueError(f"{name}: holds {frames} pictures: extract the one you mean into its own file")
            exif, orientation = _exif(image)  # before load(), which lets go of the file
            image.load()  # complains about truncated data also where cv2 would not
            turned = orientation in _UPRIGHT and not _turned_by_pillow(image, data)
            array, icc = _samples(image, data, name, None if turned else box), image.info.get("icc_profile")
            xmp = _xmp(image)
            if array.shape[2] >= 3 and image.mode not in ("P", "PA", "RGB", "RGBA"):
                icc = None
    except UnidentifiedImageError:
        raise ValueError(f"{name}: not an image: give a file such as {', '.join(SUFFIXES)}") from None
    except _DAMAGED as error:
        raise ValueError(f"{name}: the image is cut off or damaged ({error}): copy it again from its source") from None
    upright = _part(_UPRIGHT[orientation](array), box) if turned else array
    return Picture(np.ascontiguousarray(upright), icc, exif, xmp)


def upright_size(file: IO[bytes]) -> tuple[int, int] | None:
    """Height and width of the picture that `read_image` would find in a file, from its head; None if that does not tell."""
    try:
        with _open(file) as image:
            exif = Image.Image.getexif(image)  # that of PNG would decode the image to see what comes behind it
            (width, height), orientation = image.size, exif.get(ExifTags.Base.Orientation, 1)
    except (ValueError, *_DAMAGED):
        return None
    return (width, height) if orientation in (5, 6, 7, 8) else (height, width)


_DAMAGED = (
    OSError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    struct.error,
    zlib.error,
    cv2.error,
)
"""What Pillow and OpenCV raise for a damaged file, beside ValueError."""


def _open(file: IO[bytes], name: str = "image") -> Image.Image:
    """The picture in a file, not decoded yet. Raises ValueError if it is too large, and what Pillow raises."""
    image = Image.open(file, formats=FORMATS)
    limit = os.environ.get("BDG_MAX_PIXELS") or f"{MAX_PIXELS}"
    if not limit.isdecimal():
        raise ValueError(f"BDG_MAX_PIXELS={limit}: give a number of pixels, such as {MAX_PIXELS}")
    width, height = image.size
    if width * height > int(limit):
        raise ValueError(
            f"{name}: {width} x {height} pixels, more than {limit}: cut it into parts, or set BDG_MAX_PIXELS if you trust it"
        )
    return image


def decode(data: bytes, name: str = "", box: Box | None = None) -> NDArray[np.uint8]:
    """The colour in an image file's bytes as uint8 h w 3: alpha dropped, gray repeated, 16 bits scaled to 8."""
    return read_image(data, name, box).to_uint8()


def write_image(path: str | os.PathLike[str], picture: Picture | NDArray, quality: int = 95) -> None:
    """Writes a picture in the format of the path's suffix, whole or not at all; replaces what is there.

    Lossless except for .jpg, which is written with `quality` and colour at full resolution. An array is h w or h w c.
    """
    path = Path(path)
    if not isinstance(picture, Picture):
        picture = Picture(picture if picture.ndim == 3 else picture[..., None])
    data = encode(path, picture, quality)
    with replacing(path) as file:
        file.write(data)


def encode(path: str | os.PathLike[str], picture: Picture, quality: int = 95) -> bytes:
    """The bytes that `write_image` writes to such a path."""
    check_format(path, picture)
    return _encode(Path(path).suffix.lower(), picture, quality)


def check_format(path: str | os.PathLike[str], picture: Picture) -> None:
    """Raises ValueError where the format of the path's suffix cannot hold the picture: nothing is lost quietly."""
    suffix, array = Path(path).suffix.lower(), picture.array
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: unknown image format '{suffix}': end the name with one of {', '.join(SUFFIXES)}")
    if array.dtype not in (np.uint8, np.uint16) or array.ndim != 3 or not 1 <= array.shape[2] <= 4:
        raise ValueError(
            f"{path}: {array.dtype} {array.shape} is no picture: give uint8 or uint16, h w c with c 1 to 4"
        )
    if picture.bits == 16 and suffix not in _DEEP_SUFFIXES:
        raise ValueError(f"{path}: {suffix} cannot hold 16 bits: write to one of {', '.join(_DEEP_SUFFIXES)}")
    if picture.bits == 16 and array.shape[2] == 2 and suffix != ".png":
        raise ValueError(f"{path}: 16-bit gray with alpha fits into few readers' {suffix}: write to .png")
    if (longest := max(array.shape[:2])) > _LONGEST.get(suffix, longest):
        raise ValueError(f"{path}: {suffix} ends at {_LONGEST[suffix]} pixels a side, not {longest}: write to .png")
    if picture.has_alpha and suffix not in _ALPHA_SUFFIXES:
        raise ValueError(f"{path}: {suffix} cannot hold alpha: write to one of {', '.join(_ALPHA_SUFFIXES)}")


def _read_bytes(path: Path) -> bytes:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file: check the path")
    if path.is_dir():
        raise ValueError(f"{path}: a folder, not an image: name a file in it")
    try:
        return path.read_bytes()
    except PermissionError:
        raise PermissionError(f"{path}: may not be read: chmod +r it, or read a copy of your own") from None


def _xmp(image: Image.Image) -> bytes | None:
    """The XMP of a picture that is loaded, without orientation."""
    xmp = image.info.get("xmp") or b""
    return _XMP_ORIENTATION.sub(b"", xmp.encode() if isinstance(xmp, str) else bytes(xmp)) or None


def _exif(image: Image.Image) -> tuple[bytes | None, int]:
    """The EXIF block without its orientation, and that orientation (1: upright)."""
    tags = image.getexif()
    orientation = int(tags.get(ExifTags.Base.Orientation, 1))
    raw = image.info.get("exif")
    if image.format == "TIFF":
        kept = Image.Exif()
        kept.update(_describing_tags(tags))
        raw = kept.tobytes() if len(kept) else None
    elif orientation != 1:
        del tags[ExifTags.Base.Orientation]
        raw = tags.tobytes() if len(tags) else None
    if raw and not raw.startswith(_EXIF_HEADER):
        raw = _EXIF_HEADER + raw
    return raw or None, orientation


def _describing_tags(exif: Image.Exif) -> dict[int, Any]:
    """Of a TIFF's tags those that describe the picture; the others describe the file it came from."""
    tags = {tag: exif[tag] for tag in _TIFF_TAGS_KEPT if tag in exif}
    blocks = {pointer: dict(exif.get_ifd(pointer)) for pointer in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)}
    return tags | {pointer: block for pointer, block in blocks.items() if block}


def _part(array: NDArray, box: Box | None) -> NDArray:
    if box is None:
        return array
    top, left, height, width = box
    return array[top : top + height, left : left + width]


def _samples(image: Image.Image, data: bytes, name: str, box: Box | None) -> NDArray:
    """The samples as they are stored (16 bits stay 16), h w c, in one of the four channel layouts of Picture."""
    if image.mode in ("I", "F"):
        raise ValueError(f"{name}: 32-bit samples are not supported: convert it to 8 or 16 bits")
    if image.mode.startswith("I;16"):
        return _part(np.asarray(image).astype(np.uint16)[..., None], box)
    if _bits_stored(image, data) == 16:
        return _part(_samples_16(data, name), box)
    alpha = image.has_transparency_data
    mode = ("LA" if alpha else "L") if image.mode in ("1", "L", "LA") else "RGBA" if alpha else "RGB"
    if box is not None:
        top, left, height, width = box
        image = image.crop((left, top, left + width, top + height))
    array = np.asarray(image if image.mode == mode else image.convert(mode))  # it would copy what needs no change
    return array if array.ndim == 3 else array[..., None]


def _bits_stored(image: Image.Image, data: bytes) -> int:
    """Bits per sample in the file; Pillow itself cuts deep colour to 8 without a word."""
    if image.format == "PNG":
        return data[24]  # bit depth in IHDR
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (8,)))
    return 8


def _turned_by_pillow(image: Image.Image, data: bytes) -> bool:
    """Of TIFF it loads upright pictures; `_samples_16` does not."""
    return image.format == "TIFF" and (image.mode.startswith("I;16") or _bits_stored(image, data) != 16)


def _samples_16(data: bytes, name: str) -> NDArray:
    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None or array.dtype != np.uint16:
        raise ValueError(f"{name}: this kind of 16-bit file is not supported: convert it to a plain 16-bit PNG")
    if array.ndim == 2:
        return array[..., None]
    if array.shape[2] == 4 and data.startswith(b"\x89PNG") and data[25] == 4:  # gray and alpha, widened by cv2
        return array[..., [0, 3]]
    return array[..., [2, 1, 0, 3][: array.shape[2]]]  # BGR(A)


def _encode(suffix: str, picture: Picture, quality: int) -> bytes:
    if suffix in (".tif", ".tiff"):
        return _tiff(picture)
    if picture.bits == 16:
        return _png_16(picture)
    array = picture.array[..., 0] if picture.array.shape[2] == 1 else picture.array
    options: dict[str, dict[str, Any]] = {
        ".jpg": {"format": "JPEG", "quality": quality, "subsampling": 0},
        ".jpeg": {"format": "JPEG", "quality": quality, "subsampling": 0},
        ".png": {"format": "PNG"},
        ".webp": {"format": "WEBP", "lossless": True, "exact": True},  # exact: colour under full transparency stays
        ".bmp": {"format": "BMP"},
    }
    kept: dict[str, Any] = {
        key: value for key, value in (("icc_profile", picture.icc), ("exif", picture.exif)) if value
    }
    if picture.xmp and suffix == ".png":
        kept["pnginfo"] = text = PngImagePlugin.PngInfo()
        text.add_itxt(_XMP_PNG, picture.xmp.decode("utf-8", "replace"))
    elif picture.xmp and (suffix == ".webp" or len(picture.xmp) <= _LONGEST_XMP):
        kept["xmp"] = picture.xmp
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, **options[suffix], **kept)
    return buffer.getvalue()


def _png_16(picture: Picture) -> bytes:
    """A 16-bit PNG; Pillow writes only gray ones, cv2 neither gray with alpha nor profiles."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width, channels = picture.array.shape
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = picture.array.astype(">u2").view(np.uint8).reshape(height, -1)
    up = np.full((height, 1 + rows.shape[1]), 2, np.uint8)  # each row: filter 2 ("up"), then the difference to the last
    up[:, 1:] = np.diff(rows, axis=0, prepend=np.zeros_like(rows[:1]))
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)),
            chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(picture.icc)) if picture.icc else b"",
            chunk(b"eXIf", picture.exif.removeprefix(_EXIF_HEADER)) if picture.exif else b"",
            chunk(b"iTXt", _XMP_PNG.encode() + bytes(5) + picture.xmp) if picture.xmp else b"",
            chunk(b"IDAT", zlib.compress(up.tobytes())),
            chunk(b"IEND", b""),
        ]
    )


def _tiff(picture: Picture) -> bytes:
    """A TIFF of one deflated strip; cv2 writes no profile, Pillow no 16-bit colour and no EXIF beside compression."""
    height, width, channels = picture.array.shape
    strip = zlib.compress(picture.array.astype(picture.array.dtype.newbyteorder("<")).tobytes())
    tags = TiffImagePlugin.ImageFileDirectory_v2(b"II\x2a\0\0\0\0\0")
    tags[TiffImagePlugin.IMAGEWIDTH] = width
    tags[TiffImagePlugin.IMAGELENGTH] = height
    tags[TiffImagePlugin.BITSPERSAMPLE] = (picture.bits,) * channels
    tags[TiffImagePlugin.COMPRESSION] = 8  # deflate
    tags[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION] = 1 if picture.gray else 2
    tags[TiffImagePlugin.SAMPLESPERPIXEL] = channels
    tags[TiffImagePlugin.ROWSPERSTRIP] = height
    tags[TiffImagePlugin.STRIPBYTECOUNTS] = len(strip)
    tags[TiffImagePlugin.STRIPOFFSETS] = 0  # counted from the end of the directory; tobytes() adds where that is
    if picture.has_alpha:
        tags[TiffImagePlugin.EXTRASAMPLES] = 2  # alpha that is not multiplied into the colour
    if picture.icc:
        tags.tagtype[TiffImagePlugin.ICCPROFILE] = 7  # UNDEFINED, as the ICC specification asks
        tags[TiffImagePlugin.ICCPROFILE] = picture.icc
    if picture.xmp:
        tags.tagtype[_XMP_TIFF] = 1  # BYTE
        tags[_XMP_TIFF] = picture.xmp
    if picture.exif:
        exif = Image.Exif()
        exif.load(picture.exif)
        tags.update(_describing_tags(exif))
    return b"II\x2a\0" + struct.pack("<I", 8) + tags.tobytes(8) + strip
