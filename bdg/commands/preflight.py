"""`bdg preflight`: what would go wrong with a training or a sweep, found before it is submitted, without memory or a GPU.

Exit status 1 if there are errors, else 0.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from bdg.commands.cells import literal
from bdg.commands.chain import resolved, stage_config, stage_link
from bdg.commands.checks import Fault, fault_of
from bdg.commands.errors import message
from bdg.commands.findings import Finding, Work, check, of_plan, refuse, show
from bdg.commands.planning import adding, plan_cells
from bdg.commands.request import Request, key_of
from bdg.commands.search import corners
from bdg.commands.sweep import cells_of, space_of, split
from jobs.run import write_text

NAMED = (
    r"no key '([^']+)'",
    r"Could not find '([\w/]+)/",
    r"in '([\w./@+~]+)=",
    r"^([\w.]+) has no value",
    r"full_key: (\S+)",
)
"""Where the text of an error of composition has its key."""


def run(config: DictConfig, request: Request) -> None:
    """config: unused, since it is composed without the keys that vary."""
    preflight(request)


def preflight(request: Request) -> None:
    """Checks what the words of a `bdg sweep`, or those of a `bdg pipeline`, ask for. Raises ValueError if there are errors."""
    own, fixed, varied = split(request)
    settings = Request("sweep", own, request.config_dir).compose()
    works, faults = asked(Request("train", fixed, request.config_dir), settings, varied)
    findings = [*(Finding(fault.key, (), fault.message, fault.level) for fault in faults), *check(works)]
    show(findings, len(works))
    if settings.json:
        report = {"stages": len(works), "findings": [asdict(finding) for finding in findings]}
        write_text(Path(settings.json), json.dumps(report, indent=1) + "\n")
    refuse(findings)


def asked(common: Request, settings: DictConfig, varied: Mapping[str, list[Any]]) -> tuple[list[Work], list[Fault]]:
    """The stages of all cells, or of the ends of a search; if these cannot be planned, those of the first, with the reason."""
    if not varied and not any(settings.sweep[key] for key in ("cells", "grid", "seeds", "search")):
        return chain(common)
    space = space_of(settings, varied)
    points = corners(space) if space else cells_of(settings, varied)
    one_stage = "stage" in {key_of(word) for word in common.overrides} | {key for p in points for key in p.changes}
    try:
        return of_plan(plan_cells(common, points, "preflight", one_stage)), []
    except (ValueError, OSError, HydraException, OmegaConfBaseException) as error:
        words = (f"{key}={literal(value)}" for key, value in points[0].changes.items())
        works, faults = chain(adding(common, *words))
        if not works:
            return works, faults
        reason = fault_of(error, compose_fault(error).key, works[0].config)
        return [replace(works[0], fault=reason), *works[1:]], faults


def chain(request: Request) -> tuple[list[Work], list[Fault]]:
    """The stages that a request asks for, and what keeps them from being known."""
    works: list[Work] = []
    try:
        stages = list(request.compose().stages)
        for stage in stages:
            works.append(_work(request, stage, stage == stages[0], works[-1] if works else None))
    except Exception as error:
        return works, [compose_fault(error)]
    return works, [] if works else [Fault("stages", "stages=[] trains nothing: name some, such as [generation]")]


def _work(request: Request, stage: str, first: bool, parent: Work | None) -> Work:
    before = parent.config if parent else None
    reason: Exception | None = None
    if parent is None or parent.run:  # else it cannot be known either
        try:
            link = stage_link(request, stage, first)
            return Work((), resolved(link.config), before, link.run)
        except Exception as error:
            reason = error
    config = stage_config(request, stage, first)
    config.run_folder = ""
    plain = resolved(config)
    return Work((), plain, before, None, fault_of(reason, "stage", plain) if reason else None)


def compose_fault(error: Exception) -> Fault:
    """Why there is no config, under the key that its text names."""
    text = message(error)
    named = next(filter(None, (re.search(pattern, text) for pattern in NAMED)), None)
    return Fault(named[1] if named else "config", text)
