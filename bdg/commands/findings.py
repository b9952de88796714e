"""What is wrong with the stages of a sweep, each with what it inherits, on its cluster and its disk; submits nothing.

What a file system's quota is cannot be asked everywhere: only its free space is.
"""

import functools
import json
import math
import shutil
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bdg.commands.checks import (
    ERROR,
    NOTE,
    WARNING,
    Checks,
    Config,
    Fault,
    checkpoint_bytes,
    existing,
    fault_of,
)
from bdg.commands.compose import get
from bdg.commands.planning import Planned
from bdg.commands.price import Earlier
from jobs.geometry import Geometry
from jobs.run import Run, weights_in
from jobs.sbatch import Job, sbatch_text
from jobs.slurm import Nodes, Slurm, SlurmMissing, SlurmRefused, check_fits

STYLES = {ERROR: "bold red", WARNING: "bold yellow", NOTE: "bold cyan"}
SHOWN_CELLS = 3
LEAD_S = 120


@dataclass(frozen=True)
class Finding:
    """What is wrong with a key in some cells (none named: in all), and the way out. level: error, warning or note."""

    key: str
    cells: tuple[str, ...]
    message: str
    level: str

    def __str__(self) -> str:
        return f"{self.key}: {self.message.removeprefix(f'{self.key}: ')}"


@dataclass(frozen=True)
class Work:
    """A stage of some cells, which is trained once.

    before: the config of the stage that it inherits from, if that is of the same sweep. run: None, with the reason as a fault,
    where it cannot be known.
    """

    cells: tuple[str, ...]
    config: Config
    before: Config | None = None
    run: Run | None = None
    fault: Fault | None = None

    @property
    def done(self) -> bool:
        return self.run is not None and self.run.done


def refuse(findings: Sequence[Finding]) -> None:
    """Raises ValueError if there are errors among them."""
    num = Counter(finding.level for finding in findings)
    if num[ERROR]:
        raise ValueError(f"found {num[ERROR]} errors and {num[WARNING]} warnings, listed above: nothing is submitted")


def check(works: Sequence[Work], slurm: Slurm | None = None, checks: Checks | None = None) -> list[Finding]:
    """What is wrong with these, errors first; of equal values only once, with all cells that have them."""
    checks = checks or Checks()
    found: dict[Fault, dict[str, None]] = {}

    def add(faults: Iterable[Fault], cells: Iterable[str]) -> None:
        for fault in faults:
            found.setdefault(fault, {}).update(dict.fromkeys(cells))

    todo = [work for work in works if not work.done]
    earlier = Earlier()
    cluster = Cluster(slurm or Slurm())
    for work in todo:
        faults = [*checks.faults(work.config), *parent_faults(work, checks)]
        if work.fault and not any(fault.level == ERROR for fault in faults):
            faults.append(work.fault)  # else it is another word for what is known
        add(faults, work.cells)
        add(cluster.faults(work.config), work.cells)
        add(time_faults(work, earlier), work.cells)
    add(disk_faults(todo, checks), ())
    levels = list(STYLES)
    findings = [Finding(fault.key, tuple(cells), fault.message, fault.level) for fault, cells in found.items()]
    return sorted(findings, key=lambda finding: levels.index(finding.level))


def of_plan(planned: Planned, wanted: Collection[str] | None = None) -> list[Work]:
    """The tasks of a plan, or of them those that are `wanted`, parents before children."""
    plan = planned.plan
    config = functools.cache(planned.config)
    return [
        Work(
            cells=tuple(plan.cells[position].name for position in task.cells),
            config=config(own),
            before=config(task.parent) if task.parent else None,
            run=task.run,
        )
        for own, task in plan.tasks.items()
        if wanted is None or own in wanted
    ]


# --- parents ---


def parent_faults(work: Work, checks: Checks) -> list[Fault]:
    """Whether the weights that a stage begins with are there, or about to be made, and have its tensors."""
    source, weights = get(work.config, "inherit.from"), Path(get(work.config, "inherit.parent") or "")
    if source in (None, "none"):
        return []
    if source != "auto":
        folder = Path(source)
        return checks.fit(work.config, weights_in(folder) if folder.is_dir() else folder)
    if work.before is not None and not weights.is_file():
        return checks.fit(work.config, work.before)
    return checks.fit(work.config, weights) if work.before is not None or weights.name else []


# --- cluster ---


