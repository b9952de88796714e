"""The chain of stages that a request asks for: which run each of them is, and what it inherits from. Needs no torch."""

import hashlib
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from bdg.commands.request import Request
from datamodules.shards import digest
from jobs.run import Run, definition, identity


@dataclass(frozen=True)
class Parent:
    """Where a stage's first weights come from, and what makes them."""

    identity: str
    weights: Path
    made_by: str


@dataclass(frozen=True)
class Link:
    """One stage of the chain: its config with the run's folder filled in, and what it is made of."""

    config: DictConfig
    run: Run
    data: str
    parent: Parent | None


def stage_link(request: Request, stage: str, first: bool = True) -> Link:
    """Finds out which run this is; with `inherit.from=auto` that asks the same of the stage before.

    first: whether `inherit.from` and `ckpt_path` of the request speak of this stage, or of another one.
    """
    others = {} if first else {"inherit.from": "auto", "ckpt_path": "null"}
    config = request.compose({"stage": stage, **others})
    parent = _parent(config, request)
    data = digest(config.data.shards)
    config.run_folder = ""  # does not define anything, but must have a value for the config to resolve
    defined = definition(resolved(config))
    if config.ckpt_path:
        defined["ckpt_path"] = hashlib.sha256(existing(config.ckpt_path).read_bytes()).hexdigest()[:12]
    name = identity(defined, parent.identity if parent else None, data)
    run = Run(Path(config.root), config.project, config.stage.name, name)
    config.run_folder = str(run.folder)
    config.inherit.parent = str(parent.weights) if parent else None
    return Link(config, run, data, parent)


def resolved(config: DictConfig) -> dict[str, Any]:
    """The config as plain containers, every interpolation replaced by its value."""
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _parent(config: DictConfig, request: Request) -> Parent | None:
    chain, stage, source = list(config.stages), config.stage.name, config.inherit["from"]
    if source in (None, "none"):
        return None
    if source != "auto":
        weights = Path(source) / "weights" / "ema.safetensors" if Path(source).is_dir() else Path(source)
        if not weights.exists():
            raise FileNotFoundError(
                f"inherit.from={source}: there are no weights at {weights}: "
                "name the folder of a finished run or a weights file, or start from scratch with inherit.from=none"
            )
        return Parent(hashlib.sha256(weights.read_bytes()).hexdigest()[:12], weights, made_by="")
    if stage not in chain:
        raise ValueError(
            f"stage={stage} is not in stages={chain}: add it there, or say what it inherits from with inherit.from="
        )
    if chain[0] == stage:
        return None
    before = stage_link(request, chain[chain.index(stage) - 1], first=False)
    words = request.without("stage", "inherit.from").overrides
    flags = ["--config-dir", request.config_dir] if request.config_dir else []
    command = shlex.join(["bdg", "train", f"stage={before.config.stage.name}", *words, *flags])
    return Parent(before.run.identity, before.run.weights, command)


def existing(path: str) -> Path:
    if not Path(path).is_file():
        raise FileNotFoundError(f"ckpt_path={path}: no such file: name a checkpoint such as RUN/checkpoints/last.ckpt")
    return Path(path)
