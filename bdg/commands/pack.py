"""`bdg pack`: a folder of images becomes WebDataset shards."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from bdg.commands.request import Request
from datamodules.layouts import Found, look
from datamodules.pack import leaks, pack, packed_samples
from jobs.run import write_text

IN_PACKAGE = "pkg://"
SHOWN = 5
"""How many images that were left out are named."""


def run(config: DictConfig, request: Request) -> None:
    console = Console(markup=False, highlight=False, soft_wrap=True)
    found = look(
        folder(config.source),
        layout=config.layout,
        label=config.label,
        lists=config.lists,
        gopro=config.gopro,
        scale=None if config.scale is None else f"{config.scale}",
    )
    sets = found.sets()
    console.print(f"{found.source}: layout {found.layout}")
    console.print(_table(sets, ["set", "part", "degradation", "pairs", "clean"]))
    if config.dry_run or config.on_unpaired == "skip":  # otherwise they are the error
        for gap in found.gaps:
            console.print(f"without a partner: {gap.text}")
    if found.unused:
        folders = ", ".join(f"{count} in {name}/" for name, count in found.unused.items())
        console.print(f"not used: images that this layout does not speak of, {folders}")
    report: dict[str, Any] = {
        "layout": found.layout,
        "sets": sets,
        "unpaired": found.num_unpaired,
        "unused": found.unused,
    }
    if not config.dry_run:
        manifest = _pack(config, found)
        rows = parts(manifest)
        console.print(
            _table([{**row, "MB": f"{row['bytes'] / 1e6:.1f}"} for row in rows], ["part", "shards", "images", "MB"])
        )
        for text in _warnings(manifest, list(packed_samples(Path(config.output)))):
            console.print(text)
        console.print(f"{config.output}: digest {manifest['digest'][:12]}")
        report |= {"digest": manifest["digest"], "skipped": manifest["skipped"], "parts": rows}
    if config.json:
        write_text(Path(config.json), json.dumps(report, indent=1) + "\n")


def _pack(config: DictConfig, found: Found) -> dict[str, Any]:
    shares = OmegaConf.to_container(config.parts)
    assert isinstance(shares, dict)
    with Progress(console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        return pack(
            found,
            Path(config.output),
            parts={str(part): share for part, share in shares.items() if share is not None},
            shard_size=config.shard_size,
            max_size=config.max_size,
            seed=config.seed,
            encoding=config.encoding,
            quality=config.quality,
            workers=config.workers,
            on_unpaired=config.on_unpaired,
            on_error=config.on_error,
            progress=progress,
        )


def folder(source: str) -> Path:
    """A folder, also one inside an installed package: `pkg://datamodules/photographs`."""
    if not source.startswith(IN_PACKAGE):
        return Path(source)
    package, _, inside = source.removeprefix(IN_PACKAGE).partition("/")
    try:
        return Path(str(files(package) / inside))
    except ModuleNotFoundError:
        raise FileNotFoundError(
            f"source={source}: no package '{package}': name a folder, or pkg://datamodules/photographs"
        ) from None


def parts(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Shards, images and bytes of each part."""
    rows: dict[str, dict[str, Any]] = {}
    for name, entry in manifest["shards"].items():
        part = name.rpartition("-")[0]
        row = rows.setdefault(part, {"part": part, "shards": 0, "images": 0, "bytes": 0})
        row["shards"] += 1
        row["images"] += entry["count"]
        row["bytes"] += entry["bytes"]
    return list(rows.values())


def _warnings(manifest: dict[str, Any], samples: Sequence[Mapping[str, Any]]) -> list[str]:
    """What one should know of the shards before training on them."""
    skipped = [line for entry in manifest["shards"].values() for line in entry.get("skipped", ())]
    texts = [f"skipped: {line['key']}: {line['error']}" for line in skipped[:SHOWN]]
    if len(skipped) > SHOWN:
        texts.append(f"skipped: {len(skipped) - SHOWN} more, see the manifest")
    scales = Counter(sample["scale"] for sample in samples if "scale" in sample)
    texts += [
        f"super-resolution: {count} pairs whose degraded image is {scale} times smaller"
        for scale, count in sorted(scales.items())
    ]
    if count := leaks(samples):
        texts.append(f"leak: {count} clean images are in several parts, by the data set's own split")
    return texts


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Table:
    table = Table(*columns)
    for row in rows:
        table.add_row(*("" if row[column] is None else f"{row[column]}" for column in columns))
    return table
