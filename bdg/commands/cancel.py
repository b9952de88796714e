"""`bdg cancel`: ends what a sweep or a run has in the queue, and what of it runs on this machine; nothing else.

A training that is running saves its state first, so that the same command goes on from there.
"""

import json
import os
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from bdg.commands.request import Request
from bdg.commands.runs import Place, Sweep, place, word
from jobs.run import write_text
from jobs.slurm import Slurm
from jobs.states import PENDING, RUNNING, attempts, read_object, runs


@dataclass(frozen=True)
class Victim:
    """A job of Slurm ("123_4"), or a process of this machine. what: the run, or the sweep, in words."""

    job: str
    pid: int | None
    what: str


def run(config: DictConfig, request: Request) -> None:
    here = place(config)
    found = here.need(word(config, "what"))
    slurm = Slurm()
    victims = [*of_slurm(found, here, slurm), *of_this_machine(found, here)]
    if not config.dry:
        if jobs := [victim.job for victim in victims if victim.pid is None]:
            slurm.cancel(jobs)
        for pid in (victim.pid for victim in victims if victim.pid is not None):
            end(pid)
    for victim in victims:
        print(f"{'would cancel' if config.dry else 'cancelled'} {victim.job}: {victim.what}")
    if not victims:
        print("nothing to cancel: no job of it is in the queue, and none of its processes runs on this machine")
    if config.json:
        write_text(Path(config.json), json.dumps([asdict(victim) for victim in victims], indent=1) + "\n")


def of_slurm(found: Sweep | Path, here: Place, slurm: Slurm) -> Iterator[Victim]:
    """Jobs that the sweep submitted, or that anybody submitted for the run, as far as they are in the queue."""
    tried = attempts(_submissions(found, here))
    names = {a.job: run for run in tried if _is_of(found, run) for a in tried[run] if a.where == "slurm"}
    for row in slurm.queue() if names else ():
        if row.id in names and row.state in (*PENDING, *RUNNING):
            yield Victim(row.id, None, f"{names[row.id]}, {row.state.lower()}")


def of_this_machine(found: Sweep | Path, here: Place) -> Iterator[Victim]:
    """Processes that were started here, and the `bdg sweep` that would start further ones."""
    seen: set[int] = set()
    tried = attempts(_submissions(found, here))
    local = [(run, a.pid, a.time) for run in tried if _is_of(found, run) for a in tried[run] if a.pid]
    for identity, pid, since in local:
        if not (runs(pid, since) and _is_bdg(pid)):
            continue
        runner = _parent(pid)
        if not (isinstance(found, Sweep) and _is_bdg(runner, "sweep")):
            yield Victim(f"local-{pid}", pid, identity)
        elif runner not in seen:
            yield Victim(f"process {runner}", runner, f"bdg sweep, which ends the trainings of {found.label}")
        seen |= {pid, runner}
    if isinstance(found, Path):
        beat = read_object(found / "heartbeat" / "rank_0.json")
        own, host = beat.get("pid"), beat.get("host")
        if isinstance(own, int) and host == socket.gethostname() and own not in seen and runs(own) and _is_bdg(own):
            yield Victim(f"process {own}", own, found.name)


def end(pid: int) -> None:
    """Asks the process to leave, and those of its group where it leads one."""
    with suppress(ProcessLookupError):
        if os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGTERM)
        else:
            os.kill(pid, signal.SIGTERM)


def _submissions(found: Sweep | Path, here: Place) -> Sequence[Mapping[str, Any]]:
    return found.submissions if isinstance(found, Sweep) else here.submissions


def _is_of(found: Sweep | Path, identity: str) -> bool:
    return isinstance(found, Sweep) or identity == found.name


def _is_bdg(pid: int, verb: str = "") -> bool:
    """Whether the process is a command of ours; its number may have gone to another one."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    return any(Path(word).name == "bdg" for word in words) and (not verb or verb in words)


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0
