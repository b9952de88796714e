"""A process that is followed through what it writes, and stopped with all that it started."""

import signal
import sys
import time
from pathlib import Path

import pytest

from jobs.watched import Watched, facts, living

SCRIPT = """
import json, subprocess, sys, time
from pathlib import Path
record, steps = Path(sys.argv[1]), int(sys.argv[2])
record.mkdir(exist_ok=True)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
with (record / "rank_0.jsonl").open("a", buffering=1) as file:
    for step in range(1, steps + 1):
        file.write(json.dumps({"step": step}) + "\\n")
        time.sleep(0.02)
child.kill()
child.wait()
sys.exit(3)
"""


def watched(folder: Path, steps: int) -> Watched:
    return Watched(
        [sys.executable, "-c", SCRIPT, str(folder / "record"), str(steps)], folder / "record", folder / "log"
    )


def test_a_line_is_waited_for_and_the_exit_status_is_told(tmp_path: Path) -> None:
    process = watched(tmp_path, 3)

    assert process.wait_for(lambda fact: fact["step"] == 2) == {"step": 2}
    assert process.wait() == 3
    assert process.wait_for(lambda fact: fact["step"] == 9) is None


def test_a_kill_reaches_what_the_process_started(tmp_path: Path) -> None:
    process = watched(tmp_path, 1000)
    process.wait_for(lambda fact: fact["step"] == 1)
    mine = process.processes()
    process.kill()

    assert len(mine) == 2
    assert process.wait(10) == -signal.SIGKILL


def test_lines_of_an_earlier_start_are_not_taken_for_new_ones(tmp_path: Path) -> None:
    watched(tmp_path, 2).wait()
    process = watched(tmp_path, 4)

    assert process.wait_for(lambda fact: fact["step"] == 1) == {"step": 1}
    assert len(list(facts(tmp_path / "record"))) < 6
    process.wait()


def test_a_line_that_was_cut_off_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "rank_1.jsonl").write_text('{"step": 1}\n{"st{"step": 2}\n{"step": 3}\n{"ste')
    assert list(facts(tmp_path, rank=1)) == [{"step": 1}, {"step": 3}]


def test_what_does_not_happen_in_time_is_an_error(tmp_path: Path) -> None:
    process = watched(tmp_path, 1000)
    begun = time.monotonic()
    with pytest.raises(TimeoutError, match="nothing that was waited for happened"):
        process.wait_for(lambda fact: False, timeout_s=0.2)
    process.kill()
    process.wait()
    assert time.monotonic() - begun < 30


def test_nothing_outlives_a_block_that_an_error_ends(tmp_path: Path) -> None:
    process = watched(tmp_path, 1000)

    def interrupted() -> None:
        with process:
            process.wait_for(lambda fact: fact["step"] == 1)
            assert len(living(process.process.pid)) == 2
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert living(process.process.pid) == []
    assert process.process.returncode == -signal.SIGKILL
