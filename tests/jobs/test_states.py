"""Words for what a run does: every case of its files, of the queue and of how its last job ended."""

import fcntl
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from jobs.plan import Cell, Plan, Task
from jobs.slurm import Accounted, Queued
from jobs.states import (
    LONG_SILENT_S,
    SILENT_S,
    Attempt,
    attempts,
    duration,
    in_words,
    read_facts,
    read_lines,
    runs,
    states,
)

PARENT, CHILD = "a" * 12, "b" * 12


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """One cell: generation, then bridging."""
    root = tmp_path / "runs"
    tasks = {
        PARENT: Task("generation", PARENT, f"{root}/demo/generation/{PARENT}", None, (), (0,), 100),
        CHILD: Task("bridging", CHILD, f"{root}/demo/bridging/{CHILD}", PARENT, (), (0,), 100),
    }
    return Plan("one", str(root), "demo", (Cell("seed=0", {"seed": 0}, (PARENT, CHILD)),), tasks)


def write(plan: Plan, identity: str, status: str, **files: Any) -> Path:
    """A run's folder with these JSON files, named without their ending."""
    folder = Path(plan.tasks[identity].folder)
    for name, content in files.items():
        path = folder / f"{name.replace('__', '/')}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "STATUS").write_text(f"{status}\n")
    if status == "done":
        (folder / "weights").mkdir()
        (folder / "weights" / "ema.safetensors").touch()
    return folder


def line(job: str, *identities: str, where: str = "slurm", time: str = "2026-01-02T03:04:05+00:00") -> dict[str, Any]:
    return {"job": job, "where": where, "time": time, "tasks": {str(i): name for i, name in enumerate(identities)}}


def queued(state: str, reason: str = "None", index: str | None = "0", node: str = "") -> Queued:
    return Queued("12", index, state, reason, node, "bdg")


def accounted(state: str) -> Accounted:
    return Accounted("12", "0", state, "1:0", 60, "n1")


def beat(host: str = "far", pid: int = 1, step: int = 40, phase: str = "data") -> dict[str, Any]:
    return {"rank": 0, "step": step, "phase": phase, "batch": 0, "time": 0.0, "host": host, "pid": pid, "error": ""}


def silent(folder: Path, seconds: float) -> None:
    for path in (folder / "heartbeat" / "rank_0.json", folder / "STATUS"):
        if path.exists():
            os.utime(path, (time.time() - seconds,) * 2)


# --- the queue ---


def test_what_was_never_begun_is_missing_and_its_child_waits_for_it(plan: Plan) -> None:
    found = states(plan, [], [], [])

    assert (found[PARENT].word, found[PARENT].attempts) == ("missing", 0)
    assert (found[CHILD].word, found[CHILD].reason) == ("missing", f"waits for generation {PARENT} (missing)")


@pytest.mark.parametrize(
    ("state", "reason", "word", "said"),
    [
        ("PENDING", "Priority", "waiting", "others are before it"),
        ("PENDING", "Resources", "waiting", "free nodes"),
        ("PENDING", "JobArrayTaskLimit", "waiting", "cluster.at_once"),
        ("PENDING", "ReqNodeNotAvail, UnavailableNodes:n[1-3]", "waiting", "down or reserved"),
        ("PENDING", "AssocGrpGRES", "waiting", "its account has used what it may have (AssocGrpGRES)"),
        ("PENDING", "QOSMaxJobsPerUserLimit", "waiting", "limits of its quality of service"),
        ("PENDING", "JobHeldAdmin", "waiting", "held by an administrator"),
        ("PENDING", "SomethingNew", "waiting", "Slurm's reason (SomethingNew)"),
        ("PENDING", "Dependency", "held", "waits for its parent"),
        ("PENDING", "DependencyNeverSatisfied", "missing", "never starts"),
        ("CONFIGURING", "None", "running", "made ready"),
        ("RUNNING", "None", "running", "is starting"),
        ("COMPLETING", "None", "running", "is ending"),
        ("SUSPENDED", "None", "running", "suspended"),
    ],
)
def test_a_job_in_the_queue_is_told_in_words(plan: Plan, state: str, reason: str, word: str, said: str) -> None:
    found = states(plan, [line("12", PARENT)], [queued(state, reason)], [])[PARENT]

    assert (found.word, found.job, found.attempts) == (word, "12_0", 1)
    assert said in found.reason


def test_a_job_that_is_no_array_is_found(plan: Plan) -> None:
    submitted = {"job": "12", "where": "slurm", "tasks": {"": PARENT}}

    found = states(plan, [submitted], [queued("RUNNING", index=None, node="n1")], [])[PARENT]

    assert (found.word, found.job, found.node) == ("running", "12", "n1")


