"""A plan's tasks handed to Slurm: arrays, and what each waits for. Nothing is submitted twice, and nothing by halves."""

import csv
import hashlib
import json
import os
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jobs.freeze import train_words
from jobs.geometry import Geometry
from jobs.plan import Plan, Task
from jobs.run import open_lock, try_lock, write_text
from jobs.sbatch import Job, sbatch_text
from jobs.slurm import Queued, Slurm, SlurmMissing, SlurmRefused, check_fits, job_id
from jobs.states import read_lines

SUBMISSIONS = "submissions.jsonl"
MEASURED_RUNS = 5


@dataclass(frozen=True)
class Submission:
    """A line of submissions.jsonl: an array, a single job, or a process of this machine.

    tasks: index ("" of a single job) -> identity. script: None of a process, whose job is "local-PID".
    """

    job: str
    time: str
    stage: str
    tasks: dict[str, str]
    dependency: str | None
    script: str | None
    where: str
    cluster: str


@dataclass(frozen=True)
class Batch:
    """Tasks of a stage that can be one array, by index, and what each of them waits for."""

    tasks: dict[int, Task]
    dependency: str | None


def submit(
    plan: Plan,
    wanted: Collection[str],
    geometry: Geometry,
    slurm: Slurm,
    frozen: Path,
) -> list[Submission]:
    """Submits the `wanted` tasks that no job in the queue, of this sweep or another one, is there for already.

    A task waits for its parent if that is submitted here or in the queue; then only its own parent's failure holds it back.
    It leaves the queue with that, so that the same call submits both again. frozen: from jobs.freeze.freeze.

    Each submission is written down at once. If this process dies in between, the next call finds the job by its comment. If the
    cluster refuses one, those before it are cancelled.

    Raises:
        ValueError: the cluster has not what the geometry asks for, or a parent is neither done nor on its way.
        SlurmMissing, SlurmRefused: there is no Slurm, or it says no; nothing is submitted.
    """
    check_fits(geometry, slurm.partitions())
    with _alone(plan):
        queue = slurm.queue()
        _adopt(plan, queue, geometry)
        active = _active(plan, queue)
        todo = [task for task in plan.tasks.values() if task.identity in wanted and task.identity not in active]
        _check_parents(plan, todo, active)
        limit = _array_limit(geometry, slurm, todo)
        lead_s = {stage: geometry.lead(save_s(plan, stage)) for stage in {task.stage for task in todo}}
        made: list[Submission] = []
        begun: list[str] = []
        try:
            for generation in _generations(todo):
                for batch in batches(generation, active, limit):
                    name = _free_name(plan, generation[0].stage)
                    begun.append(name)
                    text = _write(plan, name, batch, geometry, frozen, lead_s[generation[0].stage])
                    job = slurm.sbatch(text, batch.dependency)
                    made.append(_submission(job, name, batch, geometry))
                    append(plan, made[-1])
                    active |= {identity: (job, index or None) for index, identity in made[-1].tasks.items()}
        except BaseException as error:
            _take_back(plan, made, begun, slurm, error)
            raise
    return made


def read_submissions(folder: Path) -> list[dict[str, Any]]:
    """The lines of a sweep's submissions.jsonl; one that a crash cut off is passed over."""
    return read_lines(folder / SUBMISSIONS)


def batches(tasks: Sequence[Task], active: Mapping[str, tuple[str, str | None]], limit: int) -> Iterator[Batch]:
    """The fewest arrays of these tasks of one stage in which each waits for its own parent only.

    active: identity -> job and index of those in the queue. limit: what an index must be below; 0: single jobs only.
    """
    children: defaultdict[str | None, defaultdict[str | None, list[Task]]] = defaultdict(lambda: defaultdict(list))
    for task in tasks:
        job, index = active.get(task.parent or "", (None, None))
        children[job][index].append(task)
    for job, by_index in children.items():
        aligned = {int(index): own for index, own in by_index.items() if index is not None}
        if job is None:
            yield from _split(by_index[None], None, limit)
        elif limit and max(map(len, aligned.values()), default=len(aligned)) < len(aligned):
            yield from _aligned(aligned, f"aftercorr:{job}")
        else:
            for index, own in by_index.items():
                yield from _split(own, f"afterok:{job_id(job, index)}", limit)


