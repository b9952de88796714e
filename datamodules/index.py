"""The index of a shard: where its samples lie in the tar file, found once and kept in a file that is mapped, not read.

The file is a line of JSON, padded with spaces, and behind it two arrays with an entry per sample, in the order of the shard:
64 bits of the key, and a row of `row_type`.
"""

import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from itertools import chain, groupby
from typing import IO, Any, BinaryIO, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from bdg.documents import is_count, parse, parse_object
from datamodules.draws import hash64
from datamodules.images import SUFFIXES, upright_size

FORMAT = "bdg-index-1"
BLOCK = 512  # bytes; a tar file is made of these and ends with two of zeros
ALIGNED = 64  # bytes, of which the line of JSON takes a multiple
HEAD = 2**16  # bytes, which hold the size of nearly every image
LONGEST_HEAD = 2**24  # bytes, of the line of JSON
LONGEST_KEY = 2**10  # bytes; as every row has room for the longest, no more than a member takes in the shard
LONGEST_JSON = 10**6  # bytes; objects take 30 times as many, and ours have less than 1000
LONGEST_HEADER = 2**16  # bytes, of what a tar file says of a member beside its name, size and time
LARGEST_SCALE = 1024
SHOWN_PROBLEMS = 20
SHOWN_KEY = 100  # characters

_EXTENSIONS = tuple(suffix[1:] for suffix in SUFFIXES)
_PICKLED = ("pickle", "pkl", "pyd", "pth", "pt", "joblib")
_KEY_AND_EXTENSION = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")  # as webdataset splits them
_LEADS_OUT = re.compile(r"/.*|(.*/)?\.\.(/.*)?|.*\0.*", re.DOTALL)
_META = re.compile(r"__[^/]*__($|/)")  # which webdataset does not take for samples


class Kind(NamedTuple):
    """What a sample is: a clean image, or a pair with its label, None where its JSON member gives none."""

    pair: bool
    label: str | None = None


CLEAN = Kind(pair=False)


class Member(NamedTuple):
    """The bytes that a file takes inside a shard."""

    offset: int
    size: int


@dataclass(frozen=True)
class Index:
    """The head of an index file: what must be known of every shard at the start; the rest is looked up when asked for."""

    size: int  # of the shard in bytes
    mtime_ns: int
    sha256: str | None  # of the shard, if it was packed here
    labels: Sequence[str | None]  # of its pairs
    counts: Sequence[int]  # samples that cannot be used, clean images, pairs of each label
    problems: Sequence[str]  # of those that cannot be used, the first ones
    smallest: int | None  # the shortest side of its clean images in pixels, of those that are known
    decoded_bytes: int | None  # of all images as uint8, if all sizes are known
    key_bytes: int  # of the longest key
    file: str = ""
    start: int = 0  # of the arrays

    @property
    def num_rows(self) -> int:
        return sum(self.counts)

    @cached_property
    def kinds(self) -> tuple[Kind | None, ...]:
        """What `kind` in a row says; None: the sample cannot be used."""
        return (None, CLEAN, *(Kind(True, label) for label in self.labels))

    def keys(self) -> NDArray[np.uint64]:
        """Hashes of all keys, 0 for samples that cannot be used."""
        return np.fromfile(self.file, np.uint64, self.num_rows, offset=self.start)

    def rows(self) -> NDArray[Any]:
        """The rows of all samples, mapped. Raises ValueError if they are not what the head says."""
        shape = (self.num_rows,)
        rows = np.memmap(self.file, row_type(self.key_bytes), "r", self.start + 8 * self.num_rows, shape)
        there = {kind: count for kind, count in enumerate(self.counts) if count}
        if dict(zip(*map(np.ndarray.tolist, np.unique(rows["kind"], return_counts=True)), strict=True)) != there:
            raise ValueError(f"{self.file} is damaged: remove it")
        return rows

    def row(self, number: int) -> tuple[Any, ...]:
        """One row; without a mapping, which takes longer and holds a file open. Raises ValueError for what can be no row."""
        row = row_type(self.key_bytes)
        with open(self.file, "rb", buffering=0) as file:
            data = os.pread(file.fileno(), row.itemsize, self.start + 8 * self.num_rows + number * row.itemsize)
        values = np.frombuffer(data, row)[0].item()
        key, kind, *spans, height, width, scale = values
        inside = all(min(span) >= 0 and sum(span) <= self.size for span in zip(spans[::2], spans[1::2], strict=True))
        small = spans[-1] <= LONGEST_JSON
        named = not _LEADS_OUT.fullmatch(key.decode(errors="replace"))
        if not (inside and small and named and 0 <= kind < len(self.counts) and min(height, width, scale) >= 0):
            raise ValueError(f"{self.file} is damaged: remove it")
        return values


