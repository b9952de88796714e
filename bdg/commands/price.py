"""What the runs of a plan cost in hours of all their processes: by earlier runs like them, or by one step taken here."""

import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bdg.commands.compose import get, literal
from bdg.commands.planning import Planned
from bdg.documents import parse_yaml

IMAGES = 2
"""Of the step taken here; the images of a whole step are so many times as long."""


AS_FAST = (
    "network",
    "data.crop",
    "data.batch_size",
    "data.micro_batch",
    "trainer.precision",
    "cluster.nodes",
    "cluster.devices",
    "cluster.gpus",
)
"""Runs of a stage that agree in these take about as long for a step."""


@dataclass
class Earlier:
    """How long a step took in earlier runs."""

    known: dict[Path, list[tuple[list[Any], float]]] = field(default_factory=dict)

    def step_s(self, config: Mapping[str, Any]) -> float | None:
        """Seconds of a step: the median over runs that agree in AS_FAST."""
        folder = Path(config["root"]) / str(config["project"]) / get(config, "stage.name")
        if folder not in self.known:
            self.known[folder] = [*_measured(folder)]
        alike = [get(config, key) for key in AS_FAST]
        found = [step_s for values, step_s in self.known[folder] if values == alike]
        return statistics.median(found) if found else None


def _measured(folder: Path) -> Iterator[tuple[list[Any], float]]:
    for path in folder.glob("*/throughput.json"):
        try:
            step_s = float(json.loads(path.read_text())["step_s"])
            config = parse_yaml(path.with_name("config.yaml").read_text())
        except (OSError, ValueError, TypeError, KeyError):  # a run that has just begun, or was cut off
            continue
        yield [get(config, key) for key in AS_FAST], step_s


@dataclass(frozen=True)
class Prices:
    """hours: of a run, by identity, where they are known. sources: in words, where the numbers are from."""

    hours: dict[str, float]
    sources: tuple[str, ...]

    def of(self, runs: Sequence[str]) -> float | None:
        """All of these together, a run that is named twice counting twice; None if one is not known."""
        if any(run not in self.hours for run in runs):
            return None
        return sum(self.hours[run] for run in runs)


def prices(planned: Planned, estimate: bool) -> Prices:
    """estimate: whether to take a step here for runs like none before."""

    def speed(config: Mapping[str, Any]) -> list[Any]:
        return [get(config, "stage"), *(get(config, key) for key in AS_FAST)]

    earlier = Earlier()
    hours: dict[str, float] = {}
    known: dict[str, tuple[float | None, str]] = {}
    sources: dict[str, int] = {}
    for group in planned.by(speed).values():
        config = planned.config(group[0])
        stage = config["stage"]["name"]
        alike = json.dumps([stage, speed(config)[1:]])
        if alike not in known:
            step_s, ranks = earlier.step_s(config), config["cluster"]["nodes"] * config["cluster"]["devices"]
            if step_s is not None:
                known[alike] = step_s * ranks, "earlier runs like these"
            elif estimate:
                known[alike] = one_step(config)
            else:
                known[alike] = None, f"no run of {stage} like these"
        process_s, source = known[alike]
        sources[source] = sources.get(source, 0) + len(group)
        if process_s is not None:
            hours |= {run: process_s * planned.plan.tasks[run].max_steps / 3600 for run in group}
    return Prices(hours, tuple(f"{source} ({count})" for source, count in sources.items()))


def one_step(config: Mapping[str, Any]) -> tuple[float | None, str]:
    """Seconds that one process needs for a step, from the second step of IMAGES images of noise; and on what it was."""
    import lightning as L
    import torch
    from torch.utils.data import DataLoader

    from bdg.commands.checks import quiet
    from bdg.commands.train import build_stage

    class Clock(L.Callback):
        times: list[float] = []  # noqa: RUF012

        def on_train_batch_end(self, *_: Any) -> None:
            self.times.append(time.monotonic())

    stage, images, crop = config["stage"]["name"], config["data"]["batch_size"], config["data"]["crop"]
    label = torch.arange(IMAGES) % max(1, len(config["degradation"]))
    batch = {"x_hq": torch.rand(IMAGES, 3, crop, crop) * 2 - 1, "x_lq": torch.rand(IMAGES, 3, crop, crop) * 2 - 1}
    batch |= {"label": label, "index": torch.arange(IMAGES), "severity": torch.ones(IMAGES)}
    try:
        with tempfile.TemporaryDirectory() as folder, quiet():
            clock = Clock()
            trainer = L.Trainer(
                max_steps=2,
                callbacks=[clock],
                default_root_dir=folder,
                accelerator=config["trainer"]["accelerator"],
                precision=config["trainer"]["precision"],
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                logger=False,
            )
            made = literal({**config, "trainer": {**config["trainer"], "max_steps": 2}})
            trainer.fit(
                build_stage(made),
                DataLoader([batch] * 2, batch_size=None),  # type: ignore[arg-type]
            )
    except Exception as error:
        return None, f"no run of {stage} like these, and a step here fails: {str(error).partition(chr(10))[0]}"
    first, second = clock.times
    device = trainer.strategy.root_device.type
    return (second - first) * images / IMAGES, f"estimated by one step of {IMAGES} images on this machine's {device}"
