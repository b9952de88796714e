"""`bdg stats`: means of runs and sweeps with their intervals, and whether their differences are more than chance."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from bdg.commands.request import Request
from bdg.commands.runs import Place, Sweep, place
from bdg.commands.scores import (
    ALL,
    METHODS,
    Answer,
    Comparison,
    Scores,
    Setting,
    answer,
    p_text,
    scores,
    settings_of,
    too_few,
)
from bdg.commands.status import wide_console
from bdg.statistics import Interval
from jobs.run import write_text
from jobs.states import read_facts


def run(config: DictConfig, request: Request) -> None:
    here = place(config)
    settings = asked(here, [f"{word}" for word in config.what])
    if config.measure:
        measure([folder for setting in settings for folder in setting.runs.values()], config)
    found = scores(settings, config.level, config.evaluation)
    check_metric(found, config.metric)
    said = answer(found, config.metric)
    comparisons = found.compared(*_sides(found, said, config.base, config.metric), config.metric, found.parts)
    wide_console().print(picture(found, said, comparisons, config.metric))
    if config.json:
        written = to_dict(found, said, comparisons)
        write_text(Path(config.json), json.dumps(written, indent=1) + "\n")


def asked(here: Place, words: Sequence[str]) -> list[Setting]:
    """The settings of sweeps; a run is one of its own.

    Raises ValueError if two are called the same.
    """
    found: list[Setting] = []
    for word in dict.fromkeys(words):
        named = here.need(word)
        found += settings_of(named) if isinstance(named, Sweep) else [Setting(word, {}, {"": named})]
    names = [setting.name for setting in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(
            f"what={list(words)}: several of these are '{min(twice)}': give one sweep, or runs by identity"
        )
    return found


def measure(folders: Sequence[Path], config: DictConfig) -> None:
    """Those that are done."""
    from bdg.commands.measure import measured  # which needs torch

    for folder in folders:
        if read_facts(folder).done:
            measured(folder, config)


def check_metric(found: Scores, metric: str) -> None:
    if found.metrics and metric not in found.metrics:
        raise ValueError(f"metric={metric}: choose one of {', '.join(found.metrics)}")


def _sides(found: Scores, said: Answer, base: str, metric: str) -> tuple[Setting, list[Setting]]:
    """The setting that others are compared with, and those."""
    names = {setting.name: setting for setting in found.settings}
    if base not in ("best", "first") and base not in names:
        raise ValueError(f"base={base}: choose best, first, or one of {', '.join(list(names)[:10])}")
    chosen = said.best if base == "best" else names.get(base)
    chosen = chosen or found.settings[0]
    return chosen, [s for s in found.settings if s is not chosen and found.score(s, metric)]


def to_dict(found: Scores, said: Answer, comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Plain, as JSON takes it."""
    rows = [
        {"setting": s.name, "changes": dict(s.changes), "metric": metric, "part": part, **score.to_dict()}
        for s in found.settings
        for metric in found.metrics
        for part in found.parts
        if (score := found.score(s, metric, part))
    ]
    return {
        "answer": said.text,
        "source": found.source,
        "level": found.level,
        "methods": METHODS,
        "notes": found.notes,
        "scores": rows,
        "comparisons": [each.to_dict() for each in comparisons],
    }


def picture(found: Scores, said: Answer, comparisons: Sequence[Comparison], metric: str) -> RenderableType:
    parts: list[RenderableType] = [Text(said.text, "bold"), Text(found.source), means(found, metric)]
    if comparisons:
        parts += [Text(f"{metric.upper()} of each minus that of {comparisons[0].base}"), compared(comparisons, metric)]
    parts += [Text(f"{name}: {how}", "dim") for name, how in METHODS.items() if name != "importance"]
    notes = [*found.notes, *too_few(comparisons, found.level)]
    return Group(*parts, *(Text(note, "yellow") for note in notes))


def means(found: Scores, metric: str) -> Table:
    made = Table(
        "setting",
        Column("seeds", justify="right"),
        Column(metric.upper(), justify="right"),
        *(Column(name, justify="right") for name in ("over photographs", "over seeds", "over both")),
        box=SIMPLE,
    )
    for setting in found.settings:
        score = found.score(setting, metric)
        if score is None:
            made.add_row(Text(setting.name), "0", "not measured", "", "", "")
            continue
        intervals = (score.photographs, score.seeds, score.both if score.seeds.n > 1 else None)
        shown = (interval_text(interval, metric) for interval in intervals)
        made.add_row(Text(setting.name), f"{score.seeds.n}", digits(score.mean, metric), *shown)
    return made


def compared(comparisons: Sequence[Comparison], metric: str) -> Table:
    names = ("difference", "interval", "p", "p (Holm)")
    made = Table("setting", "part", *(Column(name, justify="right") for name in names), box=SIMPLE)
    for name, part, cells in _rows(comparisons, metric):
        made.add_row(Text(name), Text("all" if part == ALL else part), *cells)
    return made


def _rows(comparisons: Sequence[Comparison], metric: str) -> Iterator[tuple[str, str, list[str]]]:
    before = ""
    for each in comparisons:
        interval = each.difference.interval
        p = [p_text(each.difference.p), p_text(each.p)] if each.known else ["", ""]
        cells = [f"{interval.mean:+.{_places(metric)}f}", interval_text(interval, metric), *p]
        yield each.name if each.name != before else "", each.part, cells
        before = each.name


def interval_text(interval: Interval | None, metric: str) -> str:
    if interval is None or interval.low is None or interval.high is None:
        return ""
    return f"{digits(interval.low, metric)} to {digits(interval.high, metric)}"


def digits(value: float, metric: str) -> str:
    return f"{value:.{_places(metric)}f}"


def _places(metric: str) -> int:
    return 2 if metric.startswith("psnr") else 4
