"""`bdg report`: a page that shows what a sweep asks and answers, from its files; written anew while the sweep goes on."""

import json
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

import bdg
from bdg.commands.cells import short_keys
from bdg.commands.pictures import webp
from bdg.commands.request import Request
from bdg.commands.runs import Sweep, place, word
from bdg.commands.scores import (
    ALL,
    METHODS,
    Answer,
    Scores,
    Setting,
    answer,
    listed,
    question,
    scores,
    settings_of,
    too_few,
)
from bdg.commands.stats import check_metric, measure, to_dict
from bdg.commands.status import Row, report
from bdg.files import replacing
from bdg.statistics import importance
from jobs.curves import curves, thinned
from jobs.evaluation import pictures
from jobs.panels import SEED, label, number, panels, values, varied, written
from jobs.report import chart_library, report_page
from jobs.run import write_text
from jobs.slurm import Slurm
from jobs.states import read_object

CURVES, POINTS = 200, 200_000
"""Runs whose curves are shown, and points of all curves together."""
LINEAGE = 400
"""Runs that the graph of lineage has room for."""
IN_FULL = 1000
"""Settings up to which every metric and degradation is shown; beyond, the metric asked for and the mean."""
COLUMNS = 4
"""Settings of which pictures are shown."""


def run(config: DictConfig, request: Request) -> None:
    if config.every_s <= 0:
        raise ValueError(f"every_s={config.every_s}: give seconds above 0")
    library = chart_library()
    sweep = place(config).need_sweep(word(config, "name"))
    target = Path(config.output) if config.output else sweep.folder / "report.html"
    active, every_s = True, config.every_s if config.watch else None
    with suppress(KeyboardInterrupt):
        while active:
            data, active = collect(config, every_s)
            write(target, data, library)
            active = active and config.watch
            if active:
                time.sleep(config.every_s)
    if active or data["reload_s"]:  # the page must not wait for more
        data["reload_s"] = None
        write(target, data, library)
    console = Console(markup=False, highlight=False, soft_wrap=True)
    console.print(data["question"], data["answer"], *data["notes"], f"{target}: open it in a browser", sep="\n")
    if config.json:
        write_text(Path(config.json), json.dumps(data["tables"], indent=1) + "\n")


def write(target: Path, data: Mapping[str, Any], library: str) -> None:
    shown = {key: value for key, value in data.items() if key != "tables"}
    with replacing(target) as file:
        file.write(report_page(shown, library).encode())


def collect(config: DictConfig, reload_s: float | None = None) -> tuple[dict[str, Any], bool]:
    """All that the page shows, and whether somebody works on the sweep still. Reads files only, unless measure is asked for."""
    here = place(config)
    sweep = here.need_sweep(word(config, "name"))
    status = report(here, sweep.label, Slurm())
    settings = settings_of(sweep)
    if config.measure:
        measure([folder for setting in settings for folder in setting.runs.values()], config)
    found = scores(settings, config.level, config.evaluation)
    check_metric(found, config.metric)
    said = answer(found, config.metric)
    tasks = Tasks(sweep, status.rows)
    notes = [
        *found.notes,
        *too_few(said.comparisons, config.level),
        *([status.note] if status.note else []),
        *tasks.notes,
    ]
    changes = [dict(cell.changes) for cell in sweep.plan.cells]
    data = {
        "title": sweep.label,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": bdg.__version__,
        "question": question(settings, found, config.metric),
        "answer": said.text,
        "source": found.source,
        "level": config.level,
        "metric": config.metric,
        "methods": METHODS,
        "notes": notes,
        "reload_s": reload_s if status.active else None,
        "progress": dict(Counter(row.state.word for row in status.rows)),
        "panels": [panel.to_dict() for panel in panels(changes, config.metric)],
        **tables(sweep, settings, found, tasks, config.metric),
        "stages": tasks.stages,
        "tasks": tasks.nodes(),
        "curves": tasks.curves(),
        "cost": tasks.cost(),
        "environment": tasks.environment(),
        **picture_rows(found, said, config.metric),
        "tables": to_dict(found, said, said.comparisons),
    }
    return data, status.active


