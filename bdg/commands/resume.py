"""`bdg resume`: the command that made a run or a sweep, given once more; what it then makes is the same, or nothing."""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from bdg.commands.chain import resolved, stage_config, stage_link
from bdg.commands.compose import trusted, written_config
from bdg.commands.invocation import invoke, parse
from bdg.commands.request import Request, key_of
from bdg.commands.runs import Sweep, place, word
from bdg.commands.sweep import split
from bdg.commands.verbs import VERBS
from jobs.identity import definition, differences
from jobs.states import is_locked, read_object

TRAIN = VERBS["train"]


def run(config: DictConfig, request: Request) -> None:
    found = place(config).need(word(config, "what"))
    further = shlex.split(f"{config.words or ''}")
    verb, words = of_sweep(found) if isinstance(found, Sweep) else of_run(found, further)
    words = replaced(words, further)
    check_trust(verb, words, further)
    print(shlex.join(["bdg", verb, *words]), flush=True)
    if status := invoke(VERBS[verb], words):
        sys.exit(status)


def of_sweep(sweep: Sweep) -> tuple[str, list[str]]:
    """The verb and its words."""
    file = sweep.folder / "plan.json"
    about = read_object(file)
    planned = Path(f"{about['root']}") / f"{about['project']}"
    if planned.resolve() != sweep.folder.parents[1].resolve():
        raise ValueError(
            f"{sweep.folder} was made where root={about['root']} led to it, and from {os.getcwd()} it does not: go there"
        )
    return "sweep", recorded(about, file, "sweep")


def of_run(folder: Path, further: Sequence[str]) -> tuple[str, list[str]]:
    """The verb and its words, which come to this run."""
    if is_locked(folder):
        raise BlockingIOError(f"{folder} is being trained now: see bdg status, or stop it with bdg cancel")
    file = folder / "manifest.json"
    words = without_lost_folder(recorded(read_object(file), file, "train"))
    check(folder, replaced(words, further))
    return "train", words


def recorded(about: dict[str, Any], file: Path, verb: str) -> list[str]:
    """What followed `bdg verb`, as the file tells."""
    words = about.get("words")
    if not isinstance(words, list) or not all(isinstance(each, str) for each in words):
        raise ValueError(f"{file} does not say which command made it: give the bdg {verb} command again")
    if hidden := [key_of(each) for each in words if "***" in each]:
        raise ValueError(
            f"{file} holds no secrets, and {hidden[0]} of its command is one: give the bdg {verb} command again"
        )
    return words


def replaced(words: Sequence[str], further: Sequence[str]) -> list[str]:
    """The words with `further` ones, which replace those of the same keys."""
    keys = {key_of(each) for each in further}
    return [*(each for each in words if "=" not in each or key_of(each) not in keys), *further]


def without_lost_folder(words: list[str]) -> list[str]:
    """A sweep's jobs have copies of the configs, which bdg prune deletes; those of today will do if they say the same."""
    if "--config-dir" not in words:
        return words
    at = words.index("--config-dir")
    return words if Path(words[at + 1]).is_dir() else words[:at] + words[at + 2 :]


def check_trust(verb: str, words: Sequence[str], further: Sequence[str]) -> None:
    """Raises ValueError if a recorded command, or the configs it names, trust packages that are not named now: a folder that
    came from elsewhere must not say whose code runs here."""
    named = trusted(Request("train", tuple(word for word in further if key_of(word) == "trust")).compose())
    wanted = {package for config in configs(verb, words) for package in trusted(config)}
    if unknown := ", ".join(sorted(wanted - {*named})):
        raise ValueError(
            f"the recorded command trusts code of {unknown}, and you may not: if you do, add words='trust=[{unknown}]', or set "
            f"BDG_TRUST={unknown.replace(' ', '')}"
        )


def configs(verb: str, words: Sequence[str]) -> list[Mapping[str, Any]]:
    """What the command would train: of a sweep, one for each run."""
    flags = parse(VERBS[verb], words)
    request = Request(flags.config_name or verb, tuple(flags.overrides), flags.config_dir)
    if verb == "train":
        return [stage_config(request, request.compose({"identity": "null"}).stage.name)]
    from bdg.commands.preflight import asked  # which needs torch

    own, fixed, varied = split(request)
    settings = Request("sweep", own, flags.config_dir).compose()
    works, _ = asked(Request(flags.config_name or "train", fixed, flags.config_dir), settings, varied)
    return [work.config for work in works]


def check(folder: Path, words: Sequence[str]) -> None:
    """Raises ValueError if these words do not come to the run in `folder`, as after an edit of a config or of the data."""
    flags = parse(TRAIN, words)
    request = Request(flags.config_name or "train", tuple(flags.overrides), flags.config_dir)
    link = stage_link(request, request.compose({"identity": "null"}).stage.name)
    if link.run.folder.resolve() == folder.resolve():
        return
    begun = resolved(written_config(folder / "config.yaml"))
    manifest = read_object(folder / "manifest.json")
    different = differences(definition(begun), definition(resolved(link.config)))
    if (data := manifest.get("data_digest")) != link.data:
        different.append(f"digest of the data: {data} and {link.data}")
    if manifest.get("cwd") not in (None, os.getcwd()):
        different.append(f"working folder: {manifest['cwd']} and {os.getcwd()}")
    raise ValueError(
        f"{folder} cannot go on: its command now makes {link.run.stage} {link.run.identity} in {link.run.folder}"
        f" ({'; '.join(different) or 'from other parents'}): give these their old values"
    )
