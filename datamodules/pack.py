"""Folders of images become shuffled WebDataset shards with a manifest; the same input gives the same bytes.

The manifest is written first and after each shard, so that an interrupted packing goes on where it stopped.
"""

import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
from numpy.typing import NDArray

from datamodules import layouts
from datamodules.draws import Stream, generator
from datamodules.images import Picture, read_image, write_image
from datamodules.layouts import Item
from datamodules.shards import MANIFEST, manifest

FORMAT = "bdg-shards-1"
REST = "rest"

Parts = Mapping[str, float | Sequence[str] | str]
"""Part -> its share of the photographs, the keys of its photographs, or "rest"."""
Progress = Callable[[str, int, int], None]
"""Called with what is done, how many images of it, and of how many."""


@dataclass(frozen=True)
class Source:
    """An item with the sha256 of its files; the clean one's also stands for the photograph, whatever its name."""

    item: Item
    hq_sha256: str
    lq_sha256: str | None


def pack(
    source: Path,
    output: Path,
    parts: Parts,
    shard_size: int = 1000,
    max_size: int | None = None,
    label: str | None = None,
    seed: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Writes <output>/<part>-000000.tar, ... and manifest.json, which it returns.

    shard_size: images (or pairs) per shard. max_size: the longer side in pixels, at most; larger images are reduced and
    stored as PNG, all others as they are. label: degradation of the pairs, instead of their folder's name.

    Raises FileNotFoundError, FileExistsError if `output` holds anything but a part of the same packing, and ValueError for
    images that cannot be read, files without partner and parts that do not fit.
    """
    if shard_size < 1:
        raise ValueError(f"shard_size={shard_size}: give the number of images per shard, 1 or more")
    if max_size is not None and max_size < 1:
        raise ValueError(f"max_size={max_size}: give the longer side in pixels, or null to keep every image as it is")
    sources = list(_hashed(layouts.find(source, label), progress))
    shards = {
        f"{part}-{i // shard_size:06d}.tar": members[i : i + shard_size]
        for part, members in assign(sources, parts, seed).items()
        for i in range(0, len(members), shard_size)
    }
    plan = _plan(source, shards, max_size)
    before = _before(output, plan)
    output.mkdir(parents=True, exist_ok=True)
    if not before:
        _write_manifest(output, plan, {}, complete=False)
    done = 0

    def written(count: int = 1) -> None:
        nonlocal done
        done += count
        progress("packing", done, len(sources))

    for name, members in shards.items():
        if _is_whole(output / name, before.get(name)):
            written(len(members))
        else:
            before[name] = _write_shard(output / name, source, members, max_size, written)
            _write_manifest(output, plan, before, complete=False)
    return _write_manifest(output, plan, {name: before[name] for name in shards}, complete=True)


def assign(sources: Sequence[Source], parts: Parts, seed: int) -> dict[str, list[Source]]:
    """The sources of each part in shuffled order; all with the same clean image go to the same part."""
    photographs: dict[str, list[Source]] = {}
    for each in sorted(sources, key=lambda s: s.item.key):
        photographs.setdefault(each.hq_sha256, []).append(each)
    part_of = _named(photographs, {part: keys for part, keys in parts.items() if not _is_share(keys)})
    free = [photograph for photograph in photographs if photograph not in part_of]
    free = [free[i] for i in generator(Stream.PACK, seed).permutation(len(free))]
    for part, count in _counts(parts, len(free)).items():
        part_of |= dict.fromkeys(free[:count], part)
        free = free[count:]
    if left := [group[0].item.key for photograph, group in photographs.items() if photograph not in part_of]:
        raise ValueError(
            f"parts={dict(parts)} leave out {len(left)} photographs, such as '{left[0]}': add a part that takes '{REST}'"
        )
    assigned: dict[str, list[Source]] = {}
    for part in parts:
        members = [each for p, group in photographs.items() if part_of.get(p) == part for each in group]
        if not members:
            raise ValueError(
                f"parts: no photograph is left for '{part}' of {len(photographs)}: give it more, or leave it out"
            )
        assigned[part] = [members[i] for i in generator(Stream.PACK, seed, part).permutation(len(members))]
    return assigned


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


def _hashed(items: Sequence[Item], progress: Progress) -> Iterator[Source]:
    for done, item in enumerate(items, start=1):
        yield Source(item, _sha256(item.hq), _sha256(item.lq) if item.lq else None)
        progress("reading", done, len(items))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plan(source: Path, shards: Mapping[str, Sequence[Source]], max_size: int | None) -> str:
    """The identity of what a packing is to write: nothing but the bytes of the input and what is done with them."""
    members = {name: [_describe(source, each) for each in group] for name, group in shards.items()}
    text = json.dumps([FORMAT, max_size, members], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _describe(source: Path, each: Source) -> dict[str, Any]:
    """What the JSON member of a sample says."""
    item = each.item
    described = {"source": item.hq.relative_to(source).as_posix(), "source_sha256": each.hq_sha256}
    if item.lq:
        described["source_lq"] = item.lq.relative_to(source).as_posix()
        described["source_lq_sha256"] = f"{each.lq_sha256}"
        described["degradation"] = f"{item.degradation}"
    return described


def _before(output: Path, plan: str) -> dict[str, Any]:
    """The shards that an earlier run of the same packing has written."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return {}
    found = manifest(output) if output.is_dir() else {}
    if found.get("plan") != plan and found.get("shards") != {}:  # of a packing that wrote no shard nothing is lost
        what = "shards of other images or settings" if "plan" in found else "something that is not a packing"
        raise FileExistsError(f"output={output} holds {what}: name another folder, or remove this one first")
    return dict(found["shards"])


def _is_whole(path: Path, entry: Mapping[str, Any] | None) -> bool:
    return entry is not None and path.is_file() and _sha256(path) == entry["sha256"]


def _write_shard(
    path: Path, source: Path, members: Sequence[Source], max_size: int | None, written: Callable[[], None]
) -> dict[str, Any]:
    """Writes one shard, whole or not at all, and calls `written` after each sample; returns its line in the manifest.

    Not synced to the disk: what a power cut leaves half-written is found by its sha256 when the packing goes on.
    """
    beside = path.with_name(f".{path.name}.tmp")
    samples = []
    try:
        with tarfile.open(beside, "w", format=tarfile.GNU_FORMAT) as tar:
            for each in members:
                samples.append(_add_sample(tar, source, each, max_size))
                written()
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return {"sha256": _sha256(path), "bytes": path.stat().st_size, "count": len(samples), "samples": samples}


def _add_sample(tar: tarfile.TarFile, source: Path, each: Source, max_size: int | None) -> dict[str, Any]:
    """Adds the members of one sample; returns its line in the manifest."""
    item, described = each.item, _describe(source, each)
    data, suffix, clean = _stored(item.hq, max_size)
    _add(tar, f"{item.key}.hq{suffix}", data)
    height, width = clean.array.shape[:2]
    if item.lq:
        data, suffix, degraded = _stored(item.lq, max_size)
        if degraded.array.shape[:2] != (height, width):
            raise ValueError(
                f"{item.lq} is {degraded.array.shape[1]}x{degraded.array.shape[0]}, its clean partner {item.hq} "
                f"{width}x{height}: a pair must have one size"
            )
        _add(tar, f"{item.key}.lq{suffix}", data)
    _add(tar, f"{item.key}.json", json.dumps(described, sort_keys=True).encode())
    return {"key": item.key, "height": height, "width": width, **described}


def _stored(path: Path, max_size: int | None) -> tuple[bytes, str, Picture]:
    """The bytes and the suffix under which an image is stored, and the image; an image that is none stops here."""
    data = path.read_bytes()
    picture = read_image(data, str(path))
    height, width = picture.array.shape[:2]
    if max_size is None or max(height, width) <= max_size:
        return data, path.suffix.lower(), picture
    scale = max_size / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    array: NDArray[Any] = cv2.resize(picture.array, size, interpolation=cv2.INTER_AREA)
    picture = replace(picture, array=array.reshape(size[1], size[0], -1))
    with tempfile.TemporaryDirectory() as folder:
        reduced = Path(folder) / "reduced.png"
        write_image(reduced, picture)
        return reduced.read_bytes(), ".png", picture


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    header = tarfile.TarInfo(name)  # owner, group and time are 0: only the images decide the bytes
    header.size = len(data)
    tar.addfile(header, io.BytesIO(data))


def _write_manifest(output: Path, plan: str, shards: Mapping[str, Any], complete: bool) -> dict[str, Any]:
    """The manifest with the shards so far; `digest` is that of names and contents of all of them."""
    contents = "".join(f"{name} {entry['sha256']}\n" for name, entry in shards.items())
    written = {
        "format": FORMAT,
        "complete": complete,
        "count": sum(entry["count"] for entry in shards.values()),
        "digest": hashlib.sha256(contents.encode()).hexdigest(),
        "plan": plan,
        "shards": dict(shards),
    }
    beside = output / f".{MANIFEST}.tmp"
    beside.write_text(json.dumps(written, indent=1) + "\n")
    os.replace(beside, output / MANIFEST)
    return written
