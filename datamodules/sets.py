"""Data sets as the doctor takes them: entries that can be read one by one, from folders of images or from shards."""

import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from datamodules import layouts, shards

PARTS = ("train", "val", "test")

Raw = tuple[bytes, bytes | None, Mapping[str, Any]]
"""The clean image and the degraded one, encoded, and what is known of them, such as their degradation."""
Fault = tuple[str, str]
"""A kind of `datamodules.doctor.KINDS`, and the place with what was seen there."""


@dataclass(frozen=True)
class Entry:
    """A clean image, or a pair, under the names that messages give them."""

    hq: str
    lq: str | None
    read: Callable[[], Raw]


@dataclass(frozen=True)
class DataSet:
    """Entries that are judged together. part: one of PARTS if known. faults: what showed on opening it."""

    name: str
    part: str | None
    entries: Sequence[Entry]
    faults: Sequence[Fault] = ()


def open_sets(source: str | Sequence[str], label: str | None = None, **reading: Any) -> list[DataSet]:
    """The data sets in a folder of images, one per set and part that its layout knows; or in shards, one per part.

    source: a folder of images or of shards; or shards, as one or several patterns. label: degradation of all pairs.
    reading: further options of `datamodules.layouts.look`.

    Raises FileNotFoundError, and ValueError as `datamodules.layouts.look` and `datamodules.shards.expand` do.
    """
    if not isinstance(source, str):
        return _open_shards(source, label)
    if os.path.isdir(source):
        if any(Path(source).glob("*.tar")):
            return _open_shards([f"{source}/*.tar"], label)
        return _open_folder(Path(source), label=label, **reading)
    if ".tar" not in source:
        raise FileNotFoundError(f"source={source}: no such folder: name a folder of images or of shards, or shards")
    return _open_shards([source], label)


def _open_folder(folder: Path, **reading: Any) -> list[DataSet]:
    found = layouts.look(folder, **reading)
    entries: dict[tuple[str, str | None], list[Entry]] = defaultdict(list)
    for item in found.items:
        inner = item.set if item.set != folder.resolve().name else None
        name = " ".join(filter(None, (str(folder), inner, item.part)))
        hq, lq = (os.path.relpath(path, folder) if path else None for path in (item.hq, item.lq))
        read = partial(_read_files, item.hq, item.lq, {"degradation": item.degradation})
        entries[name, item.part].append(Entry(f"{hq}", lq, read))
    faults = [("no partner", gap.text) for gap in found.gaps]
    faults += [("unused", f"{name}: {count} images") for name, count in found.unused.items()]
    left_out = [DataSet(str(folder), None, [], faults)] if faults else []
    return [*left_out, *(DataSet(name, part, group) for (name, part), group in entries.items())]


def _read_files(hq: Path, lq: Path | None, info: Mapping[str, Any]) -> Raw:
    return hq.read_bytes(), lq.read_bytes() if lq else None, info


def _open_shards(patterns: Sequence[str], label: str | None) -> list[DataSet]:
    sets = []
    for name, paths in groupby(sorted(shards.expand(patterns), key=_prefix), _prefix):
        entries: list[Entry] = []
        faults: list[Fault] = []
        for path in paths:
            try:
                samples = shards.index([path])
            except ValueError as error:
                faults.append(("unreadable", str(error)))
                continue
            for sample in samples:
                image = f"{os.path.basename(path)}: {sample.key}"
                read = partial(_read_sample, sample, label)
                entries.append(Entry(f"{image}.hq", f"{image}.lq" if sample.lq else None, read))
        part = os.path.basename(name)
        sets.append(DataSet(name, part if part in PARTS else None, entries, faults))
    return sets


def _prefix(shard: str) -> str:
    """What the shards of one part have in common: x/train of x/train-000000.tar."""
    folder, name = os.path.split(shard)
    return os.path.join(folder, name.rpartition("-")[0] or name)


def _read_sample(sample: shards.Sample, label: str | None) -> Raw:
    hq, lq, info = shards.read(sample)
    return hq, lq, {**info, "degradation": label} if label else info
