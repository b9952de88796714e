"""Which part a sample goes to, train, val or test: by the data set's own split, by name or by share; knows no file."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datamodules.draws import Stream, generator
from datamodules.layouts import Item

REST = "rest"

Parts = Mapping[str, float | Sequence[str] | str]
"""Part -> its share of the photographs, the keys of its photographs, or "rest"."""


@dataclass(frozen=True)
class Source:
    """An item with the sha256 of its files; the clean one's also stands for the photograph, whatever its name."""

    item: Item
    hq_sha256: str
    lq_sha256: str | None


def assign(sources: Sequence[Source], parts: Parts, seed: int) -> dict[str, list[Source]]:
    """The sources of each part in shuffled order.

    What the data set itself puts into a part that `parts` does not speak of stays there. Of all others those with the
    same clean image go to the same part.
    """
    if odd := [part for part in parts if not re.fullmatch(r"\w[\w-]*", part)]:
        raise ValueError(f"parts: '{odd[0]}' begins the names of shards: give it letters and digits only")
    ordered = sorted(sources, key=lambda each: each.item.key)
    photographs: dict[str, list[Source]] = {}
    members: dict[str, list[Source]] = {part: [] for part in parts}
    for each in ordered:
        if each.item.part and each.item.part not in parts:
            members.setdefault(each.item.part, []).append(each)
        else:
            photographs.setdefault(each.hq_sha256, []).append(each)
    part_of = _named(photographs, {part: keys for part, keys in parts.items() if not _is_share(keys)})
    free = [photograph for photograph in photographs if photograph not in part_of]
    free = [free[i] for i in generator(Stream.PACK, seed).permutation(len(free))]
    for part, count in _counts(parts, len(free)).items():
        part_of |= dict.fromkeys(free[:count], part)
        free = free[count:]
    if free:
        left = photographs[free[0]][0].item.key
        raise ValueError(
            f"parts={dict(parts)} leave out {len(free)} photographs, such as '{left}': add a part that takes '{REST}'"
        )
    for photograph, group in photographs.items():
        members[part_of[photograph]] += group
    for part, group in members.items():
        if not group and (photographs or parts[part] != REST):  # no rest is left where the data set has its own parts
            raise ValueError(
                f"parts: no photograph is left for '{part}' of {len(photographs)}: give it more, or leave it out"
            )
    return {
        part: [group[i] for i in generator(Stream.PACK, seed, part).permutation(len(group))]
        for part, group in members.items()
        if group
    }


def _is_share(value: Any) -> bool:
    return value == REST or isinstance(value, int | float)


def _named(photographs: Mapping[str, Sequence[Source]], lists: Mapping[str, Any]) -> dict[str, str]:
    """Photograph -> part, for those that are named."""
    of_key = {each.item.key: photograph for photograph, group in photographs.items() for each in group}
    part_of: dict[str, str] = {}
    for part, keys in lists.items():
        if isinstance(keys, str):
            raise ValueError(f"parts.{part}={keys}: give a share such as 0.1, a list of names, or {REST}")
        unknown = [key for key in keys if key not in of_key]
        if unknown:
            raise ValueError(
                f"parts.{part} names {', '.join(unknown)}, which the source does not have: correct the names"
            )
        for key in keys:
            if part_of.setdefault(of_key[key], part) != part:
                raise ValueError(
                    f"parts: the photograph '{key}' is in '{part_of[of_key[key]]}' and in '{part}': choose one"
                )
    return part_of


def _counts(parts: Parts, num_photographs: int) -> dict[str, int]:
    """How many of the photographs that are not named go to each part with a share; rounded so that none is lost."""
    shares = {part: float(share) for part, share in parts.items() if isinstance(share, int | float)}
    rest = [part for part, share in parts.items() if share == REST]
    total = sum(shares.values())
    if (
        len(rest) > 1
        or min(shares.values(), default=0) < 0
        or total > 1 + 1e-9
        or (shares and not rest and total < 1 - 1e-9)
    ):
        raise ValueError(f"parts={dict(parts)}: shares must add up to 1, or to less with one part '{REST}'")
    counts, taken, reached = {}, 0, 0.0
    for part, share in shares.items():
        reached += share
        counts[part] = round(reached * num_photographs) - taken
        taken += counts[part]
    return counts | dict.fromkeys(rest, num_photographs - taken)
