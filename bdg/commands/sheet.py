"""Comparison sheets of restored pictures: degraded | restored, a magnified crop, their difference; as a picture or a page."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

import bdg
from bdg.commands.pictures import error_map, webp, window
from bdg.files import replacing
from bdg.panel import panel
from datamodules.images import Box, Picture, check_format, read_image, write_image
from jobs.report import sheet_page

PAGES = (".html", ".htm")
CROP_PX = 96
"""Side of the window that is magnified."""
SHOWN_PX = {"panel": 480, "page": 1280}
"""Longer side of a whole picture in the sheet."""
COLUMN_PX = 320
TITLES = ["degraded", "restored", "degraded, crop", "restored, crop", "difference"]
MARK = (255, 64, 64)

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Row:
    """One picture before and after. notes: what else is to be read about it."""

    name: str
    degraded: Pixels
    restored: Pixels
    crop: Box
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def where(self) -> str:
        top, left, height, width = self.crop
        return f"{width} x {height} pixels at {left}, {top}"

    def cropped(self) -> list[Pixels]:
        top, left, height, width = self.crop
        return [image[top : top + height, left : left + width] for image in (self.degraded, self.restored)]

    def whole(self, side: int) -> list[Pixels]:
        """Degraded, restored, difference with no side longer than `side`."""
        return [
            smaller(image, side) for image in (self.degraded, self.restored, error_map(self.restored, self.degraded))
        ]


def check_sheet(path: Path) -> None:
    """Raises ValueError for a sheet that could not be written."""
    if path.suffix.lower() not in PAGES:
        try:
            check_format(path, Picture(np.zeros((1, 1, 3), np.uint8)))
        except ValueError as error:
            raise ValueError(f"sheet={error}, or .html for a page with a slider") from None


def check_crop(crop: Box, path: Path, height: int, width: int) -> None:
    """Raises ValueError if it does not lie inside of the picture at path."""
    top, left, rows, columns = crop
    if not (top >= 0 <= left and rows > 0 < columns and top + rows <= height and left + columns <= width):
        raise ValueError(
            f"crop={list(crop)} does not lie inside {path} ({width} x {height}): give [top,left,height,width]"
        )


def read_row(name: str, source: Path, target: Path, crop: Box | None, notes: Sequence[str] = ()) -> Row:
    """A picture and what became of it. crop: inside of it; None for the window that changed most.

    Raises ValueError if they have not one size.
    """
    degraded, restored = (in_srgb(read_image(path)) for path in (source, target))
    if degraded.shape != restored.shape:
        raise ValueError(f"{target} has another size than {source}: it is no restored picture of it")
    return Row(name, degraded, restored, crop or most_changed(degraded, restored), notes)


def most_changed(degraded: Pixels, restored: Pixels) -> Box:
    change = np.abs(restored.astype(np.int16) - degraded).sum(2, dtype=np.float32)
    rows, columns = window(change, CROP_PX)
    return rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start


def in_srgb(picture: Picture) -> Pixels:
    """As a screen would show it, h w 3."""
    try:
        profile = picture.profile
    except ValueError:
        profile = None
    return picture.to_uint8() if profile is None else np.rint(picture.to_srgb() * 255).astype(np.uint8)


def smaller(image: Pixels, side: int) -> Pixels:
    scale = side / max(image.shape[:2])
    if scale >= 1:
        return image
    height, width = (max(1, round(length * scale)) for length in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8)


def write_sheet(path: Path, rows: Sequence[Row], title: str, about: str, notes: Sequence[str] = ()) -> None:
    """A page with sliders, or a picture, by the suffix of path; whole or not at all."""
    if path.suffix.lower() in PAGES:
        with replacing(path) as file:
            file.write(sheet_page(collect(rows, title, about, notes)).encode())
    else:
        write_image(path, drawn(rows))


def drawn(rows: Sequence[Row]) -> Pixels:
    """Rows of TITLES."""
    images, captions = [], []
    for row in rows:
        degraded, restored, difference = row.whole(SHOWN_PX["panel"])
        scale = max(degraded.shape) / max(row.degraded.shape)
        cells = [marked(degraded, row.crop, scale), marked(restored, row.crop, scale), *row.cropped(), difference]
        images.append([boxed(cell) for cell in cells])
        captions.append([row.name, "", row.where, "", ""])
    return panel(images, captions, TITLES, COLUMN_PX)


def marked(image: Pixels, crop: Box, scale: float) -> Pixels:
    """With a frame around the crop."""
    top, left, height, width = (round(length * scale) for length in crop)
    return cv2.rectangle(image.copy(), (left, top), (left + width - 1, top + height - 1), MARK, 1).astype(np.uint8)


def boxed(image: Pixels) -> Pixels:
    """Widened by white where it is more than twice as high as wide, so that a row does not become a tower."""
    height, width = image.shape[:2]
    missing = max(0, height // 2 - width)
    return np.pad(image, ((0, 0), (0, missing), (0, 0)), constant_values=255)


def collect(rows: Sequence[Row], title: str, about: str, notes: Sequence[str] = ()) -> dict[str, Any]:
    """All that the page shows; of each row five images from `first` on: TITLES in their order."""
    images: list[str | None] = []
    shown = []
    for row in rows:
        degraded, restored, difference = row.whole(SHOWN_PX["page"])
        height, width = degraded.shape[:2]
        crop = {"size": row.crop[:1:-1], "where": row.where}
        shown.append(
            {"name": row.name, "first": len(images), "size": [width, height], "crop": crop, "notes": row.notes}
        )
        images += [webp(image) for image in (degraded, restored, *row.cropped(), difference)]
    made = datetime.now(UTC).isoformat(timespec="seconds")
    return {
        "title": title,
        "source": about,
        "notes": list(notes),
        "made": made,
        "version": bdg.__version__,
        "rows": shown,
        "images": images,
    }
