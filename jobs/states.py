"""The state of each run of a sweep, in words with the reason: from its files, and from what Slurm said. Asks nobody itself."""

import fcntl
import json
import os
import re
import socket
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jobs.plan import Plan
from jobs.slurm import Accounted, Queued, job_id

ACTIVE = frozenset({"running", "waiting", "held", "preempted"})
"""Words of runs on which somebody works, or will without being asked again."""
SILENT_S, LONG_SILENT_S = 600.0, 3600.0
"""Seconds after which a heartbeat of another host says that its run is dead; the second where nothing can beat."""
LONG = ("begin", "validate", "validated", "save")

REASONS = {
    "None": "was submitted just now",
    "Priority": "others are before it in the queue",
    "Resources": "waits for free nodes",
    "BeginTime": "was put back into the queue, and starts after a short delay",
    "Dependency": "waits for its parent",
    "DependencyNeverSatisfied": "its parent did not end well, so this job never starts",
    "JobArrayTaskLimit": "as many tasks of its array run as may at once (cluster.at_once)",
    "ReqNodeNotAvail": "nodes that it needs are down or reserved",
    "UnavailableNodes": "nodes that it needs are down or reserved",
    "Nodes": "nodes that it needs are down or reserved",
    "Reservation": "waits for its reservation",
    "Licenses": "waits for a licence",
    "JobHeldUser": "was held by its user: scontrol release JOB",
    "JobHeldAdmin": "was held by an administrator: ask them, or scontrol release JOB",
    "PartitionTimeLimit": "asks for more time than its partition gives: lower cluster.time_min",
    "PartitionNodeLimit": "asks for more nodes than its partition gives: lower cluster.nodes",
    "PartitionDown": "its partition is down",
    "PartitionInactive": "its partition takes no jobs now",
    "AccountNotAllowed": "its account may not use this partition: see cluster.account",
    "QOSNotAllowed": "its quality of service may not be used there: see cluster.qos",
    "InvalidAccount": "its account does not exist: see cluster.account",
    "InvalidQOS": "its quality of service does not exist: see cluster.qos",
    "BadConstraints": "no node has what it asks for: see cluster.constraint",
    "NodeDown": "a node that it needs is down",
    "Cleaning": "its last run is being cleared away",
}
"""Why a job waits, by Slurm's code."""
LIMITS = (
    (re.compile(r"Assoc(Grp|Max).*"), "its account has used what it may have"),
    (re.compile(r"(QOS|MaxQOS)Grp.*"), "its quality of service has used what it may have"),
    (re.compile(r"(QOS|MaxQOS)(Max|Min).*"), "the limits of its quality of service do not let it start now"),
    (re.compile(r"Max.*PerAccount"), "its account has used what it may have"),
)
ENDS = {
    "BOOT_FAIL": "its node did not boot",
    "CANCELLED": "cancelled",
    "COMPLETED": "its job ended before the training did",
    "DEADLINE": "its job ran into its deadline",
    "FAILED": "its job failed",
    "NODE_FAIL": "its node died",
    "OUT_OF_MEMORY": "out of memory: give cluster.mem_gb more",
    "PREEMPTED": "was preempted and not put back into the queue",
    "REVOKED": "was taken over by another cluster",
    "TIMEOUT": "its job ran into its time limit",
}
"""How a job ended, by Slurm's state."""
PENDING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT")
RUNNING = {
    "RUNNING": "",
    "CONFIGURING": "its nodes are being made ready",
    "COMPLETING": "is ending",
    "SIGNALING": "is ending",
    "STAGE_OUT": "is ending",
    "RESIZING": "",
    "STOPPED": "is suspended",
    "SUSPENDED": "is suspended",
}