def save_s(plan: Plan, stage: str) -> float | None:
    """Seconds of the slowest save in the last runs of a stage; None before the first."""
    folder = Path(plan.root) / plan.project / stage
    logs = sorted(folder.glob("*/logs/version_*/metrics.csv"), key=lambda path: path.stat().st_mtime)
    seconds = [0.0]
    for path in logs[-MEASURED_RUNS:]:
        with path.open(encoding="utf-8", newline="") as file, suppress(csv.Error, ValueError):
            seconds += [
                float(row["checkpoint/seconds"]) for row in csv.DictReader(file) if row.get("checkpoint/seconds")
            ]
    return max(seconds) or None


def _split(tasks: Sequence[Task], dependency: str | None, limit: int) -> Iterator[Batch]:
    size = limit or 1
    for start in range(0, len(tasks), size):
        yield Batch(dict(enumerate(tasks[start : start + size])), dependency)


def _aligned(children: Mapping[int, Sequence[Task]], dependency: str) -> Iterator[Batch]:
    """Arrays with one child of each parent, under the parent's index."""
    for rank in range(max(map(len, children.values()))):
        yield Batch({index: own[rank] for index, own in sorted(children.items()) if rank < len(own)}, dependency)


def _generations(tasks: Iterable[Task]) -> Iterator[list[Task]]:
    """Those of one stage and as many steps from the root, roots first."""
    depth: dict[str, int] = {}
    found: defaultdict[tuple[int, str], list[Task]] = defaultdict(list)
    for task in tasks:
        depth[task.identity] = depth[task.parent] + 1 if task.parent in depth else 0
        found[depth[task.identity], task.stage].append(task)
    for key in sorted(found, key=lambda key: key[0]):
        yield found[key]


@contextmanager
def _alone(plan: Plan) -> Iterator[None]:
    plan.folder.mkdir(parents=True, exist_ok=True)
    with open_lock(plan.folder) as file:
        if not try_lock(file):
            raise BlockingIOError(
                f"another process submits the sweep {plan.name}: wait for it, then repeat the command"
            )
        yield


def _active(plan: Plan, queue: Iterable[Queued]) -> dict[str, tuple[str, str | None]]:
    """Identity -> job and index of those in the queue, whichever sweep of the project submitted them."""
    there = {(row.job, row.index) for row in queue}
    found: dict[str, tuple[str, str | None]] = {}
    for folder in plan.folder.parent.iterdir():
        for line in read_submissions(folder):
            for index, identity in line["tasks"].items():
                if (place := (line["job"], index or None)) in there:
                    found[identity] = place
    return found


def _adopt(plan: Plan, queue: Iterable[Queued], geometry: Geometry) -> None:
    """Writes down jobs that were submitted by a process which died before it could."""
    known = {line["job"] for line in read_submissions(plan.folder)}
    for row in queue:
        name = row.comment.removeprefix(_mark(plan))
        folder = plan.folder / "jobs" / f"{name}.d"
        if row.job in known or name == row.comment or not folder.is_dir():
            continue
        known.add(row.job)
        runs = {path.stem: Path(path.read_text(encoding="utf-8").partition("\0")[0]) for path in folder.glob("*.args")}
        tasks = {index if row.index else "": runs[index].name for index in sorted(runs, key=int)}
        stage = next(iter(runs.values())).parent.name
        append(plan, Submission(row.job, now(), stage, tasks, None, f"jobs/{name}.sbatch", "slurm", geometry.name))


def _check_parents(plan: Plan, todo: Sequence[Task], active: Mapping[str, Any]) -> None:
    coming = {task.identity for task in todo} | set(active)
    for task in todo:
        if not task.parent or task.parent in coming:
            continue
        parent = plan.tasks[task.parent]
        if not parent.run.done:
            raise ValueError(
                f"{task.stage} {task.identity} waits for {parent.stage} {parent.identity}, which is neither done nor in the "
                "queue nor among what is to be submitted: submit both"
            )


