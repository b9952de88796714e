"""`bdg verify-resume`: is a training that was killed and resumed the unbroken one, bit for bit?"""

import json
import random
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from bdg.commands.compose import build
from bdg.commands.request import Request, key_of
from datamodules.restoration import RestorationData
from jobs.run import write_text
from jobs.watched import Fact, Watched, facts

MOMENTS = ("step", "saving", "validating")
COLUMNS = ("samples", "losses", "weights", "averaged", "optimizer")
LEAST = {"steps": 4, "kills": 1, "ranks": 1}
OWN_WORD = {"trainer.max_steps": "steps", "trainer.devices": "ranks", "cluster.devices": "ranks"}
"""Keys of a training that are said by a key of this verb."""
Geometry = Mapping[str, int | None]
"""The keys of a training that may change from one start to the next."""


@dataclass(frozen=True)
class Trial:
    """One training and how it is treated: after each kill it goes on with the next of its geometries, round and round."""

    name: str
    kills: int
    geometries: tuple[Geometry, ...]
    exact: bool = True


def run(config: DictConfig, request: Request) -> None:
    check(config, request)
    console = Console(highlight=False)
    planned, left_out = trials(config, build(config.data, trust=config.trust), one_gpu(config))
    for line in left_out:
        console.print(line, soft_wrap=True)
    with killed_as_interrupted():
        compare(planned, config, request, console)


def check(config: DictConfig, request: Request) -> None:
    for name, least in LEAST.items():
        if config[name] < least:
            raise ValueError(f"{name}={config[name]}: give {least} or more")
    for word in request.overrides:
        if own := OWN_WORD.get(key_of(word)):
            raise ValueError(f"{word}: the trainings that are compared follow {own}=, give that")


def one_gpu(config: DictConfig) -> bool:
    return config.trainer.accelerator != "cpu" and torch.cuda.device_count() == 1


def trials(config: DictConfig, data: RestorationData, one_gpu: bool) -> tuple[list[Trial], list[str]]:
    """The trainings to compare, the unbroken one first, and a line for each that is left out, with the reason."""
    ranks, workers = config.ranks, data.num_workers
    here: Geometry = {"trainer.devices": ranks, "data.num_workers": workers, "data.micro_batch": data.micro_batch}
    planned = [Trial("unbroken", 0, (here,)), Trial("killed", config.kills, (here,))]
    if data.reader == "stream":
        return planned, [
            "other workers, other ranks: left out, by data.reader=stream these decide who sees which sample"
        ]
    planned.append(Trial("other workers", 1, (here, {**here, "data.num_workers": 0 if workers else 2})))
    other = 1 if ranks > 1 else 2
    parts = data.accumulation(ranks)
    images, rest = divmod(data.batch_size, other * parts)
    if one_gpu and other > 1:
        return planned, ["other ranks: left out, there is one GPU"]
    if rest:
        return planned, [
            f"other ranks: left out, {other} cannot take data.batch_size={data.batch_size} in {parts} equal parts as {ranks} do"
            "; in others contrastive losses compare other images: give another data.batch_size or data.micro_batch"
        ]
    there = {**here, "trainer.devices": other, "data.micro_batch": images}
    return [*planned, Trial("other ranks", 1, (here, there), exact=False)], []


@contextmanager
def killed_as_interrupted() -> Iterator[None]:
    """Within it, SIGTERM and a closed terminal are Ctrl-C, so that no training is left behind."""
    deadly = [
        each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is signal.SIG_DFL
    ]  # not by nohup
    for each in deadly:
        signal.signal(each, signal.default_int_handler)
    try:
        yield
    finally:
        for each in deadly:
            signal.signal(each, signal.SIG_DFL)


def compare(trials: Sequence[Trial], config: DictConfig, request: Request, console: Console) -> None:
    """Trains them all, shows where they differ from the first. Raises ValueError where they must not."""
    table = Table("training", "killed", *COLUMNS)
    rows: list[dict[str, Any]] = []
    unbroken: list[Fact] = []
    for trial in trials:
        folder = Path(config.folder) / trial.name.replace(" ", "_")
        shutil.rmtree(folder, ignore_errors=True)
        console.print(f"{trial.name} ...")
        moments = train_and_kill(trial, config, request, folder)
        found = list(recorded(folder / "record", max(each["trainer.devices"] or 1 for each in trial.geometries)))
        unbroken = unbroken or found
        compared = equal(unbroken, found) if trial.exact else close(unbroken, found, config.tolerance)
        rows.append({"training": trial.name, "killed": moments, **compared})
        table.add_row(trial.name, ", ".join(moments) or "-", *compared.values())
    console.print(table)
    if config.json:
        write_text(Path(config.json), json.dumps({"steps": config.steps, "trainings": rows}, indent=1) + "\n")
    if broken := [row["training"] for row in rows if any("differ" in row[column] for column in COLUMNS)]:
        raise ValueError(f"{', '.join(broken)}: not the unbroken training, see {config.folder}")


