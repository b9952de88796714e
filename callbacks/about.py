"""What a run is, in the words of a tracker: name, group, tags and flat config, read from the files in its folder."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from bdg.documents import parse_yaml
from callbacks.wandb_file import SETTING

NAME_LENGTH = 100
UNNAMED = ("stage", "root", "project", "logger", "cluster", "json", "identity")
"""Keys of the command that are told elsewhere or tell nothing of a run."""


def describe(folder: Path, stage: str) -> dict[str, Any]:
    """Config, group, name and tags of a run, from the files in its folder and the plans of the sweeps beside it."""
    config = config_of(folder)
    facts = facts_of(folder)
    sweeps = [(plan["made"], plan["name"], common(plan["cells"], plan["tasks"], folder.name)) for plan in plans(folder)]
    words = [word for word in facts.get("words", []) if word.lstrip("+").partition("=")[0] not in UNNAMED]
    _, group, label = min(sweeps, default=("", None, " ".join(words)))
    name = " ".join(filter(None, [stage, label, folder.name[:6]]))
    return {
        "config": flat(config) | axes(config) | flat(lineage(facts)) | {SETTING: without_seed(label) or "as it is"},
        "group": group,
        "tags": [sweep for _, sweep, _ in sorted(sweeps)][:20],
        "name": name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 8]}… {folder.name[:6]}",
    }


def flat(value: Mapping[str, Any], key: str = "") -> dict[str, Any]:
    """{"stage": {"lambda": 0.1}} -> {"stage/lambda": 0.1}; W&B advises against dots."""
    found: dict[str, Any] = {}
    for name, inner in value.items():
        path = f"{key}/{name}" if key else str(name)
        found |= flat(inner, path) if isinstance(inner, Mapping) and inner else {path: inner}
    return found


def axes(config: Mapping[str, Any]) -> dict[str, float]:
    """What a sweep varies, as numbers that can be an axis."""
    glcm, stage = config.get("glcm") or {}, config.get("stage") or {}
    found = {"lambda": stage["lambda"]} if "lambda" in stage else {}
    if glcm.get("angles") and glcm.get("scales"):
        found |= {"glcm/num_angles": len(glcm["angles"]), "glcm/num_scales": len(glcm["scales"])}
        found |= {"glcm/max_scale": max(glcm["scales"])}
    return found


def lineage(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What is not in the config, from the newest start's manifest: data, code, parents, machine."""
    now = {**facts, **(facts.get("resumed") or [{}])[-1]}
    devices = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    return {
        "run": {"identity": now.get("identity"), "parents": now.get("parents", [])},
        "data": {"digest": now.get("data_digest")},
        "code": now.get("code") or {},
        "versions": now.get("versions") or {},
        "hardware": {**(now.get("host") or {}), "devices": devices or ["cpu"]},
    }


def plans(folder: Path) -> Iterator[dict[str, Any]]:
    """Of the sweeps of this project that need this run."""
    for path in folder.parent.parent.glob("sweeps/*/plan.json"):
        text = _text(path)
        if folder.name in text:  # a plan may be large
            with suppress(ValueError, KeyError, TypeError):
                plan = json.loads(text)
                if any(task["identity"] == folder.name for task in plan["tasks"]):
                    yield {**plan, "name": path.parent.name, "made": str(plan.get("made", ""))}


def common(cells: Sequence[Mapping[str, Any]], tasks: Sequence[Mapping[str, Any]], identity: str) -> str:
    """What the names of all cells that need a run have in common: "lambda=0.05", for one that these share."""
    needed = [cells[k]["name"].split(",") for task in tasks if task["identity"] == identity for k in task["cells"]]
    return ",".join(part for part in (needed or [[]])[0] if all(part in other for other in needed))


def without_seed(label: str) -> str:
    return ",".join(part for part in label.split(",") if not part.startswith("seed="))


def config_of(folder: Path) -> dict[str, Any]:
    text = _text(folder / "config.yaml")
    return parse_yaml(text) if text else {}


def facts_of(folder: Path) -> dict[str, Any]:
    """Its manifest.json."""
    return json.loads(_text(folder / "manifest.json") or "{}")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
