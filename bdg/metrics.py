"""Metrics that carry their protocol: a number that does not say how it was measured is worth nothing.

A measure gives one value per image. A `Score` keeps those of one measure under one protocol, a protocol is a collection of
scores. Means are taken over images, as the field does, never over pooled pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection
from torchmetrics.wrappers.abstract import WrapperMetric

from bdg.types import Image

COLORS = {
    "rgb": "RGB",
    "y": "Y of BT.601 (16..235)",
    "y_uint8": "Y of BT.601 (16..235) rounded to uint8",
}
"""What is compared: name -> in words."""
Levels = Float[Tensor, "b channels rows columns"]
"""Grey levels in 0..255, as the protocol makes them of an image."""

PSNR_LIMIT = 100.0
LEVEL = 127.5
FACTS = ("method", "degradation", "set", "key", "severity", "photograph", "index")
"""What a row says of its image; the rest of it are values."""
PADDINGS = ("inside", "replicate", "reflect")
"""Windows of SSIM: those that lie inside; or one at every pixel, the edge repeated, or mirrored without it."""


def psnr(restored: Levels, clean: Levels) -> Float[Tensor, " b"]:
    """10 log10(255^2 / mean squared error) in dB; equal images count as 100 dB, so that a mean stays a number."""
    error = (restored.double() - clean.double()).square().flatten(1).mean(1)
    return (10 * torch.log10(255**2 / error)).clamp(max=PSNR_LIMIT).float()


def ssim(
    restored: Levels, clean: Levels, size: int = 11, sigma: float | None = 1.5, padding: str = "inside"
) -> Float[Tensor, " b"]:
    """Structural similarity (Wang et al. 2004), mean over channels and windows; k1 = 0.01, k2 = 0.03, range 255.

    size: pixels of a window's side. sigma: of its Gaussian weights; None: all weigh the same and variances are those of a
    sample, divided by n - 1. The defaults are the authors' MATLAB code and BasicSR; padding="replicate" is MATLAB's `ssim`;
    size=7, sigma=None is skimage's default.
    """
    # variances do not change with the level, and have more digits near 0
    x, y = (_padded(image - LEVEL, size, padding) for image in (restored, clean))
    mu_x, mu_y, xx, yy, xy = _windows(torch.stack([x, y, x * x, y * y, x * y]), size, sigma)
    unbiased = 1.0 if sigma else size**2 / (size**2 - 1)
    var_x, var_y, cov = (unbiased * (a - b) for a, b in ((xx, mu_x**2), (yy, mu_y**2), (xy, mu_x * mu_y)))
    mu_x, mu_y = mu_x + LEVEL, mu_y + LEVEL
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mu_x * mu_y + c1) / (mu_x**2 + mu_y**2 + c1)
    structure = (2 * cov + c2) / (var_x + var_y + c2)
    return (luminance * structure).flatten(1).double().mean(1).float()


def _padded(x: Levels, size: int, padding: str) -> Float[Tensor, "b channels padded_rows padded_columns"]:
    return x if padding == "inside" else F.pad(x, (size // 2,) * 4, padding)


def _windows(x: Float[Tensor, "n b c h w"], size: int, sigma: float | None) -> Float[Tensor, "n b c rows columns"]:
    """Weighted mean of every window that lies inside."""
    at = torch.arange(size, dtype=x.dtype, device=x.device) - (size - 1) / 2
    weights = torch.exp(-(at**2) / (2 * sigma**2)) if sigma else torch.ones_like(at)
    weights = weights / weights.sum()
    planes = x.flatten(0, 2)[
        None
    ]  # as channels, of which torch takes each on its own several times faster than as images
    for shape in ((size, 1), (1, size)):
        planes = F.conv2d(planes, weights.view(1, 1, *shape).expand(planes.shape[1], 1, *shape), groups=planes.shape[1])
    return planes[0].unflatten(0, x.shape[:3])


class Measure(nn.Module):
    """One value per image: `forward(image, clean)`, both as `Levels`. Tensors of a subclass are buffers outside the state.

    reference: whether it needs the clean image. color: what it looks at, whatever the protocol says; None: what that says.
    least: pixels of the shorter and of the longer side. larger_is_better: which way is up. text: said in the protocol's line.
    suffix: ends its name where it departs from the field's usual.
    """

    reference = True
    color: str | None = None
    least = (1, 1)
    larger_is_better = True
    text = ""
    suffix = ""

    def forward(self, image: Levels, clean: Levels | None) -> Float[Tensor, " b"]:
        raise NotImplementedError(f"{type(self).__name__} measures nothing: return a value per image")


class Psnr(Measure):
    """As `psnr`."""

    def forward(self, image: Levels, clean: Levels | None) -> Float[Tensor, " b"]:
        assert clean is not None
        return psnr(image, clean)


class Ssim(Measure):
    """As `ssim`."""

    def __init__(self, size: int = 11, sigma: float | None = 1.5, padding: str = "inside") -> None:
        super().__init__()
        if padding not in PADDINGS:
            raise ValueError(f"ssim.padding={padding}: choose one of {', '.join(PADDINGS)}")
        if size < 3 or size % 2 == 0:
            raise ValueError(f"ssim.size={size}: give an odd number of pixels, 3 or more")
        self.size, self.sigma, self.padding = size, sigma, padding
        self.least = (size, size)
        window = f"gaussian, sigma {sigma:g}" if sigma else "uniform"
        self.text = f"SSIM {size}x{size} {window}, {padding}"
        window_suffix = "" if (size, sigma) == (11, 1.5) else f"{size}" + (f"s{sigma:g}" if sigma else "")
        self.suffix = window_suffix + ("" if padding == "inside" else f"_{padding}")

    def forward(self, image: Levels, clean: Levels | None) -> Float[Tensor, " b"]:
        assert clean is not None
        return ssim(image, clean, self.size, self.sigma, self.padding)


def psnr_ssim() -> dict[str, Measure]:
    return {"psnr": Psnr(), "ssim": Ssim()}


@dataclass(frozen=True)
class Protocol:
    """How images are measured, and of which test sets a row is the mean.

    color: "rgb"; "y": the luma of BT.601 in studio range, 16..235, as MATLAB's rgb2ycbcr gives it of images of doubles and
    BasicSR always; "y_uint8": rounded, as MATLAB gives it of 8-bit images.
    border: pixels cut off at each side first (the scale factor, in super-resolution).
    round_uint8: compare what an 8-bit file would hold. Either way values are clipped to the range of an image.
    multiple: sides are cropped around the centre to a multiple of it, before the border.
    sets: row -> its test sets, each counting the same; "a|b" are two spellings of one, * stands for anything, "name@2.5" is
    the set at that severity. Empty: a row is the mean over all images of a degradation.
    measures: name -> what is measured.
    """

    color: str = "rgb"
    border: int = 0
    round_uint8: bool = True
    name: str = ""
    multiple: int = 1
    sets: Mapping[str, Sequence[str]] = field(default_factory=dict)
    measures: Mapping[str, Measure] = field(default_factory=psnr_ssim)

    def __post_init__(self) -> None:
        if self.color not in COLORS:
            raise ValueError(f"protocol.color={self.color!r}: choose one of {list(COLORS)}")
        if self.border < 0:
            raise ValueError(f"protocol.border={self.border}: give the pixels to cut off at each side, 0 or more")
        if self.multiple < 1:
            raise ValueError(f"protocol.multiple={self.multiple}: give the number that sides are to be a multiple of")
        if not self.measures:
            raise ValueError("protocol.measures is empty: leave it out, which measures PSNR and SSIM")

    def __str__(self) -> str:
        rounding = "rounded to uint8" if self.round_uint8 else "not rounded"
        cropped = f", cropped to multiples of {self.multiple}" if self.multiple > 1 else ""
        means = "mean over images" + (", then over sets" if self.sets else "")
        texts = [measure.text for measure in self.measures.values() if measure.text]
        return "; ".join([f"{COLORS[self.color]}, border {self.border}{cropped}, {rounding}, {means}", *texts])

    @property
    def short(self) -> str:
        """What a metric's name can end with: "rgb", "y_border4", "rgb_unrounded"."""
        return self._short(self.color)

    def _short(self, color: str) -> str:
        border = f"_border{self.border}" if self.border else ""
        multiple = f"_multiple{self.multiple}" if self.multiple > 1 else ""
        return color + border + multiple + ("" if self.round_uint8 else "_unrounded")

    def metric_name(self, measure: str) -> str:
        """Of a measure, with how it was measured: "psnr_y_border4"; LPIPS sees colours under any protocol: "lpips_rgb"."""
        chosen = self.measures[measure]
        return f"{measure}{chosen.suffix}_{self._short(chosen.color or self.color)}"

    def to_dict(self) -> dict[str, Any]:
        """Plain, as JSON takes it."""
        return {
            "name": self.name,
            "color": self.color,
            "border": self.border,
            "multiple": self.multiple,
            "round_uint8": self.round_uint8,
            "sets": {row: list(names) for row, names in self.sets.items()},
            "metrics": {name: self.metric_name(name) for name in self.measures},
        }

    def collection(self) -> MetricCollection:
        """A score for every measure, by the name that carries the protocol; nothing is measured yet."""
        # compute_groups would take metrics for one whose first values are equal, as those of LPIPS and DISTS of equal images
        scores: dict[str, Metric | MetricCollection] = {
            self.metric_name(name): Score(measure, self) for name, measure in self.measures.items()
        }
        return MetricCollection(scores, compute_groups=False)

    def plus(self, measures: Mapping[str, Measure]) -> "Protocol":
        """With these measured, too."""
        return replace(self, measures={**self.measures, **measures})

    def without_reference(self) -> "Protocol":
        """With what needs no clean image. Raises ValueError if that is nothing."""
        kept = {name: measure for name, measure in self.measures.items() if not measure.reference}
        if not kept:
            raise ValueError(
                f"{', '.join(self.measures)} compare with clean images, and there are none: add a measure that needs "
                "none, metrics=[niqe], or give a folder of pairs"
            )
        return replace(self, measures=kept)

    @property
    def set_names(self) -> list[str]:
        """Of the test sets, each by its first spelling."""
        return [_set_name(each) for sets in self.sets.values() for each in sets]

    def row(self, name: str | None, severity: float | None = None) -> tuple[str, str] | None:
        """The row that a test set belongs to, and the set's name in it; None if it is in none."""
        for row, sets in self.sets.items():
            for each in sets:
                spellings, _, at = each.partition("@")
                fits = any(fnmatch((name or "").lower(), spelling.lower()) for spelling in spellings.split("|"))
                if fits and (not at or severity == float(at)):
                    return row, _set_name(each)
        return None

    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError for an image in which a measure finds no place."""
        for name, measure in self.measures.items():
            sides = sorted(side - side % self.multiple - 2 * self.border for side in (height, width))
            if sides[0] < measure.least[0] or sides[1] < measure.least[1]:
                least = " x ".join(f"{side + 2 * self.border}" for side in measure.least)
                raise ValueError(
                    f"an image of {height} x {width} pixels is too small to measure: {name} and a border of {self.border} "
                    f"need {least}; measure larger images, or take {name} or the border out of the protocol"
                )

    def __call__(self, image: Image, color: str | None = None) -> Levels:
        """RGB in [-1, 1] -> grey levels in 0..255, of 3 channels or of 1. color: instead of the protocol's."""
        color = color or self.color
        rows, columns = (_inside(side, self.multiple, self.border) for side in image.shape[-2:])
        levels = ((image[..., rows, columns].float() + 1) * 127.5).clamp(0, 255)
        levels = levels.round() if self.round_uint8 else levels
        if color == "rgb":
            return levels
        R, G, B = levels.split(1, dim=-3)
        Y = 16 + (65.481 * R + 128.553 * G + 24.966 * B) / 255
        return Y.round() if color == "y_uint8" else Y


