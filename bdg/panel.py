"""Pictures in rows with captions, as one image: what a person looks at to judge restored images; knows no model."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image as Canvas
from PIL import ImageDraw, ImageFont
from torch import Tensor

Pixels = UInt8[np.ndarray, "_ _ 3"]

INK, PAPER = (32, 32, 32), (255, 255, 255)
GAP = 4


def to_uint8(image: Float[Tensor, "3 h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """RGB in [-1, 1] as an 8-bit file would hold it: clipped and rounded."""
    levels = ((image.detach().float() + 1) * 127.5).round().clamp(0, 255)
    return levels.byte().permute(1, 2, 0).cpu().numpy()


def panel(
    rows: Sequence[Sequence[Pixels]],
    captions: Sequence[Sequence[str]] = (),
    titles: Sequence[str] = (),
    width: int = 256,
) -> Pixels:
    """One picture: `titles` above the columns, then the rows, each image `width` wide with its caption below.

    Images keep their shape; a caption that is too long is cut. Every row must have as many images as the first.

    Raises ValueError for no rows, or rows, captions and titles that do not match.
    """
    columns = len(rows[0]) if len(rows) else 0
    if not columns or any(len(row) != columns for row in rows):
        raise ValueError(f"rows of {[len(row) for row in rows]} images: give at least one, all of the same length")
    if captions and [len(line) for line in captions] != [columns] * len(rows):
        raise ValueError(f"captions of {[len(line) for line in captions]}: give {len(rows)} rows of {columns}")
    if titles and len(titles) != columns:
        raise ValueError(f"{len(titles)} titles for {columns} columns: give one for each")
    font = ImageFont.load_default(max(10, width // 18))
    line = round(font.getbbox("Ág")[3]) + 2 * GAP
    cells = [[_fit(image, width) for image in row] for row in rows]
    heights = [max(cell.height for cell in row) + (line if captions else 0) for row in cells]
    top = line if titles else 0
    size = (columns * (width + GAP) + GAP, top + sum(heights) + GAP * (len(rows) + 1))
    canvas = Canvas.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    lefts = [GAP + column * (width + GAP) for column in range(columns)]
    for left, title in zip(lefts, titles, strict=bool(titles)):
        draw.text((left, GAP), _cut(title, font, width), INK, font)
    y = top + GAP
    for row, (images, height) in enumerate(zip(cells, heights, strict=True)):
        for column, (left, image) in enumerate(zip(lefts, images, strict=True)):
            canvas.paste(image, (left, y))
            if captions:
                draw.text((left, y + image.height), _cut(captions[row][column], font, width), INK, font)
        y += height + GAP
    return np.asarray(canvas)


def _fit(image: Pixels, width: int) -> Canvas.Image:
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    # enlarged pixels stay visible as squares: a panel must not smooth what it shows
    method = Canvas.Resampling.NEAREST if width >= image.shape[1] else Canvas.Resampling.LANCZOS
    return Canvas.fromarray(image).resize((width, height), method)


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
