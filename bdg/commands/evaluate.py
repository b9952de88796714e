"""`bdg evaluate`: how far restored images are from clean ones, with the protocol beside every number."""

import json
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import track

from bdg.commands.compose import build
from bdg.commands.evaluated import DEGRADED, PAPER, Report, check_table, pyarrow, write_parquet
from bdg.commands.others import Named, Outputs
from bdg.commands.request import Request
from bdg.commands.restore import check_free, describe, load_restorer, restoring
from bdg.devices import device
from bdg.metrics import FACTS, Protocol, per_image, psnr
from bdg.panel import panel, to_uint8
from bdg.types import Image
from datamodules import shards
from datamodules.degradations.base import from_bytes
from datamodules.images import Picture, check_format, read_image, upright_size, write_image
from datamodules.layouts import Found, Item, look
from datamodules.pipeline import to_float
from datamodules.restoration import RestorationData
from datamodules.restored import Restore
from datamodules.scale import enlarged, scale_of
from jobs.run import write_text

Batch = Mapping[str, Any]
"""x_hq (where there is one), x_lq: b 3 h w in [-1, 1]; label: int b; key: list; severity: float b, NaN where nobody knows it.

name, set, photograph: lists, where they are known: the degraded file, the test set, and what shows the same scene.
"""
Seen = Callable[[Batch, Image], None]
"""Is shown every batch with the restored images."""

RESTORED = "restored"
NO_WEIGHTS = "none"


@dataclass(frozen=True)
class Source:
    """What is measured: batches, and the names of their labels.

    about, text: how a report and the terminal name it. scales: how many times smaller degraded images were before they were
    enlarged, if any. clean: whether there are clean images. named: what images go by, where that is known before.
    """

    degradations: Sequence[str]
    batches: Iterable[Batch]
    num_batches: int
    about: Mapping[str, Any]
    text: str
    scales: Sequence[int] = ()
    clean: bool = True
    named: Sequence[Named] = ()


def run(config: DictConfig, request: Request) -> None:
    restore, settings, said = _weights(config)
    protocol = build(config.protocol, trust=config.trust).plus(
        {name: build(node, trust=config.trust) for name, node in (config.get("metrics") or {}).items()}
    )
    others = _outputs(config.outputs)
    source = open_source(config, protocol)
    watching, gallery = _watching(config, source, protocol)
    for outputs in others.values():
        outputs.check(source.named)
    console = Console(markup=False, highlight=False)
    console.print(f"{said}\n{source.text}", soft_wrap=True)
    bar = track(source.batches, "evaluating", source.num_batches, console=Console(stderr=True), transient=True)
    about = {"weights": settings.pop("weights"), **source.about, **settings}
    report = evaluate(
        restore,
        bar,
        source.degradations,
        protocol if source.clean else protocol.without_reference(),
        about,
        watching,
        source.scales,
        others,
        config.name if restore else None,
        device(config.device),
    )
    for path in config.add:
        report = report.plus(Path(path))
    console.print(report.table())
    if gallery:
        write_image(config.picture, gallery.picture())
    if config.table:
        write_text(Path(config.table), PAPER[Path(config.table).suffix](report))
    if config.parquet:
        write_parquet(Path(config.parquet), report)
    if config.json:
        write_text(Path(config.json), json.dumps(report.to_dict(), indent=1) + "\n")


def _weights(config: DictConfig) -> tuple[Restore | None, dict[str, Any], str]:
    """What restores, how a report and how the terminal names it; nothing for weights=none."""
    if config.keep_color == "auto":
        raise ValueError("keep_color=auto decides for each picture, which is no protocol: give true or false")
    if config.weights != NO_WEIGHTS:
        restorer = load_restorer(config)
        restore, settings = restoring(restorer, config)
        return restore, {"weights": f"{restorer}", **settings}, f"weights {restorer}; {describe(settings)}"
    for key in ("save", "picture"):
        if config[key]:
            raise ValueError(
                f"{key}={config[key]} needs restored images, and weights=none restores none: leave one out"
            )
    return None, {"weights": None}, "no weights: only what is there is measured"


