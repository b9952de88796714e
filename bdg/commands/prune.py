"""`bdg prune`: what of the runs in `root` nobody needs any more, and how much it takes; deletes only when told to."""

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from omegaconf import DictConfig
from rich.box import SIMPLE
from rich.table import Column, Table
from rich.text import Text

from bdg.commands.request import Request
from bdg.commands.runs import Place, Sweep, ask, place
from bdg.commands.status import wide_console
from jobs.run import open_lock, try_lock, write_text
from jobs.slurm import Slurm
from jobs.states import ACTIVE, Asked, attempts, is_locked

YOUNG_S = 3600.0
"""A copy of the code younger than this may be of a sweep that is being submitted."""


@dataclass(frozen=True)
class Waste:
    """A file or folder. run: the folder whose lock is held while it is deleted; None: of a sweep."""

    path: Path
    why: str
    bytes: int
    run: Path | None


def run(config: DictConfig, request: Request) -> None:
    here = place(config)
    asked, note = ask(here.submissions, Slurm())
    found = [waste for waste in wastes(here, asked) if within(waste.path, here.root)]
    console = wide_console()
    if note:
        console.print(Text(note, "yellow"))
    left = [] if config.dry else [waste for waste in found if not delete(waste)]
    gone = [waste for waste in found if waste not in left]
    if gone:
        console.print(table(gone, here.root))
    total = megabytes(sum(waste.bytes for waste in gone))
    said = f"{total} can be deleted: dry=false does it" if config.dry else f"{total} deleted"
    console.print(said if gone else "nothing to delete")
    if left:
        named = ", ".join(str(waste.path) for waste in left)
        console.print(Text(f"left alone, as somebody works there now, or their lock is a link: {named}", "yellow"))
    if config.json:
        listed = [asdict(w) | {"path": str(w.path), "run": w.run and str(w.run), "left": w in left} for w in found]
        write_text(Path(config.json), json.dumps(listed, indent=1) + "\n")


def wastes(here: Place, asked: Asked) -> Iterator[Waste]:
    """Nothing of a run on which somebody works, or will."""
    for folder in here.runs():
        state = asked.state(folder)
        if state.word not in ACTIVE and not is_locked(folder):
            yield from of_run(folder, state.word)
    for sweep in here.sweeps:
        yield from of_sweep(sweep, asked)


def of_run(folder: Path, word: str) -> Iterator[Waste]:
    checkpoints = folder / "checkpoints"
    files = {path.name for path in checkpoints.glob("*.ckpt")}
    if word == "done":
        if files:
            yield Waste(checkpoints, "checkpoints of a finished run, whose weights stay", size(checkpoints), folder)
    elif word in ("failed", "stopped") and not files and not (folder / "weights").exists():
        yield Waste(folder, f"{word} before its first checkpoint", size(folder), folder)
    elif {"last.ckpt", "previous.ckpt"} <= files and is_whole(checkpoints / "last.ckpt"):
        previous = checkpoints / "previous.ckpt"
        yield Waste(previous, "the checkpoint before the last one", size(previous), folder)


def of_sweep(sweep: Sweep, asked: Asked) -> Iterator[Waste]:
    """Copies of the code from which no job runs or will."""
    working = [line for line in sweep.submissions if any(_works(sweep, asked, run) for run in attempts([line]))]
    local = any(line.get("where") == "local" for line in working)
    if local or is_locked(sweep.folder):
        return
    scripts = [_text(sweep.folder / f"{line.get('script')}") for line in working]
    for copy in sorted((sweep.folder / "frozen").glob("*")):
        young = time.time() - copy.stat().st_mtime < YOUNG_S
        if re.fullmatch(r"[0-9a-f]{12}", copy.name) and not young and not any(copy.name in text for text in scripts):
            yield Waste(copy, "a copy of the code that no job needs", size(copy), None)


def _works(sweep: Sweep, asked: Asked, identity: str) -> bool:
    task = sweep.plan.tasks.get(identity)
    return task is None or asked.state(Path(task.folder)).word in ACTIVE


def delete(waste: Waste) -> bool:
    """False: somebody works there now, or may: the lock is none that we make."""
    if waste.run is None:
        shutil.rmtree(waste.path)
        return True
    if (waste.run / "lock").is_symlink():
        return False
    with suppress(FileNotFoundError), open_lock(waste.run) as lock:
        if not try_lock(lock):
            return False
        if waste.path.is_dir():
            shutil.rmtree(waste.path)
        else:
            waste.path.unlink()
    return True


def within(path: Path, root: Path) -> bool:
    """Whether it lies below the root itself, not behind a link that leads out or to another place."""
    return not path.is_symlink() and path.resolve() == root.resolve() / path.relative_to(root)


def is_whole(checkpoint: Path) -> bool:
    """Whether it is what was written, by the digest beside it."""
    written = re.search(
        rf"^(\w+)  {re.escape(checkpoint.name)}$", _text(checkpoint.with_name("SHA256SUMS")), re.MULTILINE
    )
    with checkpoint.open("rb") as file:
        return written is not None and hashlib.file_digest(file, "sha256").hexdigest() == written[1]


def size(path: Path) -> int:
    """Bytes that go with it; a file of several names counts once, and only where all of them go."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file() and not p.is_symlink()]
    names: dict[int, list[os.stat_result]] = {}
    for stat in (file.stat() for file in files):
        names.setdefault(stat.st_ino, []).append(stat)
    return sum(stats[0].st_size for stats in names.values() if len(stats) >= stats[0].st_nlink)


def table(found: Iterable[Waste], root: Path) -> Table:
    made = Table("what", "why", Column("size", justify="right"), box=SIMPLE)
    for waste in found:
        made.add_row(Text(str(waste.path.relative_to(root))), waste.why, megabytes(waste.bytes))
    return made


def megabytes(num: int) -> str:
    return f"{num / 1e9:.2f} GB" if num >= 1e9 else f"{num / 1e6:.1f} MB"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