@dataclass(frozen=True)
class State:
    """Of a run. word: done, running, waiting, held (for its parent), preempted (goes on by itself), failed (an attempt ended
    without done), stopped (was begun, nobody works on it now) or missing.
    """

    word: str
    reason: str = ""
    job: str = ""
    """Of the newest attempt: "123_4", or "local-PID"."""
    step: int | None = None
    max_steps: int | None = None
    step_s: float | None = None
    left_s: float | None = None
    """Of steps alone, without validation."""
    restarts: int = 0
    """How often the training went on from a checkpoint."""
    attempts: int = 0
    """How often it was submitted."""
    metric: tuple[str, float] | None = None
    """The newest score, or loss: (name, value)."""
    node: str = ""


@dataclass(frozen=True)
class Attempt:
    """A task of a submitted job. job: "123_4", or "local-PID"; time: when it was submitted, ISO 8601."""

    job: str
    where: str
    time: str

    @property
    def pid(self) -> int | None:
        return int(self.job[6:]) if re.fullmatch(r"local-\d+", self.job) else None


@dataclass(frozen=True)
class Facts:
    """What the files of a run say. status: as `jobs.run.Run.status`; here: whether its process runs on this host, if known."""

    status: str = "new"
    done: bool = False
    why: str = ""
    step: int | None = None
    max_steps: int | None = None
    step_s: float | None = None
    restarts: int = 0
    metric: tuple[str, float] | None = None
    node: str = ""
    pid: int | None = None
    silent_s: float = float("inf")
    long: bool = False
    """Whether it does what may take long without a heartbeat."""
    locked: bool = False


def states(
    plan: Plan,
    submissions: Iterable[Mapping[str, Any]],
    queue: Iterable[Queued] | None,
    accounting: Iterable[Accounted] | None,
) -> dict[str, State]:
    """By identity. submissions: lines of submissions.jsonl, of other sweeps too where they may share runs with this one.
    queue, accounting: None where Slurm cannot be asked.
    """
    asked = Asked(submissions, queue, accounting)
    found: dict[str, State] = {}
    for identity, task in plan.tasks.items():
        parent = f"{plan.tasks[task.parent].stage} {task.parent} ({found[task.parent].word})" if task.parent else ""
        found[identity] = asked.state(Path(task.folder), task.max_steps, parent)
    return found


class Asked:
    """What was submitted, and what Slurm says of it."""

    def __init__(
        self,
        submissions: Iterable[Mapping[str, Any]],
        queue: Iterable[Queued] | None,
        accounting: Iterable[Accounted] | None,
    ) -> None:
        self.attempts = attempts(submissions)
        self.known = queue is not None
        self.queue = {row.id: row for row in queue or ()}
        self.accounting = {row.id: row for row in accounting or ()}

    def state(self, folder: Path, max_steps: int | None = None, parent: str = "") -> State:
        """Of the run in `folder`. parent: in words."""
        tried = self.attempts.get(folder.name, [])
        facts = read_facts(folder)
        row = next((self.queue[attempt.job] for attempt in reversed(tried) if attempt.job in self.queue), None)
        word, reason = self._word(folder, facts, tried, row)
        if word in ("held", "missing") and parent and not parent.endswith("(done)"):
            reason = f"waits for {parent}"
        max_steps = facts.max_steps or max_steps
        left = None if not facts.step_s or not max_steps else max(0, max_steps - (facts.step or 0)) * facts.step_s
        return State(
            word,
            reason,
            job=row.id if row else tried[-1].job if tried else "",
            step=facts.step,
            max_steps=max_steps,
            step_s=facts.step_s,
            left_s=0.0 if word == "done" else left,
            restarts=facts.restarts,
            attempts=len(tried),
            metric=facts.metric,
            node=(row and row.state.split()[0] in RUNNING and row.node) or facts.node,
        )

    def _word(self, folder: Path, facts: Facts, tried: Sequence[Attempt], row: Queued | None) -> tuple[str, str]:
        if facts.done:
            return "done", ""
        newest = tried[-1] if tried else None
        ended = self.accounting.get(newest.job) if newest else None
        if row and (queued := _queued(folder, facts, row)):
            return queued
        if row:
            return _idle(facts, True, row.state, in_words(row.reason))
        if newest and newest.pid and runs(newest.pid, newest.time):
            return "running", "" if facts.status == "running" else "is starting"
        on_slurm = newest is not None and newest.where == "slurm"
        if facts.status == "running" and (facts.locked or (_beats(facts) and not (self.known and on_slurm))):
            return "running", "" if newest else "was not started by this sweep"
        if newest and on_slurm and not self.known and facts.status in ("new", "preempted"):
            word = "waiting" if facts.status == "new" else "preempted"
            return word, f"was submitted as {newest.job}; Slurm, which knows more, cannot be asked here"
        return _idle(facts, bool(tried), ended.state if ended else "")


