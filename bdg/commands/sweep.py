"""`bdg sweep`, and `bdg train -m`: the runs that the cells of a sweep come to, each once; those that are missing are run."""

import hashlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from bdg.commands.cells import Point, listed, points, short_keys
from bdg.commands.compose import open_hydra, search_path, trusted
from bdg.commands.invocation import axes, run_all
from bdg.commands.planning import Planned, flags, plan_cells
from bdg.commands.price import Prices, prices
from bdg.commands.request import Request, key_of
from bdg.commands.runs import Place, ask
from bdg.commands.search import GROWING, Search, alone, begun, corners, mend, need_optuna
from bdg.commands.search import show as show_search
from bdg.commands.search import write_json as write_search
from bdg.commands.verbs import VERBS
from jobs.freeze import freeze
from jobs.geometry import Geometry
from jobs.identity import differences
from jobs.local import run_plan
from jobs.output import last_words
from jobs.plan import Plan, Task
from jobs.run import write_text
from jobs.slurm import Slurm
from jobs.states import ACTIVE, State
from jobs.submission import submit

KEYS = ("name", "cells", "grid", "seeds", "search", "trials", "at_once", "seed")
OWN = ("sweep", "plan", "lines", "estimate", "json")
"""Keys of conf/sweep.yaml, which no training has a use for."""
FAILED_TWICE = 2
LOG_LINES = 20
POLL_S = 30.0
NAMED = 5
"""Differences that an error names."""


def sweep(request: Request, measured: bool = False) -> int:
    """Plans what the words of a command come to, and runs or submits what is missing; exit status 1 if a run did not end well.

    request: what all cells have in common, keys with several values, and the keys of conf/sweep.yaml. With `stage=` among the
    words or the varied keys the cells are runs of that stage, and those that it inherits from are planned with them; without,
    each cell is the whole chain. measured: each cell is a pipeline, to be measured at the end where this machine trains it.
    """
    own, fixed, varied = split(request)
    settings = Request("sweep", own, request.config_dir).compose()
    space = space_of(settings, varied)
    asked = corners(space) if space else cells_of(settings, varied)
    one_stage = not measured and "stage" in {key_of(word) for word in fixed} | {k for p in asked for k in p.changes}
    common = Request(request.config_name, fixed, request.config_dir)
    definition = {
        "words": sorted(word for word in fixed if key_of(word).partition(".")[0] != "cluster"),
        **{key: OmegaConf.to_container(settings.sweep[key]) for key in ("cells", "grid", "seeds")},
        "varied": varied,
        **({"search": space, "seed": settings.sweep.seed} if space else {}),
    }
    name = settings.sweep.name or name_of(own, asked, varied, definition)
    if not re.fullmatch(r"\w[\w.+=,-]*", name):
        raise ValueError(f"sweep.name={name}: it names a folder, so use letters, digits and .+=,- only")
    planned = plan_cells(common, asked, name, one_stage)
    if space:
        if measured:
            raise ValueError("bdg pipeline -m measures each cell, and a search has none before it runs: use bdg sweep")
        words = command(request, own, fixed, varied)
        return searched(settings, space, planned, common, one_stage, definition, words)
    check_definition(planned.plan, definition)
    state, note = states(planned.plan)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    cost = prices(planned, settings.estimate) if settings.plan else None
    if cost:
        show(planned.plan, state, cost, settings.lines, console)
    elif not missing(planned.plan, state):
        console.print(f"{name}: {in_words(planned.plan, state)}")
    if note:
        console.print(note)
    report_failures(planned.plan, state, console)
    if settings.json:
        write_json(Path(settings.json), planned.plan, state, cost)
    if settings.plan:
        return 0
    plan, wanted = planned.plan, missing(planned.plan, state)
    if wanted:
        if geometry_of(planned).kind == "local":
            check_parents(plan, wanted, state)
        preflight(planned, wanted)  # what it refuses leaves nothing behind
    write_folder(plan, definition, command(request, own, fixed, varied))
    handed_over = not wanted or hand_over(planned, state, wanted, frozen_code(plan, common), console)
    state, _ = states(plan)
    if not handed_over:
        report_failures(plan, state, console)
        return 1
    if any(each.word != "done" for each in state.values()):
        return 0
    console.print(f"{plan.name}: all {len(plan.tasks)} runs are done, see {plan.folder}/cells")
    return run_all(VERBS["pipeline"], planned.requests) if measured else 0


