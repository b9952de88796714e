"""`bdg evaluate`: how far restored images are from clean ones, with the protocol beside every number."""

import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from rich.console import Console, Group, RenderableType
from rich.progress import track
from rich.table import Table

from bdg.commands.compose import build
from bdg.commands.request import Request
from bdg.commands.restore import Restore, check_free, describe, load_restorer, restoring
from bdg.metrics import Protocol, RestorationMetrics, psnr
from bdg.panel import panel, to_uint8
from bdg.types import Image
from datamodules import shards
from datamodules.degradations.base import from_bytes
from datamodules.images import Picture, check_format, read_image, upright_size, write_image
from datamodules.layouts import Item, look
from datamodules.pipeline import to_float
from datamodules.restoration import RestorationData
from datamodules.scale import enlarged, scale_of
from jobs.run import write_text

Batch = Mapping[str, Any]
"""x_hq, x_lq: b 3 h w in [-1, 1]; label: int b; key: list; severity: float b, NaN where nobody knows it."""
Seen = Callable[[Batch, Image], None]
"""Is shown every batch with the restored images."""

COLUMNS = {"num_images": "images", "psnr_input": "PSNR in", "psnr": "PSNR", "gain": "gain dB", "ssim_input": "SSIM in"}
"""What the table calls a score; others go by their own name."""


@dataclass(frozen=True)
class Source:
    """What is measured: batches, and the names of their labels.

    about, text: how a report and the terminal name it. scales: how many times smaller degraded images were before they were
    enlarged, if any.
    """

    degradations: Sequence[str]
    batches: Iterable[Batch]
    num_batches: int
    about: Mapping[str, Any]
    text: str
    scales: Sequence[int] = ()


@dataclass(frozen=True)
class Report:
    """Scores by degradation and of every image, with what one must know to measure them again; `scales` as in `Source`."""

    protocol: Protocol
    scores: Mapping[str, Mapping[str, float]]
    images: Sequence[Mapping[str, Any]]
    about: Mapping[str, Any] = field(default_factory=dict)
    scales: Sequence[int] = ()

    @property
    def text(self) -> str:
        """The protocol in words, with what was done to the degraded images before."""
        smaller = ", ".join(f"x{scale}" for scale in self.scales)
        return f"{self.protocol}" + (f"; degraded images of {smaller} enlarged by bicubic" if smaller else "")

    def to_dict(self) -> dict[str, Any]:
        """Plain, as JSON takes it."""
        protocol = {
            "color": self.protocol.color,
            "border": self.protocol.border,
            "round_uint8": self.protocol.round_uint8,
            "text": self.text,
        }
        return {"protocol": protocol, **self.about, "scores": self.scores, "images": self.images}

    def table(self) -> RenderableType:
        """One row per degradation, the mean below, the protocol above; for a rich console."""
        keys = ["num_images", *(key for key in self.scores["mean"] if key != "num_images")]
        order = [key for key in COLUMNS if key in keys] + [key for key in keys if key not in COLUMNS]
        table = Table("degradation")
        for key in order:
            table.add_column(COLUMNS.get(key, key.upper()), justify="right")
        for name, row in self.scores.items():
            table.add_row(name, *(_digits(key, row[key]) for key in order), end_section=name == list(self.scores)[-2])
        return Group(f"protocol: {self.text}", table)


def run(config: DictConfig, request: Request) -> None:
    restorer = load_restorer(config)
    restore, settings = restoring(restorer, config)
    protocol = build(config.protocol, trust=config.trust)
    source = open_source(config)
    watching: list[Seen] = []
    gallery = Gallery(source.degradations, protocol)
    if config.picture:
        check_free([Path(config.picture)], config.overwrite)
        check_format(config.picture, Picture(np.zeros((1, 1, 3), np.uint8)))
        watching.append(gallery)
    if config.outputs:
        check_free([Path(config.outputs)], config.overwrite)
        watching.append(Outputs(Path(config.outputs), source.degradations))
    console = Console(markup=False, highlight=False)
    console.print(f"weights {restorer}; {describe(settings)}\n{source.text}", soft_wrap=True)
    bar = track(source.batches, "evaluating", source.num_batches, console=Console(stderr=True), transient=True)
    about = {"weights": str(restorer), **source.about, **settings}
    report = evaluate(restore, bar, source.degradations, protocol, about, watching, source.scales)
    console.print(report.table())
    if config.picture:
        write_image(config.picture, gallery.picture())
    if config.json:
        write_text(Path(config.json), json.dumps(report.to_dict(), indent=1) + "\n")


