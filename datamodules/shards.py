"""Shards on disk or behind URLs: which there are, what samples they hold and what bytes these are; needs no torch.

A shard is a tar file of samples, each some members with the same key: KEY.hq.EXT (or KEY.gt.EXT, or just KEY.EXT) is the
clean image, KEY.lq.EXT a degraded one, KEY.json says more. Samples are read by their place in the file, which an index
beside it knows, so that their order is free.
"""

import hashlib
import io
import logging
import os
import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import braceexpand
import numpy as np
from numpy.typing import NDArray

from bdg.documents import is_count, parse, parse_object
from datamodules import remote
from datamodules.draws import hash64
from datamodules.index import BLOCK, Index, Kind, Member, build, cut_off, load
from datamodules.remote import Cache, Stat, beside, file_name, is_url, parted, shown

log = logging.getLogger("bdg")

MANIFEST = "manifest.json"
INDEX = ".index"
THREADS = 16  # that ask servers at the same time
PARTS = 4  # in which keys are looked through; ten million at once would take 80 MB
ON_ERROR = ("stop", "skip")


@dataclass(frozen=True)
class Sample:
    """Where a sample lies. `size`: height and width of the clean image, if known; `scale`: how many times smaller the degraded
    one is, 0 if that is no whole number."""

    shard: str
    key: str
    hq: Member
    lq: Member | None
    info: Member | None
    size: tuple[int, int] | None
    degradation: str | None  # of a pair, as its JSON member says
    scale: int

    def __str__(self) -> str:
        return f"{shown(self.shard)}: sample '{self.key}'"


class Encoded(NamedTuple):
    """A sample's bytes: the clean image and the degraded one, if there is one, as stored, and what the JSON member says."""

    hq: bytes
    lq: bytes | None
    info: Mapping[str, Any]


def expand(patterns: str | Sequence[str] | None) -> list[str]:
    """The shards that `x/train-{000000..000099}.tar` or `x/train-*.tar` stands for, in order; files among them exist.

    Raises ValueError for what runs a command (`pipe:`) and for shards whose packing was interrupted, FileNotFoundError for
    shards that are not there, OSError for a server that cannot be reached.
    """
    paths: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns or []:
        if pattern.startswith("pipe:"):
            raise ValueError(f"shards '{pattern}': a pipe runs a command, which no data may do: name tar files")
        found = [
            path for name in braceexpand.braceexpand(pattern.removeprefix("file://")) for path in remote.find(name)
        ]
        missing = [path for path in found if not is_url(path) and not os.path.isfile(path)]
        if missing or not found:
            what = f"{len(missing)} of {len(found)} do not exist, such as {missing[0]}" if missing else "no such file"
            raise FileNotFoundError(
                f"shards '{shown(pattern)}': {what}: check the path, "
                f"or make them with bdg pack SOURCE {os.path.dirname(pattern) or 'OUTPUT'}"
            )
        paths += found
    for folder, path in {parted(path)[0]: path for path in paths}.items():
        if not _manifest(beside(path, MANIFEST)).get("complete", True):
            raise ValueError(
                f"{shown(folder)}: packing was interrupted: run the same bdg pack again, it goes on where it stopped"
            )
    return paths


def manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What `bdg pack` wrote beside the shards of a folder; empty for anybody else's shards."""
    return _manifest(os.path.join(folder, MANIFEST))


def _manifest(path: str) -> dict[str, Any]:
    found = None if is_url(path) else remote.stat(path)
    return _read_manifest(path, found.mtime_ns if found else 0)


@lru_cache(maxsize=16)
def _read_manifest(path: str, _: int) -> dict[str, Any]:
    data = remote.load(path)
    try:
        said = parse(data) if data is not None else {}
    except ValueError as error:
        raise ValueError(f"{shown(path)}: {error}: pack the folder again, or remove this file") from None
    ours = isinstance(said, dict) and f"{said.get('format')}".startswith("bdg-shards")
    if ours and not _is_manifest(said):
        raise ValueError(f"{shown(path)} is damaged: pack the folder again, or remove this file")
    return said if ours else {}  # it is not so rare a name


def _is_manifest(said: Mapping[str, Any]) -> bool:
    entries = said.get("shards", {})
    return isinstance(entries, dict) and all(
        isinstance(entry, dict) and is_count(entry.get("bytes")) and isinstance(entry.get("sha256"), str | None)
        for entry in entries.values()
    )