def split(request: Request) -> tuple[tuple[str, ...], tuple[str, ...], dict[str, list[Any]]]:
    """The words of conf/sweep.yaml, those of the cells, and the keys of the cells that have several values, with these."""
    hydra = open_hydra(request.config_dir)
    parser = OverridesParser.create(hydra.config_loader)
    own, fixed, varied = [], [], {}
    for words in axes(hydra, request.overrides):
        key = words[0].partition("=")[0]
        if key_of(key).partition(".")[0] in OWN:
            if len(words) > 1:
                raise ValueError(f"{key} has several values: one plan is made at a time")
            own.append(f"+{words[0]}" if key in ("sweep.grid", "sweep.cells", "sweep.search") else words[0])
        elif len(words) == 1:
            fixed.append(words[0])
        else:
            varied[key] = [override.value() for override in parser.parse_overrides(words)]
    return tuple(own), tuple(fixed), varied


def cells_of(settings: DictConfig, varied: Mapping[str, list[Any]]) -> list[Point]:
    plain: Any = OmegaConf.to_container(settings.sweep)
    if unknown := plain.keys() - KEYS:
        raise ValueError(f"sweep.{min(unknown)} means nothing: a sweep has {', '.join(KEYS)}")
    for key in ("cells", "grid"):
        if not isinstance(plain[key], dict):
            raise ValueError(f"sweep.{key}={plain[key]} is not {{key: value, ...}}")
    if both := plain["grid"].keys() & varied.keys() or ({"seed"} & varied.keys() if plain["seeds"] else set()):
        raise ValueError(f"{min(both)} is varied by sweep= and by a word of its own: leave one of them out")
    return points(plain["cells"], plain["grid"] | varied, plain["seeds"])


def space_of(settings: DictConfig, varied: Mapping[str, list[Any]]) -> dict[str, Any]:
    """What a search varies; empty for a sweep that names its cells. Raises ValueError if it is both."""
    plain: Any = OmegaConf.to_container(settings.sweep)
    if not isinstance(plain["search"], dict):
        raise ValueError(f"sweep.search={plain['search']} is not {{key: {{low: ..., high: ...}} or [choices], ...}}")
    named = [*(f"sweep.{key}" for key in ("cells", "grid", "seeds") if plain[key]), *varied]
    if plain["search"] and named:
        raise ValueError(f"{named[0]} names cells, and sweep.search lets Optuna name them: leave one of them out")
    for key, least in (("trials", 1), ("at_once", 1), ("seed", 0)):
        value = plain[key]
        if not (value is None and key == "at_once") and (type(value) is not int or value < least):
            raise ValueError(f"sweep.{key}={value}: give a whole number, {least} or more")
    return plain["search"]


def name_of(
    own: Sequence[str], asked: Sequence[Point], varied: Mapping[str, Any], definition: Mapping[str, Any]
) -> str:
    """The names of the chosen files; with what else is varied and a digest where the command itself varies something."""
    parser = OverridesParser.create(open_hydra().config_loader)
    chosen = [
        str(choice)
        for override in parser.parse_overrides([word for word in own if key_of(word) == "sweep"])
        for choice in listed(override.value())
    ]
    if chosen and not varied and not any(key_of(w).startswith("sweep.") and key_of(w) not in GROWING for w in own):
        return "-".join(chosen)
    keys = varied if chosen else dict.fromkeys(key for point in asked for key in point.grid)
    text = json.dumps(definition, sort_keys=True, default=str)
    return "-".join([*chosen, *short_keys(keys).values(), hashlib.sha256(text.encode()).hexdigest()[:6]])


def check_definition(plan: Plan, definition: Mapping[str, Any]) -> None:
    """Raises ValueError if the sweep of this name has other cells, or cells that come to other runs."""
    path = plan.folder / "plan.json"
    if not path.exists():
        return
    written = json.loads(path.read_text(encoding="utf-8"))
    before = Plan.from_dict(written)
    if {cell.name: cell.tasks for cell in before.cells} == {cell.name: cell.tasks for cell in plan.cells}:
        return
    different = differences(written["definition"], json.loads(json.dumps(definition, default=str)))
    if not different:
        one = next(cell for cell in plan.cells if cell.tasks not in {cell.tasks for cell in before.cells})
        different = [changed(one.name)]
    refuse(plan, different)


