"""Folders that belong to no known data set: pairs below whatever folders, and folders of clean images."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from datamodules.layouts.rules import BEFORE_UNDERSCORE, LAST, RAIN, Place, Rule

PAIRS = (
    Rule("", "lq", "gt"),
    Rule("", "input", "target"),
    Rule("", "low", "high", "low_light"),
    Rule("", "hazy", "gt", "haze", lq_name=BEFORE_UNDERSCORE, hq_name=LAST),
    Rule("", "rainy", "gt", "rain", lq_name=RAIN, hq_name=RAIN),
    Rule("", "synthetic", "gt", "snow"),
    Rule("", "blur", "sharp", "blur", choice=("gopro", "blur")),
    Rule("", "blur_gamma", "sharp", "blur", choice=("gopro", "blur_gamma")),
)
"""Names of the two folders of a pair: degraded, clean; the first are for any degradation."""
DEPTH = 3
"""How many folders below the source they are looked for: <task>/<set>/<part>/{lq,gt}."""
PARTS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
TASKS = {
    "rain": ("derain", "deraining", "syn_rain"),
    "haze": ("dehaze", "dehazing"),
    "snow": ("desnow", "desnowing"),
    "blur": ("deblur", "deblurring"),
    "noise": ("denoise", "denoising"),
    "low_light": ("lowlight", "low-light", "enhance", "llie"),
    "real_sr": ("realsr",),
}
"""Label of a degradation -> what folders of its pairs are called, beside the label itself."""


def pairs(source: Path) -> list[Place]:
    """Every pair of folders in `PAIRS` below the source.

    Folders named train, val or test on the way there are the part, the nearest other one is the set. The label is that of
    the nearest folder in `TASKS` (the folder that the source lies in counts as well), or else the name of the set.
    """
    return [_place(source, folder, rule) for folder, rule in _pair_folders(source, DEPTH)]


def photographs(source: Path) -> list[Place]:
    """The source as one folder of clean images."""
    return [Place(Rule(".", None), source, source)]


def _pair_folders(folder: Path, depth: int) -> Iterator[tuple[Path, Rule]]:
    with os.scandir(folder) as entries:
        inside = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    found = [rule for rule in PAIRS if rule.lq in inside and rule.hq in inside]
    found = found or [rule for rule in PAIRS if rule.lq in inside][:1] or [PAIRS[0]] * ("gt" in inside)
    yield from ((folder, rule) for rule in found)
    if not found and depth:
        for name in inside:
            yield from _pair_folders(folder / name, depth - 1)


def _place(source: Path, folder: Path, rule: Rule) -> Place:
    way = [*reversed(folder.relative_to(source).parts), source.resolve().name]
    part = next((PARTS[name.lower()] for name in way[:-1] if name.lower() in PARTS), None)
    name = next((name for name in way if name.lower() not in PARTS), way[-1])
    labels = {name: label for label, names in TASKS.items() for name in (label, *names)}
    known = filter(None, (labels.get(name.lower()) for name in (*way, source.resolve().parent.name)))
    degradation = rule.degradation or next(known, name)
    return Place(replace(rule, degradation=degradation, part=part, set=name), source, folder)
