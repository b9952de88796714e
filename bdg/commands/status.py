"""`bdg status`: what each run does, or why it does nothing; out of files, and of Slurm's answers where there are any."""

import json
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.box import SIMPLE
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from bdg.commands.request import Request
from bdg.commands.runs import Place, Sweep, ask, place, word
from jobs.run import write_text
from jobs.slurm import Slurm
from jobs.states import ACTIVE, State, attempts, duration

STYLES = {
    "failed": "bold red",
    "stopped": "yellow",
    "running": "bold green",
    "preempted": "magenta",
    "waiting": "cyan",
    "held": "cyan",
    "missing": "dim",
    "done": "green",
}
"""The words, in the order of how much they ask for a look."""
ALWAYS = ("stage", "run", "state", "step")
NUMBERS = ("step", "s/step", "left", "restarts")
WIDE = 200
"""Columns where nobody sees the width of a terminal, as in a file."""


@dataclass(frozen=True)
class Row:
    """A run in the table. cell: its name, or how many share it; "" outside of a sweep."""

    stage: str
    identity: str
    folder: Path
    cell: str
    state: State

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"folder": str(self.folder)}


@dataclass(frozen=True)
class Report:
    """What is shown: runs; without a name also what each sweep comes to; and what could not be asked."""

    title: str
    rows: list[Row]
    sweeps: dict[str, Counter[str]]
    note: str

    @property
    def active(self) -> bool:
        return any(row.state.word in ACTIVE for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        rows = [row.to_dict() for row in self.rows]
        return {"title": self.title, "note": self.note, "sweeps": self.sweeps, "runs": rows}


def run(config: DictConfig, request: Request) -> None:
    if config.every_s <= 0 or config.show < 0:
        raise ValueError(f"every_s={config.every_s}, show={config.show}: give seconds above 0, and 0 rows or more")
    console = wide_console()
    name = None if config.name is None else word(config, "name")
    if config.watch:
        found = watch(config, name, console)
    else:
        found = report(place(config), name, Slurm())
        console.print(picture(found, config.show))
    if config.json:
        write_text(Path(config.json), json.dumps(found.to_dict(), indent=1) + "\n")


def wide_console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDE)


def watch(config: DictConfig, name: str | None, console: Console) -> Report:
    """Shows it anew until nothing is left that goes on by itself, or until Ctrl-C."""
    found = report(place(config), name, Slurm())
    with Live(picture(found, config.show), console=console, auto_refresh=False) as live, suppress(KeyboardInterrupt):
        while found.active:
            time.sleep(config.every_s)
            found = report(place(config), name, Slurm())
            live.update(picture(found, config.show), refresh=True)
    return found


def report(place: Place, name: str | None, slurm: Slurm) -> Report:
    """Of one sweep; of all sweeps and runs without a name."""
    sweeps = [place.need_sweep(name)] if name is not None else place.sweeps
    named = {identity for sweep in sweeps for identity in sweep.plan.tasks}  # which other sweeps may have submitted
    asked, note = ask([line for line in place.submissions if named & set(attempts([line]))], slurm)
    found: dict[str, Row] = {}
    for sweep in sweeps:
        for task in sweep.plan.tasks.values():
            if task.folder not in found:
                parent = sweep.plan.tasks[task.parent] if task.parent else None
                words = f"{parent.stage} {parent.identity} ({found[parent.folder].state.word})" if parent else ""
                state = asked.state(Path(task.folder), task.max_steps, words)
                cell = cell_of(sweep, task.cells)
                found[task.folder] = Row(task.stage, task.identity, Path(task.folder), cell, state)
    if name is not None:
        return Report(sweeps[0].label, list(found.values()), {}, note)
    for folder in place.runs():
        if str(folder) not in found:
            found[str(folder)] = Row(folder.parent.name, folder.name, folder, "", asked.state(folder))
    counts = {s.label: Counter(found[t.folder].state.word for t in s.plan.tasks.values()) for s in sweeps}
    return Report(", ".join(project.name for project in place.projects), list(found.values()), counts, note)


def cell_of(sweep: Sweep, cells: Sequence[int]) -> str:
    return sweep.plan.cells[cells[0]].name if len(cells) == 1 else f"{len(cells)} cells"


def picture(report: Report, show: int) -> RenderableType:
    """The rows that most need a look, `show` of them, in their own order; and how many there are of each kind."""
    order = list(STYLES)
    ranked = sorted(range(len(report.rows)), key=lambda i: order.index(report.rows[i].state.word))
    shown = [report.rows[i] for i in sorted(ranked[:show])]
    parts: list[RenderableType] = [Text(report.title, "bold")]
    if report.sweeps:
        parts.append(totals(report.sweeps))
    parts.append(table(shown) if shown else Text("no runs"))
    counts = Counter(row.state.word for row in report.rows)
    rest = len(report.rows) - len(shown)
    parts.append(Text(in_all(counts) + (f"; {rest} rows are not shown: show=N, or json=PATH" if rest else "")))
    if report.note:
        parts.append(Text(report.note, "yellow"))
    return Group(*parts)


def totals(sweeps: dict[str, Counter[str]]) -> Table:
    made = Table("sweep", Column("runs", justify="right"), "of them", box=SIMPLE)
    for label, counts in sweeps.items():
        made.add_row(Text(label), f"{counts.total()}", Text(in_all(counts)))
    return made


def in_all(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[name]} {name}" for name in reversed(STYLES) if counts[name])


def table(rows: Sequence[Row]) -> Table:
    """A column each for what at least one row has."""
    cells = [columns(row) for row in rows]
    names = [name for name in cells[0] if name in ALWAYS or any(each[name].plain for each in cells)]
    made = Table(
        *(Column(n, justify="right" if n in NUMBERS else "left", no_wrap=n in ALWAYS) for n in names), box=SIMPLE
    )
    for each in cells:
        made.add_row(*(each[name] for name in names))
    return made


def columns(row: Row) -> dict[str, Text]:
    state = row.state
    step = "" if state.step is None else f"{state.step}"
    metric = "" if state.metric is None else f"{state.metric[0].rpartition('/')[2]} {state.metric[1]:.4g}"
    return {
        "stage": Text(row.stage),
        "run": Text(row.identity),
        "cell": Text(row.cell),
        "state": Text(state.word, STYLES[state.word]),
        "reason": Text(state.reason),
        "step": Text(f"{step}/{state.max_steps}" if step and state.max_steps else step),
        "s/step": Text(f"{state.step_s:.3g}" if state.step_s else ""),
        "left": Text(duration(state.left_s) if state.left_s and state.word in ACTIVE else ""),
        "restarts": Text(f"{state.restarts or ''}"),
        "metric": Text(metric),
        "node": Text(state.node),
    }
