"""`bdg sync`: sends to W&B what runs logged offline, from a machine that has internet; imports no torch."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Column, Table

from bdg.commands.request import Request
from bdg.commands.runs import Place, Sweep, place, word
from callbacks.wandb_file import Fragment, fragments
from jobs.run import write_text
from jobs.states import is_locked

RUNS_AT_ONCE = 20
"""That one call of wandb sends."""
FRESH_S = 300
"""A file that was written to in so many seconds belongs to a start that may go on, where the file system has no locks."""


@dataclass(frozen=True)
class Backlog:
    """What a run has logged offline: starts that are sent, that wait, and one that is being written (0 or 1)."""

    run: Path
    sent: int
    waiting: tuple[Fragment, ...]
    open: int


def run(config: DictConfig, request: Request) -> None:
    if find_spec("wandb") is None:
        raise ValueError("bdg sync sends what W&B wrote, and wandb is not installed here: pip install wandb")
    if config.every_s <= 0:
        raise ValueError(f"every_s={config.every_s}: give seconds, more than 0")
    here = place(config)
    with suppress(KeyboardInterrupt):
        while True:
            before = [backlog(folder) for folder in folders(here, config)]
            if not config.dry:
                send_all(before)
            now = [backlog(item.run) for item in before]
            show(now, config.dry)
            if config.json:
                write_text(Path(config.json), json.dumps([as_plain(item) for item in now], indent=1) + "\n")
            if not (config.watch and any(item.open for item in now)):
                break
            time.sleep(config.every_s)
    if not config.dry and (left := sum(len(item.waiting) for item in now)):
        raise OSError(
            f"{left} starts were not sent, for the reason above: are you logged in (wandb login), is there internet?"
        )


def folders(here: Place, config: DictConfig) -> Iterator[Path]:
    """Of the runs that are meant: all, or those of a sweep, or one."""
    if config.what is None:
        yield from here.runs()
        return
    found = here.need(word(config, "what"))
    if isinstance(found, Sweep):
        yield from (Path(task.folder) for task in found.plan.tasks.values())
    else:
        yield found


def backlog(folder: Path) -> Backlog:
    """A start that is still being written waits until it has ended: what is sent twice is in W&B twice."""
    found = [fragment for fragment in fragments(folder) if fragment.offline]
    waiting = [fragment for fragment in found if fragment.waits]
    last = found[-1] if found else None
    still = bool(waiting) and waiting[-1] is last and _is_open(folder, waiting[-1])
    return Backlog(
        folder,
        sent=sum(fragment.mark.exists() for fragment in found),
        waiting=tuple(waiting[:-1] if still else waiting),
        open=int(still),
    )


def _is_open(folder: Path, fragment: Fragment) -> bool:
    status = folder / "STATUS"
    if not status.exists() or status.read_text().strip() != "running":
        return False
    return is_locked(folder) or time.time() - fragment.file.stat().st_mtime < FRESH_S


def send_all(backlogs: Sequence[Backlog]) -> None:
    """In groups of whole runs, the starts of each in their order; what fails is left without its mark."""
    waiting = [item for item in backlogs if item.waiting]
    for k in range(0, len(waiting), RUNS_AT_ONCE):
        send([fragment.folder for item in waiting[k : k + RUNS_AT_ONCE] for fragment in item.waiting])


def send(paths: Sequence[Path]) -> None:
    """The one call to W&B: it marks what it has sent, and joins the starts of a run by their id."""
    environ = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"}
    subprocess.run([sys.executable, "-m", "wandb", "sync", *map(str, paths)], env=environ, check=False)


def show(backlogs: Sequence[Backlog], dry: bool) -> None:
    table = Table("run", *(Column(title, justify="right") for title in ("sent", "waiting", "being written")))
    for item in backlogs:
        if item.sent or item.waiting or item.open:
            table.add_row(str(item.run), str(item.sent), str(len(item.waiting)), str(item.open))
    console = Console(markup=False)
    if not table.rows:
        console.print("nothing was logged offline: runs with logger=wandb are")
        return
    console.print(table)
    if dry and any(item.waiting for item in backlogs):
        console.print("dry=true: nothing was sent")


def as_plain(item: Backlog) -> dict[str, object]:
    waiting = [str(fragment.folder) for fragment in item.waiting]
    return {"run": str(item.run), "sent": item.sent, "waiting": waiting, "open": item.open}
