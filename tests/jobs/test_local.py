"""The plan on this machine, with a `bdg` of some lines in place of the real one."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from jobs.local import run_plan
from jobs.plan import Cell, Plan, Task

FAKE = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(next(w.split("=")[1] for w in sys.argv if w.startswith("folder=")))
log = pathlib.Path("log")
def note(what):
    with log.open("a") as file:
        file.write(f"{what} {folder.name}\\n")
def leave(signum, frame):
    (folder / "STATUS").write_text("preempted\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
note("begin")
print("words", *sys.argv[1:])
if folder.name in pathlib.Path("slow").read_text():
    time.sleep(60)
if folder.name not in pathlib.Path("broken").read_text():
    (folder / "weights").mkdir()
    (folder / "weights/ema.safetensors").touch()
    (folder / "STATUS").write_text("done\\n")
else:
    (folder / "STATUS").write_text("failed\\n")
time.sleep(0.2)
note("end")
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "code" / "bdg"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(FAKE)
    (tmp_path / "broken").touch()
    (tmp_path / "slow").touch()
    return tmp_path / "code"


def task(identity: str, parent: str | None, *cells: int) -> Task:
    stage = "generation" if parent is None else "bridging"
    folder = f"runs/p/{stage}/{identity}"
    return Task(stage, identity, folder, parent, (f"stage={stage}", f"folder={folder}", "a=it's $HOME"), cells, 1)


@pytest.fixture
def plan() -> Plan:
    tasks = [task("g", None, 0, 1), task("b0", "g", 0), task("b1", "g", 1), task("c0", "b0", 0)]
    cells = (
        Cell("lambda=0", {"stage.lambda": 0}, ("g", "b0", "c0")),
        Cell("lambda=1", {"stage.lambda": 1}, ("g", "b1")),
    )
    return Plan("s", "runs", "p", cells, {t.identity: t for t in tasks})


def ran(plan: Plan, code: Path, wanted: set[str] | None = None, at_once: int = 1) -> dict[str, str]:
    return run_plan(plan, wanted or set(plan.tasks), at_once, code, {}, lambda line: None)


def noted() -> list[str]:
    return Path("log").read_text().splitlines()


def test_parents_are_done_before_their_children_begin(plan: Plan, code: Path) -> None:
    assert set(ran(plan, code, at_once=3).values()) == {"done"}
    lines = noted()
    for child, parent in (("b0", "g"), ("b1", "g"), ("c0", "b0")):
        assert lines.index(f"end {parent}") < lines.index(f"begin {child}")


def test_no_more_run_at_a_time_than_asked_for(plan: Plan, code: Path) -> None:
    ran(plan, code, at_once=1)
    assert noted() == [f"{what} {name}" for name in ("g", "b0", "c0", "b1") for what in ("begin", "end")]


def test_a_failure_holds_back_its_own_children_only(plan: Plan, code: Path) -> None:
    Path("broken").write_text("b0")
    assert ran(plan, code) == {"g": "done", "b0": "failed", "c0": "held", "b1": "done"}


def test_what_is_not_wanted_does_not_run_and_counts_as_done(plan: Plan, code: Path) -> None:
    assert ran(plan, code, wanted={"b1"}) == {"b1": "done"}
    assert noted() == ["begin b1", "end b1"]


def test_each_start_is_recorded_and_its_words_arrive_as_they_are(plan: Plan, code: Path) -> None:
    ran(plan, code)
    lines = [json.loads(line) for line in (plan.folder / "submissions.jsonl").read_text().splitlines()]
    assert [line["tasks"]["0"] for line in lines] == ["g", "b0", "c0", "b1"]
    output = Path(plan.tasks["b1"].folder, "slurm", f"{lines[-1]['job']}.restart0.out").read_text()
    assert "a=it's $HOME" in output
    assert "identity='b1'" in output


def test_sigterm_lets_trainings_save_and_leave(plan: Plan, code: Path) -> None:
    Path("slow").write_text("g")

    def interrupt() -> None:
        while not Path("log").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt).start()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        ran(plan, code)
    assert Path(plan.tasks["g"].folder, "STATUS").read_text() == "preempted\n"
    assert signal.getsignal(signal.SIGTERM) is before
    assert noted() == ["begin g"]
