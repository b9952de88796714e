"""`bdg sweep` with sweep.search, up to where trainings begin: what Optuna is asked and told, and what a kill leaves behind."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bdg.cli import main
from bdg.commands import planning, search, sweep
from bdg.commands.request import Request
from jobs.plan import Plan
from jobs.run import Run

pytest.importorskip("optuna")

SPACE = "sweep.search={stage.lambda:{low:0.01,high:1.0,log:true}}"
WORDS = (
    "sweep",
    "experiment=demo_smoke",
    "data=shards",
    "data.shards=train-000000.tar",
    "stages=[generation,bridging,restoration]",
    "sweep.name=mine",
    "json=found.json",
)
Score = Callable[[str, float], float]


class Trainings:
    """Writes what trainings would, instead of them. score: PSNR of a stage by lambda."""

    def __init__(self) -> None:
        self.runs: list[tuple[str, float | None]] = []
        self.score: Score = lambda stage, weight: 30.0 - math.log10(weight / 0.1) ** 2
        self.dies_after = math.inf
        self.fails: Callable[[str, float], bool] = lambda stage, weight: False

    def __call__(self, plan: Plan, wanted: Sequence[str], *_: Any) -> dict[str, str]:
        for name in wanted:
            if len(self.runs) >= self.dies_after:
                raise KeyboardInterrupt
            task = plan.tasks[name]
            weight = plan.cells[task.cells[0]].changes["stage.lambda"]
            self.runs.append((task.stage, None if task.stage == "generation" else weight))
            run = Run(Path(plan.root), plan.project, task.stage, name)
            line = {
                "job": "local-999999999",
                "time": "2026-01-01T00:00:00+00:00",
                "tasks": {"0": name},
                "where": "local",
            }
            with (plan.folder / "submissions.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            if self.fails(task.stage, weight):
                run.set_status("failed")
                continue
            run.weights.parent.mkdir(parents=True)
            run.weights.write_bytes(b"")
            scores = {} if task.stage == "generation" else {"val/mean/psnr": self.score(task.stage, weight)}
            run.metrics.write_text(json.dumps(scores))
            run.set_status("done")
        return dict.fromkeys(wanted, "done")

    def of(self, stage: str) -> list[float | None]:
        return [weight for name, weight in self.runs if name == stage]


@pytest.fixture(scope="module")
def composed() -> Callable[..., Any]:
    """Composing of a chain, once for all cells of the same keys: a plan of each trial would take a second."""
    real, known = planning._Planner._compose, {}

    def compose(planner: Any, request: Request, values: Mapping[str, Any]) -> Any:
        if (what := (request, tuple(values))) not in known:
            known[what] = real(planner, request, dict(values)), planner.place
        stages, planner.place = known[what]
        return stages

    return compose


@pytest.fixture
def trainings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, composed: Callable[..., Any]) -> Trainings:
    made = Trainings()
    monkeypatch.setattr(planning._Planner, "_compose", composed)
    monkeypatch.setattr("os.fsync", lambda file: None)  # the journal's, of which each takes long on a busy disk
    monkeypatch.delenv("BDG_CONFIG_DIR", raising=False)
    monkeypatch.setattr(sweep, "run_plan", made)
    monkeypatch.setattr(sweep, "preflight", lambda planned, wanted: None)
    monkeypatch.setattr(sweep, "freeze", lambda *_: tmp_path)
    enter(tmp_path / "one", monkeypatch)
    return made


def enter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    (folder / "train-000000.tar").write_bytes(b"not read")
    monkeypatch.chdir(folder)


def found(*words: str, status: int = 0) -> Mapping[str, Any]:
    assert main([*WORDS, SPACE, *words]) == status
    return json.loads(Path("found.json").read_text())


def weights(result: Mapping[str, Any]) -> list[float]:
    return [trial["changes"]["stage.lambda"] for trial in result["trials"]]


def test_trials_are_asked_trained_and_told(trainings: Trainings, capsys: pytest.CaptureFixture[str]) -> None:
    result = found("sweep.trials=3")

    assert trainings.of("generation") == [None]
    assert trainings.of("restoration") == trainings.of("bridging") == weights(result)
    assert [trial["state"] for trial in result["trials"]] == ["done"] * 3
    for trial in result["trials"]:
        assert trial["psnr"] == trainings.score("restoration", trial["changes"]["stage.lambda"])
    assert result["best"]["psnr"] == max(trial["psnr"] for trial in result["trials"])
    shown = capsys.readouterr().out
    assert "mine: 3 of 3 trials; best" in shown
    assert f"stage.lambda={result['best']['changes']['stage.lambda']}" in shown


def test_the_sweep_on_disk_is_that_of_the_trials(trainings: Trainings) -> None:
    result = found("sweep.trials=2", "cluster.at_once=2")

    folder = Path("runs/demo_smoke/sweeps/mine")
    plan = Plan.from_dict(json.loads((folder / "plan.json").read_text()))
    assert [cell.changes["stage.lambda"] for cell in plan.cells] == weights(result)
    assert len(plan.tasks) == 1 + 2 + 2
    assert trainings.runs[1][0] == trainings.runs[2][0] == "bridging"  # both trials at once
    assert (folder / "cells" / plan.cells[0].name / "restoration").resolve().name == plan.cells[0].tasks[-1]


@pytest.mark.slow
def test_the_seed_decides(trainings: Trainings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = weights(found("sweep.trials=2"))
    enter(tmp_path / "two", monkeypatch)
    same = weights(found("sweep.trials=2"))
    enter(tmp_path / "three", monkeypatch)
    other = weights(found("sweep.trials=2", "sweep.seed=1"))

    assert same == one
    assert not {*other} & {*one}


@pytest.mark.slow
def test_more_trials_go_on_with_those_that_are_there(trainings: Trainings) -> None:
    before = weights(found("sweep.trials=2"))
    after = weights(found("sweep.trials=3"))

    assert after[:2] == before
    assert len(trainings.runs) == 1 + 2 * 3
    assert weights(found("sweep.trials=3")) == after
    assert len(trainings.runs) == 1 + 2 * 3


@pytest.mark.slow
def test_a_search_that_was_killed_makes_the_trials_of_one_that_was_not(
    trainings: Trainings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = found("sweep.trials=3")["trials"]
    runs = list(trainings.runs)
    enter(tmp_path / "two", monkeypatch)
    trainings.runs.clear()
    trainings.dies_after = 4  # after bridging of the second trial
    try:
        status = main([*WORDS, SPACE, "sweep.trials=3"])
    except KeyboardInterrupt:
        status = 130
    assert status == 130
    with Path("runs/demo_smoke/sweeps/mine/optuna.journal").open("a") as file:
        file.write('{"op_code": 5, "wor')  # cut off by the kill
    trainings.dies_after = math.inf
    assert len(found("sweep.trials=3", "plan=true")["trials"]) == 2
    resumed = found("sweep.trials=3")["trials"]

    assert trainings.runs == runs
    assert [(t["changes"], t["psnr"]) for t in resumed] == [(t["changes"], t["psnr"]) for t in undisturbed]


@pytest.mark.slow
def test_a_trial_that_is_worse_than_the_median_is_not_restored(trainings: Trainings) -> None:
    result = found("sweep.trials=8")

    pruned = {t["changes"]["stage.lambda"] for t in result["trials"] if t["state"] == "pruned"}
    assert pruned
    assert not pruned & {*trainings.of("restoration")}
    assert pruned < {*trainings.of("bridging")}
    plan = json.loads(Path("runs/demo_smoke/sweeps/mine/plan.json").read_text())
    assert {len(cell["tasks"]) for cell in plan["cells"] if cell["changes"]["stage.lambda"] in pruned} == {2}


@pytest.mark.slow
def test_a_failed_trial_is_asked_again_and_given_up_when_it_fails_twice(
    trainings: Trainings, capsys: pytest.CaptureFixture[str]
) -> None:
    trainings.fails = lambda stage, weight: stage == "restoration"
    first = found("sweep.trials=2", status=1)
    again = found("sweep.trials=1", status=0)
    trainings.fails = lambda stage, weight: False
    last = found("sweep.trials=2")

    assert [trial["state"] for trial in first["trials"]] == ["open"]
    assert [trial["state"] for trial in again["trials"]] == ["failed"]
    assert weights(again) == weights(first)
    assert [trial["state"] for trial in last["trials"]] == ["failed", "done"]
    assert "restoration failed 2 times" in capsys.readouterr().out


@pytest.mark.slow
def test_on_slurm_each_stage_is_submitted_and_waited_for(trainings: Trainings, monkeypatch: pytest.MonkeyPatch) -> None:
    queue: list[tuple[Plan, Sequence[str]]] = []
    real = sweep.states

    def states(plan: Plan) -> Any:
        queued = [run for _, wanted in queue for run in wanted]
        known, note = real(plan)
        return {run: replace(each, word="running") if run in queued else each for run, each in known.items()}, note

    def submit(plan: Plan, wanted: Sequence[str], *_: Any) -> list[Any]:
        assert not queue
        queue.append((plan, wanted))
        return []

    monkeypatch.setattr(sweep, "submit", submit)
    monkeypatch.setattr(sweep, "states", states)
    monkeypatch.setattr(sweep.time, "sleep", lambda seconds: trainings(*queue.pop()))
    result = found("sweep.trials=2", "sweep.at_once=2", "cluster=slurm", "cluster.time_min=60")

    assert [stage for stage, _ in trainings.runs] == [
        "generation",
        "bridging",
        "bridging",
        "restoration",
        "restoration",
    ]
    assert [trial["state"] for trial in result["trials"]] == ["done", "done"]


@pytest.mark.slow
def test_choices_may_be_lists_and_repeat(trainings: Trainings) -> None:
    words = [*WORDS, "sweep.search={stage.lambda:[0.1],glcm.scales:[[1],[1,2]]}"]
    assert main(words) == 1
    words[-1] = "sweep.search={stage.lambda:[0.1,0.2],glcm.scales:[[1],[1,2]]}"
    assert main([*words, "sweep.trials=6"]) == 0
    result = json.loads(Path("found.json").read_text())

    assert len(result["trials"]) == 6
    assert len(trainings.of("bridging")) <= 4
    assert all(trial["changes"]["glcm.scales"] in ([1], [1, 2]) for trial in result["trials"])


def test_a_plan_writes_nothing(trainings: Trainings, capsys: pytest.CaptureFixture[str]) -> None:
    assert found("plan=true")["trials"] == []
    assert not Path("runs").exists()
    assert "mine: 0 of 20 trials" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sweep.search={}"], "the sweep is empty"),
        (["sweep.search={stage.lamda:[0.1,0.2]}"], "no key 'stage.lamda'"),
        (["sweep.search={data.num_workers:[0,1]}"], "data.num_workers does not count there"),
        (["sweep.search={stage.lambda:0.1}"], "sweep.search.stage.lambda=0.1: give a range"),
        (["sweep.search={stage.lambda:[]}"], "sweep.search.stage.lambda=[]: give a range"),
        (["sweep.search={stage.lambda:{low:0,high:1,log:true}}"], "0 < low"),
        (["sweep.search={stage.lambda:{low:1,high:1}}"], "low < high"),
        (["sweep.search={stage.lambda:{low:0,hihg:1}}"], "give a range"),
        (["sweep.search=[1]"], "sweep.search="),
        ([SPACE, "seed=0,1"], "seed names cells, and sweep.search"),
        ([SPACE, "stage.lambda=0.1"], "stage.lambda=0.1 is given"),
        ([SPACE, "sweep.trials=0"], "sweep.trials=0: give a whole number, 1 or more"),
        ([SPACE, "sweep.trails=3"], "sweep.trails"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_is_written(
    words: list[str], message: str, trainings: Trainings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*WORDS, *words]) == 1

    assert message in capsys.readouterr().err
    assert not trainings.runs
    assert not Path("runs").exists()


def test_without_optuna_one_line_says_what_to_install(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(search, "find_spec", lambda name: None)
    assert main([*WORDS, SPACE]) == 1

    assert "pip install 'bdg[search]'" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_another_space_of_that_name_is_refused(trainings: Trainings, capsys: pytest.CaptureFixture[str]) -> None:
    found("sweep.trials=1")
    assert main([*WORDS, SPACE.replace("0.01", "0.02")]) == 1

    assert "search.stage.lambda.low: 0.01 and 0.02" in capsys.readouterr().err


def test_two_processes_do_not_search_at_once(trainings: Trainings, capsys: pytest.CaptureFixture[str]) -> None:
    with search.alone(Path("runs/demo_smoke/sweeps/mine")):
        assert main([*WORDS, SPACE]) == 1

    assert "another process goes on with mine" in capsys.readouterr().err


def test_the_search_of_the_package_can_be_planned(trainings: Trainings, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for word in WORDS if not word.startswith("sweep.name")]
    assert main([*words, "sweep=optuna_lambda", "sweep.trials=5", "plan=true"]) == 0

    assert "optuna_lambda: 0 of 5 trials" in capsys.readouterr().out


@pytest.mark.slow
def test_a_search_that_really_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["pack", "pkg://datamodules/photographs", "photographs", "parts=photographs"]) == 0
    words = ("sweep", "experiment=demo_smoke", "data.root=photographs", "sweep.name=mine", "logger=none", SPACE)

    def trials(number: int) -> list[dict[str, Any]]:
        assert main([*words, f"sweep.trials={number}", "json=found.json"]) == 0
        return json.loads(Path("found.json").read_text())["trials"]

    first = trials(1)
    assert [row["state"] for row in first] == ["done"]
    assert math.isfinite(first[0]["psnr"])
    both = trials(2)
    assert both[:1] == first
    assert len({*Path("runs").glob("*/generation/*/STATUS")}) == 1
    assert len({*Path("runs").glob("*/bridging/*/STATUS")}) == 2
