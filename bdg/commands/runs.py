"""Runs and sweeps, found in the files by what a user calls them; imports no torch and needs no cluster."""

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from jobs.plan import Plan
from jobs.slurm import Accounted, Queued, Slurm, SlurmMissing, SlurmRefused
from jobs.states import Asked, attempts, read_lines, read_object

IDENTITY = re.compile(r"[0-9a-f]{12}")
NAMED = 5
"""Things that an error names."""


@dataclass(frozen=True)
class Sweep:
    """root/project/sweeps/NAME, its plan's folders being those of where it was found."""

    folder: Path
    plan: Plan
    submissions: list[dict[str, Any]]

    @property
    def label(self) -> str:
        return f"{self.plan.project}/{self.plan.name}"

    @classmethod
    def read(cls, folder: Path) -> "Sweep":
        """Raises ValueError if its plan.json is damaged."""
        try:
            plan = Plan.from_dict(read_object(folder / "plan.json"))
        except (KeyError, TypeError):
            raise ValueError(
                f"{folder}/plan.json is damaged: give the bdg sweep command again, which writes it"
            ) from None
        project = folder.parent.parent  # whatever place root was called by where the sweep was made
        tasks = {i: replace(t, folder=str(project / t.stage / i)) for i, t in plan.tasks.items()}
        plan = replace(plan, root=str(project.parent), project=project.name, name=folder.name, tasks=tasks)
        return cls(folder, plan, read_lines(folder / "submissions.jsonl"))


class Place:
    """The projects in `root`; project: a name, or a pattern such as `*`."""

    def __init__(self, root: Path, project: str) -> None:
        if not root.is_dir():
            raise FileNotFoundError(f"root={root}: no such folder: give root= the folder that holds the runs")
        self.root = root
        exact = root / project
        self.projects = [exact] if exact.is_dir() else sorted(p for p in root.glob(project) if p.is_dir())
        if not self.projects:
            names = sorted(p.name for p in root.iterdir() if p.is_dir())
            raise FileNotFoundError(f"project={project}: there is none in {root}: {_there('projects', names)}")

    @cached_property
    def sweeps(self) -> list[Sweep]:
        """Those whose plan can be read."""
        found = []
        for folder in self._sweep_folders():
            with suppress(ValueError):
                found.append(Sweep.read(folder))
        return found

    def _sweep_folders(self) -> Iterator[Path]:
        for project in self.projects:
            yield from sorted(plan.parent for plan in project.glob("sweeps/*/plan.json"))

    @cached_property
    def submissions(self) -> list[dict[str, Any]]:
        """Of all sweeps: they may share runs."""
        return [line for sweep in self.sweeps for line in sweep.submissions]

    def runs(self) -> Iterator[Path]:
        """Folders of runs, by project, stage and identity."""
        for project in self.projects:
            for stage in sorted(path for path in project.iterdir() if path.is_dir() and path.name != "sweeps"):
                yield from sorted(path for path in stage.iterdir() if IDENTITY.fullmatch(path.name) and path.is_dir())

    def sweep(self, name: str) -> Sweep | None:
        """The sweep called NAME or PROJECT/NAME, or whose folder this is; None if there is none."""
        named = [s for s in self.sweeps if name in (s.plan.name, s.label) or _same(Path(name), s.folder)]
        if len(named) > 1:
            raise ValueError(f"'{name}' is a sweep of {', '.join(s.plan.project for s in named)}: add project=ONE")
        damaged = () if named else (folder for folder in self._sweep_folders() if folder.name == name)
        for folder in damaged:
            Sweep.read(folder)  # says what is wrong
        return named[0] if named else None

    def run(self, name: str) -> Path | None:
        """The run that NAME is: a folder, the beginning of its identity, or SWEEP/CELL/STAGE; None if there is none."""
        folder = Path(name.rstrip("/"))
        if IDENTITY.fullmatch(folder.resolve().name) and folder.is_dir():
            return folder
        sweep, _, rest = name.partition("/")
        cell, _, stage = rest.rpartition("/")
        if cell and (found := self.sweep(sweep)):
            return _of_cell(found, cell, stage)
        if not re.fullmatch(r"[0-9a-f]{1,12}", name):
            return None
        runs = [run for run in self.runs() if run.name.startswith(name)]
        if len(runs) > 1:
            names = [str(run.relative_to(self.root)) for run in runs]
            raise ValueError(f"'{name}' begins {len(runs)} identities ({_some(names)}): give more of it, or the folder")
        return runs[0] if runs else None

    def need_run(self, name: str) -> Path:
        if found := self.run(name):
            return found
        raise FileNotFoundError(f"no run '{name}' in {self.root}: {self._hint(name)}")

    def need_sweep(self, name: str) -> Sweep:
        if found := self.sweep(name):
            return found
        raise FileNotFoundError(
            f"no sweep '{name}' in {self.root}: {_there('sweeps', [s.plan.name for s in self.sweeps], name)}"
        )

    def need(self, name: str) -> Sweep | Path:
        """A sweep or the folder of a run."""
        found = self.sweep(name) or self.run(name)
        if found is None:
            sweeps = _there("sweeps", [s.plan.name for s in self.sweeps], name)
            raise FileNotFoundError(f"no sweep or run '{name}' in {self.root}: {sweeps}; {self._hint(name)}")
        return found

    def _hint(self, name: str) -> str:
        runs = [str(run.relative_to(self.root)) for run in self.runs()]
        close = difflib.get_close_matches(name, [Path(run).name for run in runs], n=1, cutoff=0.8)
        return f"did you mean {close[0]}?" if close else _there("runs", runs)


def place(config: DictConfig) -> Place:
    return Place(Path(config.root), f"{config.project}")


def word(config: DictConfig, key: str) -> str:
    """A word of the command as it was typed: Hydra makes a number of an identity such as 123456789012 or 1234567e1234."""
    return f"{config[key]}"


def ask(submissions: Sequence[dict[str, Any]], slurm: Slurm) -> tuple[Asked, str]:
    """What Slurm says of the jobs that were submitted, and why it says nothing."""
    jobs = {a.job.partition("_")[0] for tried in attempts(submissions).values() for a in tried if a.where == "slurm"}
    if not jobs:
        return Asked(submissions, [], []), ""
    queue: list[Queued]
    rows: list[Accounted]
    try:
        queue = slurm.queue()
    except (SlurmMissing, SlurmRefused) as error:
        return Asked(submissions, None, None), f"from files alone, as {error}"
    try:
        rows = slurm.accounting(jobs)
    except (SlurmMissing, SlurmRefused) as error:
        return Asked(submissions, queue, []), f"how jobs ended is not known: {error}"
    return Asked(submissions, queue, rows), ""


def _of_cell(sweep: Sweep, name: str, stage: str) -> Path:
    cells = {cell.name: cell for cell in sweep.plan.cells}
    if name not in cells:
        raise FileNotFoundError(f"sweep {sweep.label} has no cell '{name}': {_there('cells', list(cells), name)}")
    tasks = {sweep.plan.tasks[identity].stage: sweep.plan.tasks[identity] for identity in cells[name].tasks}
    if stage not in tasks:
        raise FileNotFoundError(f"cell {name} has no stage '{stage}': there are {', '.join(tasks)}")
    return Path(tasks[stage].folder)


def _same(one: Path, other: Path) -> bool:
    return one.is_dir() and one.resolve() == other.resolve()


def _there(what: str, names: Sequence[str], meant: str = "") -> str:
    close = difflib.get_close_matches(meant, names, n=2) if meant else []
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"there are the {what} {_some(names)}" if names else f"there are no {what}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
