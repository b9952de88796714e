"""`bdg lineage`: what a run comes from: its parents, each with the digest of its data and the commit of its code."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.text import Text
from rich.tree import Tree

from bdg.commands.request import Request
from bdg.commands.runs import Place, place, word
from bdg.commands.status import wide_console
from jobs.run import write_text
from jobs.states import read_facts, read_object


def run(config: DictConfig, request: Request) -> None:
    here = place(config)
    found = lineage(here, here.need_run(word(config, "run")))
    wide_console().print(tree(found))
    if config.json:
        write_text(Path(config.json), json.dumps(found, indent=1) + "\n")


def lineage(here: Place, folder: Path, below: tuple[str, ...] = ()) -> dict[str, Any]:
    """A run, and under "parents" what it inherits from, as far back as files are there. below: identities that led here."""
    manifest = read_object(folder / "manifest.json")
    facts = read_facts(folder)
    return {
        "stage": folder.parent.name,
        "identity": folder.name,
        "folder": str(folder),
        "status": "done" if facts.done else facts.status,
        "data_digest": manifest.get("data_digest"),
        "code": manifest.get("code") or {},
        "begun": manifest.get("begun"),
        "resumed": facts.restarts,
        "parents": [_parent(here, name, (*below, folder.name)) for name in _names(manifest.get("parents"))],
    }


def _parent(here: Place, name: str, below: tuple[str, ...]) -> dict[str, Any]:
    """The run that has this identity; else weights from outside, or a run that was deleted, whose digest it is."""
    places = [path for project in sorted(here.root.iterdir()) for path in project.glob(f"*/{name}") if path.is_dir()]
    if not places or name in below:
        return {"stage": None, "identity": name, "folder": None, "parents": []}
    return lineage(here, places[0], below)


def _names(value: Any) -> Iterator[str]:
    for name in value if isinstance(value, list) else []:
        if isinstance(name, str) and re.fullmatch(r"[0-9a-f]{12}", name):
            yield name


def tree(found: dict[str, Any]) -> Tree:
    """The run at the top, its parents below it."""
    made = Tree(label(found))
    for parent in found["parents"]:
        made.add(tree(parent))
    return made


def label(found: dict[str, Any]) -> Text:
    if found["folder"] is None:
        return Text(f"{found['identity']}: weights from outside, or of a run that is not here any more")
    commit = found["code"].get("commit", "") if isinstance(found["code"], dict) else ""
    code = f"commit {commit[:12]}" if commit else "commit unknown"
    if commit and found["code"].get("diff"):
        code += f" with changes {found['code']['diff']}"
    text = Text(f"{found['stage']} {found['identity']} ", "bold")
    data = f"data {str(found['data_digest'] or 'unknown')[:12]}"
    resumed = f", resumed {found['resumed']} times" if found["resumed"] else ""
    return text.append(f"{found['status']}, {data}, {code}, begun {found['begun'] or 'never'}{resumed}", "not bold")
