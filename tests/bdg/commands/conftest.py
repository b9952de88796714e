"""Runs and sweeps as files, made by hand for the verbs that look at them; and a Slurm that answers as it is told."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jobs.plan import Cell, Plan, Task
from jobs.slurm import Slurm, SlurmMissing


@dataclass
class Made:
    """Below a working folder with `runs/demo`."""

    project: Path

    def run(self, identity: str, status: str = "done", stage: str = "generation", **files: Any) -> Path:
        """A run's folder. files: JSON by name, in which __ is a slash; text is written as it is."""
        folder = self.project / stage / identity
        (folder / "weights").mkdir(parents=True)
        (folder / "STATUS").write_text(f"{status}\n")
        if status == "done":
            (folder / "weights" / "ema.safetensors").write_text("weights")
        else:
            (folder / "weights").rmdir()
        for name, content in files.items():
            path = folder / f"{name.replace('__', '/')}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        return folder

    def sweep(self, name: str, cells: dict[str, Sequence[tuple[str, str]]], submissions: Sequence[Any] = ()) -> Path:
        """cells: name -> (stage, identity) of its chain."""
        users: dict[str, list[int]] = {}
        for position, chain in enumerate(cells.values()):
            for _, identity in chain:
                users.setdefault(identity, []).append(position)
        tasks = {}
        for chain in cells.values():
            for position, (stage, identity) in enumerate(chain):
                parent = chain[position - 1][1] if position else None
                folder = str(self.project / stage / identity)
                tasks[identity] = Task(stage, identity, folder, parent, ("seed=0",), tuple(users[identity]), 100)
        made = [Cell(cell, {}, tuple(identity for _, identity in chain)) for cell, chain in cells.items()]
        plan = Plan(name, str(self.project.parent), self.project.name, tuple(made), tasks)
        folder = self.project / "sweeps" / name
        folder.mkdir(parents=True)
        (folder / "plan.json").write_text(json.dumps(plan.to_dict() | {"words": ["sweep=seeds"]}))
        (folder / "submissions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in submissions))
        return folder


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    return Made(tmp_path / "runs" / "demo")


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[str]]]:
    """slurm(squeue="...", sacct="...") answers so, slurm() is none at all; what it was asked is in the list it returns."""

    def answer(**answers: str) -> list[list[str]]:
        asked: list[list[str]] = []

        def run(command: Sequence[str], text: str = "") -> str:
            asked.append(list(command))
            if not answers:
                raise SlurmMissing("there is no Slurm on this machine (no command squeue)")
            return answers.get(command[0], "")

        for verb in ("status", "cancel", "prune"):
            monkeypatch.setattr(f"bdg.commands.{verb}.Slurm", lambda: Slurm(run))
        return asked

    return answer