def train_and_kill(trial: Trial, config: DictConfig, request: Request, folder: Path) -> list[str]:
    """Trains in `folder`, killing and restarting; returns when it was killed."""
    dice = random.Random(f"{config.seed} {trial.name}")
    killed: list[str] = []
    folder.mkdir(parents=True)
    progress = 0
    while True:
        geometry = trial.geometries[len(killed) % len(trial.geometries)]
        words = command(config, request, folder, geometry)
        with Watched(words, folder / "record", folder / "log.txt") as training:
            if len(killed) < trial.kills:
                moment = MOMENTS[len(killed) % len(MOMENTS)]
                # somewhere in the share of this kill in what is left, so that all of them find their place
                share = (config.steps - progress) // (trial.kills - len(killed) + 1)
                after = progress + 1 + dice.randrange(max(1, share))
                fact = training.wait_for(lambda fact: fact.get(moment, 0) >= after)  # noqa: B023
                if fact is not None:
                    training.kill()
                    training.wait()
                    progress = fact[moment]
                    killed.append(f"{moment} {progress}")
                    continue
            if status := training.wait():
                raise ValueError(f"the training of '{trial.name}' ended with status {status}:\n{training.tail()}")
            if len(killed) < trial.kills:
                raise ValueError(f"'{trial.name}' ended after {len(killed)} of {trial.kills} kills: give more steps")
            return killed


def command(config: DictConfig, request: Request, folder: Path, geometry: Geometry) -> list[str]:
    """`bdg train` as asked for, recorded, in `folder` and in this geometry; saved and validated often, if not told how."""
    given = {key_of(word) for word in request.overrides}
    often = {
        "trainer.val_check_interval": max(2, config.steps // 3),
        "callbacks.checkpoint.every_n_steps": max(2, config.steps // 7),
    }
    asked = request.without(*LEAST, "tolerance", "folder", "json", "stage", "root", "inherit.from", *geometry)
    words = [
        *asked.overrides,
        f"stage={config.stage.name}",
        f"inherit.from={config.inherit['from']}",
        f"root={folder}/runs",
        f"trainer.max_steps={config.steps}",
        *(f"{key}={value}" for key, value in often.items() if key not in given),
        *(f"{key}={'null' if value is None else value}" for key, value in geometry.items()),
        "+callbacks.record._target_=callbacks.record.Record",
        f"+callbacks.record.folder={folder}/record",
    ]
    flags = ["--config-dir", request.config_dir] if request.config_dir else []
    return [sys.executable, "-m", "bdg", "train", *words, *flags]


def recorded(record: Path, ranks: int) -> Iterator[Fact]:
    """The steps of all ranks. One that was done again after a kill stands there several times, and has to be the same."""
    for rank in range(ranks):
        yield from ({**fact, "rank": rank} for fact in facts(record, rank) if "step" in fact)


def equal(unbroken: Sequence[Fact], found: Sequence[Fact]) -> dict[str, str]:
    """For each column "equal", or the first step at which it differs."""

    def seen(lines: Sequence[Fact], column: str) -> dict[int, set[str]]:
        values: dict[int, set[str]] = {}
        for line in lines:
            values.setdefault(line["step"], set()).add(f"{line['rank']} {line[column]}")
        return values

    return {column: _first_difference(seen(unbroken, column), seen(found, column)) for column in COLUMNS}


def close(unbroken: Sequence[Fact], found: Sequence[Fact], tolerance: float) -> dict[str, str]:
    """As `equal`, where the number of ranks changed: the same samples in a step, about the same loss, other roundings."""

    def samples(lines: Sequence[Fact]) -> dict[int, set[str]]:
        values: dict[int, set[str]] = {}
        for line in lines:
            values.setdefault(line["step"], set()).update(line["samples"])
        return values

    def losses(lines: Sequence[Fact]) -> dict[int, float]:
        values: dict[int, list[float]] = {}
        for line in lines:
            values.setdefault(line["step"], []).extend(map(float.fromhex, line["losses"]))
        return {step: fmean(parts) for step, parts in values.items()}

    one, other = losses(unbroken), losses(found)
    apart = max((abs(one[step] - other[step]) / abs(one[step]) for step in one.keys() & other.keys()), default=inf)
    within = (
        f"within {apart:.1e}" if apart <= tolerance else f"differ by {apart:.1e}, more than tolerance={tolerance:g}"
    )
    return dict.fromkeys(COLUMNS, "-") | {
        "samples": _first_difference(samples(unbroken), samples(found)),
        "losses": within,
    }


def _first_difference(one: Mapping[int, set[str]], other: Mapping[int, set[str]]) -> str:
    steps = sorted(one.keys() | other.keys())
    return next((f"differ at step {step}" for step in steps if one.get(step) != other.get(step)), "equal")
