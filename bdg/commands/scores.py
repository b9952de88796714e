"""Runs as numbers that may stand in one table: scores of settings with intervals, and what their differences come to.

A setting is what cells of a sweep have in common that differ in the seed alone. Imports no torch.
"""

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bdg.commands.cells import short_keys
from bdg.commands.runs import Sweep
from bdg.documents import parse_yaml
from bdg.statistics import (
    Difference,
    Interval,
    holm,
    over_both,
    over_photographs,
    over_seeds,
    paired,
    per_photograph,
)
from jobs.evaluation import Basis, bases, evaluations
from jobs.panels import SEED, label, written
from jobs.states import read_object

ALL = "mean"
"""The part that is all degradations, each counting the same."""
SHOWN = 5
"""Names that a sentence lists."""

METHODS = {
    "over photographs": (
        "bootstrap of photographs (all images of one are drawn together), percentile interval widened for small samples "
        "(Hesterberg 2015)"
    ),
    "over seeds": "Student's t of the seeds' means",
    "over both": "analysis of variance, seeds and photographs crossed (Dorfman, Berbaum and Metz 1992)",
    "differences": (
        "paired by photograph: one seed, signs flipped at random; several, Student's t of the crossed analysis of variance; p "
        "by Holm for the number of comparisons"
    ),
    "importance": "share of the variance of all runs' scores that a key's marginal means explain (eta squared)",
}
"""How numbers are made, for whoever reads them."""


@dataclass(frozen=True)
class Setting:
    """Runs that are one but for the seed. changes: key -> value, without the seed; runs: their folders by seed."""

    name: str
    changes: Mapping[str, Any]
    runs: Mapping[str, Path]


def settings_of(sweep: Sweep) -> list[Setting]:
    """The last runs of the cells, by what else than the seed they change; "" is the seed of a sweep that varies none."""
    keys = dict.fromkeys(key for cell in sweep.plan.cells for key in cell.changes)
    short = short_keys(keys)
    groups: dict[str, tuple[str, dict[str, Any], dict[str, Path]]] = {}
    for cell in sweep.plan.cells:
        seed = next((f"{value}" for key, value in cell.changes.items() if key.lstrip("+") == SEED), "")
        changes = {key: value for key, value in cell.changes.items() if key.lstrip("+") != SEED}
        grid = all(key in changes for key in keys if key.lstrip("+") != SEED)
        name = ", ".join(f"{short[key]}={label(value)}" for key, value in changes.items()) if grid and changes else ""
        own = re.sub(rf",?{SEED}=[^,]*$", "", cell.name) if seed else cell.name
        # a named cell changes what others do not; its own name tells more than its keys
        group = groups.setdefault(own if not name else written(changes), (name or own or "as it is", changes, {}))
        if cell.tasks:
            group[2][seed] = Path(sweep.plan.tasks[cell.tasks[-1]].folder)
    return [Setting(name, changes, runs) for name, changes, runs in groups.values()]


@dataclass(frozen=True)
class Score:
    """Of a setting under one metric and one part. images: those of one run, 0 if only the mean is known."""

    mean: float
    photographs: Interval | None
    seeds: Interval
    both: Interval
    by_seed: Mapping[str, float]
    images: int

    def to_dict(self) -> dict[str, Any]:
        def pair(interval: Interval | None) -> list[float] | None:
            if interval is None or interval.low is None or interval.high is None:
                return None
            return [interval.low, interval.high]

        return {
            "mean": self.mean,
            "over_photographs": pair(self.photographs),
            "over_seeds": pair(self.seeds),
            "over_both": pair(self.both),
            "by_seed": dict(self.by_seed),
            "images": self.images,
            "photographs": self.photographs.n if self.photographs else 0,
        }

    @property
    def best(self) -> Interval:
        """What is said of it in a sentence: over both where there are several seeds, else over photographs."""
        return self.both if self.seeds.n > 1 else self.photographs or self.seeds