@lru_cache(maxsize=64)
def row_type(key_bytes: int) -> np.dtype:
    """Key; kind (`Index.kinds`); offset and size of clean image, degraded image and JSON; height and width of the clean image;
    scale. 0 for what there is not, for a height and width that nobody knows, and the scale of images that do not fit.
    """
    places = [(name, np.int64) for part in ("hq", "lq", "info") for name in (part, f"{part}_size")]
    numbers = [(name, np.int32) for name in ("height", "width", "scale")]
    return np.dtype([("key", f"S{key_bytes}"), ("kind", np.int32), *places, *numbers])


def load(data: IO[bytes], file: str) -> Index:
    """The head of an index file. Raises ValueError for any other file, and for one that is cut off."""
    line = data.readline(LONGEST_HEAD)
    try:
        head = parse(line)
        known = head.pop("format") == FORMAT and _is_head(head)
        index = Index(**head, file=file, start=len(line))
        end = index.start + index.num_rows * (8 + row_type(index.key_bytes).itemsize)
    except (ValueError, TypeError, KeyError, AttributeError):
        known = False
    if not known:
        raise ValueError(f"{file} is no index of a shard that this version reads: remove it, or move it away")
    if (length := data.seek(0, os.SEEK_END)) != end:
        raise ValueError(f"{file} has {length} bytes and not {end}: copy it again, or remove it")
    return index


def _is_head(head: Mapping[str, Any]) -> bool:
    """Whether an index file may begin with this: it may come with the shards, from wherever they come."""

    def are(values: Any, fits: Callable[[Any], bool]) -> bool:
        return isinstance(values, list) and all(map(fits, values))

    return (
        head.keys() == {field.name for field in fields(Index)} - {"file", "start"}
        and all(is_count(head[name]) for name in ("size", "key_bytes"))
        and isinstance(head["mtime_ns"], int)
        and all(head[name] is None or is_count(head[name]) for name in ("smallest", "decoded_bytes"))
        and isinstance(head["sha256"], str | None)
        and are(head["labels"], lambda label: isinstance(label, str | None))
        and are(head["problems"], lambda problem: isinstance(problem, str))
        and are(head["counts"], is_count)
        and len(head["counts"]) == len(head["labels"]) + 2
        and 0 < head["key_bytes"] <= LONGEST_KEY
    )


