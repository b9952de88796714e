"""Metrics that carry their protocol: a number that does not say how it was measured is worth nothing.

PSNR and SSIM are taken per image and then averaged over images, as the field does, never over pooled pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.image import structural_similarity_index_measure

from bdg.types import Image

COLORS = ("rgb", "y")
Levels = Float[Tensor, "b channels rows columns"]
"""Grey levels in 0..255, as the protocol makes them of an image."""

Measure = Callable[[Levels, Levels], Float[Tensor, " b"]]
"""(restored, clean) -> one value per image."""

PSNR_LIMIT = 100.0
SSIM_WINDOW = 11


@dataclass(frozen=True)
class Protocol:
    """What is done to an image before it is compared.

    color: "rgb", or "y": the luma of BT.601 in studio range, 16..235, as MATLAB's rgb2ycbcr, not rounded again.
    border: pixels cut off at each side first (the scale factor, in super-resolution).
    round_uint8: compare what an 8-bit file would hold. Either way values are clipped to the range of an image.
    """

    color: str = "rgb"
    border: int = 0
    round_uint8: bool = True

    def __post_init__(self) -> None:
        if self.color not in COLORS:
            raise ValueError(f"protocol.color={self.color!r}: choose one of {list(COLORS)}")
        if self.border < 0:
            raise ValueError(f"protocol.border={self.border}: give the pixels to cut off at each side, 0 or more")

    def __str__(self) -> str:
        color = {"rgb": "RGB", "y": "Y of BT.601 (16..235)"}[self.color]
        rounding = "rounded to uint8" if self.round_uint8 else "not rounded"
        return f"{color}, border {self.border}, {rounding}, mean over images; SSIM 11x11 gaussian, sigma 1.5, inside"

    @property
    def short(self) -> str:
        """What a metric's name can end with: "rgb", "y_border4", "rgb_unrounded"."""
        border = f"_border{self.border}" if self.border else ""
        return self.color + border + ("" if self.round_uint8 else "_unrounded")

    def __call__(self, image: Image) -> Levels:
        """RGB in [-1, 1] -> grey levels in 0..255, of 3 channels or of 1."""
        inside = slice(self.border, -self.border or None)
        levels = ((image[..., inside, inside].float() + 1) * 127.5).clamp(0, 255)
        levels = levels.round() if self.round_uint8 else levels
        if self.color == "rgb":
            return levels
        R, G, B = levels.split(1, dim=-3)
        return 16 + (65.481 * R + 128.553 * G + 24.966 * B) / 255


def psnr(restored: Levels, clean: Levels) -> Float[Tensor, " b"]:
    """10 log10(255^2 / mean squared error) in dB; equal images count as 100 dB, so that a mean stays a number."""
    error = (restored - clean).square().flatten(1).mean(1)
    return (10 * torch.log10(255**2 / error)).clamp(max=PSNR_LIMIT)


def ssim(restored: Levels, clean: Levels) -> Float[Tensor, " b"]:
    """Structural similarity (Wang et al. 2004), mean over channels and over the 11x11 windows that lie in the image.

    Gaussian windows of sigma 1.5, k1 = 0.01, k2 = 0.03, range 255, as in the authors' MATLAB code and in BasicSR.
    """
    _, full = structural_similarity_index_measure(
        restored, clean, sigma=1.5, data_range=255.0, reduction="none", return_full_image=True
    )
    reach = SSIM_WINDOW // 2
    return full[..., reach:-reach, reach:-reach].flatten(1).mean(1)


PSNR_SSIM: Mapping[str, Measure] = {"psnr": psnr, "ssim": ssim}


