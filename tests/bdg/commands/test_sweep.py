"""`bdg sweep` up to the point where it hands its plan over, and what it refuses."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from bdg.cli import main
from bdg.commands import sweep
from jobs.identity import identity
from jobs.plan import Plan
from jobs.run import Run

DATA = ("data=shards", "data.shards=train-000000.tar")
WORDS = ("experiment=demo_smoke", *DATA)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BDG_CONFIG_DIR", raising=False)
    (tmp_path / "train-000000.tar").write_bytes(b"not read")
    return tmp_path


@pytest.fixture
def handed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What is handed over to be run, instead of running it."""
    found: dict[str, Any] = {"runs": []}

    def run_plan(plan: Plan, wanted: list[str], *_: Any) -> dict[str, str]:
        found["runs"].append(list(wanted))
        for run in wanted:
            finish(plan, run)
        return dict.fromkeys(wanted, "done")

    monkeypatch.setattr(sweep, "run_plan", run_plan)
    monkeypatch.setattr(sweep, "preflight", lambda planned, wanted: None)
    monkeypatch.setattr(sweep, "freeze", lambda *_: folder)
    return found


def finish(plan: Plan, name: str) -> None:
    run = Run(Path(plan.root), plan.project, plan.tasks[name].stage, name)
    run.weights.parent.mkdir(parents=True)
    run.weights.write_bytes(b"")
    run.set_status("done")


def planned(*words: str, verb: tuple[str, ...] = ("sweep",)) -> dict[str, Any]:
    assert main([*verb, *WORDS, "plan=true", "estimate=false", "json=plan.json", *words]) == 0
    return json.loads(Path("plan.json").read_text())["plan"]


def test_a_plan_is_shown_without_torch(folder: Path) -> None:
    words = ["sweep", *WORDS, "stage.lambda=0.05,0.1", "plan=true", "estimate=false"]
    code = f"import sys; from bdg.cli import main; assert main({words}) == 0; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_train_m_plans_what_the_sweep_plans(folder: Path) -> None:
    words = ("stage=bridging", "stage.lambda=0.05,0.1", "glcm.scales=[1],[1,2]")
    by_words = planned(*words)

    assert planned(*words, verb=("train", "-m")) == by_words
    grid = planned("stage=bridging", "sweep.grid={stage.lambda:[0.05,0.1],glcm.scales:[[1],[1,2]]}")
    assert (grid["cells"], grid["tasks"]) == (by_words["cells"], by_words["tasks"])
    assert [task["stage"] for task in grid["tasks"]] == ["generation"] + ["bridging"] * 4


def test_a_plan_shows_the_tree_and_what_is_saved_and_does_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planned("stage.lambda=0.05,0.1")

    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert [len(line) - len(line.lstrip()) for line in lines[:5]] == [0, 2, 4, 2, 4]
    assert lines[0].startswith("generation ")
    assert lines[0].endswith("2 cells  missing")
    assert "2 cells ask for 6 stages, which are 5 runs, as 1 are shared: 0 done, 0 on their way, 5 to run" in shown
    assert not (folder / "runs").exists()


