"""Picture files through a restorer: read, restored together where they have one size, written whole. Knows no config."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bdg.commands.journal import Journal
from bdg.files import replacing
from bdg.types import Image
from datamodules.images import Picture, check_format, encode, read_image, upright_size
from datamodules.profiles import profile_name
from datamodules.restored import Restore, from_image, to_image

BATCH_PIXELS = 2_000_000
"""Of the pictures restored together: more gain no speed and cost memory."""

Pair = tuple[Path, Path]
"""What is read, and where the result goes."""
Size = tuple[int, int]
"""Height and width in pixels."""


@dataclass(frozen=True)
class Finding:
    """What is found out about a picture before it is restored: for JSON, as lines of text, and as settings of the call."""

    facts: Mapping[str, Any]
    lines: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


Look = Callable[[Image, Sequence[str]], list[Finding]]
"""(x_lq, names) -> one finding for each image."""


@dataclass(frozen=True)
class Reading:
    """A picture that was read. notes: what its owner should know of it."""

    pair: Pair
    picture: Picture
    facts: Mapping[str, Any]
    notes: Sequence[str]

    @property
    def size(self) -> Size:
        height, width = self.picture.array.shape[:2]
        return height, width


@dataclass(frozen=True)
class Done:
    """What became of the pictures. kept: were done before; skipped: why others could not be restored."""

    kept: Sequence[Pair] = ()
    pictures: dict[Pair, dict[str, Any]] = field(default_factory=dict)
    notes: dict[Pair, list[str]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


def size_of(path: Path) -> Size | None:
    """Of the picture in a file, from its head; None if that does not tell."""
    try:
        with path.open("rb") as file:
            return upright_size(file)
    except OSError:  # reading it says why
        return None


def area(size: Size | None) -> int:
    return size[0] * size[1] if size else 1


def batches(sizes: Mapping[Pair, Size | None], most: int) -> Iterator[list[Pair]]:
    """Pairs of equal size together, at most `most` and BATCH_PIXELS of them; those of unknown size alone."""
    groups: dict[Any, list[Pair]] = {}
    for pair, size in sizes.items():
        groups.setdefault(size or pair, []).append(pair)
    for group in groups.values():
        step = max(1, min(most, BATCH_PIXELS // area(sizes[group[0]])))
        yield from (group[k : k + step] for k in range(0, len(group), step))


def read_pair(pair: Pair, bits: int | None = None) -> Reading:
    """bits: 8 for a result of 8 bits, whatever the source has.

    Raises ValueError and OSError for what cannot be read, or not be written in the format of the target.
    """
    source, target = pair
    picture = read_image(source)
    check_format(target, picture.reduced() if bits == 8 else picture)
    facts: dict[str, Any] = {"bits": picture.bits, "profile": profile_name(picture.icc) if picture.icc else None}
    notes = []
    try:
        if picture.profile and (beyond := picture.beyond_srgb()):
            facts["beyond_srgb"] = beyond
            notes.append(
                f"{facts['profile']}; {beyond:.1%} of its pixels lie beyond sRGB and keep their distance from it"
            )
    except ValueError as error:
        notes.append(f"{error}: the picture is taken for sRGB, and keeps the profile")
    return Reading(pair, picture, facts, notes)


def by_size(readings: Sequence[Reading]) -> Iterator[list[Reading]]:
    """Heads of files may be wrong about sizes; what was read is not."""
    groups: dict[Size, list[Reading]] = {}
    for reading in readings:
        groups.setdefault(reading.size, []).append(reading)
    yield from groups.values()


def restore_batch(
    readings: Sequence[Reading],
    restore: Restore,
    looks: Sequence[Look],
    write: Callable[[Pair, Picture], None],
    done: Done,
    strict: bool,
) -> None:
    """Restores pictures of one size and writes them. What cannot be restored is an error if `strict`, else skipped."""
    pictures, names = [reading.picture for reading in readings], [reading.pair[0].name for reading in readings]
    begun = time.monotonic()
    try:
        x_lq = to_image(pictures)
        findings = [look(x_lq, names) for look in looks]
        settings = [
            {key: value for found in findings for key, value in found[k].settings.items()} for k in range(len(names))
        ]
        results = from_image(pictures, restored(x_lq, names, restore, settings))
    except ValueError as error:
        if strict:
            raise
        if len(readings) == 1:
            done.skipped.append(f"{readings[0].pair[0]}: {error}")
        else:  # what is too much for memory together may fit alone
            for reading in readings:
                restore_batch([reading], restore, looks, write, done, strict)
        return
    del x_lq  # writing needs memory, too
    seconds = (time.monotonic() - begun) / len(readings)
    for k, (reading, result) in enumerate(zip(readings, results, strict=True)):
        try:
            write(reading.pair, result)
        except ValueError as error:
            if strict:
                raise
            done.skipped.append(f"{error}")
            continue
        height, width = reading.size
        done.pictures[reading.pair] = {
            **{"source": f"{reading.pair[0]}", "target": f"{reading.pair[1]}", "height": height, "width": width},
            **reading.facts,
            "seconds": seconds,
            **{key: value for found in findings for key, value in found[k].facts.items()},
        }
        done.notes[reading.pair] = [*reading.notes, *(line for found in findings for line in found[k].lines)]


def restored(x_lq: Image, names: Sequence[str], restore: Restore, settings: Sequence[Mapping[str, Any]]) -> Image:
    """x_hq, where each image has settings of its own; if they are the same for all, all are restored together."""
    if all(each == settings[0] for each in settings):
        return restore(x_lq, names, **settings[0])
    return torch.cat([restore(x[None], [name], **own) for x, name, own in zip(x_lq, names, settings, strict=True)])


def write_pair(pair: Pair, picture: Picture, quality: int, bits: int | None, journal: Journal | None) -> None:
    """Writes a result whole or not at all, and into the journal.

    Raises ValueError if the format refuses it, OSError if there is no room or no permission.
    """
    source, target = pair
    try:
        data = encode(target, picture.reduced() if bits == 8 else picture, quality)
    except OSError as error:  # of Pillow's encoders, which write no file here
        raise ValueError(f"{target}: cannot be written in this format ({error}): choose another format") from None
    try:
        with replacing(target) as file:
            file.write(data)
            file.flush()
            if journal:
                journal.add(source, target, os.fstat(file.fileno()))
    except OSError as error:
        raise OSError(
            f"{target}: {error.strerror or error}: nothing was written there; the same command goes on once it can be"
        ) from None