def digest(patterns: str | Sequence[str] | None) -> str:
    """The identity of these shards in their order: from the manifests, or from names and sizes where there is none."""
    total = hashlib.sha256()
    paths = expand(patterns)
    for path, (found, sha256) in zip(paths, _at_once(_state, paths), strict=True):
        total.update(f"{file_name(path)} {sha256 or found.size}\n".encode())
    return total.hexdigest()


def _at_once(function: Any, paths: Sequence[str]) -> list[Any]:
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(function, paths))


def _state(path: str) -> tuple[Stat, str | None]:
    """Size and time of a shard, and its sha256 if there is a manifest beside it."""
    entry = _manifest(beside(path, MANIFEST)).get("shards", {}).get(file_name(path), {})
    found = Stat(entry["bytes"], 0) if entry and is_url(path) else remote.stat(path)
    if found is None:
        raise FileNotFoundError(f"{shown(path)}: there is no such shard: check the address")
    if entry and entry["bytes"] != found.size:
        raise ValueError(
            f"{shown(path)}: {found.size} bytes, but {MANIFEST} says {entry['bytes']}: copy it again, or pack again"
        )
    return found, entry.get("sha256")


# --- the index ---


def write_index(shard: str | os.PathLike[str]) -> Path:
    """Makes the index of a shard that is finished and returns where it is: beside it.

    Raises ValueError for a shard that is cut off, not a tar file, or holds pickled members.
    """
    path, found = os.fspath(shard), os.stat(shard)
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        data = build(file, path, found.st_size, found.st_mtime_ns, sha256)
    return _write(Path(path + INDEX), data)


