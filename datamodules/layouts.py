"""Folders of images as people have them on disk, read as clean images or as pairs; opens no image."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from datamodules.images import SUFFIXES

PAIRS = (("lq", "gt"), ("input", "target"))
"""Names of the two folders of a pair: degraded, clean."""
SHOWN = 5
"""How many names an error lists."""


@dataclass(frozen=True)
class Item:
    """One clean image, or a pair; `key` names it in the shard and is unique, `degradation` labels a pair."""

    key: str
    hq: Path
    lq: Path | None = None
    degradation: str | None = None


def find(source: Path, label: str | None = None) -> list[Item]:
    """The images below `source`, sorted by key.

    <source>/{lq,gt} or {input,target} are pairs labelled `label`, or else by the name of their folder; so are the
    <source>/<name>/{lq,gt}. Partners have the same name, extension aside. Anything else is a folder of clean images.

    Raises FileNotFoundError, and ValueError for files without a partner and for names that clash.
    """
    if not source.is_dir():
        raise FileNotFoundError(f"source={source}: no such folder: name a folder of images")
    folders = {folder: pair for folder in (source, *_subfolders(source)) if (pair := _pair(folder))}
    if source in folders:
        items = _pairs(source, folders[source], label or source.resolve().name, "")
    elif folders:
        if label and len(folders) > 1:
            names = ", ".join(folder.name for folder in folders)
            raise ValueError(
                f"label={label}: {source} holds pairs of several degradations ({names}): pack one at a time"
            )
        stray = [f for f in _images(source) if not any(f.is_relative_to(folder) for folder in folders)]
        if stray:
            raise ValueError(
                f"{source} holds folders of pairs beside {len(stray)} other images, such as {stray[0]}: "
                "move them away, or pack the folders one at a time"
            )
        items = [
            item
            for folder, pair in folders.items()
            for item in _pairs(folder, pair, label or folder.name, f"{folder.name}_")
        ]
    else:
        items = [Item(_key(name), path) for name, path in _by_name(source).items()]
    if not items:
        raise ValueError(f"source={source}: no image in it (looked for {', '.join(SUFFIXES)}): name a folder of images")
    _refuse_clashes(items)
    return sorted(items, key=lambda item: item.key)


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _pair(folder: Path) -> tuple[Path, Path] | None:
    for names in PAIRS:
        lq, gt = (folder / name for name in names)
        if lq.is_dir() and gt.is_dir():
            return lq, gt
        if lq.is_dir() or (gt.is_dir() and names[1] == "gt"):
            there, missing = (lq, gt) if lq.is_dir() else (gt, lq)
            raise ValueError(
                f"{there} has no folder {missing.name}/ beside it: add its partners there, "
                f"or name the folder of images itself (source={there}) if they are clean"
            )
    return None


def _pairs(folder: Path, pair: tuple[Path, Path], degradation: str, prefix: str) -> list[Item]:
    lq, gt = map(_by_name, pair)
    for images, others, here, there in ((lq, gt, *pair), (gt, lq, pair[1], pair[0])):
        alone = sorted(images.keys() - others.keys())
        if alone:
            raise ValueError(
                f"{len(alone)} of {len(images)} images in {here} have no partner of the same name in {there}: "
                f"{_some(alone)}: add the partners, or move these away"
            )
    return [Item(_key(prefix + name), gt[name], lq[name], degradation) for name in gt]


def _by_name(folder: Path) -> dict[str, Path]:
    """Images by their path below the folder, without extension."""
    named: dict[str, Path] = {}
    for path in _images(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in named:
            raise ValueError(f"{named[name]} and {path} differ in their extension only: rename or remove one of them")
        named[name] = path
    return named


def _images(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _key(name: str) -> str:
    """A name as WebDataset wants it: the first dot begins the extension, so that none is left in the key."""
    return name.replace("/", "_").replace(".", "_")


def _refuse_clashes(items: Iterable[Item]) -> None:
    seen: dict[str, Path] = {}
    for item in items:
        if item.key in seen:
            raise ValueError(f"{seen[item.key]} and {item.hq} would both have the key '{item.key}': rename one of them")
        seen[item.key] = item.hq


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
