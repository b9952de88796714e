"""`bdg verify-order`: which samples the ranks and workers of a geometry see, as a digest, beside that of one process."""

import hashlib
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from bdg.commands.compose import build
from bdg.commands.request import Request
from datamodules.cases import Case
from datamodules.remote import file_name
from datamodules.restoration import RestorationData
from jobs.run import write_text


def run(config: DictConfig, request: Request) -> None:
    for name in ("ranks", "steps"):
        if config[name] < 1:
            raise ValueError(f"{name}={config[name]}: give 1 or more")
    data = build(config.data, trust=config.trust)
    geometries = ((config.ranks, data.num_workers), (1, 0))
    digests = [order_digest(data, ranks, workers, config.start, config.steps) for ranks, workers in geometries]
    table = Table("ranks", "workers", "in parts", "digest of the order")
    rows = []
    for (ranks, workers), digest in zip(geometries, digests, strict=True):
        rows.append({"ranks": ranks, "workers": workers, "accumulated": data.accumulation(ranks), "digest": digest})
        table.add_row(*map(str, rows[-1].values()))
    same = len(set(digests)) == 1
    images = config.steps * data.batch_size
    console = Console(markup=False, highlight=False)
    console.print(table)
    console.print(
        f"reader={data.reader}, {images} samples from step {config.start} on: {'the same' if same else 'not the same'}",
        soft_wrap=True,
    )
    if config.json:
        about = {"reader": data.reader, "start": config.start, "steps": config.steps, "batch_size": data.batch_size}
        write_text(Path(config.json), json.dumps({**about, "same": same, "geometries": rows}, indent=1) + "\n")


def order_digest(data: RestorationData, ranks: int, workers: int, start: int, steps: int) -> str:
    """16 hexadecimal digits of which sample, shard and label stand at each place of these steps, over all ranks."""
    total = hashlib.sha256()
    for case in order(data, ranks, workers, start, steps):
        total.update(f"{case.index} {file_name(case.sample.shard)} {case.sample.key} {case.label}\n".encode())
    return total.hexdigest()[:16]


def order(data: RestorationData, ranks: int, workers: int, start: int, steps: int) -> Iterator[Case]:
    """The cases of these steps as the loaders of all ranks hand them out; no image is read.

    A loader asks its workers in turn, each for a whole batch; without workers it makes the batches itself.
    """
    data.num_workers, accumulated = workers, data.accumulation(ranks)
    plans = [data.plan(start, rank, ranks, accumulated) for rank in range(ranks)]
    asked = max(1, workers)
    lanes = [[plan(worker, asked) for worker in range(asked)] for plan in plans]
    for batch in range(steps * accumulated):
        for plan, of_rank in zip(plans, lanes, strict=True):
            yield from islice(of_rank[batch % asked], plan.share.size)
