"""Sweeps whose jobs are disturbed come to the same end as one that is not, by themselves or by the same command."""

from pathlib import Path

import pytest

from tests.slurm.trial import LOCAL, SLURM, Handle, Trial

pytestmark = pytest.mark.slurm
LAMBDAS = "stage.lambda=0.05,0.1,0.2"


@pytest.fixture(scope="module")
def undisturbed(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """1 + 3 + 3 runs, trained without Slurm."""
    trial = Trial(tmp_path_factory.mktemp("undisturbed"), [LAMBDAS, f"data.root={photographs}", *LOCAL])
    trial.sweep()
    return trial


def test_what_slurm_interrupts_goes_on_by_itself(
    cluster: Handle, undisturbed: Trial, photographs: Path, tmp_path: Path
) -> None:
    trial = Trial(tmp_path, ["stage.lambda=0.05,0.1", f"data.root={photographs}", *SLURM])
    trial.sweep()
    (generation,), (first, second) = trial.tasks("generation"), trial.tasks("bridging")

    trial.wait_for_step(generation)
    trial.crash(generation, cluster)
    trial.wait_for_step(first)
    trial.run_out_of_time(first)
    trial.wait_for_step(second)
    trial.requeue(second)
    restoration = next(task for task in trial.tasks("restoration") if task.parent == first.identity)
    trial.wait_for_step(restoration)
    trial.preempt(restoration)
    trial.wait_for_end()

    assert trial.done, trial.report()
    assert trial.states(generation) == ["NODE_FAIL", "COMPLETED"]
    assert all(len(trial.jobs(task)) == 1 for task in trial.plan.tasks.values())
    for task in (generation, first, second, restoration):
        assert len(trial.stories(task)) > 1, task
    assert all(trial.begun_once(task) for task in trial.plan.tasks.values())
    assert set(trial.same_weights(undisturbed).values()) == {True}
    assert "all 5 runs are done" in trial.sweep()


def test_the_same_command_does_again_what_was_cancelled_or_failed_and_what_waited_for_it(
    cluster: Handle, undisturbed: Trial, photographs: Path, tmp_path: Path
) -> None:
    trial = Trial(tmp_path, [LAMBDAS, f"data.root={photographs}", *SLURM])
    trial.sweep()
    cancelled, failing, spared = trial.tasks("bridging")
    stranger = trial.run(failing).folder / "config.yaml"
    stranger.parent.mkdir(parents=True, exist_ok=True)
    stranger.write_text("seed: 5\n")  # which it refuses to go on with

    trial.wait_for_step(cancelled)
    trial.cancel(cancelled)
    trial.wait_for_end()
    done = {task.identity for task in trial.plan.tasks.values() if trial.run(task).done}
    stranger.unlink()
    said = trial.sweep()
    trial.wait_for_end()

    children = {task.parent: task for task in trial.tasks("restoration")}
    assert done == {trial.tasks("generation")[0].identity, spared.identity, children[spared.identity].identity}
    assert "bridging: 2 runs" in said
    assert "restoration: 2 runs" in said
    assert trial.done, trial.report()
    assert trial.states(cancelled) == ["CANCELLED", "COMPLETED"]
    assert trial.states(failing) == ["FAILED", "COMPLETED"]
    for task in (cancelled, failing):
        assert trial.states(children[task.identity]) == ["CANCELLED", "COMPLETED"]
    assert all(trial.begun_once(task) for task in trial.plan.tasks.values())
    assert set(trial.same_weights(undisturbed).values()) == {True}