def test_a_long_tree_is_cut(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planned("seed=range(4)", "lines=2")

    assert "... and 10 more" in capsys.readouterr().out


@pytest.mark.slow
def test_what_is_done_is_not_run_again(
    handed: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", *WORDS, "stages=[generation,bridging]", "sweep.name=mine", "stage.lambda=0.05,0.1"]
    assert main(words) == 0
    assert main(words) == 0
    assert main([*words[:-1], "sweep.name=more", "stage.lambda=0.05,0.2"]) == 1  # a key given twice
    assert main([*words[:-2], "sweep.name=more", "stage.lambda=0.05,0.2"]) == 0

    assert [len(runs) for runs in handed["runs"]] == [3, 1]
    place = folder / "runs" / "demo_smoke" / "sweeps" / "mine"
    written = json.loads((place / "plan.json").read_text())
    assert written["words"] == ["sweep.name=mine", *WORDS, "stages=[generation,bridging]", "stage.lambda=0.05,0.1"]
    for cell in Plan.from_dict(written).cells:
        for stage, run in zip(("generation", "bridging"), cell.tasks, strict=True):
            assert (place / "cells" / cell.name / stage).resolve().name == run


def test_a_sweep_of_that_name_with_another_definition_is_refused(
    handed: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", *WORDS, "stages=[generation]", "sweep.name=mine"]
    assert main([*words, "seed=0,1"]) == 0
    assert main([*words, "seed=0,2"]) == 1

    assert len(handed["runs"]) == 1
    message = capsys.readouterr().err
    assert "sweep mine is there already" in message
    assert "varied.seed: [0, 1] and [0, 2]" in message
    assert "sweep.name=NAME" in message


@pytest.mark.slow
def test_where_it_runs_is_no_part_of_a_definition(handed: dict[str, Any]) -> None:
    words = ["sweep", *WORDS, "stages=[generation]", "sweep.name=mine", "seed=0,1"]
    assert main(words) == 0
    assert main([*words, "cluster.at_once=2", "data.num_workers=1"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the sweep is empty"),
        (["stage.lamda=0.05,0.1"], "no key 'stage.lamda'"),
        (["data.num_workers=0,1"], "'num_workers=0' and 'num_workers=1' are the same runs, since data.num_workers"),
        (["sweep.grid={seed:3}"], "sweep.grid.seed=3 is not a list"),
        (["sweep=seeds", "seed=0,1"], "seed is varied by sweep= and by a word of its own"),
        (["sweep.gird={seed:[3]}"], "sweep.gird"),
        (["seed=0,1", "sweep.name=a/b"], "sweep.name=a/b"),
        (["plan=true,false", "seed=0,1"], "plan has several values"),
        (["stage=bridging,thrid"], "thrid"),
    ],
)
def test_what_cannot_be_planned_is_refused_before_anything_is_written(
    words: list[str], message: str, handed: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", *WORDS, *words]) == 1

    assert message in capsys.readouterr().err
    assert not handed["runs"]
    assert not (folder / "runs").exists()


def test_a_child_of_a_run_that_goes_on_elsewhere_is_not_begun(
    handed: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real: Callable[..., Any] = sweep.states

    def with_parent_running(plan: Plan) -> Any:
        found, note = real(plan)
        first = next(iter(plan.tasks))
        return found | {first: type(found[first])("running", "")}, note

    monkeypatch.setattr(sweep, "states", with_parent_running)
    assert main(["sweep", *WORDS, "stage.lambda=0.05,0.1"]) == 1

    assert "which is running elsewhere" in capsys.readouterr().err
    assert not handed["runs"]


def test_a_run_that_failed_twice_is_shown_with_the_end_of_its_log(
    handed: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*WORDS, "stages=[generation]", "sweep.name=mine", "seed=0,1"]
    plan = Plan.from_dict(planned(*words[len(WORDS) :]))
    name = next(iter(plan.tasks))
    run = Run(Path(plan.root), plan.project, "generation", name)
    run.set_status("failed")
    (run.folder / "slurm").mkdir()
    (run.folder / "slurm" / "local-2.restart0.err").write_text("".join(f"line {n}\n" for n in range(30)))
    line = {"time": "2026-01-01T00:00:00+00:00", "stage": "generation", "tasks": {"0": name}, "where": "local"}
    more = {"dependency": None, "script": None, "cluster": "local"}
    plan.folder.mkdir(parents=True)
    text = "".join(json.dumps({"job": f"local-{n}", **line, **more}) + "\n" for n in (999999998, 999999999))
    (plan.folder / "submissions.jsonl").write_text(text)
    (plan.folder / "plan.json").write_text(json.dumps(plan.to_dict() | {"definition": {}}))
    capsys.readouterr()
    assert main(["sweep", *words]) == 0

    shown = capsys.readouterr().out
    assert f"generation {name} (seed=0) failed 2 times" in shown
    assert "line 29" in shown
    assert "line 9\n" not in shown


def test_a_run_that_fails_again_now_is_shown_at_once(
    handed: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(planned: Any, state: Any, wanted: Sequence[str], *_: Any) -> bool:
        plan = planned.plan
        for name in wanted:
            Run(Path(plan.root), plan.project, plan.tasks[name].stage, name).set_status("failed")
            lines = (
                {"job": f"local-{n}", "time": "2026", "tasks": {"0": name}, "where": "local"}
                for n in (999999998, 999999999)
            )
            (plan.folder / "submissions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return False

    monkeypatch.setattr(sweep, "hand_over", fails)
    assert main(["sweep", *WORDS, "stages=[generation]", "sweep.name=mine", "seed=0,1"]) == 1

    assert "failed 2 times" in capsys.readouterr().out


def test_pipeline_m_measures_each_cell_at_the_end(handed: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []
    monkeypatch.setattr(sweep, "run_all", lambda verb, requests: measured.append((verb.name, len(requests))) or 0)
    assert main(["pipeline", "-m", *WORDS, "seed=0,1"]) == 0

    assert measured == [("pipeline", 2)]
    assert [len(runs) for runs in handed["runs"]] == [6]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lambda_glcm", "seeds", pytest.param("ablations", marks=pytest.mark.slow)])
def test_the_sweeps_of_the_package_can_be_planned(name: str, folder: Path) -> None:
    assert len(planned(f"sweep={name}")["cells"]) >= 3


def test_sweeps_multiply(folder: Path) -> None:
    assert len(planned("sweep=[lambda_glcm,seeds]")["cells"]) == 12 * 3


def test_identity_is_that_of_the_hashed_text() -> None:
    """Planning fills in the text, so both must come from one place."""
    from jobs.identity import name_of, written

    assert identity({"a": 1.0}, None, "data") == name_of(written([{"a": 1}, None, "data"]))
