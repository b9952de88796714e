"""The chain of stages that a request asks for: which run each of them is, and what it inherits from. Needs no torch."""

import hashlib
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf

from bdg.commands.compose import open_hydra
from bdg.commands.request import Request, key_of
from datamodules.shards import digest
from jobs.identity import definition, identity
from jobs.run import Run, weights_in

OF_ALL_STAGES = ("stage", "stages", "only", "experiment", "root")
"""Keys of which a stage cannot have a value of its own."""
ONLY = "as in \"only.generation=['data=photographs','data.quotas=null']\""


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
    words: tuple[str, ...]
    """What follows `bdg train` to make it."""


def stage_link(request: Request, stage: str, first: bool = True) -> Link:
    """Finds out which run this is; with `inherit.from=auto` that asks the same of the stage before.

    first: whether `inherit.from` and `ckpt_path` of the request speak of this stage, or of another one.
    """
    config = stage_config(request, stage, first)
    parent = parent_of(config, request)
    data = digest(config.data.shards)
    config.run_folder = ""  # does not define anything, but must have a value for the config to resolve
    defined = definition(resolved(config))
    if config.ckpt_path:
        defined["ckpt_path"] = contents(existing(config.ckpt_path))
    name = identity(defined, parent.identity if parent else None, data)
    run = Run(Path(config.root), config.project, config.stage.name, name)
    config.run_folder = str(run.folder)
    config.inherit.parent = str(parent.weights) if parent else None
    words = request.without("stage", "json", *of_one_stage(first)).overrides
    flags = ("--config-dir", request.config_dir) if request.config_dir else ()
    return Link(config, run, data, parent, (f"stage={stage}", *words, *flags))


def stage_config(request: Request, stage: str, first: bool = True) -> DictConfig:
    """The config of one stage, with the overrides that `only` has for it as if they ended the command line.

    first: as in `stage_link`.

    Raises:
        ValueError: `only` names a stage that does not exist, or what it has is no list of overrides, or of all stages.
        hydra.errors.HydraException: one of its overrides is not valid.
    """
    replaced = {"stage": stage, **of_one_stage(first)}
    config = request.compose(replaced)
    overrides = _only(config, stage, request.config_dir)
    if not overrides:
        return config
    keys = [key_of(override) for override in overrides]
    words = (*request.without(*keys).overrides, *overrides)
    replaced = {key: value for key, value in replaced.items() if key not in keys}
    try:
        return Request(request.config_name, words, request.config_dir).compose(replaced)
    except (ValueError, HydraException) as error:
        error.add_note(f"This is in only.{stage}={overrides}.")
        raise


def of_one_stage(first: bool) -> dict[str, str]:
    """What the request says of the stage it names, and of no other."""
    return {} if first else {"inherit.from": "auto", "ckpt_path": "null", "identity": "null"}


def _only(config: DictConfig, stage: str, config_dir: str | None) -> list[str]:
    """The overrides for this stage alone, checked together with those for the others."""
    if not isinstance(config.only, DictConfig):
        raise ValueError(f"only={config.only}: give a list of overrides by stage, {ONLY}")
    named = {str(name): value for name, value in config.only.items() if value}
    known = {stage, *config.stages}
    if named.keys() - known:
        known |= {*open_hydra(config_dir).config_loader.get_group_options("stage")} - {"base"}
    for name, value in named.items():
        if name not in known:
            raise ValueError(f"only.{name}={value}: there is no such stage, choose from {', '.join(sorted(known))}")
        if not isinstance(value, ListConfig) or not all(isinstance(item, str) for item in value):
            raise ValueError(f"only.{name}={value}: give a list of overrides, each in quotes, {ONLY}")
        if shared := [item for item in value if key_of(item) in OF_ALL_STAGES]:
            raise ValueError(
                f"only.{name}: '{shared[0]}' cannot be for one stage, as {key_of(shared[0])} is of all: give it outside of only"
            )
    return list(named.get(stage, []))


def resolved(config: DictConfig) -> dict[str, Any]:
    """The config as plain containers, every interpolation replaced by its value."""
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def parent_of(config: DictConfig, request: Request) -> Parent | None:
    chain, stage, source = list(config.stages), config.stage.name, config.inherit["from"]
    if source in (None, "none"):
        return None
    if source != "auto":
        weights = weights_in(Path(source)) if Path(source).is_dir() else Path(source)
        if not weights.exists():
            raise FileNotFoundError(
                f"inherit.from={source}: there are no weights at {weights}: "
                "name the folder of a finished run or a weights file, or start from scratch with inherit.from=none"
            )
        return Parent(contents(weights), weights, made_by="")
    if stage not in chain:
        raise ValueError(
            f"stage={stage} is not in stages={chain}: add it there, or say what it inherits from with inherit.from="
        )
    if chain[0] == stage:
        return None
    before = stage_link(request, chain[chain.index(stage) - 1], first=False)
    return Parent(before.run.identity, before.run.weights, shlex.join(["bdg", "train", *before.words]))


def existing(path: str) -> Path:
    if not Path(path).is_file():
        raise FileNotFoundError(f"ckpt_path={path}: no such file: name a checkpoint such as RUN/checkpoints/last.ckpt")
    return Path(path)


def contents(path: Path) -> str:
    """12 hexadecimal digits of what a file holds, which is as long as an identity."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]