def build(shard: BinaryIO, name: str, size: int, mtime_ns: int, sha256: str | None = None) -> bytes:
    """The index file of a shard, from the headers of the tar file and of its images; no image is decoded.

    Raises ValueError for a shard that is cut off, not a tar file, or holds pickled members.
    """
    numbers: dict[Kind | None, int] = {None: 0, CLEAN: 1}
    hashes: list[int] = []
    rows: list[tuple[bytes | int, ...]] = []
    keys: set[str] = set()
    problems: list[str] = []
    for key, members in _samples(shard, name, size):
        as_bytes = key.encode(errors="replace")
        try:
            if as_bytes.decode() != key:
                raise _UnusableError("has a name that is not UTF-8")
            if len(as_bytes) > LONGEST_KEY:
                raise _UnusableError(f"has a name of {len(as_bytes)} bytes, more than {LONGEST_KEY}")
            if _LEADS_OUT.fullmatch(key):
                raise _UnusableError("has a name that leads out of its folder")
            if key in keys:
                raise _UnusableError("comes twice")
            kind, row = _look(shard, key, members)
        except _UnusableError as problem:
            kind, row = None, [0] * 9
            problems.append(f"sample '{as_bytes.decode()[:SHOWN_KEY]}' {problem}")
        hashes.append(hash64(key) if kind else 0)
        rows.append((as_bytes[:LONGEST_KEY], numbers.setdefault(kind, len(numbers)), *row))
        keys.add(key)
    table = np.array(rows, row_type(max((len(row[0]) for row in rows), default=1)))  # type: ignore[arg-type]
    used = table[table["kind"] > 0]
    sides, pixels = np.minimum(used["height"], used["width"]), used["height"].astype(np.int64) * used["width"]
    known = sides[sides > 0]
    head = {
        "size": size,
        "mtime_ns": mtime_ns,
        "sha256": sha256,
        "labels": [kind.label for kind in numbers if kind and kind.pair],
        "counts": np.bincount(table["kind"], minlength=len(numbers)).tolist(),
        "problems": problems[:SHOWN_PROBLEMS],
        "smallest": int(known.min()) if len(known) else None,
        "decoded_bytes": int((3 * pixels * (1 + (used["lq_size"] > 0))).sum()) if len(known) == len(sides) else None,
        "key_bytes": table.dtype["key"].itemsize,
    }
    return dump(head, np.array(hashes, np.uint64), table)


def dump(head: Mapping[str, Any], keys: NDArray[np.uint64], rows: NDArray[Any]) -> bytes:
    """An index file of its parts."""
    line = json.dumps({"format": FORMAT, **head})
    padding = -(len(line) + 1) % ALIGNED
    return b"".join([line.encode(), b" " * padding, b"\n", keys.tobytes(), rows.tobytes()])


class _UnusableError(ValueError):
    """What is wrong with one sample, said of it."""


def _look(shard: BinaryIO, key: str, members: Sequence[tuple[str, Member]]) -> tuple[Kind, list[int]]:
    """The kind of a sample, and its row from there on."""
    files = {extension.lower(): member for extension, member in members}
    hq, lq, info = (files.get(name or "") for name in choose(files))
    if len(files) < len(members):
        raise _UnusableError(f"has two members of one name among {', '.join(extension for extension, _ in members)}")
    if hq is None:
        raise _UnusableError(
            f"has no clean image, only {', '.join(files)}: "
            f"its name must be {key}.hq.EXT, {key}.gt.EXT or {key}.EXT with EXT one of {', '.join(_EXTENSIONS)}"
        )
    said = _json(shard, info) if info else {}
    label = None if said.get("degradation") is None else str(said["degradation"])
    if lq is None and label is not None:
        raise _UnusableError(f"is a pair with degradation '{label}', but lacks its degraded image {key}.lq.EXT")
    said_scale = said.get("scale")
    if said_scale is not None and not (is_count(said_scale) and 1 <= said_scale <= LARGEST_SCALE):
        raise _UnusableError(f"has scale {said_scale!r}, which must be a whole number from 1 to {LARGEST_SCALE}")
    size = _size(shard, hq)
    scale = 1 if lq is None else _scale(size, _size(shard, lq), said_scale)
    spans = [member or (0, 0) for member in (hq, lq, info)]
    return Kind(lq is not None, label), [*chain(*spans), *(size or (0, 0)), scale]


