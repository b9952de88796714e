"""What a user does from the first sight of a cluster to the end of a sweep: docs/cluster.md on a real one."""

from pathlib import Path

import pytest

from tests.slurm.trial import SLURM, Handle, Trial

pytestmark = pytest.mark.slurm
ONE = ("stages=[generation]", "sweep.seeds=[0]")


def test_a_user_describes_the_cluster_submits_looks_cancels_and_goes_on(
    cluster: Handle, photographs: Path, tmp_path: Path
) -> None:
    own = [word for word in SLURM if not word.startswith("cluster=")]
    trial = Trial(tmp_path, ["cluster=mysite", *own, *ONE, f"data.root={photographs}"])
    assert "conf/cluster/mysite.yaml" in trial.bdg("cluster", "init", "mysite")
    assert "gpus" in (tmp_path / "conf" / "cluster" / "mysite.yaml").read_text()
    assert "generation: 1 runs as job" in trial.sweep()
    (task,) = trial.plan.tasks.values()

    trial.wait_for_step(task)
    status = trial.bdg("status", "trial")
    assert task.identity in status
    assert "running" in status
    assert "generation" in trial.bdg("logs", task.identity)
    assert task.identity in trial.bdg("cancel", "trial", "dry=true")
    assert trial.queue()
    trial.bdg("cancel", "trial")
    trial.wait_for_end()
    assert "stopped" in trial.bdg("status", "trial")
    trial.bdg("resume", "trial", "words='trust=[pace]'")
    trial.wait_for_end()

    assert trial.done, trial.report()
    assert trial.begun_once(task)
    assert trial.states(task) == ["CANCELLED", "COMPLETED"]
    assert "1 done" in trial.bdg("status", "trial")
    assert task.identity in trial.bdg("lineage", task.identity)


def test_a_job_near_the_end_of_its_time_is_told_by_slurm_and_goes_on_in_its_next(
    cluster: Handle, photographs: Path, tmp_path: Path
) -> None:
    timeless = [word for word in SLURM if not word.startswith("cluster.time_min")]
    time = ("cluster.time_min=2", "cluster.lead_s=60", "callbacks.preempt.margin_s=1", "callbacks.pace.seconds=4")
    trial = Trial(tmp_path, [*timeless, *time, *ONE, f"data.root={photographs}"])
    trial.sweep()
    trial.wait_for_end()

    (task,) = trial.plan.tasks.values()
    assert trial.done, trial.report()
    assert trial.begun_once(task)
    assert len(trial.stories(task)) > 1
    assert trial.states(task)[-1] == "COMPLETED"
    said = "".join(path.read_text() for path in (trial.run(task).folder / "slurm").glob("*.err"))
    assert "(SIGUSR1): the same command goes on from here" in said
