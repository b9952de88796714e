"""One command line of a verb that composes a config: bare words, Hydra's own flags, and what is run for them."""

import argparse
import importlib
import itertools
import logging
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig

from bdg.commands.compose import open_hydra
from bdg.commands.errors import make_printable, report
from bdg.commands.help import help_text
from bdg.commands.request import Request, quote
from bdg.commands.verbs import Verb
from jobs.secrets import hide_secrets, without_secrets

SWEPT = ("train", "pipeline")
"""Verbs whose `-m` is a sweep: its runs are planned together, and what cells share is trained once."""
SHARD_RANGE = re.compile(r"^([^=]+)=([^'\"].*\{\d+\.\.\d+\}.*)$")
"""key=a-{000..009}.tar, which the shell hands over without quotes and Hydra's grammar has no meaning for."""


def invoke(verb: Verb, argv: Sequence[str]) -> int:
    """Run `bdg <verb> <argv>` and return the exit status."""
    flags = parse(verb, argv)
    overrides = name_words(verb, flags.overrides)
    config_name = flags.config_name or verb.file
    hydra = open_hydra(flags.config_dir)
    if flags.help:
        print(help_text(verb, hydra, config_name, overrides))
    elif flags.hydra_help:
        hydra.hydra_help(None, get_args_parser(), flags)
    elif flags.cfg:
        hydra.show_cfg(config_name, overrides, flags.cfg, flags.package, flags.resolve)
    elif flags.info:
        hydra.show_info(flags.info, config_name, overrides)
    elif verb.name == "sweep" or (flags.multirun and verb.name in SWEPT):
        set_up_logging()
        name = flags.config_name or ("train" if verb.name == "sweep" else verb.file)
        sweep = importlib.import_module("bdg.commands.sweep").sweep
        return sweep(Request(name, tuple(overrides), flags.config_dir), measured=verb.name == "pipeline")
    elif verb.name == "preflight":  # as of a sweep, keys may have several values
        set_up_logging()
        importlib.import_module("bdg.commands.preflight").preflight(
            Request("train", tuple(overrides), flags.config_dir)
        )
    elif flags.multirun:
        return run_all(verb, [Request(config_name, cell, flags.config_dir) for cell in cells(hydra, overrides)])
    else:
        run(verb, Request(config_name, tuple(overrides), flags.config_dir))
    return 0


def parse(verb: Verb, argv: Sequence[str]) -> argparse.Namespace:
    """Hydra's flags; anything it would do with run folders or installed scripts is refused (exit status 2)."""
    parser = get_args_parser()
    parser.prog = f"bdg {verb.name}"
    parser.usage = f"{verb.usage}\n       {parser.prog} --help"
    flags = parser.parse_intermixed_args(argv)
    modes = [flags.run, flags.multirun, flags.cfg is not None, flags.info is not None]
    if sum(modes) > 1:
        parser.error("only one of --run, --multirun, --cfg and --info can be given")
    if flags.resolve and not flags.cfg:
        parser.error("--resolve belongs to --cfg: add --cfg job")
    if flags.config_path or flags.experimental_rerun:
        parser.error("--config-path and --experimental-rerun are not used here: put files into --config-dir")
    if flags.shell_completion:
        parser.error("completion is installed for all verbs at once: bdg -sc install=bash")
    return flags


def name_words(verb: Verb, arguments: Sequence[str]) -> list[str]:
    """The arguments as overrides: bare words fill, in order, those of the verb's keys that no `key=value` sets.

    A verb with `many` takes all that are left for its last key, as a list. A word is bare if it has no '=' or begins as a
    path does (`./ ../ / ~/`); `~key` is Hydra's deletion.
    """
    bare = {argument for argument in arguments if is_bare(argument, verb.cells)}
    named = Counter(argument.lstrip("+").partition("=")[0] for argument in arguments if argument not in bare)
    for name, times in named.items():
        if times > 1:  # the last would count, silently; a shell makes this of key=x-{0..9}.tar
            raise ValueError(f"{name} is given {times} times: give it once, and put quotes around braces, '{name}=...'")
    free = [key for key in verb.words if key not in named]
    overrides, rest = [], []
    for argument in arguments:
        if argument not in bare:
            overrides.append(SHARD_RANGE.sub(lambda found: f"{found[1]}={quote(found[2])}", argument))
        elif verb.many and free == [verb.words[-1]]:
            rest.append(quote(argument))
        elif free:
            overrides.append(f"{free.pop(0)}={quote(argument)}")
        else:
            raise ValueError(f"'{argument}' is one word too many: type {verb.usage}")
    return [*overrides, f"{verb.words[-1]}=[{','.join(rest)}]"] if rest else overrides


def is_bare(argument: str, cells: bool = False) -> bool:
    """Whether an argument is a plain word such as a path, not an override. cells: a '/' before the '=' makes a word, too."""
    if argument.startswith(("./", "../", "/", "~/")) or (cells and "/" in argument.partition("=")[0]):
        return True
    return not ("=" in argument or argument.startswith("~"))


def cells(hydra: Hydra, overrides: Sequence[str]) -> list[tuple[str, ...]]:
    """The overrides of each cell of a sweep, the last key varying fastest."""
    return list(itertools.product(*axes(hydra, overrides)))


def axes(hydra: Hydra, overrides: Sequence[str]) -> list[list[str]]:
    """For each override those that it stands for, as Hydra's grammar has it: several of a choice, a range or a glob."""
    found: list[list[str]] = []
    for override in OverridesParser.create(hydra.config_loader).parse_overrides(list(overrides)):
        if not override.is_sweep_override():
            found.append([str(override.input_line)])
        elif override.is_discrete_sweep():
            found.append([f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()])
        else:
            raise HydraException(
                f"'{override.input_line}' is an interval: name the values, or range(start, stop, step)"
            )
    return found


def run(verb: Verb, request: Request) -> None:
    """Compose the config and do the verb's work."""
    set_up_logging()
    config = request.compose()
    check_json(config)
    importlib.import_module(f"bdg.commands.{verb.file}").run(config, request)


def check_json(config: DictConfig) -> None:
    """Raises ValueError for a `json` that could replace a picture, or anything else that is not JSON."""
    if (path := config.get("json")) and Path(path).suffix != ".json":
        raise ValueError(f"json={path}: end the name with .json, so that no other file is replaced")


def set_up_logging() -> None:
    logging.basicConfig(format="%(message)s")
    for handler in logging.getLogger().handlers:
        handler.addFilter(hide_secrets)
        handler.addFilter(make_printable)
    logging.getLogger("bdg").setLevel(logging.INFO)


def run_all(verb: Verb, requests: Sequence[Request]) -> int:
    """Run the cells of a sweep one after another; one that fails is reported and the rest go on. Status 1 if any failed."""
    for request in requests:  # a mistyped cell stops the sweep here, not after the cells before it have run
        request.compose()
    failed = 0
    for number, request in enumerate(requests, start=1):
        title = f"bdg {verb.name} [{number}/{len(requests)}] {' '.join(without_secrets(request.overrides))}"
        print(title, flush=True)
        try:
            run(verb, request)
        except Exception as error:
            report(title, error)
            failed += 1
    if failed:
        print(f"bdg {verb.name}: error: {failed} of {len(requests)} cells failed", file=sys.stderr)
    return int(failed > 0)
