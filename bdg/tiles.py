"""Squares that cover an image, a denoiser that sees one of them at a time, and what that changes; knows no weights."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bdg.samplers import Denoise
from bdg.types import Estimate, Image, Timestep

SMALLEST_TILE = 32
"""Below, a tile is mostly border and the network's coarsest level sees next to nothing."""

WIDEST_BLEND = 64
"""Pixels of overlap from which on more was seen to bring tiles no nearer to the whole: what parts them is global."""

Complete = Callable[[Image, Image, Image, Timestep], Estimate]
"""(x_hq, x_t, x_lq, t) -> the estimate that goes with x_hq."""


@dataclass(frozen=True)
class TiledGap:
    """How far an image restored in tiles is from the same image restored whole.

    psnr: dB between the two, of colours in [0, 1]; inf if they are equal. seam_energy: mean squared jump of their
    difference across the borders of tiles, over that elsewhere; 1 if nothing tells the borders.
    tile: edge in pixels, None if one tile holds the image; height, width: what was compared, in pixels.
    """

    psnr: float
    seam_energy: float
    tile: int | None
    height: int
    width: int

    def __str__(self) -> str:
        if self.tile is None:
            return f"whole image of {self.height} x {self.width}: no tiles, no gap"
        return (
            f"tiles of {self.tile} against the whole, on {self.height} x {self.width}: PSNR {self.psnr:.2f} dB, "
            f"seam energy {self.seam_energy:.2f} (1: no seams)"
        )


def tiled(denoise: Denoise, tile: int, overlap: int | None = None, complete: Complete | None = None) -> Denoise:
    """A denoiser that looks at squares of `tile` pixels and blends what it believes of them.

    The sampler walks the whole image at once: tiles agree again at every step and share one noise, so they leave no seams
    that would have to be hidden at the end. A denoiser that looks at single pixels gives exactly what it gives untiled.
    complete: where residual and noise follow from x_hq: x_hq alone is blended, in a third of the memory.
    """
    overlap = checked_overlap(tile, overlap)
    parts = ("x_hq",) if complete else ("x_hq", "residual", "noise")

    def blended(x_t: Image, x_lq: Image, t: Timestep) -> Estimate:
        totals = [torch.zeros_like(x_t) for _ in parts]
        for rows, row_weight in strips(x_t.shape[-2], tile, overlap):
            for columns, column_weight in strips(x_t.shape[-1], tile, overlap):
                weight = torch.outer(row_weight, column_weight).to(x_t)
                seen = denoise(x_t[..., rows, columns], x_lq[..., rows, columns], t)
                for part, total in zip(parts, totals, strict=True):
                    total[..., rows, columns] += weight * getattr(seen, part)
        return complete(totals[0], x_t, x_lq, t) if complete else Estimate(*totals)

    return blended


def checked_overlap(tile: int, overlap: int | None) -> int:
    """The overlap of tiles; None: a quarter, at most WIDEST_BLEND.

    Raises ValueError for a tile or an overlap that cannot be.
    """
    overlap = min(tile // 4, WIDEST_BLEND) if overlap is None else overlap
    if tile < SMALLEST_TILE:
        raise ValueError(
            f"tile={tile}: give at least {SMALLEST_TILE} pixels, auto, or null for the whole image at once"
        )
    if not 0 <= overlap <= tile // 2:
        raise ValueError(f"overlap={overlap}: choose 0 to {tile // 2}, half of tile={tile}")
    return overlap


def count(length: int, tile: int, overlap: int) -> int:
    """How many strips of `tile` cover 0..length and share at least `overlap`."""
    return math.ceil((length - overlap) / (tile - overlap)) if length > tile else 1


def strips(length: int, tile: int, overlap: int) -> list[tuple[slice, Float[Tensor, " tile"]]]:
    """Evenly spread strips that cover 0..length and share at least `overlap`, each with its weights; they add up to 1."""
    size, number = min(tile, length), count(length, tile, overlap)
    starts = [(length - size) * k // max(number - 1, 1) for k in range(number)]
    places = [slice(start, start + size) for start in starts]
    # rises as sin^2 over the overlap and falls as cos^2, so that neighbours at exactly this overlap add up to 1
    ramp = torch.sin(math.pi / 2 * (torch.arange(overlap) + 0.5) / max(overlap, 1)) ** 2
    weight = torch.ones(size)
    if number > 1:
        weight[:overlap] *= ramp
        weight[size - overlap :] *= ramp.flip(0)
    total = torch.zeros(length)
    for place in places:
        total[place] += weight
    return [(place, weight / total[place]) for place in places]


def gap(in_tiles: Image, whole: Image, tile: int, overlap: int | None = None) -> TiledGap:
    """What tiles change in one image or several of equal size."""
    h, w = whole.shape[-2:]
    difference = in_tiles - whole
    error = difference.square().mean().item() / 4  # as of colours in [0, 1]
    across, along = [], []
    for length, dim in ((h, -2), (w, -1)):
        jumps = difference.diff(dim=dim).square().mean([d for d in range(-4, 0) if d != dim])
        borders = torch.zeros(length - 1, dtype=torch.bool, device=jumps.device)
        places = [place for place, _ in strips(length, tile, checked_overlap(tile, overlap))]
        borders[[place.start - 1 for place in places[1:]] + [place.stop - 1 for place in places[:-1]]] = True
        across.append(jumps[borders])
        along.append(jumps[~borders])
    at, elsewhere = torch.cat(across), torch.cat(along)
    energy = (at.mean() / elsewhere.mean()).item() if error and len(at) else 1.0
    return TiledGap(-10 * math.log10(error) if error else math.inf, energy, tile, h, w)