def check_growing(plan: Plan, definition: Mapping[str, Any]) -> None:
    """As check_definition, where cells and their later stages come one after another."""
    path = plan.folder / "plan.json"
    if not path.exists():
        return
    written = json.loads(path.read_text(encoding="utf-8"))
    now = {cell.name: cell.tasks for cell in plan.cells}
    before = {cell.name: cell.tasks for cell in Plan.from_dict(written).cells if cell.name in now}
    different = differences(written["definition"], json.loads(json.dumps(definition, default=str)))
    different = different or [changed(name) for name, tasks in before.items() if now[name][: len(tasks)] != tasks]
    if different:
        refuse(plan, different)


def changed(cell: str) -> str:
    return f"the same words, but cell {cell} comes to other runs: the data or a config file has changed"


def refuse(plan: Plan, different: Sequence[str]) -> None:
    more = f"; and {len(different) - NAMED} more" if len(different) > NAMED else ""
    raise ValueError(
        f"sweep {plan.name} is there already, in {plan.folder}, with another definition: "
        f"{'; '.join(different[:NAMED])}{more}: give this one another name, sweep.name=NAME; runs that both have are shared"
    )


def states(plan: Plan) -> tuple[dict[str, State], str]:
    """By identity; and what could not be asked."""
    there = (Path(plan.root) / plan.project).is_dir()
    asked, note = ask(Place(Path(plan.root), plan.project).submissions if there else [], Slurm())
    found: dict[str, State] = {}
    for own, task in plan.tasks.items():
        parent = f"{plan.tasks[task.parent].stage} {task.parent} ({found[task.parent].word})" if task.parent else ""
        found[own] = asked.state(Path(task.folder), task.max_steps, parent)
    return found, note


# --- what is shown ---


def show(plan: Plan, state: Mapping[str, State], cost: Prices, lines: int, console: Console) -> None:
    rows = [*tree(plan)]
    for depth, task in rows[:lines]:
        cells = plan.cells[task.cells[0]].name if len(task.cells) == 1 else f"{len(task.cells)} cells"
        console.print(f"{'  ' * depth}{task.stage} {task.identity}  {cells}  {state[task.identity].word}")
    if len(rows) > lines:
        console.print(f"... and {len(rows) - lines} more: lines=N shows more, json=PATH writes all of them")
    console.print(table(plan, state, cost))
    console.print(summary(plan, state, cost))


def tree(plan: Plan) -> Iterator[tuple[int, Task]]:
    """The runs, each after its parent, and how deep it is."""
    children: dict[str | None, list[Task]] = {}
    for task in plan.tasks.values():
        children.setdefault(task.parent, []).append(task)
    waiting = [(0, task) for task in reversed(children.get(None, []))]
    while waiting:
        depth, task = waiting.pop()
        yield depth, task
        waiting += [(depth + 1, child) for child in reversed(children.get(task.identity, []))]


def table(plan: Plan, state: Mapping[str, State], cost: Prices) -> Table:
    made = Table(
        "stage", *(Column(name, justify="right") for name in ("asked", "runs", "hours")), "of them", box=SIMPLE
    )
    for stage in dict.fromkeys(task.stage for task in plan.tasks.values()):
        tasks = [task for task in plan.tasks.values() if task.stage == stage]
        words = Counter(state[task.identity].word for task in tasks)
        asked = sum(len(task.cells) for task in tasks)
        row = [stage, f"{asked}", f"{len(tasks)}", in_hours(cost.of([task.identity for task in tasks]))]
        made.add_row(*map(Text, row), Text(", ".join(f"{count} {word}" for word, count in words.items())))
    return made