def tables(sweep: Sweep, settings: Sequence[Setting], found: Scores, tasks: "Tasks", metric: str) -> dict[str, Any]:
    """Keys, settings and runs with their scores, and what the keys explain."""
    changes = [dict(setting.changes) for setting in settings]
    keys = varied(changes)
    short = short_keys(dict.fromkeys(key for each in changes for key in each))
    axes = {key: [written(value) for value in values(changes, key)] for key in keys}
    full = len(settings) <= IN_FULL
    metrics = [metric, *(name for name in found.metrics if name != metric and full)] if found.metrics else [metric]
    parts = found.parts if full else [ALL]
    runs, rows = [], []
    for position, setting in enumerate(settings):
        each = {m: {p: s.to_dict() for p in parts if (s := found.score(setting, m, p))} for m in metrics}
        own = [str(folder) for folder in setting.runs.values()]
        rows.append(
            {
                "name": setting.name,
                "at": [axes[key].index(written(setting.changes.get(key))) for key in keys],
                "scores": each,
                "states": dict(Counter(tasks.word(folder) for folder in own)),
                "hours": sum(tasks.chain_hours(folder) for folder in own),
            }
        )
        for seed, folder in setting.runs.items():
            of_seed = {
                m: {p: s["by_seed"][seed] for p, s in by.items() if seed in s["by_seed"]} for m, by in each.items()
            }
            runs.append({"setting": position, "seed": seed, "scores": of_seed} | tasks.facts(str(folder)))
    return {
        "keys": [
            {
                "key": key,
                "short": short[key],
                "labels": [label(value) for value in values(changes, key)],
                "numbers": [number(value) for value in values(changes, key)],
            }
            for key in keys
        ],
        "metrics": metrics,
        "parts": parts,
        "settings": rows,
        "runs": runs,
        "importance": {m: {p: shares(settings, runs, m, p) for p in parts} for m in metrics},
        "sweep": {"cells": len(sweep.plan.cells), "runs": len(sweep.plan.tasks)},
    }


def shares(settings: Sequence[Setting], runs: Sequence[Mapping[str, Any]], metric: str, part: str) -> dict[str, float]:
    """What each key explains of the scores of single runs; the seed among them."""
    scored = [run for run in runs if part in run["scores"].get(metric, {})]
    changes = [{**settings[run["setting"]].changes, **({SEED: run["seed"]} if run["seed"] else {})} for run in scored]
    return importance(changes, [run["scores"][metric][part] for run in scored])