def _outputs(given: Any) -> dict[str, Outputs]:
    """Folders by the names of their methods."""
    paths = [Path(path) for path in (given if OmegaConf.is_list(given) else [given] if given else [])]
    names = [path.resolve().name for path in paths]
    for name in names:
        if names.count(name) > 1 or name == DEGRADED:
            raise ValueError(f"outputs={list(map(str, paths))}: a method is called by its folder, '{name}': rename it")
    return {name: Outputs(path) for name, path in zip(names, paths, strict=True)}


def _watching(config: DictConfig, source: Source, protocol: Protocol) -> tuple[list[Seen], "Gallery | None"]:
    """Who is shown the restored images; what is to be written is checked before hours of restoring."""
    if config.table:
        check_table(Path(config.table))
    if config.parquet:
        pyarrow()
    check_free([Path(config[key]) for key in ("picture", "save", "table", "parquet") if config[key]], config.overwrite)
    watching: list[Seen] = [Save(Path(config.save), source.degradations)] if config.save else []
    if not config.picture:
        return watching, None
    if not source.clean:
        raise ValueError(f"picture={config.picture} shows clean images, and there are none: take save=FOLDER")
    check_format(config.picture, Picture(np.zeros((1, 1, 3), np.uint8)))
    gallery = Gallery(source.degradations, protocol)
    return [*watching, gallery], gallery


def evaluate(
    restore: Restore | None,
    batches: Iterable[Batch],
    degradations: Sequence[str],
    protocol: Protocol,
    about: Mapping[str, Any] | None = None,
    watching: Sequence[Seen] = (),
    scales: Sequence[int] = (),
    others: Mapping[str, Outputs] | None = None,
    name: str | None = RESTORED,
    on: torch.device | str = "cpu",
) -> Report:
    """Restores every batch and measures it, before and after, and others' outputs beside it.

    about: what the report should say of weights, data and settings. name: of the restored images, in tables. on: the device
    that measures. Where batches tell their test sets and the protocol has some, its rows take the place of degradations.
    """
    others = others or {}
    measured = {
        method: protocol.collection().to(on) for method in (DEGRADED, *([RESTORED] if restore else []), *others)
    }
    facts: list[dict[str, Any]] = []
    for batch in map(to_float, batches):
        label, x_hq = batch["label"], batch.get("x_hq")
        images = {DEGRADED: batch["x_lq"]}
        if restore:
            images[RESTORED] = restore(batch["x_lq"], batch["name"] if "name" in batch else batch["key"])
        images |= {method: _read(outputs, batch, degradations) for method, outputs in others.items()}
        index = torch.arange(len(facts), len(facts) + len(label))
        for method, image in images.items():
            measured[method].update(image, x_hq, label, index)
        facts += _facts(batch, degradations, protocol)
        for seen in watching if restore else ():
            seen(batch, images[RESTORED])
    suffixes = {"": RESTORED, "_input": DEGRADED} if restore else {"_input": DEGRADED}
    rows = partial(_rows, facts=facts, protocol=protocol, degradations=degradations)
    used = {fact.get("set") for fact in facts}
    return Report(
        protocol,
        list(protocol.sets) if _by_sets(facts) else degradations,
        rows({suffix: measured[method] for suffix, method in suffixes.items()}),
        about or {},
        scales,
        {method: rows({"": measured[method]}) for method in others},
        name if restore else None,
        [each for each in protocol.set_names if each not in used] if _by_sets(facts) else [],
    )


def _facts(batch: Batch, degradations: Sequence[str], protocol: Protocol) -> list[dict[str, Any]]:
    """What a report says of each image; "row": the protocol's row and set, where the batch tells its set."""
    found: list[dict[str, Any]] = []
    for i, (key, severity) in enumerate(zip(batch["key"], severities(batch), strict=True)):
        fact = {"key": key, "severity": severity}
        if "photograph" in batch:
            fact["photograph"] = batch["photograph"][i]
        if protocol.sets and "set" in batch:
            row = protocol.row(batch["set"][i], severity)
            fact |= {"degradation": row[0], "set": row[1]} if row else {"degradation": None, "set": None}
        found.append(fact)
    return found