def evaluate(
    restore: Restore,
    batches: Iterable[Batch],
    degradations: Sequence[str],
    protocol: Protocol,
    about: Mapping[str, Any] | None = None,
    watching: Sequence[Seen] = (),
    scales: Sequence[int] = (),
) -> Report:
    """Restores every batch and measures it. `about`: what the report should say of weights, data and settings."""
    metrics = RestorationMetrics(degradations, protocol)
    facts: list[dict[str, Any]] = []
    for batch in map(to_float, batches):
        restored = restore(batch["x_lq"], batch["name"] if "name" in batch else batch["key"])
        index = torch.arange(len(facts), len(facts) + len(restored))
        metrics.update(restored, batch["x_hq"], batch["x_lq"], batch["label"], index)
        facts += [
            {"key": key, "severity": severity} for key, severity in zip(batch["key"], severities(batch), strict=True)
        ]
        for seen in watching:
            seen(batch, restored)
    images = [facts[row.pop("index")] | row for row in metrics.per_image()]
    return Report(protocol, metrics.compute(), images, about or {}, scales)


def severities(batch: Batch) -> list[float | None]:
    """NaN, which JSON does not have, as None."""
    return [None if math.isnan(severity) else severity for severity in batch["severity"].tolist()]


class Gallery:
    """Keeps one image of each degradation while they pass, and makes the picture of them: degraded | restored | clean.

    Different photographs for different degradations where there are enough, at a severity near 3.
    """

    def __init__(self, degradations: Sequence[str], protocol: Protocol) -> None:
        self.degradations = degradations
        self.protocol = protocol
        self.photographs: list[str] = []
        self.kept: dict[int, tuple[tuple[float, int], list[NDArray[np.uint8]], list[str]]] = {}

    def __call__(self, batch: Batch, restored: Image) -> None:
        for i, (label, key, severity) in enumerate(
            zip(batch["label"].tolist(), batch["key"], severities(batch), strict=True)
        ):
            if key not in self.photographs:
                self.photographs.append(key)
            rank = (0.0 if severity is None else abs(severity - 3), abs(self.photographs.index(key) - label))
            if label in self.kept and self.kept[label][0] <= rank:
                continue
            x_lq, x_hq = batch["x_lq"][i : i + 1], batch["x_hq"][i : i + 1]
            clean = self.protocol(x_hq)
            before, after = (psnr(self.protocol(x), clean).item() for x in (x_lq, restored[i : i + 1]))
            name = self.degradations[label] + ("" if severity is None else f" {severity:g}")
            self.kept[label] = (
                rank,
                [to_uint8(x[0]) for x in (x_lq, restored[i : i + 1], x_hq)],
                [f"{name}: {before:.2f} dB", f"{after:.2f} dB", key],
            )

    def picture(self, width: int = 320) -> NDArray[np.uint8]:
        """Rows in the order of the labels, captions with PSNR under the protocol; uint8 h w 3."""
        rows = [self.kept[label] for label in sorted(self.kept)]
        titles = ["degraded", "restored", "clean"]
        return panel([images for _, images, _ in rows], [captions for *_, captions in rows], titles, width)

    def degraded(self) -> dict[str, NDArray[np.uint8]]:
        """Name of the degradation -> the image of its row as it was before; uint8 h w 3."""
        return {self.degradations[label]: images[0] for label, (_, images, _) in sorted(self.kept.items())}


@dataclass(frozen=True)
class Outputs:
    """Writes restored images to <folder>/<degradation>/<key>[_<severity>].png."""

    folder: Path
    degradations: Sequence[str]

    def __call__(self, batch: Batch, restored: Image) -> None:
        facts = zip(batch["label"].tolist(), batch["key"], severities(batch), restored, strict=True)
        for label, key, severity, image in facts:
            name = key if severity is None else f"{key}_{severity:g}"
            write_image(self.folder / self.degradations[label] / f"{name}.png", to_uint8(image))


def open_source(config: DictConfig) -> Source:
    """A folder of pairs, or shards, which may also be named by their folder; of several parts the one that `part` says."""
    folder = Path(config.source)
    parts = {path.name.rpartition("-")[0] for path in folder.glob("*.tar")} if folder.is_dir() else set()
    if folder.is_dir() and not parts:
        return _pairs(config, folder)
    part = _part(config, parts) if parts or config.part else None
    return _shards(config, f"{folder}/{part}-*.tar" if part else config.source)


def _part(config: DictConfig, parts: Collection[str]) -> str:
    """The part that is asked for, or else test, or else the only one: nobody measures training images without knowing."""
    (only,) = parts if len(parts) == 1 else ("test",)
    part = config.part or only
    if part not in parts:
        choices = " or ".join(f"part={name}" for name in sorted(parts))
        raise ValueError(f"source={config.source} has no part '{part}': {choices or 'leave part out'}")
    return str(part)


