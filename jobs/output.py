"""What the processes of a run printed: which files hold it, and their last lines. Knows no cluster."""

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

NAME = re.compile(r"(?P<job>.+)\.restart(?P<restart>\d+)\.(out|err)")
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[^\[]?|[\x00-\x08\x0b-\x1f\x7f]")
_BYTES_A_LINE = 4096


@dataclass(frozen=True)
class Output:
    """Of one start. job: "123_4", "123" or "local-PID"; files: its .out and .err, as far as they exist."""

    job: str
    restart: int
    files: tuple[Path, ...]


def outputs(folder: Path) -> list[Output]:
    """Of all starts of the run in `folder`, the newest last."""
    found: dict[tuple[str, int], list[Path]] = defaultdict(list)
    for path in sorted((folder / "slurm").glob("*.restart*.*")):
        if name := NAME.fullmatch(path.name):
            found[name["job"], int(name["restart"])].append(path)
    newest: dict[str, float] = defaultdict(float)
    for (job, _), paths in found.items():
        newest[job] = max(newest[job], *map(_time, paths))
    starts = sorted(found, key=lambda start: (newest[start[0]], *start))
    return [Output(job, restart, tuple(reversed(found[job, restart]))) for job, restart in starts]


def tail(path: Path, lines: int) -> list[str]:
    """The last lines of a text; of one that a progress bar wrote over itself, what was to be read at the end."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - lines * _BYTES_A_LINE))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [readable(line) for line in text.split("\n") if line][-lines:] if lines else []


def last_words(folder: Path, lines: int = 20) -> list[str]:
    """The last lines of the newest output of a run: of its errors, or of the rest if there are none."""
    for path in (path for output in reversed(outputs(folder)[-1:]) for path in sorted(output.files)):
        if found := tail(path, lines):
            return found
    return []


def readable(line: str) -> str:
    """Without what moves a terminal's cursor or colours its text."""
    return _CONTROL.sub("", line.rstrip("\r").rpartition("\r")[2])


def _time(path: Path) -> float:
    """When it was last written."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