@dataclass(frozen=True)
class Comparison:
    """`name` minus `base`, in one part; p is Holm's."""

    name: str
    base: str
    part: str
    difference: Difference
    p: float
    one_seed: bool = False

    @property
    def known(self) -> bool:
        """Whether something can be said of its certainty."""
        return self.difference.interval.low is not None

    def to_dict(self) -> dict[str, Any]:
        interval = self.difference.interval
        return {
            "setting": self.name,
            "base": self.base,
            "part": self.part,
            "difference": interval.mean,
            "low": interval.low,
            "high": interval.high,
            "n": interval.n,
            "p": self.difference.p if self.known else None,
            "p_holm": self.p if self.known else None,
        }


@dataclass
class Scores:
    """The numbers of settings that may be compared; source: what they are and by which protocol.

    evaluated: by run's folder; validated: {metric: {part: value}} by run's folder. Just one of them has something.
    """

    settings: Sequence[Setting]
    source: str
    level: float
    basis: Basis | None = None
    validated: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _vectors: dict[tuple[str, str, str], NDArray[np.float64]] = field(default_factory=dict)

    @cached_property
    def metrics(self) -> list[str]:
        if self.basis:
            return self.basis.head.metrics
        found = dict.fromkeys(metric for run in self.validated.values() for metric in run)
        return [metric for metric in found if f"{metric}_input" not in found or not metric.endswith("_input")]

    @cached_property
    def parts(self) -> list[str]:
        """Degradations, and first all of them."""
        if self.basis:
            names = dict.fromkeys(place[0] for place in sorted(self.basis.head.rows, key=str))
        else:
            each = (parts for run in self.validated.values() for parts in run.values())
            names = dict.fromkeys(part for parts in each for part in parts if part != ALL)
        return [ALL, *(names if len(names) > 1 else ())]

    def has(self, folder: Path) -> bool:
        return str(folder) in (self.basis.of if self.basis else self.validated)

    def score(self, setting: Setting, metric: str, part: str = ALL) -> Score | None:
        """None if no run of it has been measured."""
        seeds = self._seeds(setting, metric, part)
        if not seeds:
            return None
        table = self._table(setting, seeds, metric, part)
        means = table.mean(1)
        if not self.basis:
            interval = over_seeds(means, self.level)
            return Score(interval.mean, None, interval, interval, dict(zip(seeds, means.tolist(), strict=True)), 0)
        images = sum(1 for place in self.basis.head.rows if part in (ALL, place[0]))
        photographs = over_photographs(table.mean(0), self.level)
        seeds_only = over_seeds(means, self.level)
        both = over_both(table, self.level) if len(table) > 1 else photographs
        return Score(
            float(means.mean()), photographs, seeds_only, both, dict(zip(seeds, means.tolist(), strict=True)), images
        )

    def compared(self, base: Setting, others: Sequence[Setting], metric: str, parts: Sequence[str]) -> list[Comparison]:
        """Each of the others minus `base`, by the seeds that both have, corrected for all that is compared here."""
        found = []
        for setting in others:
            for part in parts:
                mine = self._seeds(setting, metric, part)
                if setting.runs.keys() == base.runs.keys() or len(setting.runs) > 1 or len(base.runs) > 1:
                    pairs = [(seed, seed) for seed in mine if seed in self._seeds(base, metric, part)]
                else:  # two single runs, whatever their seeds
                    pairs = [(a, b) for a in mine for b in self._seeds(base, metric, part)]
                if pairs:
                    ours, theirs = ([pair[side] for pair in pairs] for side in (0, 1))
                    change = self._table(setting, ours, metric, part) - self._table(base, theirs, metric, part)
                    found.append((setting, part, paired(change, self.level), len(pairs)))
        known = [difference.p for _, _, difference, _ in found if difference.interval.low is not None]
        adjusted = iter(holm(known))
        return [
            Comparison(s.name, base.name, part, d, next(adjusted) if d.interval.low is not None else 1.0, seeds == 1)
            for s, part, d, seeds in found
        ]

    def _seeds(self, setting: Setting, metric: str, part: str) -> list[str]:
        def measured(folder: Path) -> bool:
            if self.basis:
                return str(folder) in self.basis.of
            return part in self.validated.get(str(folder), {}).get(metric, {})

        return [seed for seed, folder in setting.runs.items() if measured(folder)]

    def _table(self, setting: Setting, seeds: Sequence[str], metric: str, part: str) -> NDArray[np.float64]:
        """A row per seed, a column per photograph; one column where only means are known."""
        return np.stack([self._vector(str(setting.runs[seed]), metric, part) for seed in seeds])

    def _vector(self, run: str, metric: str, part: str) -> NDArray[np.float64]:
        if not self.basis:
            return np.array([self.validated[run][metric][part]])
        if (run, metric, part) not in self._vectors:
            rows = self.basis.of[run].rows
            places = [place for place in self._places if part in (ALL, place[0])]
            values = [float(rows[place][metric]) for place in places]
            self._vectors[run, metric, part] = per_photograph(values, [p[1] for p in places], [p[0] for p in places])
        return self._vectors[run, metric, part]

    @cached_property
    def _places(self) -> list[tuple[str, str, float | None]]:
        assert self.basis
        return sorted(self.basis.head.rows, key=str)


