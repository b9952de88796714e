"""A sweep as data: its cells, and the tasks that they come to. Knows no config, no torch and no cluster."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs.run import Run


@dataclass(frozen=True)
class Task:
    """A stage of one or several cells: one run, trained once."""

    stage: str
    identity: str
    folder: str
    """root/project/stage/identity, relative to where the command was given."""
    parent: str | None
    """Identity of the task of this plan that it inherits from; None: from scratch, or from weights outside."""
    words: tuple[str, ...]
    """What follows `bdg train` to make exactly it."""
    cells: tuple[int, ...]
    """Positions in Plan.cells of those that need it."""
    max_steps: int

    @property
    def run(self) -> Run:
        """Its folder may lie in another project than the plan's, where `only` says so."""
        return Run.at(Path(self.folder))


@dataclass(frozen=True)
class Cell:
    """One point of the sweep: a chain of stages."""

    name: str
    """Readable and a valid file name: "lambda=0.05,scales=1-2-4"."""
    changes: dict[str, Any]
    """Swept key -> value."""
    tasks: tuple[str, ...]
    """Identities, first stage first."""


@dataclass(frozen=True)
class Plan:
    """Cells, and the tasks by identity, parents before children."""

    name: str
    root: str
    project: str
    cells: tuple[Cell, ...]
    tasks: dict[str, Task]

    @property
    def folder(self) -> Path:
        return Path(self.root) / self.project / "sweeps" / self.name

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {
            "tasks": [asdict(task) for task in self.tasks.values()]
        }  # a list keeps its order anywhere

    @classmethod
    def from_dict(cls, written: Mapping[str, Any]) -> "Plan":
        """What to_dict gave, also after JSON made lists of its tuples; further keys are passed over."""
        cells = (Cell(**_with_tuples(cell, "tasks")) for cell in written["cells"])
        tasks = (Task(**_with_tuples(task, "words", "cells")) for task in written["tasks"])
        return cls(
            name=written["name"],
            root=written["root"],
            project=written["project"],
            cells=tuple(cells),
            tasks={task.identity: task for task in tasks},
        )


def _with_tuples(written: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {**written, **{key: tuple(written[key]) for key in keys}}
