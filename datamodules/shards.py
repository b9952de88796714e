"""Shards on disk: which there are, what samples they hold and in what order these are taken; needs no torch.

A shard is a tar file of samples, each some members with the same key: KEY.hq.EXT (or KEY.gt.EXT, or just KEY.EXT) is the
clean image, KEY.lq.EXT a degraded one, KEY.json says more. Samples are read by their place in the file, so that their
order is free.
"""

import glob
import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import braceexpand
import numpy as np
from numpy.typing import NDArray

from datamodules.draws import Stream, generator
from datamodules.images import SUFFIXES

MANIFEST = "manifest.json"
BLOCK = 512  # bytes; a tar file is made of these and ends with two of zeros

_EXTENSIONS = tuple(suffix[1:] for suffix in SUFFIXES)
_PICKLED = ("pickle", "pkl", "pyd", "pth", "pt", "joblib")
_KEY_AND_EXTENSION = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")  # as webdataset splits them


@dataclass(frozen=True)
class Member:
    """A file inside a shard: its extension (all after the first dot) and the bytes it takes."""

    extension: str
    offset: int
    size: int


@dataclass(frozen=True)
class Sample:
    """Where a sample lies. `size` is height and width of the clean image if the manifest says so."""

    shard: str
    key: str
    hq: Member
    lq: Member | None
    info: Member | None
    size: tuple[int, int] | None

    def __str__(self) -> str:
        return f"{self.shard}: sample '{self.key}'"


def expand(patterns: str | Sequence[str] | None) -> list[str]:
    """The shards that `x/train-{000000..000099}.tar` or `x/train-*.tar` stands for, in order; all of them exist.

    Raises ValueError for what is not a file (`pipe:`, URLs) and for shards whose packing was interrupted,
    FileNotFoundError for shards that are not there.
    """
    paths: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns or []:
        if pattern.startswith("pipe:"):
            raise ValueError(f"shards '{pattern}': a pipe runs a command, which no data may do: name tar files")
        if "://" in pattern:
            raise ValueError(
                f"shards '{pattern}': only files can be read: copy the shards to a disk and name them there"
            )
        found = [path for name in braceexpand.braceexpand(pattern) for path in _matches(name)]
        missing = [path for path in found if not os.path.isfile(path)]
        if missing or not found:
            what = f"{len(missing)} of {len(found)} do not exist, such as {missing[0]}" if missing else "no such file"
            raise FileNotFoundError(
                f"shards '{pattern}': {what}: check the path, "
                f"or make them with bdg pack SOURCE {os.path.dirname(pattern) or 'OUTPUT'}"
            )
        paths += found
    for folder in dict.fromkeys(map(os.path.dirname, paths)):
        if not manifest(folder).get("complete", True):
            raise ValueError(
                f"{folder}: packing was interrupted: run the same bdg pack again, it goes on where it stopped"
            )
    return paths


def _matches(name: str) -> list[str]:
    return sorted(glob.glob(name)) if glob.has_magic(name) else [name]


@lru_cache(maxsize=16)
def _parse_manifest(path: Path, mtime_ns: int) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}): pack the folder again, or remove this file") from None


def manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What `bdg pack` wrote beside the shards of a folder; empty for anybody else's shards."""
    path = Path(folder) / MANIFEST
    return _parse_manifest(path, path.stat().st_mtime_ns) if path.is_file() else {}


def digest(patterns: str | Sequence[str] | None) -> str:
    """The identity of these shards in their order: from the manifests, or from names and sizes where there is none."""
    total = hashlib.sha256()
    for path in expand(patterns):
        name, size = os.path.basename(path), os.path.getsize(path)
        packed = _entry(path)
        total.update(f"{name} {packed.get('sha256', size)}\n".encode())
    return total.hexdigest()


def _entry(path: str) -> Mapping[str, Any]:
    """A shard's line in the manifest beside it, empty if there is none."""
    entry = manifest(os.path.dirname(path)).get("shards", {}).get(os.path.basename(path), {})
    if entry and entry["bytes"] != os.path.getsize(path):
        raise ValueError(
            f"{path}: {os.path.getsize(path)} bytes, but {MANIFEST} says {entry['bytes']}: copy it again, or pack again"
        )
    return entry


