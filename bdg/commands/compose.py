"""Configs and the parts they name: composed by Hydra from one search path, built behind an allow-list."""

import copy
import difflib
import functools
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import _locate, create_config_search_path
from hydra.core.config_search_path import ConfigSearchPath
from hydra.errors import ConfigCompositionException, InstantiationException, MissingConfigException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from bdg.documents import parse_yaml

ALLOWED = (
    "bdg",
    "callbacks",
    "datamodules",
    "lightning.Trainer",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.plugins",
    "lightning.pytorch.strategies",
    "torch.nn",
    "torch.optim",
    "torchmetrics",
)
"""Whose classes a config may name."""
FUNCTIONS = ("bdg.probe", "bdg.samplers")
"""Whose functions it may name too: they compute. Those of other modules read and write files, or load what they are given."""
HOMES = (*ALLOWED, "lightning.fabric.plugins", "lightning.pytorch.trainer")
"""Where the code of what is named as above may be written."""
NEVER = (
    *sys.stdlib_module_names,
    "torch.hub",
    "torch.jit",
    "torch.load",
    "torch.package",
    "torch.serialization",
    "torch.utils.cpp_extension",
    "torchmetrics.functional.multimodal",
    "torchmetrics.multimodal",
)
"""What no config may call, whatever is trusted: commands, evaluation and loaders that run what they load, from the Hub too."""


def compose(config_name: str, overrides: Sequence[str], config_dir: str | None = None) -> DictConfig:
    """The config of `conf/<config_name>.yaml` with Hydra `overrides` applied; values nobody gave stay `???`.

    Holds no state and sets none, so that it can be called again while another config is in use.

    Raises:
        ValueError: an override names a key that the config does not have.
        hydra.errors.ConfigCompositionException: an override or a file is not valid, or a choice does not exist.
    """
    hydra = open_hydra(config_dir)
    try:
        config = hydra.compose_config(config_name, list(overrides), run_mode=RunMode.RUN)
    except RecursionError:
        raise ValueError(
            f"config '{config_name}': one of its files or words is nested too deeply: flatten it"
        ) from None
    except ConfigCompositionException as error:
        if unknown := re.search(r"Could not override '(.+)'\.\nTo append to your config use \+(.+)", str(error)):
            raise ValueError(_unknown_key(hydra, config_name, overrides, *unknown.groups())) from error
        if isinstance(error, MissingConfigException) and not error.options:  # of a choice in a list, Hydra names none
            group = str(error.missing_cfg_file).rpartition("/")[0]
            error.add_note(f"Available options in '{group}': {', '.join(hydra.config_loader.get_group_options(group))}")
        raise
    return hydra.get_sanitized_cfg(config, "job")


def open_hydra(config_dir: str | None = None) -> Hydra:
    """Hydra over the search path, used for composing only: it never owns folders, logging or sweeps."""
    return Hydra(task_name="bdg", config_loader=ConfigLoaderImpl(search_path(config_dir)))


def search_path(config_dir: str | None = None) -> ConfigSearchPath:
    """Where files are looked for: `config_dir`, ./conf, $BDG_CONFIG_DIR, the package; the first of a name wins."""
    path = create_config_search_path("pkg://conf")
    places = {"--config-dir": config_dir, "./conf": "conf", "$BDG_CONFIG_DIR": os.environ.get("BDG_CONFIG_DIR")}
    for provider, place in places.items():
        if place and Path(place).is_dir():
            path.prepend(provider=provider, path=f"file://{Path(place).resolve()}", anchor="main")
        elif place and provider != "./conf":
            raise FileNotFoundError(
                f"{provider} names '{place}', which is not a folder: name one that holds config files"
            )
    return path


def _unknown_key(hydra: Hydra, config_name: str, overrides: Sequence[str], key: str, mistaken: str) -> str:
    try:
        others = [override for override in overrides if override != mistaken]
        config = hydra.compose_config(config_name, others, run_mode=RunMode.RUN)
        known = {*config.hydra.runtime.choices, *_keys(hydra.get_sanitized_cfg(config, "job"))}
    except ConfigCompositionException:  # a second mistake beside this one; it is reported once this one is mended
        known = set()
    elsewhere = sorted(other for other in known if other.rpartition(".")[2] == key.rpartition(".")[2])
    close = elsewhere or difflib.get_close_matches(key, known)
    hint = f"did you mean {' or '.join(close[:3])}?" if close else f"bdg {config_name} --help lists what there is."
    return f"no key '{key}' in config '{config_name}': {hint} To add a key of your own: +{mistaken}"


def _keys(config: DictConfig, prefix: str = "") -> Iterator[str]:
    for name, value in config.items_ex(resolve=False):
        key = prefix + str(name)
        yield key
        if isinstance(value, DictConfig) and not value._is_missing() and not value._is_none():
            yield from _keys(value, f"{key}.")


def get(config: Any, dotted: str) -> Any:
    """The value at a dotted key, None if there is none."""
    for key in dotted.split("."):
        if isinstance(config, Mapping):
            config = config.get(key)
        elif isinstance(config, Sequence) and key.isdecimal() and int(key) < len(config):
            config = config[int(key)]
        else:
            return None
    return config


