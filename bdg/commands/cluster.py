"""`bdg cluster init`: a cluster's own file in ./conf/cluster, written from what sinfo says, to be completed by its user."""

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from omegaconf import DictConfig

from bdg.commands.request import Request
from jobs.slurm import Nodes, Slurm

TIME_MIN = 1440
"""A day, or less where the partition gives less: short jobs start sooner, and a run goes on in its next one."""


def run(config: DictConfig, request: Request, slurm: Slurm | None = None) -> None:
    if config.action != "init":
        raise ValueError(f"action={config.action}: there is only init: type bdg cluster init")
    name = f"{config.name}"
    if not re.fullmatch(r"[\w.-]+", name) or name in ("local", "slurm"):
        raise ValueError(f"name={name}: give a file's name such as mysite; local and slurm are taken")
    path = Path("conf") / "cluster" / f"{name}.yaml"
    nodes = (slurm or Slurm()).partitions()
    if not nodes:
        raise ValueError("sinfo knows no partitions: ask those who run this cluster")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(site_yaml(name, nodes, f"{datetime.now(UTC).date()}"))
    except FileExistsError:
        raise ValueError(f"{path} exists and stays as it is: edit it, or give another name=") from None
    print(f"{path}: look at partition, account and setup in it, then: bdg preflight experiment=demo cluster={name}")


def site_yaml(name: str, nodes: Sequence[Nodes], date: str) -> str:
    """The file's text: the default partition is chosen, or the one with most GPUs; the others are there as comments."""
    by_partition: defaultdict[str, list[Nodes]] = defaultdict(list)
    for some in nodes:
        by_partition[some.partition].append(some)
    chosen = max(nodes, key=lambda some: (some.up, some.default, some.gpus * some.nodes, some.nodes))
    devices = chosen.gpus or 1
    lines = [
        f"# {name}, as sinfo saw it on {date}. Choose it with cluster={name}; for one sweep: cluster.time_min=120",
        "# partitions:",
        *(f"#   {partition}: {'; '.join(map(_in_words, some))}" for partition, some in by_partition.items()),
        "defaults: [slurm, _self_]  # conf/cluster/slurm.yaml says what the keys mean",
        "",
        f"name: {json.dumps(name)}",
        f"partition: {json.dumps(chosen.partition)}",
        "account: null  # who pays, where the cluster asks",
        f"gpus: {json.dumps(chosen.gpus > 0)}",
        f"devices: {devices}  # of a node",
        f"cpus_per_device: {max(1, chosen.cpus // devices) if chosen.gpus else min(4, chosen.cpus)}",
        f"time_min: {min(chosen.time_min or TIME_MIN, TIME_MIN)}",
        "setup: []  # lines of shell before python starts, such as [module load cuda/12.4]",
    ]
    return "\n".join(lines) + "\n"


def _in_words(nodes: Nodes) -> str:
    text = f"{nodes.nodes} nodes of {nodes.gpus} GPUs, {nodes.cpus} CPUs, {nodes.mem_gb:.0f} GiB"
    limit = f"{nodes.time_min} minutes at most" if nodes.time_min else "no time limit"
    return f"{text}, {limit}{', the default' if nodes.default else ''}{'' if nodes.up else ', down now'}"