def costs(plan: Plan, state: Mapping[str, State], cost: Prices) -> dict[str, float | None]:
    """Hours: asked, with every cell on its own; shared and done, which are saved; left."""
    tasks = plan.tasks.values()
    asked = cost.of([run for cell in plan.cells for run in cell.tasks])
    shared = cost.of([task.identity for task in tasks for _ in task.cells[1:]])
    done = cost.of([run for run in plan.tasks if state[run].word == "done"])
    left = cost.of([run for run in plan.tasks if state[run].word != "done"])
    return {"asked": asked, "shared": shared, "done": done, "left": left}


def summary(plan: Plan, state: Mapping[str, State], cost: Prices) -> str:
    asked, runs = sum(len(cell.tasks) for cell in plan.cells), len(plan.tasks)
    hours = costs(plan, state, cost)
    unit = "hours of a process or GPU"
    return (
        f"{plan.name}: {len(plan.cells)} cells ask for {asked} stages, which are {runs} runs, as {asked - runs} are shared: "
        f"{in_words(plan, state)}\n"
        f"{unit}: asked {in_hours(hours['asked'])}, saved {in_hours(hours['shared'])} by sharing and "
        f"{in_hours(hours['done'])} already done, left {in_hours(hours['left'])}; {'; '.join(cost.sources)}"
    )


def in_words(plan: Plan, state: Mapping[str, State]) -> str:
    words = Counter(state[run].word for run in plan.tasks)
    active = sum(words[word] for word in ACTIVE)
    return f"{words['done']} done, {active} on their way, {len(plan.tasks) - words['done'] - active} to run"


def in_hours(hours: float | None) -> str:
    return "unknown" if hours is None else f"{hours:.3g}" if hours < 100 else f"{hours:.0f}"


def report_failures(plan: Plan, state: Mapping[str, State], console: Console) -> None:
    """Of runs that failed twice, the end of what they printed."""
    for run, task in plan.tasks.items():
        if state[run].word == "failed" and state[run].attempts >= FAILED_TWICE:
            name = plan.cells[task.cells[0]].name
            console.print(f"{task.stage} {run} ({name}) failed {state[run].attempts} times: {state[run].reason}")
            for line in last_words(Path(task.folder), LOG_LINES):
                console.print(f"  {line}")


def write_json(path: Path, plan: Plan, state: Mapping[str, State], cost: Prices | None) -> None:
    found: dict[str, Any] = {"plan": plan.to_dict(), "states": {run: asdict(each) for run, each in state.items()}}
    if cost:
        found |= {"hours": cost.hours, "total": costs(plan, state, cost), "sources": cost.sources}
    write_text(path, json.dumps(found, indent=1) + "\n")


# --- what is done ---


def frozen_code(plan: Plan, request: Request) -> Path:
    """The packages and configs as they are now, those of the user among them."""
    return freeze(plan.folder / "frozen", own_configs(request), trusted(request.compose()))


def searched(
    settings: DictConfig,
    space: Mapping[str, Any],
    first: Planned,
    common: Request,
    one_stage: bool,
    definition: Mapping[str, Any],
    words: Sequence[str],
) -> int:
    """Runs a search, or shows what there is of it; exit status 1 if a trial is left open. first: the plan of its corners."""
    need_optuna()
    check_growing(first.plan, definition)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    plan, asked, geometry = first.plan, settings.sweep, geometry_of(first)
    frozen: list[Path] = []

    def plan_of(points: Sequence[Point]) -> Planned:
        planned = plan_cells(common, points, plan.name, one_stage)
        check_growing(planned.plan, definition)
        return planned

    def train(planned: Planned, runs: Sequence[str]) -> Mapping[str, State]:
        state, _ = states(planned.plan)
        wanted = [run for run in missing(planned.plan, state) if run in runs]
        if geometry.kind == "local":
            check_parents(planned.plan, wanted, state)
        write_folder(planned.plan, definition, words)
        if wanted:
            hand_over(planned, state, wanted, frozen[0], console)
        state, _ = states(planned.plan)
        while any(state[run].word in ACTIVE for run in runs):
            time.sleep(POLL_S)
            state, _ = states(planned.plan)
        report_failures(planned.plan, state, console)
        return state

    def made() -> Search:
        return Search(space, asked.seed, plan.folder, plan_of, train, console.print)

    if settings.plan:
        rows = made().rows() if begun(plan.folder) else []
    else:
        preflight(first, list(first.plan.tasks))  # what it refuses leaves nothing behind
        with alone(plan.folder):
            frozen.append(frozen_code(plan, common))
            mend(plan.folder)
            search = made()
            search.run(asked.trials, asked.at_once or geometry.at_once or 1)
            rows = search.rows()
    show_search(plan.name, space, asked.trials, rows, console)
    if settings.json:
        write_search(Path(settings.json), plan.name, rows)
    return int(not settings.plan and any(row["state"] == "open" for row in rows))