def _array_limit(geometry: Geometry, slurm: Slurm, todo: Sequence[Task]) -> int:
    if not geometry.arrays or not todo:
        return 0
    if (limit := slurm.max_array_size()) < 2:
        raise ValueError(
            "cluster.arrays=true, but this cluster refuses arrays (MaxArraySize): use cluster.arrays=false"
        )
    return limit


def _write(plan: Plan, name: str, batch: Batch, geometry: Geometry, frozen: Path, lead_s: int) -> str:
    """Puts the words of each index into its file, and the script beside; returns the script."""
    logs, arguments = plan.folder / "jobs" / "logs", plan.folder / "jobs" / f"{name}.d"
    job = Job(
        name=f"bdg-{plan.name}-{name.rpartition('-')[0]}",
        geometry=geometry,
        folder=os.getcwd(),
        arguments=str(arguments),
        logs=str(logs.absolute()),  # or Slurm looks for %j in the name of the folder
        frozen=str(frozen.absolute()),
        python=geometry.python or sys.executable,
        lead_s=lead_s,
        indices=tuple(batch.tasks) if geometry.arrays else (),
        comment=_mark(plan) + name,
    )
    text = sbatch_text(job)
    logs.mkdir(parents=True, exist_ok=True)
    arguments.mkdir()
    for index, task in batch.tasks.items():
        own = [task.folder, *train_words(task.words, task.identity, frozen)]
        (arguments / f"{index}.args").write_bytes(b"".join(word.encode() + b"\0" for word in own))
    write_text(plan.folder / "jobs" / f"{name}.sbatch", text)
    return text


def _take_back(
    plan: Plan, made: Sequence[Submission], begun: Collection[str], slurm: Slurm, error: BaseException
) -> None:
    """Cancels what one call has submitted, also what it has not heard of, and forgets it."""
    ours = {_mark(plan) + name for name in begun}
    try:
        jobs = {submission.job for submission in made} | {row.job for row in slurm.queue() if row.comment in ours}
        slurm.cancel(jobs)
    except (SlurmMissing, SlurmRefused) as second:
        jobs = {submission.job for submission in made}
        error.add_note(f"what was submitted before could not be cancelled ({second}): scancel {' '.join(sorted(jobs))}")
        return
    kept = [line for line in read_submissions(plan.folder) if line["job"] not in jobs]
    write_text(plan.folder / SUBMISSIONS, "".join(json.dumps(line) + "\n" for line in kept))
    error.add_note(f"nothing is submitted: {len(jobs)} arrays or jobs before it were cancelled")


def _submission(job: str, name: str, batch: Batch, geometry: Geometry) -> Submission:
    tasks = {str(index) if geometry.arrays else "": task.identity for index, task in batch.tasks.items()}
    stage = next(iter(batch.tasks.values())).stage
    return Submission(job, now(), stage, tasks, batch.dependency, f"jobs/{name}.sbatch", "slurm", geometry.name)


def append(plan: Plan, submission: Submission) -> None:
    """Writes a line to the sweep's submissions.jsonl, on the disk when it returns."""
    path = plan.folder / SUBMISSIONS
    with path.open("ab+") as file:
        if file.tell() and not path.read_bytes().endswith(b"\n"):  # a crash cut the last line off
            file.write(b"\n")
        file.write(json.dumps(asdict(submission)).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _free_name(plan: Plan, stage: str) -> str:
    number = 1
    while (plan.folder / "jobs" / f"{stage}-{number}.d").exists():
        number += 1
    return f"{stage}-{number}"


def _mark(plan: Plan) -> str:
    """What the comments of this sweep's jobs begin with; another sweep of the same name lies elsewhere."""
    return f"bdg-{hashlib.sha256(str(plan.folder.absolute()).encode()).hexdigest()[:12]}-"


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
