"""Two nodes of two processes train as one."""

from pathlib import Path

import pytest

from tests.slurm.trial import SLURM, Handle, Trial

pytestmark = pytest.mark.slurm
FOUR = (
    *("cluster.nodes=2", "cluster.devices=2", "data.batch_size=8", "sweep.seeds=[1]", "callbacks.pace.seconds=0.05"),
)


def test_one_sweep_trains_three_stages_and_a_run_that_is_told_to_leave_goes_on_to_the_same_weights(
    cluster: Handle, photographs: Path, tmp_path: Path
) -> None:
    words = [*SLURM, *FOUR, f"data.root={photographs}"]
    unbroken, broken = Trial(tmp_path / "unbroken", words), Trial(tmp_path / "broken", [*words, "stage=generation"])
    unbroken.sweep()
    unbroken.wait_for_end()
    broken.sweep()
    (task,) = broken.plan.tasks.values()
    broken.wait_for_step(task)
    broken.run_out_of_time(task)
    broken.wait_for_end()

    assert unbroken.done, unbroken.report()
    assert [task.stage for task in unbroken.plan.tasks.values()] == ["generation", "bridging", "restoration"]
    assert broken.done, broken.report()
    assert len(broken.stories(task)) == 2
    (log,) = (broken.sweep_folder / "jobs" / "logs").glob("*.out")
    assert "status 'preempted', state 'RUNNING', srun 0" in log.read_text()
    assert broken.same_weights(unbroken) == {task.identity: True}
