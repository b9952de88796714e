"""A sweep whose cells Optuna names, some at a time; what they come to is planned, shared and run as in any sweep."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from bdg.commands.cells import Changes, Point, literal
from bdg.commands.planning import Planned
from jobs.plan import Plan
from jobs.run import try_lock, write_text
from jobs.states import State, read_object

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

SCORE = "val/mean/psnr"
JOURNAL = "optuna.journal"
GIVEN_UP = 2
"""Attempts of a run that failed after which its trial is not asked again."""
GROWING = ("sweep.trials", "sweep.at_once")
"""Keys that may change while a search goes on."""
WORDS = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "failed"}
FAILED = "failed"
"""Attribute of a trial that is not asked again: what was the matter."""
BEGUN = "begun"
"""Attribute: how many of its stages it was given."""


def corners(space: Mapping[str, Any]) -> list[Point]:
    """The first values of all keys, then each key at its last: these cells tell whether every key exists and counts.

    Raises:
        ValueError: a key has neither a range nor choices.
    """
    ends = {key: _ends(key, asked) for key, asked in space.items()}
    first = {key: low for key, (low, _) in ends.items()}
    return [Point("", {}, each) for each in (first, *({**first, key: high} for key, (_, high) in ends.items()))]


def _ends(key: str, asked: Any) -> tuple[Any, Any]:
    match asked:
        case [first, *_, last] if len({*map(json.dumps, asked)}) == len(asked):
            return first, last
        case {"low": int() | float() as low, "high": int() | float() as high, **rest}:
            log = rest.pop("log", False)
            if not rest and isinstance(log, bool) and low < high and (low > 0 or not log):
                return low, high
    raise ValueError(
        f"sweep.search.{key}={literal(asked)}: give a range, {{low: 0.01, high: 1, log: true}} with low < high (and 0 < low "
        "for log), or a list of different choices, [1, 2]"
    )


def need_optuna() -> None:
    if find_spec("optuna") is None:
        raise ValueError("sweep.search needs Optuna, which is not installed: pip install 'bdg[search]'")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Raises BlockingIOError if another process goes on with this search."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "search.lock").open("a") as file:
        if not try_lock(file):
            raise BlockingIOError(
                f"another process goes on with {folder.name}: wait for it, or stop it there with Ctrl-C"
            )
        yield


@dataclass
class Search:
    """Trials of a space: what each journal entry stands for, and how far it was brought."""

    space: Mapping[str, Any]
    seed: int
    folder: Path
    plan_of: Callable[[Sequence[Point]], Planned]
    """Raises ValueError if earlier cells now come to other runs."""
    train: Callable[[Planned, Sequence[str]], Mapping[str, State]]
    """Brings these runs to their end."""
    tell: Callable[[str], None]
    left: set[int] = field(default_factory=set)
    """Trials whose run did not get done here; the same command asks them again."""

    def __post_init__(self) -> None:
        import optuna
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.states = optuna.trial.TrialState
        storage = optuna.storages.JournalStorage(JournalFileBackend(f"{self.folder / JOURNAL}"))
        make = optuna.load_study if begun(self.folder) else partial(optuna.create_study, direction="maximize")
        self.study: Study = make(study_name="search", storage=storage, pruner=optuna.pruners.MedianPruner())

    def run(self, trials: int, at_once: int) -> None:
        """Goes on until there are so many trials, `at_once` at a time."""
        if ended := self.ended():
            self.plan_of(self._points(ended))
        self._ask_dead_again()
        while (wanted := trials - len(self.ended()) - len(self.left)) > 0:
            asked = [self._ask() for _ in range(min(at_once, wanted))]
            self._bring_to_end(asked)
            if {trial.number for trial in asked} <= self.left:
                return  # the next ones would fail as well

    def ended(self) -> list["FrozenTrial"]:
        """Trials that nobody asks again."""
        done = (self.states.COMPLETE, self.states.PRUNED)
        return [t for t in self.study.get_trials() if t.state in done or FAILED in t.user_attrs]

    def shown(self) -> list["FrozenTrial"]:
        """Those and the ones that are open, but for one that a kill left without all its parameters."""
        whole = [t for t in self.study.get_trials() if t.params.keys() == self.space.keys()]
        ended = {trial.number for trial in self.ended()}
        return [trial for trial in whole if trial.number in ended or trial.state == self.states.RUNNING]

    def _ask_dead_again(self) -> None:
        """What a process that died, or a failure, left open: the same parameters, as a new trial."""
        for trial in self.study.get_trials(states=(self.states.RUNNING,)):
            self.study.tell(trial.number, state=self.states.FAIL)
            self.study.enqueue_trial(trial.params)

    def _ask(self) -> "Trial":
        """Its parameters depend on the seed, on what is told, and on how many trials there are, not on who asked those."""
        from numpy.random import SeedSequence
        from optuna.samplers import TPESampler

        position = len(self.shown())
        self.study.sampler = TPESampler(seed=int(SeedSequence([self.seed, position]).generate_state(1)[0]))
        return self.study.ask({key: distribution(asked) for key, asked in self.space.items()})

    def _bring_to_end(self, asked: Sequence["Trial"]) -> None:
        """Stage by stage; after each, trials may be given up."""
        known = self.shown()
        points = self._points(known)
        planned = self.plan_of(points)
        position = {literal(point.grid): number for number, point in enumerate(points)}
        cells = {trial.number: position[literal(self.changes(trial.params))] for trial in known}
        chains = {trial.number: planned.plan.cells[cells[trial.number]].tasks for trial in asked}
        stages = [0] * len(points)
        for trial in known:
            stages[cells[trial.number]] = max(stages[cells[trial.number]], trial.user_attrs.get(BEGUN, 0))
        alive, step = list(asked), 0
        while alive:
            for each in alive:
                each.set_user_attr(BEGUN, step + 1)
                stages[cells[each.number]] = max(stages[cells[each.number]], step + 1)
            part = replace(planned, plan=cut(planned.plan, stages))
            state = self.train(part, [*dict.fromkeys(chains[each.number][step] for each in alive)])
            alive = [each for each in alive if self._goes_on(each, chains[each.number], step, planned, state)]
            step += 1

    def _goes_on(
        self, trial: "Trial", chain: Sequence[str], step: int, planned: Planned, state: Mapping[str, State]
    ) -> bool:
        """Whether the trial gets its next stage; tells the study if not."""
        own, task = state[chain[step]], planned.plan.tasks[chain[step]]
        title = f"trial {trial.number}: {task.stage} {task.identity}"
        value = read_object(task.run.metrics).get(SCORE) if own.word == "done" else None
        if own.word != "done":
            self.tell(f"{title}: {own.word} {own.reason}".rstrip())
            if own.word == "failed" and own.attempts >= GIVEN_UP:
                self._fail(trial, f"{task.stage} failed {own.attempts} times")
            else:
                self.left.add(trial.number)
            return False
        if step + 1 == len(chain):
            if value is None:
                raise ValueError(
                    f"{title} has no {SCORE} in its metrics.json, which sweep.search looks at: see its log"
                )
            if math.isfinite(value):
                self.study.tell(trial.number, value)
            else:
                self._fail(trial, f"{SCORE} is {value}")
            self.tell(f"{title}: {value:.3f} dB")
            return False
        if value is not None:
            trial.report(value, step)
            if trial.should_prune():
                self.study.tell(trial.number, state=self.states.PRUNED)
                self.tell(f"{title}: {value:.3f} dB, given up")
                return False
        return True

    def _fail(self, trial: "Trial", why: str) -> None:
        trial.set_user_attr(FAILED, why)
        self.study.tell(trial.number, state=self.states.FAIL)

    def _points(self, trials: Sequence["FrozenTrial"]) -> list[Point]:
        """Each once: with few choices, trials repeat."""
        different = {literal(changes): changes for changes in (self.changes(trial.params) for trial in trials)}
        return [Point("", {}, changes) for changes in different.values()]

    def changes(self, params: Mapping[str, Any]) -> Changes:
        return {
            key: json.loads(params[key]) if isinstance(asked, list) else params[key]
            for key, asked in self.space.items()
        }

    def rows(self) -> list[dict[str, Any]]:
        """The trials as plain values. before: PSNR (dB) after earlier stages that have one, by their position in the chain."""
        return [
            {
                "trial": trial.number,
                "changes": self.changes(trial.params),
                "state": WORDS.get(trial.state.name, "open"),
                "psnr": trial.value if trial.state == self.states.COMPLETE else None,
                "before": {str(step): value for step, value in trial.intermediate_values.items()},
                "why": trial.user_attrs.get(FAILED, ""),
            }
            for trial in self.shown()
        ]


def distribution(asked: Any) -> "BaseDistribution":
    """Choices as JSON, since Optuna keeps no lists."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(asked, list):
        return CategoricalDistribution([json.dumps(choice) for choice in asked])
    low, high, log = asked["low"], asked["high"], asked.get("log", False)
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(low, high, log=log)


