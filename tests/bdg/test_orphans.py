"""A rank that was started by another one does not outlive it; one that somebody else started is left alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bdg.orphans import STARTED_BY

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel of Linux")

RANK = """
import os, signal, subprocess, sys, time
from bdg.orphans import end_with_rank_0
signal.signal(signal.SIGTERM, signal.SIG_IGN)
end_with_rank_0()
if "LOCAL_RANK" not in os.environ:
    subprocess.Popen([sys.executable, *sys.orig_argv[1:]], env={**os.environ, "LOCAL_RANK": "1"})
else:
    print(os.getpid(), flush=True)
time.sleep(60)
"""
ROOT = Path(__file__).parents[2]


def start(**environment: str) -> subprocess.Popen[str]:
    inherited = {key: value for key, value in os.environ.items() if key not in (STARTED_BY, "LOCAL_RANK")}
    command = [sys.executable, "-c", RANK]
    return subprocess.Popen(command, cwd=ROOT, env=inherited | environment, stdout=subprocess.PIPE, text=True)


def runs(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_rank_ends_with_the_one_that_started_it() -> None:
    with start() as rank_0:
        assert rank_0.stdout
        rank_1 = int(rank_0.stdout.readline())
        assert runs(rank_1)
        rank_0.kill()
    end = time.monotonic() + 5
    while runs(rank_1) and time.monotonic() < end:
        time.sleep(0.01)
    left = runs(rank_1)
    if left:
        os.kill(rank_1, signal.SIGKILL)

    assert not left


def test_a_rank_whose_starter_ended_before_it_could_ask_ends() -> None:
    with start(LOCAL_RANK="1", **{STARTED_BY: "1"}) as rank_1:
        assert rank_1.stdout
        assert rank_1.stdout.read() == ""
        assert rank_1.wait(5) == 1


@pytest.mark.parametrize("environment", [{"LOCAL_RANK": "1"}, {"LOCAL_RANK": "0", STARTED_BY: "1"}])
def test_a_rank_that_another_program_started_goes_on(environment: dict[str, str]) -> None:
    with start(**environment) as rank:
        assert rank.stdout
        assert int(rank.stdout.readline()) == rank.pid
        rank.kill()
