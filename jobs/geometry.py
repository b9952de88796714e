"""The shape of a job: nodes, processes, memory, time and what else a cluster wants to know. Submits nothing."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import UnionType
from typing import Any, get_args, get_origin

KINDS = ("local", "slurm")
INTERACTIVE = ("bash", "interactive")
"""Names of jobs in which Lightning leaves Slurm alone."""
DEFAULT_LEAD_S = 180
MARGIN_S = 60
"""What Slurm's clock may be early or late by."""


@dataclass(frozen=True)
class Geometry:
    """The config group `cluster`: the same numbers ask Slurm for machines and tell the Trainer what it will find.

    devices: processes a node, each with one GPU if `gpus`. mem_gb: GiB a node, 0 for all of it, None for what the cluster
    gives. time_min: minutes until Slurm ends a job, which then goes on in its next one. at_once: tasks of an array (or local
    processes) that run at a time, None for all. setup: shell lines of the cluster's own file. python: None for the one that
    submits. launcher: words in front of it, such as a container's. lead_s: seconds before the end at which Slurm tells the
    job to leave, None for what saving took. scratch: a folder on each node for copies of the shards. options: further ones
    of sbatch. arrays: false for single jobs.
    """

    kind: str = "local"
    name: str = ""
    nodes: int = 1
    devices: int = 1
    gpus: bool = False
    cpus_per_device: int = 1
    mem_gb: float | None = None
    time_min: int | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclusive: bool = False
    nice: int | None = None
    options: tuple[str, ...] = ()
    arrays: bool = True
    at_once: int | None = None
    setup: tuple[str, ...] = ()
    python: str | None = None
    launcher: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    max_restarts: int = 20
    lead_s: int | None = None
    scratch: str | None = None

    @property
    def world_size(self) -> int:
        return self.nodes * self.devices

    def lead(self, save_s: float | None) -> int:
        """Seconds before the end of a job at which it is told to leave. save_s: measured, of the slowest save."""
        wanted = MARGIN_S + 2 * save_s if save_s else DEFAULT_LEAD_S
        return self.lead_s or math.ceil(min(wanted, (self.time_min or math.inf) * 60 / 2))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Geometry":
        """Raises ValueError if a key is unknown, a value is missing, of another type, or cannot be."""
        known = {f.name: f.type for f in fields(cls)}
        for key in config:
            if key not in known:
                raise ValueError(f"cluster.{key} means nothing: a cluster has {', '.join(known)}")
        geometry = cls(**{key: _value(key, value, known[key]) for key, value in config.items()})
        _check(geometry)
        return geometry


def _value(key: str, value: Any, kind: Any) -> Any:
    """`value` as the field holds it."""
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    if value == "???":
        raise ValueError(
            f"cluster.{key} is not given: add cluster.{key}=... or write it into your file in conf/cluster"
        )
    if get_origin(kind) is tuple and isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value):
        return tuple(value)
    if get_origin(kind) is Mapping and isinstance(value, Mapping):
        return {str(name): str(inner) for name, inner in value.items()}
    if float in kinds and type(value) is int:
        return float(value)
    if any(type(value) is k for k in kinds):
        return value
    raise ValueError(f"cluster.{key}={value!r} must be {_in_words(kinds)}")


def _in_words(kinds: tuple[Any, ...]) -> str:
    words = {int: "a whole number", float: "a number", str: "a word", bool: "true or false", type(None): "null"}
    found = [words.get(k, "a list of words" if get_origin(k) is tuple else "words by name") for k in kinds]
    return " or ".join(found)