def write_folder(plan: Plan, definition: Mapping[str, Any], words: Sequence[str]) -> None:
    """plan.json, and cells/NAME/STAGE as links to the runs."""
    about = {"definition": definition, "made": datetime.now(UTC).isoformat(timespec="seconds"), "words": list(words)}
    write_text(plan.folder / "plan.json", json.dumps(plan.to_dict() | about, indent=1, default=str) + "\n")
    stages = {str(Path(task.folder).parent) for task in plan.tasks.values()}
    up = {stage: os.path.relpath(stage, plan.folder / "cells" / "NAME") for stage in stages}
    for cell in plan.cells:
        folder = plan.folder / "cells" / cell.name
        folder.mkdir(parents=True, exist_ok=True)
        for task in (plan.tasks[run] for run in cell.tasks):
            link = f"{folder}/{task.stage}"
            if not os.path.islink(link):
                os.symlink(f"{up[os.path.dirname(task.folder)]}/{task.identity}", link)


def command(request: Request, own: Sequence[str], fixed: Sequence[str], varied: Mapping[str, Any]) -> list[str]:
    """What follows `bdg sweep` to make the same."""
    several = [word for word in request.overrides if word.partition("=")[0] in varied]
    kept = [word.removeprefix("+") for word in own if key_of(word) not in ("plan", "lines", "estimate", "json")]
    return [*kept, *fixed, *several, *flags(request)]


def hand_over(
    planned: Planned, state: Mapping[str, State], wanted: Sequence[str], frozen: Path, console: Console
) -> bool:
    """Runs, or submits, what is `wanted`. Returns whether all is done, or will be if nothing fails."""
    plan, geometry = planned.plan, geometry_of(planned)
    if geometry.kind == "slurm":
        for made in submit(plan, wanted, geometry, Slurm(), frozen):
            after = f", after {made.dependency}" if made.dependency else ""
            console.print(f"{made.stage}: {len(made.tasks)} runs as job {made.job}{after}")
        console.print(f"{plan.name}: {in_words(plan, state)} before this; bdg status {plan.name} shows them")
        return True
    ended = run_plan(plan, wanted, geometry.at_once or len(wanted), frozen, geometry.environment, console.print)
    if bad := [run for run, word in ended.items() if word != "done"]:
        console.print(f"{plan.name}: {len(bad)} of {len(plan.tasks)} runs did not end well: bdg status {plan.name}")
    return not bad


def missing(plan: Plan, state: Mapping[str, State]) -> list[str]:
    return [run for run in plan.tasks if state[run].word not in {"done", *ACTIVE}]


def geometry_of(planned: Planned) -> Geometry:
    return Geometry.from_config(planned.config(planned.plan.cells[0].tasks[0])["cluster"])


def preflight(planned: Planned, wanted: Sequence[str]) -> None:
    """Raises ValueError, and shows what is wrong, if there are errors in what is to be run."""
    from bdg.commands.findings import check, of_plan, refuse, show

    works = of_plan(planned, wanted)
    findings = check(works)
    show(findings, len(works))
    refuse(findings)


def check_parents(plan: Plan, wanted: Sequence[str], state: Mapping[str, State]) -> None:
    for task in (plan.tasks[run] for run in wanted):
        if task.parent and state[task.parent].word in ACTIVE:
            raise ValueError(
                f"{task.stage} {task.identity} inherits from {plan.tasks[task.parent].stage} {task.parent}, which is "
                f"{state[task.parent].word} elsewhere: give the same command once that is done (bdg status)"
            )


def own_configs(request: Request) -> list[Path]:
    """The folders of configs that precede the package's, the first first."""
    paths = [source.path for source in search_path(request.config_dir).get_path()]
    return [Path(path.removeprefix("file://")) for path in paths if path.startswith("file://")]