def scores(settings: Sequence[Setting], level: float, evaluation: str = "auto") -> Scores:
    """Of what the files of runs say.

    evaluation: "auto" takes values of single images if every run that was validated has them, and else the scores of the
    last validation; "validation" takes those; a name takes that evaluation. What was measured in another way is left out and
    told in `notes`: it may not stand in the same table.
    """
    if not 0.5 <= level < 1:
        raise ValueError(f"level={level}: give the certainty of the intervals, 0.5 or more and below 1, such as 0.95")
    folders = [folder for setting in settings for folder in setting.runs.values()]
    validated = {str(folder): parts for folder in folders if (parts := validation(folder))}
    if evaluation == "validation":
        return _validated(settings, level, validated)
    found = {str(folder): evaluations(folder) for folder in folders}
    if evaluation != "auto":
        named = {run: [e for e in each if e.name == evaluation] for run, each in found.items()}
        if not any(named.values()):
            names = sorted({e.name for each in found.values() for e in each})
            there = f"there are {', '.join(names)}" if names else "there are none"
            raise ValueError(f"evaluation={evaluation}: no run has one of that name: {there}, auto and validation")
        found = named
    groups = bases(found)
    if not groups or (evaluation == "auto" and validated.keys() - groups[0].of.keys()):
        made = _validated(settings, level, validated)
        if groups:
            missing = len(validated.keys() - groups[0].of.keys())
            made.notes.append(
                f"{_runs(missing)} without values of single images that could be compared with the others': the scores of the "
                "last validation are shown; measure=true measures those that are missing"
            )
        return made
    made = Scores(settings, f"test images: {groups[0].text}", level, groups[0])
    for other in groups[1:]:
        if alone := other.of.keys() - groups[0].of.keys():
            why = groups[0].head.differs(other.head)
            made.notes.append(f"{_runs(len(alone))} left out, measured otherwise: {why}")
    return made


def _validated(settings: Sequence[Setting], level: float, validated: Mapping[str, Any]) -> Scores:
    """The scores of validations of one protocol, that of most runs."""
    protocols = {run: validation_protocol(Path(run)) for run in validated}
    counts = Counter(protocols.values())
    if not counts:
        return Scores(settings, "nothing is measured yet", level)
    chosen = counts.most_common(1)[0][0]
    same = {run: parts for run, parts in validated.items() if protocols[run] == chosen}
    made = Scores(settings, f"last validation: {chosen}", level, validated=same)
    if others := [text for text in counts if text != chosen]:
        left_out = sum(counts[text] for text in others)
        made.notes.append(f"{_runs(left_out)} left out, validated otherwise: {'; '.join(others[:SHOWN])}")
    return made


