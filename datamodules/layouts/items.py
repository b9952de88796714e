"""What a folder of images is read as: items with unique keys; opens no image."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from datamodules.images import SUFFIXES


@dataclass(frozen=True)
class Item:
    """One clean image, or a pair; `key` names it in the shard and is unique.

    degradation: label of a pair. part: train, val or test where the data set is published in parts. set: name of the data
    set. scale: how many times smaller `lq` is; 1 until the images are opened, since folder names do not tell.
    """

    key: str
    hq: Path
    lq: Path | None = None
    degradation: str | None = None
    scale: int = 1
    part: str | None = None
    set: str | None = None


def images(folder: Path) -> list[Path]:
    """The images below a folder in sorted order; hidden ones are left out, links to folders are followed once."""
    found, visited = [], set()
    for path, subfolders, names in os.walk(folder, followlinks=True):
        here = os.path.realpath(path)
        subfolders[:] = [] if here in visited else [name for name in subfolders if not name.startswith(".")]
        found += [
            Path(path, name)
            for name in ([] if here in visited else names)
            if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        ]
        visited.add(here)
    return sorted(found)


def name_below(path: Path, folder: Path) -> str:
    """Path below a folder without the extension: what tells an image from the others there."""
    return path.relative_to(folder).with_suffix("").as_posix()


def as_key(name: str) -> str:
    """A name as WebDataset wants it: the first dot begins the extension, so that none is left in the key."""
    return name.replace("/", "_").replace(".", "_")


def refuse_clashes(items: Iterable[Item]) -> None:
    """Raises ValueError for two items with one key."""
    seen: dict[str, Path] = {}
    for item in items:
        path = item.lq or item.hq
        if item.key in seen:
            raise ValueError(f"{seen[item.key]} and {path} would both have the key '{item.key}': rename one of them")
        seen[item.key] = path
