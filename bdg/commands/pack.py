"""`bdg pack`: a folder of images becomes WebDataset shards."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from bdg.commands.request import Request
from datamodules.pack import pack

IN_PACKAGE = "pkg://"


def run(config: DictConfig, request: Request) -> None:
    shares = OmegaConf.to_container(config.parts)
    assert isinstance(shares, dict)
    with Progress(console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        manifest = pack(
            folder(config.source),
            Path(config.output),
            parts={str(part): share for part, share in shares.items() if share is not None},
            shard_size=config.shard_size,
            max_size=config.max_size,
            label=config.label,
            seed=config.seed,
            progress=progress,
        )
    rows = parts(manifest)
    table = Table("part", "shards", "images", "MB")
    for row in rows:
        table.add_row(row["part"], str(row["shards"]), str(row["images"]), f"{row['bytes'] / 1e6:.1f}")
    Console().print(table)
    print(f"{config.output}: digest {manifest['digest'][:12]}")
    if config.json:
        Path(config.json).write_text(json.dumps({"digest": manifest["digest"], "parts": rows}, indent=1) + "\n")


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