def _by_sets(facts: Sequence[Mapping[str, Any]]) -> bool:
    return any("set" in fact for fact in facts)


def _rows(
    collections: Mapping[str, Any], facts: Sequence[Any], protocol: Protocol, degradations: Sequence[str]
) -> list[Any]:
    """Values of images with what is known of them; without those that are in no set of the protocol."""
    rows = per_image(collections, protocol, degradations)
    told = [{**row, **facts[row["index"]]} for row in rows]
    kept = [
        {name: row[name] for name in (*FACTS, *row) if name in row and name != "index"}
        for row in told
        if row["degradation"] is not None
    ]
    if not kept:
        raise ValueError(
            f"none of the images is of a set of protocol {protocol.name}, which are {', '.join(protocol.set_names)}: name a "
            "source with those, or a protocol without sets, such as protocol=rgb"
        )
    return kept


def _read(outputs: Outputs, batch: Batch, degradations: Sequence[str]) -> Image:
    images = [outputs.read(named) for named in named_of(batch, degradations)]
    if len({image.shape for image in images}) > 1:
        raise ValueError(f"outputs={outputs.folder}: images of one batch differ in size")
    return torch.cat(images)


def named_of(batch: Batch, degradations: Sequence[str]) -> list[Named]:
    """What the images of a batch go by."""
    size = tuple(batch["x_hq"].shape[-2:]) if "x_hq" in batch else None
    facts = zip(batch["label"].tolist(), batch["key"], severities(batch), strict=True)
    return [
        Named(
            degradations[label],
            key,
            severity,
            Path(batch["name"][i]).stem if "name" in batch else None,
            batch["set"][i] if "set" in batch else None,
            size,  # type: ignore[arg-type]
        )
        for i, (label, key, severity) in enumerate(facts)
    ]


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
class Save:
    """Writes restored images to <folder>/<degradation>/<key>[_<severity>].png."""

    folder: Path
    degradations: Sequence[str]

    def __call__(self, batch: Batch, restored: Image) -> None:
        facts = zip(batch["label"].tolist(), batch["key"], severities(batch), restored, strict=True)
        for label, key, severity, image in facts:
            name = key if severity is None else f"{key}_{severity:g}"
            write_image(self.folder / self.degradations[label] / f"{name}.png", to_uint8(image))


def open_source(config: DictConfig, protocol: Protocol | None = None) -> Source:
    """A folder of pairs, or shards, which may also be named by their folder; of several parts the one that `part` says.

    A folder of degraded images alone is one, too, if the protocol measures anything without clean ones.
    """
    protocol = protocol or Protocol()
    folder = Path(config.source)
    parts = {path.name.rpartition("-")[0] for path in folder.glob("*.tar")} if folder.is_dir() else set()
    if folder.is_dir() and not parts:
        return _folder(config, folder, protocol)
    part = _part(config, parts) if parts or config.part else None
    return _shards(config, f"{folder}/{part}-*.tar" if part else config.source, protocol)


def _part(config: DictConfig, parts: Collection[str]) -> str:
    """The part that is asked for, or else test, or else the only one: nobody measures training images without knowing."""
    (only,) = parts if len(parts) == 1 else ("test",)
    part = config.part or only
    if part not in parts:
        choices = " or ".join(f"part={name}" for name in sorted(parts))
        raise ValueError(f"source={config.source} has no part '{part}': {choices or 'leave part out'}")
    return str(part)


def _shards(config: DictConfig, pattern: str, protocol: Protocol) -> Source:
    degradations = {name: node and build(node, trust=config.trust) for name, node in config.degradation.items()}
    data = RestorationData.to_measure(
        degradations,
        crop=config.crop,
        severities=_severities(config, degradations),
        num_workers=config.num_workers,
    )
    batches = data.measured(pattern)
    samples = shards.index(shards.expand(pattern))
    scales = (sample.scale for sample in samples if sample.lq)
    about = {"data": pattern, "severities": data.val_severities, "crop": data.val_crop}
    text = f"data {pattern}: {len(batches)} images"
    length, told = len(batches), _with_sets(batches, samples) if protocol.sets else batches
    return Source(list(degradations), told, length, about, text, _above_1(scales))


