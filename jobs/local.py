"""A plan on this machine: some processes at a time, parents before their children. Knows no cluster and no torch."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from jobs.freeze import environment as frozen_environment
from jobs.freeze import train_words
from jobs.plan import Plan, Task
from jobs.submission import Submission, append, now

POLL_S = 0.2


def run_plan(
    plan: Plan,
    wanted: Collection[str],
    at_once: int,
    code: Path | None,
    environment: Mapping[str, str],
    tell: Callable[[str], None],
) -> dict[str, str]:
    """Trains the `wanted` tasks of a plan, `at_once` at a time, and returns the word that each of them ends with.

    done, failed, preempted or interrupted, as its STATUS says; stopped, if it ended without a word; held, if its parent is not
    done. A failure holds back its own children only. code: the frozen packages to run; None: those that are installed.
    Each start is a line of submissions.jsonl. Ctrl-C or SIGTERM lets what runs save its state and leave, and raises
    KeyboardInterrupt.
    """
    waiting = [task for task in plan.tasks.values() if task.identity in wanted]
    depth = {task.identity: _depth(plan, task) for task in waiting}
    ended: dict[str, str] = {}
    running: dict[str, subprocess.Popen[bytes]] = {}
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        while waiting or running:
            for identity in [i for i, process in running.items() if process.poll() is not None]:
                del running[identity]
                ended[identity] = _word(plan.tasks[identity])
                tell(f"{_title(plan, identity)}: {ended[identity]} ({len(ended)} of {len(wanted)})")
            for task in [t for t in waiting if ended.get(t.parent or "", "done") != "done"]:
                waiting.remove(task)
                ended[task.identity] = "held"
                tell(f"{_title(plan, task.identity)}: held, since its parent {task.parent} is not done")
            ready = [t for t in waiting if not t.parent or t.parent not in wanted or t.parent in ended]
            # the deepest first, so that the first cell is finished early
            for task in sorted(ready, key=lambda t: -depth[t.identity])[: at_once - len(running)]:
                waiting.remove(task)
                running[task.identity] = _start(plan, task, code, environment)
                tell(f"{_title(plan, task.identity)}: begins, {plan.root}/.../{task.identity}")
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        tell(f"leaving: {len(running)} trainings save their state")
        for process in running.values():
            process.send_signal(signal.SIGTERM)
        for process in running.values():
            process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    return ended


def _start(plan: Plan, task: Task, code: Path | None, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """A training of its own session: Ctrl-C in the terminal is for us, who pass it on."""
    logs = Path(task.folder) / "slurm"
    logs.mkdir(parents=True, exist_ok=True)
    out, err = (logs / f".{kind}.{os.getpid()}" for kind in ("out", "err"))
    env = {**os.environ, **environment} | (frozen_environment(code) if code else {})
    command = [sys.executable, "-m", "bdg", *train_words(task.words, task.identity, code)]
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            command, stdout=stdout, stderr=stderr, stdin=subprocess.DEVNULL, env=env, start_new_session=True
        )
    job = f"local-{process.pid}"
    for path, kind in ((out, "out"), (err, "err")):
        path.rename(logs / f"{job}.restart0.{kind}")
    plan.folder.mkdir(parents=True, exist_ok=True)
    append(plan, Submission(job, now(), task.stage, {"0": task.identity}, None, None, "local", "local"))
    return process


def _word(task: Task) -> str:
    if task.run.done:
        return "done"
    status = task.run.status
    return status if status in ("failed", "preempted", "interrupted") else "stopped"


def _depth(plan: Plan, task: Task) -> int:
    return 1 + _depth(plan, plan.tasks[task.parent]) if task.parent in plan.tasks else 0


def _title(plan: Plan, identity: str) -> str:
    task = plan.tasks[identity]
    names = [plan.cells[position].name for position in task.cells]
    return f"{task.stage} {identity} ({names[0] if len(names) == 1 else f'{len(names)} cells'})"