def _set_name(each: str) -> str:
    spellings, at, severity = each.partition("@")
    return spellings.partition("|")[0] + at + severity


def _inside(side: int, multiple: int, border: int) -> slice:
    rest = side % multiple
    return slice(rest // 2 + border, side - (rest - rest // 2) - border)


class Score(Metric):
    """The values that a measure gives of images under a protocol; the same on one rank as on many.

    Images that several ranks were given (a sampler that pads) count once when `update` is told their index.
    """

    full_state_update = False
    rows: list[Tensor]

    def __init__(self, measure: Measure, protocol: Protocol) -> None:
        super().__init__()
        self.measure = measure
        self.protocol = protocol
        # One flat tensor per update: ranks that saw no image must be able to join in the gathering.
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(
        self,
        image: Image,
        clean: Image | None,
        label: Int[Tensor, " b"] | None = None,
        index: Int[Tensor, " b"] | None = None,
    ) -> None:
        """Measures a batch. label: the group of each image; index: which image of the data set each is."""
        self.protocol.check_size(*image.shape[-2:])
        seen = [x if x is None else self.protocol(x.to(self.device), self.measure.color) for x in (image, clean)]
        values = self.measure(*seen)
        label, index = (values.new_full((len(values),), -1) if x is None else x.to(values) for x in (label, index))
        self.rows.append(torch.stack([label, index, values], dim=1).flatten())

    def compute(self) -> Float[Tensor, ""]:
        """Mean over the groups of the mean over images of a group."""
        rows = self._once()
        groups = [rows[rows[:, 0] == label, 2] for label in rows[:, 0].unique()]
        return torch.stack([group.double().mean() for group in groups]).mean().float()

    def values(self) -> Float[Tensor, "n 3"]:
        """Label, index (-1: not told) and value of each image of all ranks, in the order of the index."""
        with self.sync_context():
            return self._once()

    def _once(self) -> Float[Tensor, "n 3"]:
        """One row per image, in the order of the index: the mean then does not depend on who measured what."""
        if not len(self.rows):
            raise ValueError("no image was measured: the data to restore is empty")
        flat = torch.cat(self.rows) if isinstance(self.rows, list) else self.rows  # gathered: one tensor
        rows = flat.reshape(-1, 3)
        rows = rows[rows[:, 1].argsort(stable=True)]
        index = rows[:, 1]
        again = torch.cat([index.new_zeros(1, dtype=torch.bool), (index[1:] == index[:-1]) & (index[1:] >= 0)])
        return rows[~again]


class RestorationMetrics(WrapperMetric):
    """A protocol's scores of every image, before and after restoration, by degradation.

    degradations: names by label. Those of the input are called `<name>_input`.
    """

    def __init__(self, degradations: Sequence[str], protocol: Protocol | None = None) -> None:
        super().__init__()
        self.degradations = tuple(degradations)
        self.protocol = protocol or Protocol()
        self.after, self.before = self.protocol.collection(), self.protocol.collection()

    @property
    def measures(self) -> Mapping[str, Measure]:
        return self.protocol.measures

    def update(
        self,
        restored: Image,
        x_hq: Image,
        x_lq: Image,
        label: Int[Tensor, " b"],
        index: Int[Tensor, " b"] | None = None,
    ) -> None:
        """Measures a batch. `index`: which image of the data set each is, to count it once and to find it again."""
        self.after.update(restored, x_hq, label, index)
        self.before.update(x_lq, x_hq, label, index)

    def compute(self) -> dict[str, dict[str, float]]:
        """{degradation: {"psnr", "psnr_input", "ssim", "ssim_input", "gain" (dB), "num_images"}, ..., "mean": {...}}.

        "mean" is the mean over the degradations seen, each counting the same however many images it has.
        """
        return summary(self.per_image(), self.degradations)

    def per_image(self) -> list[dict[str, Any]]:
        """Each image of all ranks: {"degradation", "index" (-1: not told), "psnr", "psnr_input", "ssim", "ssim_input"}."""
        return per_image({"": self.after, "_input": self.before}, self.protocol, self.degradations)

    def reset(self) -> None:
        super().reset()
        self.after.reset()
        self.before.reset()


def per_image(
    collections: Mapping[str, MetricCollection], protocol: Protocol, names: Sequence[str]
) -> list[dict[str, Any]]:
    """{"degradation", "index", value ..} of each image. collections: what the names of its values end with -> values."""
    values: dict[str, Tensor] = {}
    for measure in protocol.measures:
        for suffix, collection in collections.items():
            score = collection[protocol.metric_name(measure)]
            assert isinstance(score, Score)
            values[measure + suffix] = score.values()
    facts = next(iter(values.values()))[:, :2].long().tolist()
    columns = {name: rows[:, 2].tolist() for name, rows in values.items()}
    return [
        {"degradation": names[label], "index": index} | {name: column[i] for name, column in columns.items()}
        for i, (label, index) in enumerate(facts)
    ]


def summary(rows: Sequence[Mapping[str, Any]], degradations: Sequence[str]) -> dict[str, dict[str, float]]:
    """Means of rows as `per_image` gives them, by degradation, and "mean" over those that have any, in their order.

    A row may have a "set": a degradation is then the mean over its sets, each counting the same however many images it has.
    """
    table = {}
    for name in degradations:
        of_group = [row for row in rows if row["degradation"] == name]
        if not of_group:
            continue
        sets = dict.fromkeys(row.get("set") for row in of_group)
        means = [_means([row for row in of_group if row.get("set") == each]) for each in sets]
        table[name] = {key: fmean(mean[key] for mean in means) for key in means[0]}
        table[name]["num_images"] = len(of_group)
    mean = {key: fmean(row[key] for row in table.values()) for key in next(iter(table.values()))}
    return table | {"mean": mean | {"num_images": sum(row["num_images"] for row in table.values())}}


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    means = {name: fmean(row[name] for row in rows) for name in rows[0] if name not in FACTS}
    return means | ({"gain": means["psnr"] - means["psnr_input"]} if {"psnr", "psnr_input"} <= means.keys() else {})