def _queued(folder: Path, facts: Facts, row: Queued) -> tuple[str, str] | None:
    """Of a job in the queue; None: it will never run, or has ended."""
    state, why = _code(row.state), _code(row.reason)
    if state in RUNNING:
        if facts.status == "running" and not RUNNING[state] and facts.silent_s > LONG_SILENT_S:
            return "running", f"has given no sign of life for {duration(facts.silent_s)}"
        return "running", RUNNING[state] or ("" if facts.status == "running" else "is starting")
    if state not in PENDING or why == "DependencyNeverSatisfied":
        return None
    if why == "Dependency":
        return "held", in_words(row.reason)
    begun = any((folder / "slurm").glob(f"{row.id}.restart*"))
    return "preempted" if begun else "waiting", in_words(row.reason)


def _idle(facts: Facts, tried: bool, ended: str, never: str = "") -> tuple[str, str]:
    """Of a run on which nobody works. ended: Slurm's state of its newest job; never: why a job in the queue will not start."""
    state = _code(ended)
    how = never if state in PENDING else ENDS.get(state, "")
    if facts.status == "new":
        if not tried or state == "CANCELLED" or state in PENDING:
            return "missing", f"{how} before it began" if state == "CANCELLED" else how
        return "failed", f"{how or 'its process ended'}, before the training began"
    if facts.status == "failed":
        return "failed", facts.why
    if facts.status == "preempted":
        return "stopped", facts.why or "left in good order"
    if facts.status == "interrupted":
        return "stopped", "was interrupted by hand"
    if how and state != "CANCELLED" and state not in PENDING:
        return "failed", how
    if facts.status == "done":
        return "stopped", "its weights are gone"
    seen = f", last seen on {facts.node} {duration(facts.silent_s)} ago" if facts.node else ""
    return "stopped", how or f"its process is gone{seen}"


def in_words(reason: str) -> str:
    """Slurm's code for why a job waits, in words; what nobody knows stays as it is."""
    code = _code(reason)
    if code in REASONS:
        return REASONS[code]
    words = next((text for pattern, text in LIMITS if pattern.fullmatch(code)), "Slurm's reason")
    return f"{words} ({code})"


def duration(seconds: float) -> str:
    """ "40 s", "12 min", "3 h 05 min", "2 d 4 h"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


# --- files ---


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; a line that is half written, or no object, is passed over."""
    found = []
    for line in _text(path).splitlines():
        with suppress(ValueError, RecursionError):
            if isinstance(value := json.loads(line), dict):
                found.append(value)
    return found


def attempts(submissions: Iterable[Mapping[str, Any]]) -> dict[str, list[Attempt]]:
    """By identity, the oldest first."""
    found = defaultdict(list)
    for line in submissions:
        job, tasks = line.get("job"), line.get("tasks")
        if isinstance(job, str) and isinstance(tasks, Mapping):
            local = job.startswith("local-")
            for index, identity in tasks.items():
                name = job if local else job_id(job, index or None)  # "" of a job that is no array
                found[identity].append(Attempt(name, "local" if local else "slurm", f"{line.get('time', '')}"))
    return dict(found)