@dataclass
class Cluster:
    """What the cluster says of the jobs, asked once for each shape of them."""

    slurm: Slurm
    asked: dict[str, list[Fault]] = field(default_factory=dict)
    nodes: list[Nodes] | None = None

    def faults(self, config: Config) -> list[Fault]:
        shape = json.dumps(config["cluster"], default=str)
        if shape not in self.asked:
            self.asked[shape] = [*self._faults(config)]
        return self.asked[shape]

    def _faults(self, config: Config) -> Iterator[Fault]:
        try:
            geometry = Geometry.from_config(config["cluster"])
        except ValueError:  # said of the config
            return
        if geometry.kind != "slurm":
            return
        try:
            self.nodes = self.nodes or self.slurm.partitions()
            check_fits(geometry, self.nodes)
            self.slurm.test_only(trial_script(geometry, config))
        except SlurmMissing as error:
            yield Fault("cluster", f"{error}")
        except SlurmRefused as error:
            yield Fault("cluster", f"Slurm would not take the jobs: {error}: see cluster.* and the cluster's own rules")
        except ValueError as error:
            yield fault_of(error, "cluster", config)


def trial_script(geometry: Geometry, config: Config) -> str:
    """The script of a job of this shape; its folders need not be there, as it is never run."""
    folder = f"{Path(config['root']).absolute() / str(config['project']) / 'sweeps'}"
    return sbatch_text(
        Job(
            name="preflight",
            geometry=geometry,
            folder=f"{Path.cwd()}",
            arguments=f"{folder}/jobs",
            logs=f"{folder}/logs",
            frozen=f"{folder}/frozen",
            python=sys.executable,
            lead_s=geometry.lead_s or LEAD_S,
        )
    )


def time_faults(work: Work, earlier: Earlier) -> Iterator[Fault]:
    """Whether a run can end within the jobs that it may take."""
    limit, restarts = get(work.config, "cluster.time_min"), get(work.config, "cluster.max_restarts")
    steps, stage = get(work.config, "trainer.max_steps"), get(work.config, "stage.name")
    if get(work.config, "cluster.kind") != "slurm" or not all(isinstance(n, int) for n in (limit, restarts, steps)):
        return
    step_s = earlier.step_s(work.config)
    if step_s is None:
        text = f"no earlier run of {stage} like this one tells how long a step takes, so its time is not checked"
        yield Fault("cluster.time_min", text, NOTE)
        return
    jobs = math.ceil(steps * step_s / 60 / limit)
    text = f"{steps} steps of {stage} take some {steps * step_s / 3600:.1f} h, which is {jobs} jobs of {limit} min"
    if jobs - 1 > restarts:
        text += f", but cluster.max_restarts={restarts}: give cluster.time_min or cluster.max_restarts more"
        yield Fault("cluster.time_min", text)
    elif jobs > 1:
        yield Fault("cluster.time_min", f"{text}: each goes on where the one before left", NOTE)


# --- disk ---


def disk_faults(works: Sequence[Work], checks: Checks) -> Iterator[Fault]:
    """Whether the checkpoints of all runs find room, by root."""
    needed: Counter[str] = Counter()
    num_bytes: dict[int, int] = {}
    for work in works:
        if (model := checks.model(work.config)[0]) is not None:
            if id(model) not in num_bytes:
                num_bytes[id(model)] = checkpoint_bytes(model)
            needed[f"{work.config['root']}"] += num_bytes[id(model)]
    for root, wanted in needed.items():
        free = shutil.disk_usage(existing(Path(root))).free
        text = f"checkpoints take up to {wanted / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free in {root}"
        if wanted > free:
            yield Fault("root", f"{text}: give another root, or remove what is no longer needed (bdg prune)")
        else:
            yield Fault("root", f"{text}; your quota may allow less", NOTE)


# --- the table ---


def show(findings: Sequence[Finding], num_stages: int) -> None:
    """The findings as a table."""
    console = Console(markup=False, highlight=False)
    table = Table("", "key", "cells", "what, and the way out", box=SIMPLE)
    for finding in findings:
        text = str(finding).removeprefix(f"{finding.key}: ")
        table.add_row(Text(finding.level, STYLES[finding.level]), Text(finding.key), Text(_cells(finding)), Text(text))
    if findings:
        console.print(table)
    num = Counter(finding.level for finding in findings)
    console.print(f"{num_stages} stages checked: {num[ERROR]} errors, {num[WARNING]} warnings")


def _cells(finding: Finding) -> str:
    shown, rest = finding.cells[:SHOWN_CELLS], len(finding.cells) - SHOWN_CELLS
    return "\n".join([*shown, *([f"and {rest} more"] if rest > 0 else [])])
