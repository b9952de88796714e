"""`bdg status` on made files: what it shows of sweeps and runs, with Slurm, without it, and of damaged things."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bdg.cli import main

GENERATION, FIRST, SECOND = "a" * 12, "b" * 12, "c" * 12
CELLS = {
    "lambda=0.1": [("generation", GENERATION), ("bridging", FIRST)],
    "lambda=0.2": [("generation", GENERATION), ("bridging", SECOND)],
}


def submitted(job: str, stage: str, *identities: str) -> dict[str, Any]:
    tasks = {str(i): name for i, name in enumerate(identities)}
    return {"job": job, "where": "slurm", "time": "2026-01-02T03:04:05+00:00", "stage": stage, "tasks": tasks}


def test_a_sweep_is_a_table_with_the_reason_of_each_run(made: Any, slurm: Any, capsys: Any) -> None:
    made.sweep("one", CELLS, [submitted("7", "generation", GENERATION), submitted("8", "bridging", FIRST, SECOND)])
    made.run(GENERATION, "running", throughput={"step": 30, "max_steps": 100, "step_s": 0.5})
    slurm(squeue="7|0|RUNNING|n3|None|bdg|\n8|0|PENDING|n/a|Dependency|bdg|\n8|1|PENDING|n/a|Dependency|bdg|\n")

    assert main(["status", "one", "json=status.json"]) == 0

    shown = capsys.readouterr().out
    assert re.search(rf"generation +{GENERATION} +2 cells +running +30/100 +0.5 +35 s +n3", shown)
    assert re.search(rf"bridging +{FIRST} +lambda=0.1 +held +waits for generation {GENERATION} \(running\)", shown)
    assert "2 held, 1 running" in shown
    found = json.loads(Path("status.json").read_text())
    assert [run["state"]["job"] for run in found["runs"]] == ["7_0", "8_0", "8_1"]


def test_without_slurm_the_files_speak_and_it_says_so(made: Any, slurm: Any, capsys: Any) -> None:
    made.sweep("one", CELLS, [submitted("7", "generation", GENERATION)])
    slurm()

    assert main(["status", "one"]) == 0

    shown = capsys.readouterr().out
    assert "was submitted as 7_0" in shown
    assert "from files alone, as there is no Slurm on this machine" in shown


def test_where_nothing_was_submitted_nobody_is_asked(made: Any, slurm: Any, capsys: Any) -> None:
    made.run(GENERATION)
    asked = slurm()

    assert main(["status"]) == 0

    assert not asked
    assert "1 done" in capsys.readouterr().out


def test_without_a_name_sweeps_and_all_runs_are_shown(made: Any, capsys: Any) -> None:
    made.sweep("one", CELLS)
    made.run(FIRST, "done", "bridging")
    made.run("d" * 12, "failed")

    assert main(["status"]) == 0

    shown = capsys.readouterr().out
    assert re.search(r"demo/one +3 +1 done, 2 missing", shown)
    assert "2 missing, 1 failed" in shown.splitlines()[-1] or "1 done, 2 missing, 1 failed" in shown


def test_a_sweep_is_found_from_elsewhere(made: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made.sweep("one", CELLS)
    made.run(FIRST, "done", "bridging")
    monkeypatch.chdir("/")

    assert main(["status", "one", f"root={made.project.parent}"]) == 0

    assert "1 done, 2 missing" in capsys.readouterr().out


def test_names_are_no_markup(made: Any, capsys: Any) -> None:
    made.sweep("one", {"[red]x[/red]<b>": [("generation", GENERATION)]})

    assert main(["status", "one"]) == 0

    assert "[red]x[/red]<b>" in capsys.readouterr().out


def test_the_rows_that_need_a_look_are_shown_first(made: Any, capsys: Any) -> None:
    for number in range(5):
        made.run(f"{number:012x}", "failed" if number == 3 else "done")

    assert main(["status", "show=1"]) == 0

    shown = capsys.readouterr().out
    assert f"{3:012x}" in shown
    assert f"{0:012x}" not in shown
    assert "4 rows are not shown: show=N, or json=PATH" in shown


def test_watching_ends_when_nothing_goes_on(made: Any, capsys: Any) -> None:
    made.run(GENERATION)

    assert main(["status", "watch=true", "every_s=0.01"]) == 0

    assert "1 done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["two"], "no sweep 'two' in runs: there are the sweeps one"),
        (["onee"], "did you mean one?"),
        (["root=nowhere"], "root=nowhere: no such folder"),
        (["project=x"], "project=x: there is none in runs: there are the projects demo"),
        (["every_s=0"], "every_s=0"),
        (["cut"], "plan.json is damaged"),
    ],
)
def test_what_is_not_there_is_answered_with_what_is(made: Any, capsys: Any, words: list[str], said: str) -> None:
    made.sweep("one", CELLS)
    made.sweep("cut", CELLS)
    (made.project / "sweeps" / "cut" / "plan.json").write_text('{"name": "cut", "cel')

    assert main(["status", *words]) == 1

    assert said in capsys.readouterr().err


def test_a_name_in_two_projects_is_asked_about(made: Any, capsys: Any) -> None:
    made.sweep("one", CELLS)
    type(made)(made.project.with_name("other")).sweep("one", CELLS)

    assert main(["status", "one"]) == 1
    assert "'one' is a sweep of demo, other: add project=ONE" in capsys.readouterr().err
    assert main(["status", "other/one"]) == 0


def test_looking_needs_no_torch() -> None:
    modules = ", ".join(f"bdg.commands.{verb}" for verb in ("status", "logs", "cancel", "resume", "lineage", "prune"))
    code = f"import sys, {modules}; sys.exit(' '.join({{'torch', 'lightning'}} & set(sys.modules)))"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.stderr == "\n"