def _with_sets(batches: Iterable[Batch], samples: Iterable[shards.Sample]) -> Iterator[Batch]:
    """The batches with the test set of each image, as its shard tells it."""
    sets = {sample.key: shards.read(sample).info.get("set") for sample in samples}
    for batch in batches:
        yield {**batch, "set": [sets[key] for key in batch["key"]]}


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


def _folder(config: DictConfig, folder: Path, protocol: Protocol) -> Source:
    reading = {key: None if config[key] is None else f"{config[key]}" for key in ("layout", "gopro", "scale")}
    found = look(folder, **reading)
    found.refuse_gaps()
    pairs = [item for item in found.items if item.lq]
    if not pairs and not all(measure.reference for measure in protocol.measures.values()):
        return _degraded_only(folder, found, protocol)
    if not pairs:
        raise ValueError(
            f"source={folder} holds no pairs, and {', '.join(protocol.measures)} compare with clean images: if these are clean "
            f"images only, pack them first (bdg pack {folder} SHARDS) and evaluate SHARDS; if they are degraded, measure "
            "without clean ones: protocol=no_reference; else give a folder with lq/ and gt/"
        )
    parts = {item.part for item in pairs if item.part}
    part = _part(config, parts) if parts or config.part else None
    of_part = [item for item in pairs if item.part == part]
    items = [item for item in of_part if not protocol.sets or protocol.row(item.set)]
    if not items:
        there = ", ".join(sorted({f"{item.set}" for item in of_part}))
        raise ValueError(
            f"source={folder} holds the sets {there}, and protocol={protocol.name} the sets {', '.join(protocol.set_names)}: "
            "name a folder with some of those, or take a protocol without sets, such as protocol=rgb"
        )
    names = sorted({str(item.degradation) for item in items})
    text = f"data {folder}, layout {found.layout}: {len(items)} pairs" + (f" of the part {part}" if part else "")
    rest = {
        "pairs": len(pairs) - len(of_part),
        "pairs of other sets": len(of_part) - len(items),
        "clean images": len(found.items) - len(pairs),
    }
    if left_out := " and ".join(f"{count} {what}" for what, count in rest.items() if count):
        text += f"; not measured: {left_out}"
    about = {"data": str(folder), "layout": found.layout, "part": part}
    scales = _above_1(map(_scale, items))
    named = [
        Named(f"{item.degradation}", item.key, None, item.lq.stem if item.lq else None, item.set, _size(item.hq))
        for item in items
    ]
    return Source(names, _read_pairs(items, names, folder), len(items), about, text, scales, named=named)


def _degraded_only(folder: Path, found: Found, protocol: Protocol) -> Source:
    """Images without clean ones: what compares with those is left out, and the terminal says so."""
    name = folder.resolve().name
    left_out = [name for name, measure in protocol.measures.items() if measure.reference]
    text = f"data {folder}: {len(found.items)} degraded images without clean ones"
    text += f"; not measured: {', '.join(left_out)}" if left_out else ""
    about = {"data": str(folder), "layout": found.layout, "part": None}
    named = [Named(name, item.key, None, item.hq.stem, None, _size(item.hq)) for item in found.items]
    return Source([name], _read_degraded(found.items), len(found.items), about, text, clean=False, named=named)


def _read_degraded(items: Sequence[Item]) -> Iterator[Batch]:
    for item in items:
        yield {
            "x_lq": _tensor(read_image(item.hq).to_rgb()),  # the only image there is
            "label": torch.tensor([0]),
            "severity": torch.tensor([math.nan]),
            "key": [item.key],
            "name": [item.hq.name],
        }


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


def _read_pairs(items: Sequence[Item], names: Sequence[str], folder: Path) -> Iterator[Batch]:
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
            "set": [item.set],
            "photograph": [os.path.relpath(item.hq, folder)],
        }


def _tensor(rgb: NDArray[np.float32]) -> Image:
    """h w 3 in [0, 1] as 1 3 h w in [-1, 1]."""
    return torch.from_numpy(rgb).permute(2, 0, 1)[None] * 2 - 1