def test_a_child_in_the_queue_names_its_parent_and_what_that_does(plan: Plan) -> None:
    queue = [queued("RUNNING"), Queued("13", "0", "PENDING", "Dependency", "", "bdg")]

    found = states(plan, [line("12", PARENT), line("13", CHILD)], queue, [])[CHILD]

    assert (found.word, found.reason) == ("held", f"waits for generation {PARENT} (running)")


def test_a_requeued_job_is_preempted_and_a_new_one_waits(plan: Plan) -> None:
    folder = write(plan, PARENT, "preempted")
    (folder / "slurm").mkdir()
    (folder / "slurm" / "12_0.restart0.out").touch()
    queue = [queued("PENDING", "BeginTime")]

    again = states(plan, [line("12", PARENT)], queue, [])[PARENT]
    (folder / "slurm" / "12_0.restart0.out").rename(folder / "slurm" / "11_0.restart0.out")
    new = states(plan, [line("11", PARENT), line("12", PARENT)], queue, [])[PARENT]

    assert (again.word, again.reason) == ("preempted", "was put back into the queue, and starts after a short delay")
    assert (new.word, new.attempts) == ("waiting", 2)


def test_a_running_job_that_is_silent_for_long_says_so(plan: Plan) -> None:
    folder = write(plan, PARENT, "running", heartbeat__rank_0=beat())
    silent(folder, 2 * LONG_SILENT_S)

    found = states(plan, [line("12", PARENT)], [queued("RUNNING")], [])[PARENT]

    assert (found.word, found.reason) == ("running", "has given no sign of life for 2 h 00 min")


# --- how it ended ---


@pytest.mark.parametrize(
    ("status", "ended", "word", "said"),
    [
        ("done", "COMPLETED", "done", ""),
        ("running", "TIMEOUT", "failed", "its job ran into its time limit"),
        ("running", "OUT_OF_MEMORY", "failed", "out of memory: give cluster.mem_gb more"),
        ("running", "NODE_FAIL", "failed", "its node died"),
        ("running", "COMPLETED", "failed", "its job ended before the training did"),
        ("running", "CANCELLED", "stopped", "cancelled"),
        ("running", "", "stopped", "its process is gone, last seen on far"),
        ("preempted", "FAILED", "stopped", "left in good order after step 40: SIGUSR1"),
        ("interrupted", "FAILED", "stopped", "was interrupted by hand"),
        ("failed", "FAILED", "failed", "loss: nan"),
        ("new", "FAILED", "failed", "its job failed, before the training began"),
        ("new", "", "failed", "its process ended, before the training began"),
        ("new", "CANCELLED", "missing", "cancelled before it began"),
    ],
)
def test_what_is_not_in_the_queue_any_more(plan: Plan, status: str, ended: str, word: str, said: str) -> None:
    if status != "new":
        folder = write(plan, PARENT, status, heartbeat__rank_0=beat())
        (folder / "requeue-request").write_text("step 40: SIGUSR1\n")
        (folder / "README.md").write_text(
            "# generation\n\n- 2026-01-02, n1: begins\n- 2026-01-02, n1: failed: loss: nan\n"
        )

    found = states(plan, [line("12", PARENT)], [], [accounted(ended)] if ended else [])[PARENT]

    assert found.word == word
    assert found.reason.startswith(said)


def test_done_without_weights_is_not_done(plan: Plan) -> None:
    folder = write(plan, PARENT, "done")
    (folder / "weights" / "ema.safetensors").unlink()

    assert states(plan, [], [], [])[PARENT].reason == "its weights are gone"


# --- files alone ---


@pytest.mark.parametrize(("status", "word"), [("new", "waiting"), ("preempted", "preempted"), ("failed", "failed")])
def test_without_slurm_what_was_submitted_is_told_from_files(plan: Plan, status: str, word: str) -> None:
    if status != "new":
        write(plan, PARENT, status)

    found = states(plan, [line("12", PARENT)], None, None)[PARENT]

    assert found.word == word
    assert ("cannot be asked here" in found.reason) == (word != "failed")


@pytest.mark.parametrize(
    ("phase", "seconds", "word"),
    [
        ("data", SILENT_S / 2, "running"),
        ("data", SILENT_S * 2, "stopped"),
        ("validate", SILENT_S * 2, "running"),
        ("validate", LONG_SILENT_S * 2, "stopped"),
    ],
)
def test_another_host_is_alive_as_long_as_its_heart_beats(plan: Plan, phase: str, seconds: float, word: str) -> None:
    silent(write(plan, PARENT, "running", heartbeat__rank_0=beat(phase=phase)), seconds)

    assert states(plan, [], None, None)[PARENT].word == word