class Tasks:
    """The runs of a sweep with their states, hours, curves and circumstances."""

    def __init__(self, sweep: Sweep, rows: Sequence[Row]) -> None:
        self.tasks = list(sweep.plan.tasks.values())
        self.rows = {str(row.folder): row for row in rows}
        self.by_folder = {task.folder: task for task in self.tasks}
        self.by_identity = sweep.plan.tasks
        self.stages = list(dict.fromkeys(task.stage for task in self.tasks))
        self.position = {task.identity: i for i, task in enumerate(self.tasks)}
        self.names = [cell.name for cell in sweep.plan.cells]
        self.hours = {task.identity: hours_of(Path(task.folder)) for task in self.tasks}
        self.notes: list[str] = []
        if len(self.tasks) > LINEAGE:
            self.notes.append(f"of {len(self.tasks)} runs, the graph of lineage shows {LINEAGE} and curves {CURVES}")

    def word(self, folder: str) -> str:
        return self.rows[folder].state.word if folder in self.rows else "missing"

    def chain_hours(self, folder: str) -> float:
        """Of a run and all that it inherits from."""
        task, total = self.by_folder.get(folder), 0.0
        while task:
            total += self.hours[task.identity]
            task = self.by_identity.get(task.parent) if task.parent else None
        return total

    def facts(self, folder: str) -> dict[str, Any]:
        task, row = self.by_folder[folder], self.rows.get(folder)
        state = row.state if row else None
        return {
            "identity": task.identity,
            "cell": self.names[task.cells[0]],
            "folder": folder,
            "state": state.word if state else "missing",
            "reason": state.reason if state else "",
            "step": state.step if state else None,
            "max_steps": task.max_steps,
            "hours": self.chain_hours(folder),
        }

    def nodes(self) -> list[dict[str, Any]]:
        """For the graph of lineage, parents before children."""
        return [
            {
                "identity": task.identity,
                "stage": task.stage,
                "state": self.word(task.folder),
                "parent": self.position.get(task.parent) if task.parent else None,
                "cell": self.names[task.cells[0]] if len(task.cells) == 1 else f"{len(task.cells)} cells",
                "hours": self.hours[task.identity],
            }
            for task in self.tasks[:LINEAGE]
        ]

    def curves(self) -> dict[str, Any]:
        """{"names", "runs": [{"task", "title", "stage", "series": {position of the name: [steps, values]}}]}."""
        read = {}
        for task in self.tasks[-CURVES:]:
            if series := curves(Path(task.folder)):
                read[task.identity] = series
        count = sum(len(series) for series in read.values())
        room = min(300, max(20, POINTS // max(count, 1)))
        names = list(dict.fromkeys(name for series in read.values() for name in series))
        runs = [
            {
                "task": self.position[identity],
                "title": self.nodes_title(identity),
                "stage": self.by_identity[identity].stage,
                "series": {names.index(name): thinned(points, room) for name, points in series.items()},
            }
            for identity, series in read.items()
        ]
        return {"names": names, "runs": runs}

    def nodes_title(self, identity: str) -> str:
        task = self.by_identity[identity]
        cell = self.names[task.cells[0]] if len(task.cells) == 1 else f"{len(task.cells)} cells"
        return f"{cell} {identity[:6]}"

    def cost(self) -> list[dict[str, Any]]:
        """By stage: runs that cells ask for and runs that there are, with their hours of a process or GPU."""
        made: dict[str, dict[str, Any]] = {}
        for task in self.tasks:
            row = made.setdefault(task.stage, {"stage": task.stage, "asked": 0, "runs": 0, "hours": 0.0, "saved": 0.0})
            row["asked"] += len(task.cells)
            row["runs"] += 1
            row["hours"] += self.hours[task.identity]
            row["saved"] += (len(task.cells) - 1) * self.hours[task.identity]
        return list(made.values())

    def environment(self) -> list[dict[str, Any]]:
        """Code, versions, data and machines, and how many runs were begun with them."""
        found: dict[str, dict[str, Any]] = {}
        hosts: dict[str, set[str]] = defaultdict(set)
        for task in self.tasks:
            manifest = read_object(Path(task.folder) / "manifest.json")
            if not manifest:
                continue
            code, host = (manifest[key] if isinstance(manifest.get(key), dict) else {} for key in ("code", "host"))
            versions = manifest["versions"] if isinstance(manifest.get("versions"), dict) else {}
            facts = {
                "commit": f"{code.get('commit', 'unknown')}"[:12]
                + (f" with changes {code['diff']}" if code.get("diff") else ""),
                "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
                "python": f"{host.get('python', 'unknown')}",
                "data": f"{manifest.get('data_digest') or 'unknown'}"[:12],
            }
            key = written(facts)
            found.setdefault(key, {**facts, "runs": 0})["runs"] += 1
            hosts[key].add(f"{host.get('name') or 'unknown'}")
        return [{**facts, "hosts": listed(sorted(hosts[key]))} for key, facts in found.items()]


def hours_of(folder: Path) -> float:
    """Of a process or GPU that a run has taken, restarts included."""
    facts = read_object(folder / "throughput.json")
    wall_s, devices = (number(facts.get(name)) or 0.0 for name in ("wall_s", "devices"))
    return wall_s * devices / 3600


def picture_rows(found: Scores, said: Answer, metric: str) -> dict[str, Any]:
    """One test image of each degradation: degraded, by some settings (best, next ones, worst), clean; those that are there."""
    if not found.basis or not said.best:
        return {"images": [], "pictures": {"columns": [], "rows": []}}
    ranked = [said.best.name, *(each.name for each in said.comparisons)]
    chosen = ranked if len(ranked) <= COLUMNS else [*ranked[: COLUMNS - 1], ranked[-1]]
    by_name = {setting.name: setting for setting in found.settings}
    shown = {
        name: found.basis.of[str(folder)]
        for name in chosen
        if (folder := next((f for f in by_name[name].runs.values() if found.has(f)), None))
    }
    rows: list[dict[str, Any]] = []
    images: list[str | None] = []
    for part in dict.fromkeys(at[0] for at in found.basis.head.rows):
        gains = {at: row for at, row in found.basis.head.rows.items() if at[0] == part}
        middle = sorted(gains, key=lambda at: gains[at]["psnr"] - gains[at]["psnr_input"])[len(gains) // 2]
        first = pictures(next(iter(shown.values())), middle)
        files = [first["degraded"], *(pictures(each, middle)["restored"] for each in shown.values()), first["clean"]]
        made = [webp(path) for path in files]
        if any(made):
            values_ = [gains[middle][f"{metric}_input"], *(each.rows[middle][metric] for each in shown.values()), None]
            severity = "" if middle[2] is None else f" {middle[2]:g}"
            rows.append({"title": f"{part}{severity}: {middle[1]}", "first": len(images), "values": values_})
            images += made
    return {"images": images, "pictures": {"columns": ["degraded", *shown, "clean"], "rows": rows}}
