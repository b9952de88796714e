"""What W&B wrote of a run: the folders of its starts, and the records in their files. Only reading takes wandb."""

import json
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STEP = "trainer/global_step"
"""The x axis of all curves: the number of the optimizer step, from 0, as Lightning's loggers count."""
SETTING = "setting"
"""A key of the config: what a run's cells have in common but for the seed; runs that differ in the seed alone have one."""
_NAME = re.compile(r"(offline-)?run-(\d{8}_\d{6})-(.+)")
_HEADER, _BLOCK, _RECORD = 7, 32768, struct.Struct("<IHB")
_WHOLE, _LAST = 1, 4


@dataclass(frozen=True)
class Fragment:
    """RUN/wandb/[offline-]run-DATE_TIME-ID: one start of a run, as W&B keeps it."""

    folder: Path
    offline: bool
    begun: str
    """DATE_TIME, which sorts as time does."""
    run_id: str

    @property
    def file(self) -> Path:
        return self.folder / f"run-{self.run_id}.wandb"

    @property
    def mark(self) -> Path:
        """What `wandb sync` leaves beside a file that it has sent."""
        return self.file.with_suffix(".wandb.synced")

    @property
    def waits(self) -> bool:
        """Whether it is still to be sent; a start that was killed before its first block was written has nothing to send."""
        return self.offline and not self.mark.exists() and self.file.exists() and self.file.stat().st_size > _HEADER


def fragments(run: Path) -> list[Fragment]:
    """Those of a run's folder, oldest first."""
    found = []
    for folder in (run / "wandb").glob("*run-*"):
        if (name := _NAME.fullmatch(folder.name)) and folder.is_dir():
            found.append(Fragment(folder, bool(name[1]), name[2], name[3]))
    return sorted(found, key=lambda fragment: (fragment.begun, fragment.folder.name))


@dataclass
class Logged:
    """What the starts of a run have logged so far. rows: W&B's own count. step: the highest of STEP, -1 for none."""

    rows: int = 0
    step: int = -1
    names: set[str] = field(default_factory=set)
    """What was logged at this step, all of it or a part: a score may be missing where a run was killed as it validated."""
    best: dict[str, Any] = field(default_factory=dict)
    """The summary's `best/...`."""

    def add(self, step: int, names: Iterable[str]) -> None:
        if step > self.step:
            self.step, self.names = step, set()
        if step == self.step:
            self.names |= set(names)

    def new(self, step: int, row: Mapping[str, Any]) -> dict[str, Any]:
        """The part of a row that was not logged."""
        if step < self.step:
            return {}
        return {name: value for name, value in row.items() if step > self.step or name not in self.names}


def logged(run: Path) -> Logged:
    """Over all starts; what had not been written when one was killed is not in it."""
    found = Logged()
    for fragment in fragments(run):
        for record in records(fragment.file):
            if record.HasField("history"):
                row = {_key(item): item.value_json for item in record.history.item}
                found.rows = max(found.rows, int(row.get("_step", -1)) + 1)
                found.add(int(float(row.get(STEP, -1))), row.keys())
            elif record.HasField("summary"):
                items = {_key(item): item.value_json for item in record.summary.update}
                found.best |= {key: json.loads(text) for key, text in items.items() if key.startswith("best/")}
    return found


def records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file, as `wandb.proto.wandb_internal_pb2.Record`, up to where it is cut off.

    The format is LevelDB's log: blocks of 32 KiB, in them pieces (checksum, length, kind), of which one or several make a
    record. What follows a piece that is not whole is not read.
    """
    from wandb.proto import wandb_internal_pb2 as wandb_internal

    data = path.read_bytes() if path.exists() else b""
    at, begun = _HEADER, b""
    while at + _RECORD.size <= len(data):
        if (left := _BLOCK - at % _BLOCK) < _RECORD.size:
            at += left  # what is left of a block is too small for a piece
            continue
        _, length, kind = _RECORD.unpack_from(data, at)
        at += _RECORD.size
        if not kind or at + length > len(data):
            return
        begun += data[at : at + length]
        at += length
        if kind in (_WHOLE, _LAST):
            yield wandb_internal.Record.FromString(begun)  # type: ignore[attr-defined]
            begun = b""


def _key(item: Any) -> str:
    return item.key or item.nested_key[0]  # of a picture, W&B notes its path, its size, ..