def _write(place: Path, data: bytes) -> Path:
    """Whole or not at all."""
    coming = place.with_name(f".{place.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        coming.write_bytes(data)
        os.replace(coming, place)
    finally:
        coming.unlink(missing_ok=True)
    return place


def _index(path: str, cache: Cache) -> Index:
    """The index of a shard as it is now: the one beside it, the one in the cache, or a new one."""
    found, sha256 = _state(path)
    there, kept = beside(path, file_name(path) + INDEX), cache.place(path, INDEX)
    stale = False
    for place in [str(kept)] if is_url(path) else [there, str(kept)]:
        if os.path.exists(place):
            with open(place, "rb") as file:
                index = load(file, place)
            if _fits(index, path, found, sha256):
                return index
            stale = True
    cache.drop_unless(path, None if stale else found.size)
    data = remote.load(there) if is_url(path) else None
    if data is None:
        with cache.open(path) as shard:
            data = build(shard, shown(path), found.size, found.mtime_ns, sha256 if is_url(path) else None)
    elif not _fits(load(io.BytesIO(data), shown(there)), path, found, sha256):
        raise ValueError(f"{shown(there)} is of another version of the shard, of {found.size} bytes: copy both again")
    place = str(_place(path, there, kept, data))
    with open(place, "rb") as file:
        return load(file, place)


def _fits(index: Index, path: str, found: Stat, sha256: str | None) -> bool:
    """Whether an index is of this version of a shard."""
    if index.size != found.size:
        return False
    if index.sha256 and sha256:
        return index.sha256 == sha256
    # the time in an index that was made elsewhere says nothing of a server's file
    return index.mtime_ns == found.mtime_ns or (is_url(path) and index.sha256 is not None)


def _place(path: str, there: str, kept: Path, data: bytes) -> Path:
    if not is_url(path):
        try:
            return _write(Path(there), data)
        except OSError as error:
            log.info("%s cannot be written (%s): it goes to %s", there, error.strerror, kept)
    kept.parent.mkdir(parents=True, exist_ok=True)
    return _write(kept, data)


def index(paths: Sequence[str], cache: Cache | None = None, on_error: str = "stop") -> "Samples":
    """All samples of these shards, from their indexes; those that are missing or of another version are made.

    on_error: "skip" leaves out samples that lack a member, and of those in a folder with one key all but the first, and
    says so.

    Raises ValueError for a shard that is cut off, not a tar file or holds pickled members, and with on_error "stop" for
    such samples.
    """
    if on_error not in ON_ERROR:
        raise ValueError(f"data.on_error={on_error}: choose one of {', '.join(ON_ERROR)}")
    indexes = _at_once(partial(_index, cache=cache or Cache()), paths)
    problems = [
        f"{shown(path)}: {problem}" for path, index in zip(paths, indexes, strict=True) for problem in index.problems
    ]
    num_bad = sum(index.counts[0] for index in indexes)
    twice = _twice(paths, indexes)
    samples = Samples(paths, indexes, twice)
    for shard, rows in twice.items():
        num_bad += len(rows)
        sample = samples.row(shard, int(rows[0]))
        problems.append(f"{sample} has the key of another in {_holder(samples, sample)}")
    if num_bad:
        what = f"{num_bad} of {sum(index.num_rows for index in indexes)} samples cannot be used: {problems[0]}"
        if on_error == "stop":
            raise ValueError(f"{what}: pack again, or leave such samples out with data.on_error=skip")
        log.warning("%s; left out", what)
    return samples


def _twice(paths: Sequence[str], indexes: Sequence[Index]) -> dict[int, NDArray[np.int64]]:
    """Shard -> rows whose key an earlier one of the same folder has; other folders may have the same names."""
    rows: dict[int, NDArray[np.int64]] = {}
    repeated = np.concatenate([_repeated(paths, indexes, part) for part in range(PARTS)])
    if not len(repeated):
        return rows
    seen: set[int] = set()
    for shard, keys in enumerate(_keys(paths, indexes)):
        places = [int(place) for place in np.flatnonzero(np.isin(keys, repeated))]
        later = [place for place in places if int(keys[place]) in seen]
        seen.update(int(keys[place]) for place in places)
        if later:
            rows[shard] = np.array(later)
    return rows


def _repeated(paths: Sequence[str], indexes: Sequence[Index], part: int) -> NDArray[np.uint64]:
    """Which keys there are more than once, of one of the parts in which they are looked at to spare memory."""
    keys = np.concatenate([np.empty(0, np.uint64), *(keys[keys % PARTS == part] for keys in _keys(paths, indexes))])
    keys.sort()
    return np.setdiff1d(keys[1:][keys[1:] == keys[:-1]], [0])


def _keys(paths: Sequence[str], indexes: Sequence[Index]) -> Iterator[NDArray[np.uint64]]:
    """Of each shard 64 bits of folder and key of every sample, 0 for those that cannot be used."""
    for path, index in zip(paths, indexes, strict=True):
        keys = index.keys()
        keys[keys > 0] ^= np.uint64(hash64(parted(path)[0]))
        yield keys


def _holder(samples: "Samples", twin: Sample) -> str:
    folder = parted(twin.shard)[0]
    return next(shown(s.shard) for s in samples if s.key == twin.key and parted(s.shard)[0] == folder)


class Samples(Sequence[Sample]):
    """The samples of some shards in their order, looked up when asked for: what is kept of each is its shard's count.

    dropped: shard -> rows that are left out. wanted: the kinds that are taken, or None for all.
    """

    def __init__(
        self,
        paths: Sequence[str],
        indexes: Sequence[Index],
        dropped: Mapping[int, NDArray[np.int64]],
        wanted: Collection[Kind] | None = None,
    ) -> None:
        self._paths, self._indexes, self._dropped, self._wanted = paths, indexes, dropped, wanted
        self.counts = np.array([sum(self._kinds(shard).values()) for shard in range(len(paths))], np.int64)
        self._ends = np.cumsum(self.counts)
        self._taken: dict[int, NDArray[np.int64]] = {}

    def of(self, *kinds: Kind) -> "Samples":
        """Those of some kinds only."""
        return Samples(self._paths, self._indexes, self._dropped, frozenset(kinds))

    @property
    def kinds(self) -> dict[Kind, int]:
        """How many samples there are of each kind."""
        total: dict[Kind, int] = {}
        for shard in range(len(self._paths)):
            for kind, count in self._kinds(shard).items():
                total[kind] = total.get(kind, 0) + count
        return total

    def _kinds(self, shard: int) -> dict[Kind, int]:
        index, counts = self._indexes[shard], list(self._indexes[shard].counts)
        if shard in self._dropped:
            lost = index.rows()["kind"][self._dropped[shard]]
            counts = (np.array(counts) - np.bincount(lost, minlength=len(counts))).tolist()
        kinds = zip(index.kinds, counts, strict=True)
        return {k: n for k, n in kinds if k and n and (self._wanted is None or k in self._wanted)}

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, place: Any) -> Any:
        if not 0 <= place < len(self):
            raise IndexError(place)
        shard = int(np.searchsorted(self._ends, place, "right"))
        return self.at(shard, place - int(self._ends[shard] - self.counts[shard]))

    def at(self, shard: int, place: int) -> Sample:
        """Which of a shard's samples."""
        if self.counts[shard] == self._indexes[shard].num_rows:
            return self.row(shard, place)
        if shard not in self._taken:
            if len(self._taken) == 128:
                self._taken.clear()
            self._taken[shard] = self._rows(shard)
        return self.row(shard, int(self._taken[shard][place]))

    def _rows(self, shard: int) -> NDArray[np.int64]:
        index = self._indexes[shard]
        wanted = [number for number, kind in enumerate(index.kinds) if kind in self._kinds(shard)]
        rows = np.flatnonzero(np.isin(index.rows()["kind"], wanted))
        return np.setdiff1d(rows, self._dropped.get(shard, []), assume_unique=True)

    def row(self, shard: int, row: int) -> Sample:
        index = self._indexes[shard]
        key, number, hq, hq_size, lq, lq_size, info, info_size, height, width, scale = index.row(row)
        kind = index.kinds[number]
        return Sample(
            self._paths[shard],
            key.decode(),
            Member(hq, hq_size),
            Member(lq, lq_size) if lq else None,
            Member(info, info_size) if info else None,
            (height, width) if height else None,
            kind.label if kind else None,
            scale,
        )

    def are_pairs(self) -> NDArray[np.bool_]:
        """Of every sample, in their order, whether it is a pair."""

        def of_shard(index: Index, rows: NDArray[Any]) -> NDArray[np.bool_]:
            return np.array([bool(kind and kind.pair) for kind in index.kinds])[rows["kind"]]

        return self._of_all(of_shard, np.bool_)

    def smaller_than(self, side: int) -> NDArray[np.int64]:
        """The places of samples whose clean image is known to be less high or wide, in pixels."""

        def of_shard(index: Index, rows: NDArray[Any]) -> NDArray[np.bool_]:
            return (rows["height"] > 0) & (np.minimum(rows["height"], rows["width"]) < side)

        return np.flatnonzero(self._of_all(of_shard, np.bool_))

    def _of_all(self, of_shard: Callable[[Index, NDArray[Any]], NDArray[Any]], dtype: Any) -> NDArray[Any]:
        found = [
            of_shard(index, index.rows()[self._rows(i)]) for i, index in enumerate(self._indexes) if self.counts[i]
        ]
        return np.concatenate([np.empty(0, dtype), *found])

    @property
    def shard_bytes(self) -> dict[str, int]:
        return {path: index.size for path, index in zip(self._paths, self._indexes, strict=True)}

    @property
    def smallest(self) -> int | None:
        """The shortest side of all clean images in pixels, of those that are known."""
        return min((index.smallest for index in self._indexes if index.smallest), default=None)

    @property
    def decoded_bytes(self) -> float:
        """The memory that all images take when decoded; infinite if a size is unknown."""
        return sum(inf if index.decoded_bytes is None else index.decoded_bytes for index in self._indexes)


