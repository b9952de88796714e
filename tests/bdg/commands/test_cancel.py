"""`bdg cancel`: the jobs that are there, the processes that are ours, and nothing else."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bdg.cli import main

ONE, TWO, SHARED = "a" * 12, "b" * 12, "c" * 12
QUEUE = "7|0|RUNNING|n1|None|bdg|\n8|0|PENDING|n/a|Dependency|bdg|\n9|3|RUNNING|n1|None|other|\n"


@pytest.fixture
def sweep(made: Any) -> Any:
    """Two runs after a shared one, the second of them submitted by another sweep."""
    lines = [
        {"job": "7", "where": "slurm", "tasks": {"0": SHARED}},
        {"job": "8", "where": "slurm", "tasks": {"0": ONE}},
    ]
    made.sweep("one", {"x": [("generation", SHARED), ("bridging", ONE)]}, lines)
    made.sweep("two", {"y": [("generation", SHARED), ("bridging", TWO)]}, [{"job": "9", "tasks": {"3": TWO}}])
    return made


def test_a_sweep_cancels_its_jobs_and_no_others(sweep: Any, slurm: Any, capsys: Any) -> None:
    asked = slurm(squeue=QUEUE)

    assert main(["cancel", "one", "json=cancelled.json"]) == 0

    assert asked[-1] == ["scancel", "--quiet", "7_0", "8_0"]
    assert capsys.readouterr().out.splitlines() == [
        f"cancelled 7_0: {SHARED}, running",
        f"cancelled 8_0: {ONE}, pending",
    ]
    assert [each["job"] for each in json.loads(Path("cancelled.json").read_text())] == ["7_0", "8_0"]


def test_dry_only_shows(sweep: Any, slurm: Any, capsys: Any) -> None:
    asked = slurm(squeue=QUEUE)

    assert main(["cancel", "one", "dry=true"]) == 0

    assert [command[0] for command in asked] == ["squeue"]
    assert "would cancel 7_0" in capsys.readouterr().out


def test_a_run_is_cancelled_whoever_submitted_it(sweep: Any, slurm: Any) -> None:
    sweep.run(TWO, "running", "bridging")
    asked = slurm(squeue=QUEUE)

    assert main(["cancel", TWO]) == 0

    assert asked[-1] == ["scancel", "--quiet", "9_3"]


def test_nothing_to_cancel_says_so(sweep: Any, slurm: Any, capsys: Any) -> None:
    asked = slurm(squeue=" ".strip())

    assert main(["cancel", "one"]) == 0

    assert "nothing to cancel" in capsys.readouterr().out
    assert not [command for command in asked if command[0] == "scancel"]


def test_without_slurm_its_jobs_cannot_be_cancelled(sweep: Any, slurm: Any, capsys: Any) -> None:
    slurm()

    assert main(["cancel", "one"]) == 1

    assert "there is no Slurm on this machine" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["nobody", "f" * 12])
def test_what_is_not_there_is_answered_with_what_is(sweep: Any, capsys: Any, name: str) -> None:
    assert main(["cancel", name]) == 1

    assert (
        f"no sweep or run '{name}' in runs: there are the sweeps one, two; there are no runs" in capsys.readouterr().err
    )


# --- processes of this machine ---

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Start]:
    """start("bdg") is a process that sleeps and has this word in its command."""
    begun: list[subprocess.Popen[bytes]] = []

    def sleeps(word: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-S", "-c", "import time; time.sleep(60)", word, "train"]
        begun.append(subprocess.Popen(command, start_new_session=True))
        return begun[-1]

    yield sleeps
    for process in begun:
        process.kill()
        process.wait()


def submitted(pid: int, identity: str, time: str | None = None) -> dict[str, Any]:
    time = time or datetime.now(UTC).isoformat(timespec="seconds")
    return {"job": f"local-{pid}", "where": "local", "time": time, "tasks": {"0": identity}}


def test_a_local_process_is_asked_to_leave(made: Any, start: Start, capsys: Any) -> None:
    process = start("bdg")
    made.sweep("one", {"x": [("generation", ONE)]}, [submitted(process.pid, ONE)])

    assert main(["cancel", "one"]) == 0

    assert process.wait(10) == -signal.SIGTERM
    assert f"cancelled local-{process.pid}: {ONE}" in capsys.readouterr().out


@pytest.mark.parametrize(("word", "time"), [("other", None), ("bdg", "2020-01-02T03:04:05+00:00")])
def test_a_process_that_got_the_number_later_is_left_alone(
    made: Any, start: Start, capsys: Any, word: str, time: str | None
) -> None:
    process = start(word)
    made.sweep("one", {"x": [("generation", ONE)]}, [submitted(process.pid, ONE, time)])

    assert main(["cancel", "one"]) == 0

    assert "nothing to cancel" in capsys.readouterr().out
    assert process.poll() is None


@pytest.mark.parametrize(("host", "status"), [(os.uname().nodename, -signal.SIGTERM), ("far", None)])
def test_a_run_started_by_hand_is_cancelled_on_its_own_host_only(
    made: Any, start: Start, host: str, status: int | None
) -> None:
    process = start("bdg")
    made.run(ONE, "running", heartbeat__rank_0={"host": host, "pid": process.pid})

    assert main(["cancel", ONE]) == 0

    deadline = time.monotonic() + 10
    while status is not None and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() == status


def test_a_sweep_that_runs_here_is_asked_itself_to_end_its_trainings(made: Any, capsys: Any) -> None:
    sleep = f"[{sys.executable!r}, '-S', '-c', 'import time; time.sleep(60)', 'bdg', 'train']"
    code = f"import subprocess; child = subprocess.Popen({sleep}); print(child.pid, flush=True); child.wait()"
    command = [sys.executable, "-c", code, "bdg", "sweep"]
    runner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert runner.stdout
    with runner.stdout:
        child = int(runner.stdout.readline())
    made.sweep("one", {"x": [("generation", ONE)]}, [submitted(child, ONE)])

    assert main(["cancel", "one"]) == 0

    assert runner.wait(10) == -signal.SIGTERM
    assert f"process {runner.pid}: bdg sweep, which ends the trainings of demo/one" in capsys.readouterr().out