def index(paths: Sequence[str]) -> list[Sample]:
    """All samples of these shards, from the headers of the tar files; no image is read.

    Raises ValueError for a shard that is cut off or not a tar file, and for a sample that is not complete or pickled.
    """
    return [sample for path in paths for sample in _samples(path)]


def _samples(path: str) -> Iterator[Sample]:
    sizes = {entry["key"]: (entry["height"], entry["width"]) for entry in _entry(path).get("samples", ())}
    for key, group in groupby(_members(path), key=lambda member: member[0]):
        members = [member for _, member in group]
        pickled = [m.extension for m in members if m.extension.rpartition(".")[2].lower() in _PICKLED]
        if pickled:
            raise ValueError(
                f"{path}: sample '{key}' has a pickled member '{key}.{pickled[0]}', and unpickling runs whatever code "
                "it holds: store images and JSON only"
            )
        hq = _image(members, "hq.") or _image(members, "gt.") or _image(members, "")
        if hq is None:
            raise ValueError(
                f"{path}: sample '{key}' has no clean image, only {', '.join(m.extension for m in members)}: "
                f"its name must be {key}.hq.EXT, {key}.gt.EXT or {key}.EXT with EXT one of {', '.join(_EXTENSIONS)}"
            )
        info = next((m for m in members if m.extension.lower() == "json"), None)
        yield Sample(path, key, hq, _image(members, "lq."), info, sizes.get(key))


def _image(members: Sequence[Member], prefix: str) -> Member | None:
    names = [prefix + extension for extension in _EXTENSIONS]
    return next((member for member in members if member.extension.lower() in names), None)


def _members(path: str) -> Iterator[tuple[str, Member]]:
    """Key and member of each file in a tar file, in its order; checks that the file is whole."""
    length, end = os.path.getsize(path), 0
    try:
        with tarfile.open(path, "r:") as tar:
            for header in tar:
                end = header.offset_data + -(-header.size // BLOCK) * BLOCK if header.isreg() else tar.offset
                if header.isreg() and header.offset_data + header.size > length:
                    raise ValueError(
                        _cut(path, f"'{header.name}' ends at byte {header.offset_data + header.size}", length)
                    )
                match = _KEY_AND_EXTENSION.fullmatch(header.name.removeprefix("./"))
                if header.isreg() and match:
                    yield match[1], Member(match[2], header.offset_data, header.size)
    except tarfile.ReadError as error:
        if end == 0:
            raise ValueError(
                f"{path}: not a tar file, or a compressed one ({error}): shards are plain .tar files"
            ) from None
        raise ValueError(_cut(path, f"reading stopped after byte {end}", length)) from None
    with open(path, "rb") as file:
        file.seek(end)
        if file.read(BLOCK) != bytes(BLOCK):
            raise ValueError(_cut(path, f"the end mark is missing at byte {end}", length))


def _cut(path: str, what: str, length: int) -> str:
    return f"{path}: the shard is cut off: {what}, the file at byte {length}: copy it again, or pack it again"


def read(sample: Sample) -> tuple[bytes, bytes | None, dict[str, Any]]:
    """The clean image, the degraded one if there is one, both as encoded, and what the JSON member says."""
    with open(sample.shard, "rb") as file:
        hq, lq, info = (_read(file, sample, m) if m else None for m in (sample.hq, sample.lq, sample.info))
    assert hq is not None
    try:
        return hq, lq, json.loads(info) if info else {}
    except ValueError as error:
        raise ValueError(f"{sample}: its .json member is not JSON ({error}): pack it again") from None


def _read(file: Any, sample: Sample, member: Member) -> bytes:
    file.seek(member.offset)
    data = file.read(member.size)
    if len(data) < member.size:
        raise ValueError(
            _cut(sample.shard, f"'{sample.key}.{member.extension}' is not whole", os.path.getsize(sample.shard))
        )
    return data


def at(position: int, num_samples: int, seed: int) -> tuple[int, int]:
    """Epoch and index of the sample at a position of the endless stream: each epoch is one seeded permutation."""
    epoch, place = divmod(position, num_samples)
    return epoch, int(_permutation(num_samples, seed, epoch)[place])


@lru_cache(maxsize=4)
def _permutation(num_samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return generator(Stream.ORDER, seed, epoch).permutation(num_samples)