# --- the bytes ---


def read(sample: Sample, cache: Cache | None = None) -> Encoded:
    """The bytes of a sample.

    Raises ValueError for a shard that is cut off or no longer the one that was indexed.
    """
    with (cache or Cache()).open(sample.shard) as file:

        def bytes_of(member: Member) -> bytes:
            header = os.pread(file.fileno(), BLOCK, member.offset - BLOCK)
            data = os.pread(file.fileno(), member.size, member.offset)
            if len(data) < member.size:
                length = os.fstat(file.fileno()).st_size
                raise ValueError(cut_off(shown(sample.shard), f"'{sample.key}' ends at byte {sum(member)}", length))
            if _size(header) != member.size:
                raise ValueError(
                    f"{sample} is not where it was: the shard was replaced since it was indexed: start again"
                )
            return data

        hq, lq, info = (bytes_of(member) if member else None for member in (sample.hq, sample.lq, sample.info))
    assert hq is not None
    return Encoded(hq, lq, parse_object(info or b"{}"))


def _size(header: bytes) -> int:
    """The size of a member by the header of the tar file before it: octal, or binary if the first bit says so."""
    field = header[124:136]
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    return int(field.strip(b" \0") or b"0", 8) if re.fullmatch(rb"[ \0]*[0-7]*[ \0]*", field) else -1