def test_a_job_that_slurm_knows_to_be_gone_does_not_live_on_in_its_heartbeat(plan: Plan) -> None:
    write(plan, PARENT, "running", heartbeat__rank_0=beat())

    assert states(plan, [line("12", PARENT)], [], [accounted("NODE_FAIL")])[PARENT].word == "failed"
    assert states(plan, [line("12", PARENT)], None, None)[PARENT].word == "running"


def test_a_process_of_this_host_is_looked_for(plan: Plan) -> None:
    host = socket.gethostname()
    write(plan, PARENT, "running", heartbeat__rank_0=beat(host, os.getpid()))
    write(plan, CHILD, "running", heartbeat__rank_0=beat(host, 2**22 + 1))

    found = states(plan, [], None, None)

    assert [found[identity].word for identity in (PARENT, CHILD)] == ["running", "stopped"]


def test_who_holds_the_lock_is_running(plan: Plan) -> None:
    folder = write(plan, PARENT, "running")
    silent(folder, 1e6)
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        held = states(plan, [], None, None)[PARENT]
    after = states(plan, [], None, None)[PARENT]

    assert (held.word, after.word) == ("running", "stopped")


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def test_a_local_process_is_running_until_it_is_gone(plan: Plan, sleeper: subprocess.Popen[bytes]) -> None:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    submitted = [line(f"local-{sleeper.pid}", PARENT, where="local", time=now)]

    begun = states(plan, submitted, [], [])[PARENT]
    sleeper.kill()
    sleeper.wait()
    ended = states(plan, submitted, [], [])[PARENT]

    assert (begun.word, begun.reason, begun.job) == ("running", "is starting", f"local-{sleeper.pid}")
    assert ended.word == "failed"


def test_a_later_process_of_the_same_number_is_another_one(sleeper: subprocess.Popen[bytes]) -> None:
    assert runs(sleeper.pid)
    assert not runs(sleeper.pid, "2020-01-02T03:04:05+00:00")


# --- numbers ---


def test_steps_speed_and_restarts_come_from_the_run(plan: Plan) -> None:
    speed = {"step": 30, "max_steps": 200, "step_s": 0.5}
    begun = {"host": {"name": "n1"}, "resumed": [{"host": {"name": "n2"}}, {"host": {"name": "n3"}}]}
    folder = write(plan, PARENT, "running", throughput=speed, heartbeat__rank_0=beat(step=40), manifest=begun)
    (folder / "logs" / "version_9").mkdir(parents=True)
    (folder / "logs" / "version_10").mkdir()
    (folder / "logs" / "version_9" / "metrics.csv").write_text("step,loss/total\n1,9.0\n")
    (folder / "logs" / "version_10" / "metrics.csv").write_text("step,loss/total,val/mean/psnr\n9,0.5,\n10,,\n11,0.2")

    found = states(plan, [], None, None)[PARENT]

    assert (found.step, found.max_steps, found.step_s, found.left_s) == (40, 200, 0.5, 80.0)
    assert (found.restarts, found.node, found.metric) == (2, "far", ("loss/total", 0.5))


def test_the_score_of_a_finished_run_is_its_metric(plan: Plan) -> None:
    write(
        plan, PARENT, "done", metrics={"val/mean/psnr": 21.5}, throughput={"step": 100, "max_steps": 100, "step_s": 1}
    )

    found = states(plan, [], None, None)[PARENT]

    assert (found.metric, found.left_s) == (("val/mean/psnr", 21.5), 0.0)


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '{"step": "x", "max_steps": -1, "step_s": null}', "[" * 100_000, "\x00\xff"]
)
def test_damaged_files_are_as_none(plan: Plan, text: str) -> None:
    folder = write(plan, PARENT, "running")
    for name in (
        "throughput.json",
        "heartbeat/rank_0.json",
        "metrics.json",
        "manifest.json",
        "logs/version_0/metrics.csv",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    facts = read_facts(folder)

    assert (facts.step, facts.max_steps, facts.step_s, facts.restarts, facts.metric) == (None, None, None, 0, None)


def test_a_run_that_is_gone_is_new(tmp_path: Path) -> None:
    assert read_facts(tmp_path / "nowhere").status == "new"


def test_lines_that_are_cut_off_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "submissions.jsonl"
    path.write_text(json.dumps(line("12", PARENT)) + '\n[1]\n{"job": 3, "tasks": []}\n{"job": "13", "ta')

    assert list(attempts(read_lines(path))) == [PARENT]
    assert attempts([line("12", PARENT, CHILD)])[CHILD] == [Attempt("12_1", "slurm", "2026-01-02T03:04:05+00:00")]


@pytest.mark.parametrize(
    ("seconds", "said"), [(40, "40 s"), (720, "12 min"), (11100, "3 h 05 min"), (3600 * 52, "2 d 4 h")]
)
def test_durations_are_short(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_codes_in_brackets_are_read() -> None:
    assert in_words("(Priority)") == "others are before it in the queue"
