"""`bdg verify-resume`: is a training that was killed and resumed the unbroken one, bit for bit?"""

import json
import random
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from bdg.commands.request import Request
from jobs.run import write_text
from jobs.watched import Fact, Watched, facts

MOMENTS = ("step", "saving", "validating")
COLUMNS = ("samples", "losses", "weights", "averaged", "optimizer")


@dataclass(frozen=True)
class Trial:
    """One training and how it is treated: after each kill it goes on with the next of its geometries, round and round."""

    name: str
    kills: int
    geometries: tuple[Mapping[str, int], ...]
    exact: bool = True


def run(config: DictConfig, request: Request) -> None:
    if config.steps < 4:
        raise ValueError(f"steps={config.steps}: give 4 or more, so that there is something to resume")
    ranks, workers = config.ranks, config.data.num_workers
    here = {"ranks": ranks, "workers": workers}
    trials = [
        Trial("unbroken", 0, (here,)),
        Trial("killed", config.kills, (here,)),
        Trial("other workers", 1, (here, here | {"workers": 0 if workers else 2})),
        Trial("other ranks", 1, (here, here | {"ranks": 1 if ranks > 1 else 2}), exact=False),
    ]
    console = Console(highlight=False)
    if ranks == 1 and config.trainer.accelerator != "cpu" and torch.cuda.device_count() == 1:
        console.print(f"{trials.pop().name}: left out, there is one GPU")
    table = Table("training", "killed", *COLUMNS)
    rows: list[dict[str, Any]] = []
    unbroken: list[Fact] = []
    for trial in trials:
        folder = Path(config.folder) / trial.name.replace(" ", "_")
        shutil.rmtree(folder, ignore_errors=True)
        console.print(f"{trial.name} ...")
        moments = train_and_kill(trial, config, request, folder)
        found = list(recorded(folder / "record", max(geometry["ranks"] for geometry in trial.geometries)))
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
        training = Watched(command(config, request, folder, geometry), folder / "record", folder / "log.txt")
        if len(killed) < trial.kills:
            moment = MOMENTS[len(killed) % len(MOMENTS)]
            # somewhere in the share of this kill in what is left, so that all of them find their place
            after = progress + 1 + dice.randrange(max(1, (config.steps - progress) // (trial.kills - len(killed) + 1)))
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


def command(config: DictConfig, request: Request, folder: Path, geometry: Mapping[str, int]) -> list[str]:
    """`bdg train` as asked for, recorded, in `folder` and with this many ranks and workers."""
    own = request.without("steps", "kills", "ranks", "tolerance", "folder", "json", "stage", "root", "inherit.from")
    words = [
        *own.overrides,
        f"stage={config.stage.name}",
        f"inherit.from={config.inherit['from']}",
        f"root={folder}/runs",
        f"trainer.max_steps={config.steps}",
        f"trainer.val_check_interval={max(2, config.steps // 3)}",
        f"callbacks.checkpoint.every_n_steps={max(2, config.steps // 7)}",
        f"data.num_workers={geometry['workers']}",
        f"trainer.devices={geometry['ranks']}",
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