def _scale(size: tuple[int, int] | None, small: tuple[int, int] | None, said: int | None) -> int:
    """How many times smaller the degraded image is, or 0 if that is no whole number, and none was said that fits."""
    if size is None or small is None:
        return 0
    scale, rest = (1, 0) if size == small else (said, said - 1) if said else (size[0] // small[0], 0)
    return scale if all(abs(s * scale - h) <= rest for s, h in zip(small, size, strict=True)) else 0


def _size(shard: BinaryIO, member: Member) -> tuple[int, int] | None:
    """Height and width of an image, from its first bytes if they are enough."""
    for length in {min(HEAD, member.size), member.size}:
        shard.seek(member.offset)
        if size := upright_size(io.BytesIO(shard.read(length))):
            return size
    return None


def _json(shard: BinaryIO, member: Member) -> dict[str, Any]:
    if member.size > LONGEST_JSON:
        raise _UnusableError(f"has a .json member of {member.size} bytes, more than {LONGEST_JSON}")
    shard.seek(member.offset)
    try:
        return parse_object(shard.read(member.size))
    except ValueError as error:
        raise _UnusableError(f"has a .json member that is {error}") from None


class Chosen(NamedTuple):
    """Which of a sample's members, by extension, are what."""

    hq: str | None
    lq: str | None
    info: str | None


def choose(extensions: Iterable[str]) -> Chosen:
    """Extensions are all after a name's first dot, in small letters."""
    here = list(extensions)

    def first(*prefixes: str) -> str | None:
        wanted = [prefix + extension for prefix in prefixes for extension in _EXTENSIONS]
        return min((name for name in here if name in wanted), key=wanted.index, default=None)

    return Chosen(first("hq.", "gt.", ""), first("lq."), "json" if "json" in here else None)


def _samples(shard: BinaryIO, name: str, size: int) -> Iterator[tuple[str, list[tuple[str, Member]]]]:
    """Key, and extension and place of each member, of every sample in their order."""
    for key, group in groupby(_members(shard, name, size), key=lambda member: member[0]):
        members = [(extension, member) for _, extension, member in group]
        pickled = [extension for extension, _ in members if extension.rpartition(".")[2].lower() in _PICKLED]
        if pickled:
            raise ValueError(
                f"{name}: sample '{key}' has a pickled member '{key}.{pickled[0]}', and unpickling runs whatever code "
                "it holds: store images and JSON only"
            )
        yield key, members


def _members(shard: BinaryIO, name: str, size: int) -> Iterator[tuple[str, str, Member]]:
    """Key, extension and place of each member in its order; checks that the file is whole."""
    end = 0
    for header, after in _headers(shard, name, size):
        if header.isreg() and header.offset_data + header.size > size:
            raise ValueError(cut_off(name, f"'{header.name}' ends at byte {header.offset_data + header.size}", size))
        end = header.offset_data + -(-header.size // BLOCK) * BLOCK if header.isreg() else after
        match = _KEY_AND_EXTENSION.fullmatch(header.name.removeprefix("./"))
        if header.isreg() and match and not _META.match(header.name):
            yield match[1], match[2], Member(header.offset_data, header.size)
    shard.seek(end)
    if shard.read(BLOCK) != bytes(BLOCK):
        raise ValueError(cut_off(name, f"the end mark is missing at byte {end}", size))


class _Header(tarfile.TarInfo):
    """Of a member. One that says more than can be meant is refused: Python would look for it for hours."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.size < 0 or (self.type in _EXTENDED and self.size > LONGEST_HEADER):
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        return super()._proc_member(tar)  # type: ignore[misc]

    def _sparse(self, *_: Any) -> NoReturn:
        raise tarfile.ReadError(f"'{self.name}' is a sparse file, whose bytes are not in one place")

    _proc_sparse = _proc_gnusparse_10 = _sparse


_EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


def _headers(shard: BinaryIO, name: str, size: int) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """Each member's header, and where the next one begins."""
    end = 0
    try:
        with tarfile.open(fileobj=shard, mode="r:", tarinfo=_Header) as tar:
            while header := tar.next():
                if header.size < 0 or tar.offset <= end:
                    raise tarfile.ReadError(f"'{header.name}' leads back")
                if header.issparse():  # of the forms that are known by a header beside
                    header._sparse()  # type: ignore[attr-defined]
                end = tar.offset
                yield header, end
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
    except (tarfile.TarError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
        if end == 0:
            raise ValueError(
                f"{name}: not a tar file, or a compressed one ({error}): shards are plain .tar files"
            ) from None
        raise ValueError(cut_off(name, f"reading stopped after byte {end} ({error})", size)) from None


def cut_off(name: str, what: str, size: int) -> str:
    return f"{name}: the shard is cut off: {what}, the file at byte {size}: copy it again, or pack it again"
