"""That a plan holds exactly the runs that `bdg train` would make of its cells, one by one."""

import random
from pathlib import Path
from typing import Any

import pytest

from bdg.commands import planning
from bdg.commands.cells import Point, points
from bdg.commands.chain import resolved, stage_link
from bdg.commands.planning import Planned, plan_cells
from bdg.commands.request import Request
from jobs.identity import definition
from jobs.plan import Plan

SPACE: dict[str, list[Any]] = {
    "stage.lambda": [0, 0.05, 0.1, 1, 1.0],
    "glcm.scales": [[1, 2], [1, 2, 4], [1]],
    "glcm": ["paper", "stacked"],
    "seed": [0, 1, 7],
    "data.crop": [32, 64],
    "data.batch_size": [4, 8],
    "data.micro_batch": [None, 2],
    "data.reader": ["indexed", "stream"],
    "data.quotas": [None, {"rain": 1, "haze": 2}],
    "max_steps.bridging": [3, 5],
    "trainer.precision": ["32-true", "bf16-mixed"],
    "stage.terms.bridge.targets": ["identity", "class"],
    "stage.terms.negative.literal": [False, True],
    "stage.weights.classify": [0, 0.5],
    "stage.anchor": [0, 0.5],
    "stage.condition": ["none", "x_lq"],
    "network": ["T", "smoke"],
    "network.dim": [16, 24],
    "experiment": ["ablation_without_bridge", "ablation_without_bridging", "ablation_joint_loss", None],
    "degradation": ["rain", ["rain", "blur"], ["blur", "rain"]],
    "only.generation": [[], ["seed=3"]],
    "+mine": [1, 2],
    "data.num_workers": [0, 1],
    "logger": ["none", "csv"],
}


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """A request that can be planned: there are shards."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train-000000.tar").write_bytes(b"not read")
    return ("experiment=demo_smoke", "data=shards", "data.shards=train-000000.tar")


def plan(words: tuple[str, ...], grid: dict[str, list[Any]], one_stage: bool = False) -> Plan:
    return planned(words, grid, one_stage).plan


def planned(words: tuple[str, ...], grid: dict[str, list[Any]], one_stage: bool = False) -> Planned:
    return plan_cells(Request("train", words), points({}, grid), "mine", one_stage)


def check_cells(words: tuple[str, ...], seed: int, keys: int) -> None:
    rng = random.Random(seed)
    chosen = rng.sample([*SPACE], keys)
    asked = {str(p): p for p in (Point("", {}, {k: rng.choice(SPACE[k]) for k in chosen}) for _ in range(2))}
    try:
        found = plan_cells(Request("train", words), [*asked.values()], "mine", False)
    except ValueError as error:
        if "are the same runs" in str(error):  # as they may be; that this is so is shown below
            found = plan_cells(Request("train", words), [*asked.values()][:1], "mine", False)
        else:
            raise
    for cell, request in zip(found.plan.cells, found.requests, strict=True):
        tasks = [found.plan.tasks[run] for run in cell.tasks]
        assert [task.stage for task in tasks] == list(request.compose().stages)
        link = stage_link(request, tasks[-1].stage, first=len(tasks) == 1)
        assert link.run.identity == cell.tasks[-1], request
        assert tasks[-1].folder == str(link.run.folder)
        assert tasks[-1].parent == (link.parent.identity if link.parent else None)
        assert tasks[-1].max_steps == link.config.trainer.max_steps
    some = rng.choice([*found.plan.tasks.values()])
    made = stage_link(Request("train", some.words), some.stage)
    assert made.run.identity == some.identity, "the words of a task make it"
    config = found.config(made.run.identity)
    assert definition(config) == definition(resolved(made.config)), "keys that do not count there may differ"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_plan_names_the_runs_that_training_would_make(words: tuple[str, ...], seed: int) -> None:
    check_cells(words, seed, 8)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 130))
def test_a_plan_names_the_runs_that_training_would_make_of_random_cells(words: tuple[str, ...], seed: int) -> None:
    check_cells(words, seed, 2 + seed % 10)


def test_lambda_and_glcm_share_one_generation(words: tuple[str, ...]) -> None:
    found = plan(words, {"stage.lambda": [0.05, 0.1], "glcm.scales": [[1], [1, 2]], "glcm.angles": [[0], [0, 0.5]]})

    stages = [task.stage for task in found.tasks.values()]
    assert [stages.count(stage) for stage in ("generation", "bridging", "restoration")] == [1, 8, 8]
    generation = next(iter(found.tasks.values()))
    assert generation.cells == (*range(8),)
    assert generation.words == ("stage=generation", *words)


def test_many_values_do_not_need_many_configs(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    composed = []
    compose = Request.compose
    monkeypatch.setattr(Request, "compose", lambda self, *more: composed.append(self) or compose(self, *more))

    found = plan(words, {"stage.lambda": [n / 100 for n in range(1, 51)], "seed": [*range(10)]})

    assert len(found.cells) == 500
    assert len(composed) <= 5


def test_a_stage_that_is_asked_for_comes_with_what_it_inherits_from(words: tuple[str, ...]) -> None:
    found = plan((*words, "stage=bridging"), {"stage.lambda": [0.05, 0.1]}, one_stage=True)

    assert [task.stage for task in found.tasks.values()] == ["generation", "bridging", "bridging"]


def test_a_stage_from_scratch_has_no_parent_in_the_plan(words: tuple[str, ...]) -> None:
    found = plan((*words, "stage=bridging", "inherit.from=none"), {"stage.lambda": [0.05, 0.1]}, one_stage=True)

    assert [(task.stage, task.parent) for task in found.tasks.values()] == [("bridging", None)] * 2


def test_parents_come_before_their_children(words: tuple[str, ...]) -> None:
    found = plan(words, {"experiment": ["ablation_without_bridging", "ablation_without_restoration"], "seed": [0, 1]})

    places = {run: place for place, run in enumerate(found.tasks)}
    assert all(places[task.parent] < places[run] for run, task in found.tasks.items() if task.parent)


def test_an_experiment_of_a_cell_joins_those_of_the_command(words: tuple[str, ...]) -> None:
    found = planned(words, {"experiment": ["ablation_without_bridging", "ablation_without_restoration"]})

    assert found.requests[0].overrides[-1] == "experiment=[demo_smoke,ablation_without_bridging]"


def test_a_value_inside_of_a_longer_text_is_composed(words: tuple[str, ...], tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train-000000.tar").write_bytes(name.encode() * (1 if name == "one" else 2))
    found = planned((words[0], "data=packed"), {"data.root": ["one", "two"]})

    expected = [stage_link(request, "restoration", first=False).run.identity for request in found.requests]
    assert [cell.tasks[-1] for cell in found.plan.cells] == expected


def test_a_value_that_a_resolver_reads_is_composed(words: tuple[str, ...]) -> None:
    found = planned((*words, r"data.crop='${oc.decode:${seed}0}'"), {"seed": [3, 4]})

    expected = [stage_link(request, "restoration", first=False).run.identity for request in found.requests]
    assert [cell.tasks[-1] for cell in found.plan.cells] == expected


# --- what is refused ---


def test_a_key_that_does_not_exist_is_named(words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"no key 'stage.lamda' in config 'train': did you mean .*stage.lambda"):
        plan(words, {"stage.lamda": [0.05, 0.1]})


def test_cells_of_the_same_runs_are_named_with_the_keys_that_do_not_count(words: tuple[str, ...]) -> None:
    message = "cells 'num_workers=0,seed=0' and 'num_workers=1,seed=0' are the same runs, since data.num_workers does not count"
    with pytest.raises(ValueError, match=message):
        plan(words, {"data.num_workers": [0, 1], "seed": [0, 1]})


def test_a_key_that_is_both_given_and_varied_is_named(words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="seed=3 is given, and the sweep varies seed"):
        plan((*words, "seed=3"), {"seed": [0, 1]})


def test_where_a_whole_chain_begins_is_not_for_one_stage(words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"inherit\.from=none is for one stage"):
        plan((*words, "inherit.from=none"), {"seed": [0, 1]})


def test_planning_imports_no_torch() -> None:
    assert "torch" not in vars(planning)
