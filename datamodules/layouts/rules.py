"""A rule: in which folders of a data set the images of one set lie, and by which part of their names they are pairs."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from os.path import normpath
from pathlib import Path

from braceexpand import braceexpand

from datamodules.layouts.items import Item, as_key, name_below

Listing = Callable[[Path], Sequence[Path]]
"""The images below a folder."""

WHOLE = r"(.+)"
LAST = r"(?:.*/)?([^/]+)"
BEFORE_UNDERSCORE = r"(?:.*/)?([^/_]+)(?:_[^/]*)?"
"""RESIDE's part1/0025_0.8_0.04 belongs to 0025, as 34 others do."""
RAIN = r"(?:(?:no)?rain-)?(.+)"
"""rain-1 belongs to norain-1."""
TIMES = r"(.+?)(?:_x[1-4](.*))?"
"""DRealSR's sony_160_x1 belongs to sony_160_x4."""


@dataclass(frozen=True)
class Rule:
    """The images of one set.

    folder: where it lies below the source; may hold braces and stars, as in a shell.
    lq, hq: folders below it of the degraded and the clean images; lq None where there are clean images only.
    set: name of the set, or None for that of the folder.
    lq_name, hq_name: regular expressions for the path of an image below lq or hq, without extension. Partners are those
        whose groups, joined, are equal; images that do not match are not of this set.
    choice: an option and its value for which this rule counts, where a data set has several versions of the same images.
    listed: a file, in a folder of lists, that may say which images count: paths below `folder`.
    """

    folder: str
    lq: str | None
    hq: str = "."
    degradation: str | None = None
    part: str | None = None
    set: str | None = None
    lq_name: str = WHOLE
    hq_name: str = WHOLE
    choice: tuple[str, str] | None = None
    listed: str | None = None

    def places(self, source: Path) -> "Iterator[Place]":
        """Where this rule applies: the folders in which one side of the pairs is there, at least."""
        for pattern in braceexpand(self.folder):
            for folder in sorted(source.glob(f"{pattern}/")) if "*" in pattern else [source / pattern]:
                place = Place(self, source, folder)
                if place.has_lq or place.hq.is_dir():
                    yield place


@dataclass(frozen=True)
class Place:
    """A rule in one of its folders."""

    rule: Rule
    source: Path
    folder: Path

    @property
    def lq(self) -> Path | None:
        return None if self.rule.lq is None else Path(normpath(self.folder / self.rule.lq))

    @property
    def hq(self) -> Path:
        return Path(normpath(self.folder / self.rule.hq))

    @property
    def has_lq(self) -> bool:
        return self.lq is not None and self.lq.is_dir()

    @property
    def complete(self) -> bool:
        return self.hq.is_dir() and (self.lq is None or self.lq.is_dir())

    def version(self, option: str) -> str | None:
        """The value of an option for which this place counts; None if it does for any."""
        return self.rule.choice[1] if self.rule.choice and self.rule.choice[0] == option else None

    def degraded(self, listing: Listing) -> dict[Path, str]:
        """The degraded images, each with what its name shares with its partner's."""
        return dict(_named(self.lq, self.rule.lq_name, listing)) if self.lq else {}

    def clean(self, listing: Listing) -> dict[Path, str]:
        """The same of the clean images."""
        return dict(_named(self.hq, self.rule.hq_name, listing))

    def item(self, hq: Path, lq: Path | None = None) -> Item:
        """The item of these images. Its key is the path of the set and the image's name in it."""
        path, folder = (lq, self.lq) if lq and self.lq else (hq, self.hq)
        key = as_key("/".join((*self.folder.relative_to(self.source).parts, name_below(path, folder))))
        name = self.rule.set or (None if self.folder == self.source and not lq else self.folder.resolve().name)
        return Item(key, hq, lq, self.rule.degradation if lq else None, part=self.rule.part, set=name)


def _named(folder: Path, pattern: str, listing: Listing) -> Iterator[tuple[Path, str]]:
    for path in listing(folder):
        if match := re.fullmatch(pattern, name_below(path, folder)):
            yield path, "".join(group or "" for group in match.groups())