def _shards(config: DictConfig, pattern: str) -> Source:
    degradations = {name: node and build(node, trust=config.trust) for name, node in config.degradation.items()}
    data = RestorationData(
        degradations,
        crop=1,  # crop, flip and seed are for training only
        flip=False,
        seed=0,
        batch_size=1,
        val_crop=config.crop,
        val_severities=_severities(config, degradations),
        num_workers=config.num_workers,
    )
    batches = data.measured(pattern)
    scales = (sample.scale for sample in shards.index(shards.expand(pattern)) if sample.lq)
    about = {"data": pattern, "severities": data.val_severities, "crop": data.val_crop}
    text = f"data {pattern}: {len(batches)} images"
    return Source(list(degradations), batches, len(batches), about, text, _above_1(scales))


def _severities(config: DictConfig, degradations: Mapping[str, Any]) -> list[float] | None:
    if config.severities is None:
        return None
    severities = list(config.severities) if OmegaConf.is_list(config.severities) else [config.severities]
    if without := [name for name, degrade in degradations.items() if degrade and not hasattr(degrade, "severity")]:
        raise ValueError(
            f"severities={severities}, but {', '.join(without)} in degradation have none: "
            "type severities=null, which draws once for each image"
        )
    return severities


def _pairs(config: DictConfig, folder: Path) -> Source:
    reading = {key: None if config[key] is None else f"{config[key]}" for key in ("layout", "gopro", "scale")}
    found = look(folder, **reading)
    found.refuse_gaps()
    pairs = [item for item in found.items if item.lq]
    if not pairs:
        raise ValueError(
            f"source={folder} holds clean images only, nothing to restore: pack it first (bdg pack {folder} SHARDS) and "
            "evaluate SHARDS, or give a folder with lq/ and gt/"
        )
    parts = {item.part for item in pairs if item.part}
    part = _part(config, parts) if parts or config.part else None
    items = [item for item in pairs if item.part == part]
    names = sorted({str(item.degradation) for item in items})
    text = f"data {folder}, layout {found.layout}: {len(items)} pairs" + (f" of the part {part}" if part else "")
    rest = {"pairs": len(pairs) - len(items), "clean images": len(found.items) - len(pairs)}
    if left_out := " and ".join(f"{count} {what}" for what, count in rest.items() if count):
        text += f"; not measured: {left_out}"
    about = {"data": str(folder), "layout": found.layout, "part": part}
    return Source(names, _read_pairs(items, names), len(items), about, text, _above_1(map(_scale, items)))


def _above_1(scales: Iterable[int]) -> list[int]:
    return sorted({scale for scale in scales if scale > 1})


def _scale(item: Item) -> int:
    """From the headers: what does not fit together is said before hours of restoring."""
    assert item.lq is not None
    hq, lq = (_size(path) for path in (item.hq, item.lq))
    scale = scale_of(hq, lq)
    if scale is None:
        raise ValueError(
            f"{item.lq} and {item.hq} have {lq[0]} x {lq[1]} and {hq[0]} x {hq[1]} pixels: a pair must have one size, or in "
            "super-resolution the degraded image a whole number of times less"
        )
    return scale


def _size(path: Path) -> tuple[int, int]:
    with path.open("rb") as file:
        return upright_size(file) or read_image(path).array.shape[:2]  # which says what is wrong with it


def _read_pairs(items: Sequence[Item], names: Sequence[str]) -> Iterator[Batch]:
    for index, item in enumerate(items):
        assert item.lq is not None
        lq, hq = read_image(item.lq), read_image(item.hq)
        size = hq.array.shape[:2]
        same = lq.array.shape[:2] == size
        x_lq = lq.to_rgb() if same else from_bytes(enlarged(lq.to_uint8(), size))
        yield {
            "x_hq": _tensor(hq.to_rgb()),
            "x_lq": _tensor(x_lq),
            "label": torch.tensor([names.index(str(item.degradation))]),
            "severity": torch.tensor([math.nan]),
            "index": torch.tensor([index]),
            "key": [item.key],
            "name": [item.lq.name],  # as bdg restore names it, so that both restore the same image
        }


def _tensor(rgb: NDArray[np.float32]) -> Image:
    """h w 3 in [0, 1] as 1 3 h w in [-1, 1]."""
    return torch.from_numpy(rgb).permute(2, 0, 1)[None] * 2 - 1


def _digits(key: str, value: float) -> str:
    return f"{value:.0f}" if key == "num_images" else f"{value:.4f}" if key.startswith("ssim") else f"{value:.2f}"
