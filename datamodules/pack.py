"""Folders of images become shuffled WebDataset shards with a manifest; the same input gives the same bytes.

What has been written is noted after each shard, so that an interrupted packing goes on where it stopped.
"""

import errno
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from bdg.files import digest, replacing
from datamodules.layouts import Found, Item, look
from datamodules.parts import Parts, Source, assign
from datamodules.processes import processes
from datamodules.samples import Encoding, NewSample, describe, make_sample
from datamodules.shards import MANIFEST, manifest, write_index

FORMAT = "bdg-shards-1"
JOURNAL = ".written.jsonl"
"""Name and manifest entry of each shard of an unfinished packing, a line each: to write the manifest after each shard would
take longer and longer."""
SAMPLES = "samples.jsonl"
"""Beside the manifest and not in it, which every process of a training reads."""
Progress = Callable[[str, int, int], None]
"""Called with what is done, how many images of it, and of how many."""


def pack(
    source: Path | Found,
    output: Path,
    parts: Parts,
    shard_size: int = 1000,
    max_size: int | None = None,
    seed: int = 0,
    encoding: str = "original",
    quality: int = 95,
    workers: int = 1,
    on_unpaired: str = "stop",
    on_error: str = "stop",
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Writes <output>/<part>-000000.tar, ..., samples.jsonl (see `packed_samples`) and manifest.json, which it returns.

    source: a folder, or what `layouts.look` found in one. shard_size: images (or pairs) per shard. max_size: the longer side
    in pixels, at most; larger images are reduced, and stored as PNG unless another encoding is chosen. encoding: a name in
    `samples.ENCODINGS`; quality: that of JPEG, 1 to 100. workers: processes; the bytes are the same for any number.
    on_unpaired, on_error: "stop", or "skip" images without a partner and those that cannot be read, and count them.

    Raises FileNotFoundError, FileExistsError if `output` holds anything but a part of the same packing, OSError where the
    disk is full or a file changes meanwhile, and ValueError for images that cannot be read or have no partner and for parts
    that do not fit.
    """
    for option, number in (("shard_size", shard_size), ("workers", workers)):
        if number < 1:
            raise ValueError(f"{option}={number}: give a number, 1 or more")
    for option, choice in (("on_unpaired", on_unpaired), ("on_error", on_error)):
        if choice not in ("stop", "skip"):
            raise ValueError(f"{option}={choice}: choose stop or skip")
    how = Encoding(encoding, quality, max_size)
    found = source if isinstance(source, Found) else look(source)
    if on_unpaired == "stop":
        found.refuse_gaps(", or leave them out with on_unpaired=skip")
    if not found.items:
        raise ValueError(
            f"{found.source}: none of its {found.num_unpaired} images has a partner, so nothing is left to pack"
        )
    total = len(found.items)
    with processes(workers) as run, _room_on_disk(output):
        sources = list(_counted(run(_hashed, found.items), partial(progress, "reading"), 0, total))
        planned = {
            f"{part}-{i // shard_size:06d}.tar": members[i : i + shard_size]
            for part, members in assign(sources, parts, seed).items()
            for i in range(0, len(members), shard_size)
        }
        plan = _plan(found.source, planned, how)
        facts = {"layout": found.layout, "encoding": f"{how}", "unpaired": found.num_unpaired, "plan": plan}
        before = _before(output, plan)
        output.mkdir(parents=True, exist_ok=True)
        known = [name for name in planned if name in before]
        checked = _counted(known, partial(progress, "checking"), 0, len(known))
        written = {name: before[name] for name in checked if _is_whole(output / name, before[name])}
        if written.keys() < planned.keys():
            with replacing(output / JOURNAL) as journal:
                journal.writelines(_line(shard).encode() for shard in written.items())
            _write_manifest(output, facts, {}, complete=False)
        make = partial(make_sample, source=found.source, how=how, skip=on_error == "skip")
        done = sum(len(planned[name]) for name in written)
        for name in [name for name in planned if name not in written]:
            samples = _counted(run(make, planned[name]), partial(progress, "packing"), done, total)
            written[name] = _write_shard(output / name, samples)
            done += len(planned[name])
            with (output / JOURNAL).open("a") as journal:
                journal.write(_line((name, written[name])))
        ordered = {name: written[name] for name in planned}
        with replacing(output / SAMPLES) as file:
            for name, entry in ordered.items():
                file.writelines(_line({"shard": name, **sample}).encode() for sample in entry["samples"])
        complete = _write_manifest(output, facts, ordered, complete=True)
        (output / JOURNAL).unlink(missing_ok=True)
        return complete


def packed_samples(output: Path) -> Iterator[dict[str, Any]]:
    """What samples.jsonl says of each sample: its shard, key, size, sources and their sha256, and of a pair its degradation."""
    if (output / SAMPLES).is_file():
        with (output / SAMPLES).open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    yield json.loads(line)
                except ValueError:
                    raise ValueError(
                        f"{output / SAMPLES}, line {number}, is damaged: remove it, and pack again"
                    ) from None


def leaks(samples: Iterable[Mapping[str, Any]]) -> int:
    """How many clean images are in more than one part; only a data set's own split can have any."""
    parts: dict[str, set[str]] = {}
    for sample in samples:
        parts.setdefault(sample["source_sha256"], set()).add(sample["shard"].rpartition("-")[0])
    return sum(len(found) > 1 for found in parts.values())


def _counted(items: Iterable[Any], progress: Callable[[int, int], None], done: int, total: int) -> Iterator[Any]:
    for number, item in enumerate(items, start=done + 1):
        yield item
        progress(number, total)


@contextmanager
def _room_on_disk(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            f"output={output}: the disk is full ({error.strerror}): make room and run the same again, "
            "it goes on where it stopped"
        ) from None


def _hashed(item: Item) -> Source:
    return Source(item, digest(item.hq), digest(item.lq) if item.lq else None)


def _plan(source: Path, planned: Mapping[str, Sequence[Source]], how: Encoding) -> str:
    """The identity of what a packing is to write: nothing but the bytes of the input and what is done with them."""
    members = {name: [describe(source, each) for each in group] for name, group in planned.items()}
    settings = [how.max_size, *([] if how.name == "original" else [f"{how}"])]
    text = json.dumps([FORMAT, *settings, members], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _before(output: Path, plan: str) -> dict[str, Any]:
    """The shards that an earlier run of the same packing has written."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return {}
    found = manifest(output) if output.is_dir() else {}
    written = dict(found.get("shards", {}))
    if found.get("plan") == plan:
        return _with_samples(output, written) | _noted(output)
    written |= _noted(output)
    if "plan" in found and not written:  # of a packing that wrote no shard nothing is lost
        return {}
    what = "shards of other images or settings" if "plan" in found else "something that is not a packing"
    raise FileExistsError(f"output={output} holds {what}: name another folder, or remove this one first")


def _with_samples(output: Path, entries: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a manifest, each with the lines of its samples; without those whose lines are not all there."""
    lines: dict[str, list[Any]] = {}
    for sample in packed_samples(output):
        lines.setdefault(sample.pop("shard"), []).append(sample)
    found = {name: {**entry, "samples": lines.get(name, [])} for name, entry in entries.items()}
    return {name: entry for name, entry in found.items() if len(entry["samples"]) == entry["count"]}


def _is_whole(path: Path, entry: Mapping[str, Any]) -> bool:
    return path.is_file() and digest(path) == entry["sha256"]


def _line(facts: tuple[str, Mapping[str, Any]] | Mapping[str, Any]) -> str:
    return json.dumps(facts) + "\n"


def _noted(output: Path) -> dict[str, Any]:
    """The shards in the journal, as far as its lines are whole."""
    if not (output / JOURNAL).is_file():
        return {}
    written = {}
    for line in (output / JOURNAL).read_text().splitlines():
        try:
            name, written[name] = json.loads(line)
        except (ValueError, TypeError):  # cut off; what is left of it may be a bare number
            continue
    return written


def _write_shard(path: Path, samples: Iterable[NewSample]) -> dict[str, Any]:
    """Writes one shard, whole or not at all, with its index; returns its entry in the manifest.

    Not synced to the disk: what a power cut leaves half-written is found by its sha256 when the packing goes on.
    """
    beside = path.with_name(f".{path.name}.tmp")
    lines: list[Mapping[str, Any]] = []
    skipped: list[Mapping[str, Any]] = []
    try:
        with tarfile.open(beside, "w", format=tarfile.GNU_FORMAT) as tar:
            for sample in samples:
                (lines if sample.files else skipped).append(sample.line)
                for name, data in sample.files:
                    _add(tar, name, data)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    write_index(path)
    entry = {"sha256": digest(path), "bytes": path.stat().st_size, "count": len(lines), "samples": lines}
    return entry | ({"skipped": skipped} if skipped else {})


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    header = tarfile.TarInfo(name)  # owner, group and time are 0: only the images decide the bytes
    header.size = len(data)
    tar.addfile(header, io.BytesIO(data))


def _write_manifest(
    output: Path, facts: Mapping[str, Any], entries: Mapping[str, Any], complete: bool
) -> dict[str, Any]:
    """The manifest with these shards; `digest` is that of names and contents of all of them."""
    contents = "".join(f"{name} {entry['sha256']}\n" for name, entry in entries.items())
    written = {
        "format": FORMAT,
        "complete": complete,
        "count": sum(entry["count"] for entry in entries.values()),
        "skipped": sum(len(entry.get("skipped", ())) for entry in entries.values()),
        "digest": hashlib.sha256(contents.encode()).hexdigest(),
        **facts,
        "shards": {name: {k: v for k, v in entry.items() if k != "samples"} for name, entry in entries.items()},
    }
    with replacing(output / MANIFEST) as file:
        file.write((json.dumps(written, indent=1) + "\n").encode())
    return written