def written_config(file: Path | str) -> DictConfig:
    """The config in a file, or a text, as a run keeps it: with all its values. It may be somebody else's, so whom it trusts is
    left out, and nothing in it is looked up: what looks like an interpolation is text.

    Raises ValueError for what is no YAML or no mapping.
    """
    try:
        found = parse_yaml(file if isinstance(file, str) else file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise error if isinstance(file, str) else ValueError(f"{file}: {error}") from None
    found.pop("trust", None)
    return literal(found)


def literal(values: Mapping[Any, Any]) -> DictConfig:
    """A config of plain values, in which text that looks like an interpolation is text."""
    return OmegaConf.create(escaped(values))


def escaped(value: Any) -> Any:
    """A text, or the texts in plain containers, such that OmegaConf takes nothing in it for an interpolation."""
    if isinstance(value, Mapping):
        return {key: escaped(each) for key, each in value.items()}
    if isinstance(value, list):
        return [escaped(each) for each in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def trusted(config: Any) -> list[str]:
    """The packages that a whole config and $BDG_TRUST name."""
    own = config.get("trust") if isinstance(config, Mapping) else None
    return [*_packages(own), *_packages(os.environ.get("BDG_TRUST"))]


def build(node: Any, *, trust: Sequence[str] | None = None, **extra: Any) -> Any:
    """What `node` describes: `_target_` called with the node's other keys and `extra`; containers arrive as plain ones.

    A `_target_` is code. Every one below `node` must be a class of `ALLOWED`, a function of `FUNCTIONS`, or anything in a
    package of `trust` or of $BDG_TRUST (comma separated), and nothing of `NEVER`; all are checked before the first is called.
    trust: None: the list `trust` at the root of the config that `node` is part of, which then must be the user's own.

    For a node that came in a file of weights there is `bdg.restoration.build_trusted`.

    Raises:
        ValueError: a target is none of these, or a value would be looked up only when the target is called.
        hydra.errors.InstantiationException: a target does not exist or does not take the arguments it is given.
    """
    node = copy.deepcopy(node) if OmegaConf.is_config(node) else literal(node)
    OmegaConf.set_readonly(node, False)
    OmegaConf.resolve(node)  # once: what is checked is what is built
    root, key = node._get_root(), node._get_full_key("")
    packages = [*_packages(trust), *trusted(None)] if trust is not None else trusted(root)
    plain = OmegaConf.to_container(node)
    _check_resolved(plain, key)
    for place, target in _targets(plain, key):
        _check(f"{place}._target_".lstrip("."), target, packages)
    try:
        if not extra:
            return instantiate(node, _convert_="all")
        # called here, as Hydra would turn a dataclass among `extra` into a dict
        part = instantiate(node, _convert_="all", _partial_=True)
        return functools.partial(part, **extra) if node.get("_partial_") else part(**extra)
    except InstantiationException as error:
        cause = error.__cause__
        if cause is None or isinstance(cause, ImportError) or _is_wrong_call(cause):
            raise
        raise cause from None
    except TypeError as error:
        if _is_wrong_call(error):
            raise InstantiationException(f"Error in call to target '{node._target_}':\n{error!r}") from error
        raise


def _is_wrong_call(error: BaseException) -> bool:
    """Whether the arguments did not fit, as opposed to an error inside of what was called: then Hydra's frame is the last."""
    *_, last = traceback.extract_tb(error.__traceback__)
    return isinstance(error, TypeError) and "hydra" in Path(last.filename).parts


def _packages(names: str | Sequence[str] | None) -> Sequence[str]:
    return [name for name in names.split(",") if name] if isinstance(names, str) else names or []


def _targets(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Every `_target_` in plain containers, with the key of the node that has it."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield key, node["_target_"]
        for name, value in node.items():
            yield from _targets(value, f"{key}.{name}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _targets(value, f"{key}[{index}]")


def _check_resolved(node: Any, key: str) -> None:
    """Raises ValueError for text that Hydra would take for an interpolation, and so look up, after it was checked."""
    if isinstance(node, dict):
        for name, value in node.items():
            _check_resolved(value, f"{key}.{name}".lstrip("."))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            _check_resolved(value, f"{key}[{index}]")
    elif isinstance(node, str) and "${" in node:
        raise ValueError(
            f"{key}='{node}' is an interpolation once more, or text that looks like one: write the value there"
        )


def _check(key: str, target: Any, trusted: Sequence[str]) -> None:
    if not isinstance(target, str) or target == "???":
        raise ValueError(f"{key} is '{target}': it must be the dotted name of a class or function")
    _check_home(key, target, target, ALLOWED, trusted)
    try:
        found = _locate(target)
    except ImportError as error:
        raise ValueError(f"{key} is '{target}', which does not exist: {error}") from error
    # an allowed module also reaches what it imports (bdg.cli.sys.exit): where the object was written decides
    home = str(getattr(found, "__module__", "?"))
    _check_home(key, target, home, HOMES, trusted)
    if not isinstance(found, type) and not _is_in(home, (*FUNCTIONS, *trusted)):
        raise ValueError(
            f"{key} is '{target}', a function: a config may name classes, and functions of {', '.join(FUNCTIONS)}: "
            f"if you need this one, add trust=[{home}] to the command or set BDG_TRUST={home}"
        )


def _check_home(key: str, target: str, home: str, allowed: Sequence[str], trusted: Sequence[str]) -> None:
    if _is_in(home, NEVER):
        raise ValueError(
            f"{key} is '{target}', which no config may call: it could run anything. Do it in a class of your own package, "
            "and trust that"
        )
    if not _is_in(home, (*allowed, *trusted)):
        package = home.partition(".")[0]
        raise ValueError(
            f"{key} is '{target}', code of the package '{package}', which is not among "
            f"{', '.join([*allowed, *trusted])}: if you trust it, add trust=[{package}] to the command or set "
            f"BDG_TRUST={package}"
        )


def _is_in(name: str, packages: Sequence[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)