def cut(plan: Plan, stages: Sequence[int]) -> Plan:
    """The plan with that many stages of each cell."""
    cells = tuple(replace(cell, tasks=cell.tasks[:count]) for cell, count in zip(plan.cells, stages, strict=True))
    users = {run: tuple(p for p in task.cells if run in cells[p].tasks) for run, task in plan.tasks.items()}
    tasks = {run: replace(task, cells=users[run]) for run, task in plan.tasks.items() if users[run]}
    return replace(plan, cells=cells, tasks=tasks)


def begun(folder: Path) -> bool:
    """Whether there is a journal, with a study in it."""
    return (folder / JOURNAL).exists() and b"\n" in (folder / JOURNAL).read_bytes()


def mend(folder: Path) -> None:
    """Takes away the journal's last line if a crash cut it off, since the next one would be written behind it."""
    journal = folder / JOURNAL
    text = journal.read_bytes() if journal.exists() else b""
    if not text.endswith(b"\n"):
        journal.write_bytes(text[: text.rfind(b"\n") + 1])


def best(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    return max((row for row in rows if row["psnr"] is not None), key=lambda row: row["psnr"], default=None)


def show(name: str, space: Mapping[str, Any], trials: int, rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    table = Table(
        *("trial", *space, "state"), Column("before", justify="right"), Column("psnr", justify="right"), box=SIMPLE
    )
    for row in rows:
        values = [_short(row["changes"][key]) for key in space]
        before = ", ".join(f"{value:.3f}" for value in row["before"].values())
        psnr = "" if row["psnr"] is None else f"{row['psnr']:.3f}"
        state = f"{row['state']}: {row['why']}" if row["why"] else row["state"]
        table.add_row(*map(Text, (f"{row['trial']}", *values, state, before, psnr)))
    if rows:
        console.print(table)
    ended = sum(row["state"] != "open" for row in rows)
    found = best(rows)
    words = " ".join(f"{key}={literal(value)}" for key, value in found["changes"].items()) if found else ""
    console.print(f"{name}: {ended} of {trials} trials" + (f"; best {found['psnr']:.3f} dB: {words}" if found else ""))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else literal(value)


def write_json(path: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    write_text(path, json.dumps({"name": name, "trials": rows, "best": best(rows)}, indent=1) + "\n")
