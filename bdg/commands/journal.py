"""What the pictures of a folder were made of, one line each: so that the same command skips what is done. Knows no pictures.

A line is written before the picture takes its place: one that is there without a line, or not as its line says, is not ours.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bdg
from bdg.documents import parse_object

NAME = ".restored.jsonl"
CLOCKS_S = 2.0
"""By how much file systems may differ over the time at which a file was written."""


@dataclass(frozen=True)
class Journal:
    """made: target, relative to the folder -> its last line. key: of the weights and settings of this run."""

    folder: Path
    settings: Mapping[str, Any]
    made: dict[str, dict[str, Any]] = field(default_factory=dict)
    known: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, settings: Mapping[str, Any]) -> "Journal":
        """settings: all that a result depends on, as JSON takes it."""
        journal = cls(folder, {"bdg": bdg.__version__, **settings})
        for line in _lines(folder / NAME):
            if isinstance(given := line.get("settings"), dict):
                journal.known[f"{line.get('key')}"] = given
            elif isinstance(target := line.get("target"), str):
                journal.made[target] = line
        return journal

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:12]

    def why_not(self, source: Path, target: Path) -> str | None:
        """Why an existing target is not what this run would make of source; None if it is."""
        line = self.made.get(target.relative_to(self.folder).as_posix())
        if line is None:
            return "exists already"
        if not _same(line.get("as"), target.stat()):
            return "was changed since it was restored"
        if line.get("key") != self.key:
            return f"was restored with other settings ({self._difference(line)})"
        if not _same(line.get("of"), source.stat()):
            return f"was restored from another {source.name}, which has changed since"
        return None

    def add(self, source: Path, target: Path, written: os.stat_result) -> None:
        """written: of the whole file, before it takes the place of target."""
        line = {
            "target": target.relative_to(self.folder).as_posix(),
            "source": str(source),
            "key": self.key,
            "of": _stamp(source.stat()),
            "as": _stamp(written),
        }
        new = [] if self.key in self.known else [{"key": self.key, "settings": dict(self.settings)}]
        self.known[self.key] = dict(self.settings)
        self.made[f"{line['target']}"] = line
        with (self.folder / NAME).open("a+b") as file:
            torn = file.tell() and not _ends_a_line(file)
            file.write(b"\n" * bool(torn) + b"".join(json.dumps(each).encode() + b"\n" for each in [*new, line]))

    def _difference(self, line: Mapping[str, Any]) -> str:
        then = self.known.get(f"{line.get('key')}", {})
        keys = [key for key in {**then, **self.settings} if then.get(key) != self.settings.get(key)]
        return ", ".join(f"{key} {_short(then.get(key))}, now {_short(self.settings.get(key))}" for key in keys)


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    """A line that is torn speaks of a picture that was not yet there."""
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            yield parse_object(line)
        except ValueError:
            continue


def _ends_a_line(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _stamp(stat: os.stat_result) -> list[float]:
    return [stat.st_size, stat.st_mtime]


def _same(stamp: Any, stat: os.stat_result) -> bool:
    match stamp:
        case [int(size), float() | int() as time]:
            return size == stat.st_size and abs(time - stat.st_mtime) <= CLOCKS_S
    return False


def _short(value: Any) -> str:
    text = f"{value}"
    return text[:12] if len(text) == 64 else text  # a digest