def validation(folder: Path) -> dict[str, dict[str, float]]:
    """{metric: {part: value}} of a finished run's metrics.json; empty if it has none."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for name, value in read_object(folder / "metrics.json").items():
        place, _, metric = name.rpartition("/")
        if place.startswith("val/") and isinstance(value, int | float) and metric not in ("num_images", "gain"):
            found[metric][place.removeprefix("val/")] = float(value)
    return {metric: parts for metric, parts in found.items() if not metric.endswith("_input") and ALL in parts}


def validation_protocol(folder: Path) -> str:
    """How a run was validated, in words, by its config."""
    config = read_config(folder)
    protocol, data = config.get("protocol"), config.get("data")
    if not isinstance(protocol, dict) or not isinstance(data, dict):
        return "unknown, since its config.yaml cannot be read"
    color = {"rgb": "RGB", "y": "Y of BT.601"}.get(str(protocol.get("color")), f"{protocol.get('color')}")
    rounding = "rounded to uint8" if protocol.get("round_uint8") else "not rounded"
    crop = f"crop {data['val_crop']}" if data.get("val_crop") else "whole images"
    return (
        f"{color}, border {protocol.get('border')}, {rounding}; {data.get('val_shards')}, {crop}, "
        f"severities {data.get('val_severities')}, degradations {digest_of(config.get('degradation'))}"
    )


def digest_of(value: Any) -> str:
    """Names of degradations, and a number that tells their settings apart."""
    names = ", ".join(map(str, value)) if isinstance(value, dict) else "none"
    return f"{names} ({zlib.crc32(written(value).encode()):08x})"


def read_config(folder: Path) -> dict[str, Any]:
    """A run's config.yaml as plain containers; empty if it is not there or not whole."""
    try:
        return parse_yaml((folder / "config.yaml").read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError):
        return {}


def listed(names: Sequence[str]) -> str:
    """ "a, b and c", and how many more."""
    more = len(names) - SHOWN
    shown = [*names[:SHOWN], *([f"{more} more"] if more > 0 else [])]
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]])) if shown else ""


def _runs(count: int) -> str:
    return f"{count} run{'s' if count != 1 else ''}"


# --- sentences ---


def question(settings: Sequence[Setting], scores: Scores, metric: str) -> str:
    """What a sweep asks."""
    keys = dict.fromkeys(key for setting in settings for key in setting.changes)
    grid = all(len(setting.changes) == len(keys) for setting in settings)
    seeds = list(dict.fromkeys(seed for setting in settings for seed in setting.runs if seed))
    over = f", over {'seed' if len(seeds) == 1 else 'seeds'} {listed(seeds)}" if seeds else ""
    measure = f"by {metric.upper()}" + (
        f", mean over {len(scores.parts) - 1} degradations" if len(scores.parts) > 2 else ""
    )
    if len(settings) < 2:
        return f"How well does {settings[0].name if settings else 'it'} restore, {measure}{over}?"
    if not grid or not keys:
        return f"Which of {listed([setting.name for setting in settings])} restores best, {measure}{over}?"
    short = short_keys(keys)
    several = []
    for key in keys:
        shown = list(dict.fromkeys(label(setting.changes[key]) for setting in settings))
        if len(shown) > 1:
            several.append(f"{short[key]} ({', '.join(shown[:SHOWN])}{', …' if len(shown) > SHOWN else ''})")
    return f"Which {' and which '.join(several)} restores best, {measure}{over}?"


@dataclass(frozen=True)
class Answer:
    """In a sentence; best: the setting of the highest mean; comparisons: the others minus it."""

    text: str
    best: Setting | None = None
    comparisons: Sequence[Comparison] = ()