def _check(geometry: Geometry) -> None:
    if geometry.kind not in KINDS:
        raise ValueError(f"cluster.kind={geometry.kind} does not exist: use {' or '.join(KINDS)}")
    least = {
        "nodes": 1,
        "devices": 1,
        "cpus_per_device": 1,
        "mem_gb": 0,
        "time_min": 1,
        "at_once": 1,
        "max_restarts": 0,
    }
    for key, bound in (least | {"lead_s": 1}).items():
        value = getattr(geometry, key)
        if value is not None and value < bound:
            raise ValueError(f"cluster.{key}={value:g}: give {bound} or more")
    if geometry.kind == "local" and geometry.nodes > 1:
        raise ValueError(f"cluster.nodes={geometry.nodes}: this machine is one, use cluster=slurm for several")
    if geometry.kind == "slurm" and geometry.time_min is None:
        raise ValueError(
            "cluster.time_min=null: give the minutes after which Slurm may end a job; it goes on in the next"
        )
    if geometry.lead_s and geometry.time_min and geometry.lead_s >= geometry.time_min * 60:
        raise ValueError(
            f"cluster.lead_s={geometry.lead_s} is no less than cluster.time_min={geometry.time_min}: lower it"
        )
    for key in ("name", "partition", "account", "qos", "constraint"):
        value = getattr(geometry, key)
        if value and not re.fullmatch(r"[\w.,:@+|&()\[\]*!-]+", value):
            raise ValueError(f"cluster.{key}='{value}' holds characters that sbatch would not take: give a plain name")
    for option in geometry.options:
        if not re.fullmatch(r"--?[a-zA-Z][\w-]*(=[^\s'\"\\#]+)?", option):
            raise ValueError(f"cluster.options has '{option}': write --option=value, without spaces and quotes")
    for name, value in geometry.environment.items():
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise ValueError(
                f"cluster.environment has '{name}', which is no name of a variable: use letters, digits and _"
            )
        _check_line(f"environment.{name}", value)
    for key in ("setup", "launcher"):
        for line in getattr(geometry, key):
            _check_line(key, line)
    _check_line("python", geometry.python or "")
    if geometry.scratch is not None and not geometry.scratch.startswith(("/", "$")):
        raise ValueError(f"cluster.scratch={geometry.scratch}: give a folder of the nodes, from / or a variable")


def _check_line(key: str, text: str) -> None:
    if not text.replace("\t", "").isprintable():
        raise ValueError(f"cluster.{key}={text!r} has a line break or a character that cannot be printed: leave it out")


def check_job(devices: Any, nodes: int, environment: Mapping[str, str]) -> None:
    """Raises ValueError where there is no process, and inside a job of Slurm or torchrun that has others than the Trainer
    will wait for.

    devices: as trainer.devices, a number, a list, or "auto" and -1, which are no promise.
    """
    for key, name, value in (("devices", "devices", devices), ("num_nodes", "nodes", nodes)):
        if value in (0, "0", []):
            raise ValueError(f"trainer.{key}={value}: give 1 or more, as cluster.{name}=NUMBER")
    found = _torchrun(environment) or _slurm(environment)
    if not found:
        return
    several = isinstance(devices, Sequence) and not isinstance(devices, str)
    mine = len(devices) if several else int(devices) if f"{devices}".isdecimal() else None
    words, (nodes_there, world) = found
    if nodes_there * (mine or world // nodes_there) == world and nodes == nodes_there:
        return
    options = words.format(nodes=nodes, devices=mine or "...")
    raise ValueError(
        f"trainer.num_nodes={nodes} x trainer.devices={devices}, but this job has {nodes_there} nodes with {world} processes "
        f"in all: give cluster.nodes={nodes_there} cluster.devices={world // nodes_there}, or {options}"
    )


def _torchrun(environment: Mapping[str, str]) -> tuple[str, tuple[int, int]] | None:
    """The options that decide, and nodes and processes as they are."""
    if "TORCHELASTIC_RUN_ID" not in environment:
        return None
    world, local = int(environment["WORLD_SIZE"]), int(environment["LOCAL_WORLD_SIZE"])
    return "torchrun --nnodes={nodes} --nproc-per-node={devices}", (world // local, world)


def _slurm(environment: Mapping[str, str]) -> tuple[str, tuple[int, int]] | None:
    """Where Lightning would look: not in a shell that somebody works in."""
    if "SLURM_NTASKS" not in environment or environment.get("SLURM_JOB_NAME") in INTERACTIVE:
        return None
    world, nodes = int(environment["SLURM_NTASKS"]), int(environment.get("SLURM_NNODES", 1))
    if world > 1 and "SLURM_STEP_ID" not in environment:
        raise ValueError(f"this job has {world} processes, and this one was started alone: write srun in front of bdg")
    per_node = environment.get("SLURM_NTASKS_PER_NODE")
    if world > 1 and per_node != f"{world // nodes}":
        raise ValueError(
            f"SLURM_NTASKS={world} on {nodes} nodes with SLURM_NTASKS_PER_NODE={per_node}: start it with --nodes={nodes} "
            f"--ntasks-per-node={math.ceil(world / nodes)} and without --ntasks"
        )
    return "--nodes={nodes} --ntasks-per-node={devices} to Slurm", (nodes, world)