def read_facts(folder: Path) -> Facts:
    """What is there; a run that is deleted meanwhile is a new one."""
    status = _text(folder / "STATUS").strip() or "new"
    if status == "new" and not folder.is_dir():
        return Facts()
    speed = read_object(folder / "throughput.json")
    done = status == "done" and (folder / "weights" / "ema.safetensors").exists()
    beat = {} if done else read_object(folder / "heartbeat" / "rank_0.json")
    manifest = read_object(folder / "manifest.json")
    resumed = [start for start in _list(manifest.get("resumed")) if isinstance(start, dict)]
    steps = [step for step in (_count(speed.get("step")), _count(beat.get("step"))) if step is not None]
    return Facts(
        status,
        done,
        why="" if done else _why(folder, status),
        step=max(steps, default=None),
        max_steps=_count(speed.get("max_steps")),
        step_s=_number(speed.get("step_s")),
        restarts=len(resumed),
        metric=last_metric(folder),
        node=f"{beat.get('host') or _host([manifest, *resumed][-1])}",
        pid=_count(beat.get("pid")),
        silent_s=0.0 if done else _age(folder / "heartbeat" / "rank_0.json", folder / "STATUS"),
        long=not beat or beat.get("phase") in LONG,
        locked=status == "running" and is_locked(folder),
    )


def last_metric(folder: Path) -> tuple[str, float] | None:
    """The score of the finished run; else the newest score in its log, else the newest loss."""
    scores = read_object(folder / "metrics.json")
    for name in ("val/mean/psnr", "val/prior_noise_loss"):
        if (value := _number(scores.get(name))) is not None:
            return name, value
    logs = sorted((folder / "logs").glob("version_*/metrics.csv"), key=lambda path: (len(path.parent.name), path))
    return _last_row(logs[-1]) if logs else None


def _last_row(path: Path, wanted: Sequence[str] = ("val/mean/psnr", "loss/total")) -> tuple[str, float] | None:
    try:
        with path.open("rb") as file:
            names = file.readline().decode(errors="replace").strip().split(",")
            begin = file.tell()
            file.seek(max(begin, os.fstat(file.fileno()).st_size - 8192))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return None
    rows = [row for line in reversed(lines) if len(row := line.split(",")) == len(names)]
    for name in (name for name in wanted if name in names):
        column = names.index(name)
        newest = next((row[column] for row in rows if row[column]), "")
        with suppress(ValueError):
            return name, float(newest)
    return None


def is_locked(folder: Path) -> bool:
    """Whether a process trains there, as far as the file system tells."""
    with suppress(OSError), open(folder / "lock", opener=lambda path, how: os.open(path, how | os.O_NONBLOCK)) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def runs(pid: int, since: str = "") -> bool:
    """Whether this process runs on this host; since: when it was started, as another one may have got its number."""
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        up = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError):
        return False
    begun = time.time() - up + int(numbers[18]) / os.sysconf("SC_CLK_TCK")
    with suppress(ValueError):
        return state != "Z" and abs(begun - datetime.fromisoformat(since).timestamp()) < 60
    return state != "Z"


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is none."""
    try:
        value = json.loads(_text(path) or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _host(start: Mapping[str, Any]) -> str:
    """Of a run, by its manifest."""
    host = start.get("host")
    return f"{host.get('name') or ''}" if isinstance(host, Mapping) else ""


def _beats(facts: Facts) -> bool:
    if facts.node == socket.gethostname() and facts.pid:
        return runs(facts.pid)
    return facts.silent_s < (LONG_SILENT_S if facts.long else SILENT_S)


def _why(folder: Path, status: str) -> str:
    """How it ended, by its own words."""
    if status == "failed":
        last = (_text(folder / "README.md").splitlines() or [""])[-1]
        return last.partition(": failed: ")[2]
    if status == "preempted":
        request = _text(folder / "requeue-request").strip()
        return f"left in good order after {request}" if request else ""
    return ""


def _age(*paths: Path) -> float:
    """Seconds since the first of them that is there was written."""
    for path in paths:
        with suppress(OSError):
            return max(0.0, time.time() - path.stat().st_mtime)
    return float("inf")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _code(words: str) -> str:
    """CANCELLED of "CANCELLED by 0", ReqNodeNotAvail of "ReqNodeNotAvail, UnavailableNodes:n3"."""
    return (re.split(r"[\s,+:(]", words.strip().strip("()")) or [""])[0]


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