class RestorationMetrics(Metric):
    """Values of every image, before and after restoration, by degradation; the same on one rank as on many.

    degradations: names by label. measures: name -> measure; each is also taken of the input as `<name>_input`.
    Images that several ranks were given (a sampler that pads) count once when `update` is told their index.
    """

    full_state_update = False
    rows: list[Tensor]

    def __init__(
        self, degradations: Sequence[str], protocol: Protocol | None = None, measures: Mapping[str, Measure] = PSNR_SSIM
    ) -> None:
        super().__init__()
        self.degradations = tuple(degradations)
        self.protocol = protocol or Protocol()
        self.measures = dict(measures)
        self.columns = ("label", "index", *(name + suffix for name in measures for suffix in ("", "_input")))
        # One flat tensor per update: ranks that saw no image must be able to join in the gathering.
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(
        self,
        restored: Image,
        x_hq: Image,
        x_lq: Image,
        label: Int[Tensor, " b"],
        index: Int[Tensor, " b"] | None = None,
    ) -> None:
        """Measures a batch. `index`: which image of the data set each is, to count it once and to find it again."""
        _check_size(x_hq, self.protocol)
        clean, after, before = (self.protocol(image) for image in (x_hq, restored, x_lq))
        index = torch.full_like(label, -1) if index is None else index
        values = [measure(image, clean) for measure in self.measures.values() for image in (after, before)]
        self.rows.append(torch.stack([label.float(), index.float(), *values], dim=1).flatten())

    def compute(self) -> dict[str, dict[str, float]]:
        """{degradation: {"psnr", "psnr_input", "ssim", "ssim_input", "gain" (dB), "num_images"}, ..., "mean": {...}}.

        "mean" is the mean over the degradations seen, each counting the same however many images it has.
        """
        table = {name: self._summary(rows) for name, rows in self._by_degradation().items()}
        mean = {key: sum(row[key] for row in table.values()) / len(table) for key in next(iter(table.values()))}
        return table | {"mean": mean | {"num_images": sum(row["num_images"] for row in table.values())}}

    def per_image(self) -> list[dict[str, Any]]:
        """Each image of all ranks: {"degradation", "index" (-1: not told), "psnr", "psnr_input", "ssim", "ssim_input"}."""
        with self.sync_context():
            rows = self._rows().tolist()
        return [
            {"degradation": self.degradations[int(label)], "index": int(index)}
            | dict(zip(self.columns[2:], values, strict=True))
            for label, index, *values in rows
        ]

    def _rows(self) -> Float[Tensor, "n values"]:
        """One row per image, in the order of the index: the mean then does not depend on who measured what."""
        if not len(self.rows):
            raise ValueError("no image was measured: the data to restore is empty")
        flat = torch.cat(self.rows) if isinstance(self.rows, list) else self.rows  # gathered: one tensor
        rows = flat.reshape(-1, len(self.columns))
        rows = rows[rows[:, 1].argsort(stable=True)]
        index = rows[:, 1]
        again = torch.cat([index.new_zeros(1, dtype=torch.bool), (index[1:] == index[:-1]) & (index[1:] >= 0)])
        return rows[~again]

    def _by_degradation(self) -> dict[str, Float[Tensor, "n values"]]:
        rows = self._rows()
        groups = {name: rows[rows[:, 0] == label] for label, name in enumerate(self.degradations)}
        return {name: group for name, group in groups.items() if len(group)}

    def _summary(self, rows: Float[Tensor, "n values"]) -> dict[str, float]:
        means = dict(zip(self.columns[2:], rows[:, 2:].double().mean(0).tolist(), strict=True))
        gain = {"gain": means["psnr"] - means["psnr_input"]} if "psnr" in means else {}
        return means | gain | {"num_images": len(rows)}


def _check_size(image: Image, protocol: Protocol) -> None:
    height, width = image.shape[-2:]
    least = SSIM_WINDOW + 2 * protocol.border
    if min(height, width) < least:
        raise ValueError(
            f"an image of {height} x {width} pixels is too small to measure: SSIM's windows and a border of "
            f"{protocol.border} need {least} x {least}; measure larger images or take a smaller protocol.border"
        )