def answer(scores: Scores, metric: str) -> Answer:
    """Which setting has the highest mean, by how much, and how certain that is."""
    unit = " dB" if metric.startswith("psnr") else ""
    digits = 2 if unit else 4
    ranked = sorted(
        ((s, score) for s in scores.settings if (score := scores.score(s, metric))), key=lambda item: -item[1].mean
    )
    if not ranked:
        return Answer("No run has been measured yet.")
    best, score = ranked[0]
    some = len(ranked) < len(scores.settings) or any(
        not scores.has(folder) for setting in scores.settings for folder in setting.runs.values()
    )
    total = sum(len(setting.runs) for setting in scores.settings)
    done = sum(scores.has(folder) for setting in scores.settings for folder in setting.runs.values())
    so_far = f"So far ({done} of {total} runs measured): " if some else ""
    value = f"{score.mean:.{digits}f}{unit}{_range(score.best, digits, scores.level)}"
    if len(ranked) == 1:
        return Answer(f"{so_far}{best.name} has {metric.upper()} {value}.", best)
    comparisons = scores.compared(best, [s for s, _ in ranked[1:]], metric, [ALL])
    if not comparisons or not any(each.known for each in comparisons):
        lead = ranked[0][1].mean - ranked[1][1].mean
        return Answer(
            f"{so_far}{best.name} has the highest {metric.upper()}, {value}, {lead:.{digits}f}{unit} above "
            f"{ranked[1][0].name}; how certain that is cannot be told "
            "from one run of each: measure single images (measure=true), or add seeds.",
            best,
            comparisons,
        )
    next_one = comparisons[0]
    beaten = [each for each in comparisons if each.known and each.p < 1 - scores.level]
    lead = -next_one.difference.interval.mean
    interval = next_one.difference.interval
    low, high = (None, None) if interval.low is None or interval.high is None else (-interval.high, -interval.low)
    certainty = "how certain that is cannot be told from one seed"
    if low is not None and high is not None:
        of = f" for {len(comparisons)} comparisons" if len(comparisons) > 1 else ""
        certainty = (
            f"{100 * scores.level:g} % interval {low:.{digits}f} to {high:.{digits}f}, p = {p_text(next_one.p)} after Holm's "
            f"correction{of}"
        )
    by = f"{lead:.{digits}f}{unit} above {next_one.name} ({certainty})"
    if len(beaten) == len(comparisons):
        return Answer(f"{so_far}{best.name} is best: {metric.upper()} {value}, {by}.", best, comparisons)
    tie = [each.name for each in comparisons if each not in beaten]
    shown = (
        f"it is shown to beat {len(beaten)} of {len(comparisons)} others, but not {listed(tie)}"
        if beaten
        else ("that may be chance")
    )
    return Answer(f"{so_far}{best.name} has the highest {metric.upper()}, {value}, {by}; {shown}.", best, comparisons)


def differences(comparisons: Sequence[Comparison], metric: str, level: float) -> Iterator[str]:
    """One sentence per setting: where it is better or worse than the base, and where nothing shows."""
    unit = " dB" if metric.startswith("psnr") else ""
    digits = 2 if unit else 4
    by_name: dict[str, list[Comparison]] = defaultdict(list)
    for each in comparisons:
        by_name[each.name].append(each)
    for name, own in by_name.items():
        said, nothing, unknown = [], [], []
        for each in own:
            place = "overall" if each.part == ALL else f"on {each.part}"
            interval = each.difference.interval
            if interval.low is None or interval.high is None:
                unknown.append(f"{place} ({interval.mean:+.{digits}f}{unit})")
            elif each.p < 1 - level:
                word = "better" if interval.mean > 0 else "worse"
                low, high = (
                    sorted((abs(interval.low), abs(interval.high))) if interval.sure else (interval.low, interval.high)
                )
                said.append(
                    f"{word} {place} by {abs(interval.mean):.{digits}f}{unit} ({100 * level:g} % interval "
                    f"{low:.{digits}f} to {high:.{digits}f}, p = {p_text(each.p)})"
                )
            else:
                numbers = (
                    f" ({interval.mean:+.{digits}f}{unit}, {interval.low:+.{digits}f} to {interval.high:+.{digits}f})"
                )
                nothing.append(place + (numbers if each.part == ALL else ""))
        parts = [", ".join(said)] if said else []
        if nothing:
            parts.append(f"no difference shown {', '.join(nothing)}")
        if unknown:
            parts.append(f"certainty unknown {', '.join(unknown)}")
        yield f"{name} against {own[0].base}: {'; '.join(parts)}"


def too_few(comparisons: Sequence[Comparison], level: float) -> list[str]:
    """A note where so few photographs were measured that no difference, however large, could be shown."""
    single = [each.difference.interval.n for each in comparisons if each.known and each.one_seed]
    if not single or (least := 2.0 ** (1 - max(single))) * len(comparisons) < 1 - level:
        return []
    return [
        f"{max(single)} photographs and one seed cannot show a difference: p is {p_text(least)} at least, before it is "
        f"corrected for {len(comparisons)} comparisons; add seeds or photographs"
    ]


def p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def _range(interval: Interval, digits: int, level: float) -> str:
    if interval.low is None or interval.high is None:
        return ""
    return f" ({100 * level:g} % interval {interval.low:.{digits}f} to {interval.high:.{digits}f})"
