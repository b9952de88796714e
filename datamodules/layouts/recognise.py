"""Which layout a folder has, and what is found in it: items, images without a partner, images that are not used."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from os.path import normpath
from pathlib import Path
from typing import Any

from datamodules.images import SUFFIXES
from datamodules.layouts.generic import pairs, photographs
from datamodules.layouts.items import Item, images, name_below, refuse_clashes
from datamodules.layouts.known import KNOWN
from datamodules.layouts.rules import Listing, Place, Rule

SHOWN = 5
"""How many names an error lists."""


def _by_rules(rules: Sequence[Rule], source: Path) -> list[Place]:
    return [place for rule in rules for place in rule.places(source)]


LAYOUTS: Mapping[str, Callable[[Path], list[Place]]] = {
    **{name: partial(_by_rules, rules) for name, rules in KNOWN.items()},
    "pairs": pairs,
    "photographs": photographs,
}
"""Name -> the places of a source that is laid out so."""


@dataclass(frozen=True)
class Gap:
    """Images without a partner: how many, and what to say of them."""

    count: int
    text: str


@dataclass(frozen=True)
class Found:
    """What a folder holds: items sorted by key, images without a partner, and images that the layout does not speak of
    (name of their folder -> how many)."""

    source: Path
    layout: str
    items: list[Item]
    gaps: list[Gap]
    unused: dict[str, int]

    @property
    def num_unpaired(self) -> int:
        return sum(gap.count for gap in self.gaps)

    def sets(self) -> list[dict[str, Any]]:
        """Numbers of pairs and of clean images of each set, part and degradation."""
        counts = Counter((item.set, item.part, item.degradation, item.lq is not None) for item in self.items)
        return [
            {"set": name, "part": part, "degradation": label, "pairs": paired * count, "clean": (not paired) * count}
            for (name, part, label, paired), count in counts.items()
        ]

    def refuse_gaps(self, way_out: str = "") -> None:
        """Raises ValueError if there are images without a partner."""
        if self.gaps:
            text = "\n".join(gap.text for gap in self.gaps)
            raise ValueError(f"{text}: add the partners, or move these away{way_out}")


def find(source: Path, label: str | None = None) -> list[Item]:
    """The items that `look` finds; raises as it does, and ValueError for images without a partner."""
    found = look(source, label=label)
    found.refuse_gaps()
    return found.items


def look(
    source: Path,
    layout: str | None = None,
    label: str | None = None,
    lists: str | Path | None = None,
    **choices: str | None,
) -> Found:
    """What the images below `source` are: a known data set, or pairs, or else a folder of clean images.

    layout: one of `LAYOUTS`, instead of the one that is recognised. label: degradation of the pairs, instead of their
    folder's. lists: folder of the lists that restrict a data set to the names in them. choices: which version to take
    where a data set has several, such as gopro="blur_gamma" or scale="4".

    Raises FileNotFoundError, and ValueError for what is ambiguous, for names that clash and where no image is found.
    """
    source = Path(normpath(source))
    if not source.is_dir():
        raise FileNotFoundError(f"source={source}: no such folder: name a folder of images")
    if layout and layout not in LAYOUTS:
        raise ValueError(f"layout={layout}: no such layout, there are {', '.join(LAYOUTS)}")
    name = layout or recognise(source)
    places = _chosen(source, LAYOUTS[name](source), choices)
    if lists and not any(place.rule.listed for place in places):
        raise ValueError(f"lists={lists}: layout={name} goes by no lists: leave it out")
    listing = cache(images)
    items, gaps, seen = _read(places, listing, Path(lists) if lists else None)
    rest = [path for path in listing(source) if path not in seen]
    stray = [p for p in rest if name == "pairs" and not any(p.is_relative_to(place.folder) for place in places)]
    if stray:
        what = f"{source} holds folders of pairs beside {len(stray)} other images, such as {stray[0]}"
        gaps.append(Gap(len(stray), what))
    if not items and not gaps:
        raise ValueError(
            f"source={source}: no image in it for layout={name} (looked for {', '.join(SUFFIXES)}): "
            "name a folder of images"
        )
    refuse_clashes(items)
    unused = Counter(path.parent.name for path in rest) - Counter(path.parent.name for path in stray)
    items = sorted(_labelled(source, items, label), key=lambda item: item.key)
    return Found(source, name, items, gaps, dict(sorted(unused.items())))


def recognise(source: Path) -> str:
    """The name of the known layout that at least one pair of folders speaks for, else "pairs", else "photographs".

    A folder of clean images speaks for a layout only if it is one to train on: test/denoise says too little.
    """
    known = [
        name
        for name in KNOWN
        if any(place.complete and (place.lq or place.rule.part == "train") for place in LAYOUTS[name](source))
    ]
    if len(known) > 1:
        raise ValueError(f"source={source} holds several data sets: say which, layout={' or layout='.join(known)}")
    return known[0] if known else "pairs" if pairs(source) else "photographs"


def _chosen(source: Path, places: list[Place], choices: Mapping[str, str | None]) -> list[Place]:
    """The places without those of versions that are not asked for; which version is meant is never guessed."""
    options = {**dict.fromkeys(place.rule.choice[0] for place in places if place.rule.choice), **choices}
    for option, value in options.items():
        versions = sorted({version for p in places if p.has_lq and (version := p.version(option))})
        if value is not None and value not in versions:
            there = f"only {', '.join(versions)}" if versions else "no versions to choose from"
            raise ValueError(f"{option}={value}: {source} holds {there}: leave it out, or check the folder")
        if value is None and len(versions) > 1:
            ways = " or ".join(f"{option}={version}" for version in versions)
            raise ValueError(f"{source} holds {' and '.join(versions)}, versions of the same images: choose {ways}")
        places = [place for place in places if value is None or place.version(option) in (None, value)]
    return places


def _read(places: Iterable[Place], listing: Listing, lists: Path | None) -> tuple[list[Item], list[Gap], set[Path]]:
    """The items of the places, what has no partner in any of them, and all images that they speak of."""
    items: list[Item] = []
    gaps: list[Gap] = []
    used: set[Path] = set()
    sides: dict[Path, tuple[set[Path], list[Path]]] = {}  # images of a folder, and the folders of their partners
    for place in places:
        degraded, clean = place.degraded(listing), place.clean(listing)
        if lists and place.rule.listed:
            degraded, clean, missing = _listed(place, degraded, clean, lists / place.rule.listed)
            gaps += missing
        if place.lq is None:
            items += [place.item(path) for path in clean]
            used |= clean.keys()
            continue
        partners = _partners(clean)
        found = {path: partners[name] for path, name in degraded.items() if name in partners}
        items += [place.item(hq, lq) for lq, hq in found.items()]
        used |= found.keys() | set(found.values())
        for folder, other, side in ((place.lq, place.hq, degraded), (place.hq, place.lq, clean)):
            seen, others = sides.setdefault(folder, (set(), []))
            seen.update(side)
            others.append(other)
    for folder, (seen, others) in sides.items():
        if alone := sorted(seen - used):
            gaps.append(Gap(len(alone), _alone(folder, others, alone, len(seen))))
    return items, gaps, used.union(*(seen for seen, _ in sides.values()))


def _listed(
    place: Place, degraded: Mapping[Path, str], clean: Mapping[Path, str], path: Path
) -> tuple[dict[Path, str], dict[Path, str], list[Gap]]:
    """The images that are in a list, with their partners, and a gap for the names in it that are not there."""
    if not path.is_file():
        raise FileNotFoundError(f"lists: there is no {path}: name the folder of the lists, such as AirNet's data_dir")
    lines = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    entries = degraded if place.lq else clean
    found = {file: entries[file] for line in lines if (file := place.folder / line) in entries}
    names = set(found.values())
    partners = {file: name for file, name in clean.items() if name in names}
    missing = [line for line in lines if place.folder / line not in found]
    text = f"{len(missing)} of {len(lines)} names in {path} are not in {place.folder}: {_some(missing)}"
    gaps = [Gap(len(missing), text)] if missing else []
    return (found, partners, gaps) if place.lq else ({}, found, gaps)


def _partners(clean: Mapping[Path, str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path, name in clean.items():
        if name in found:
            raise ValueError(f"{found[name]} and {path} would both be the partner of '{name}': rename or remove one")
        found[name] = path
    return found


def _alone(folder: Path, others: Sequence[Path], alone: Sequence[Path], total: int) -> str:
    other = next((other for other in others if other.is_dir()), None)
    if other is None:
        return (
            f"{folder} has no folder {others[0].name}/ beside it, which leaves {len(alone)} images without a partner "
            f"(if they are clean, name that folder itself: source={folder})"
        )
    names = _some([name_below(path, folder) for path in alone])
    return f"{len(alone)} of {total} images in {folder} have no partner of the same name in {other}: {names}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _labelled(source: Path, items: list[Item], label: str | None) -> list[Item]:
    """The items with this label in place of theirs, which must be one."""
    labels = sorted({str(item.degradation) for item in items if item.lq})
    if label and not labels:
        raise ValueError(f"label={label}: {source} holds no pairs to which it could apply: leave it out")
    if label and len(labels) > 1:
        raise ValueError(
            f"label={label}: {source} holds pairs of several degradations ({', '.join(labels)}): pack one at a time"
        )
    return [replace(item, degradation=label) if label and item.lq else item for item in items]
