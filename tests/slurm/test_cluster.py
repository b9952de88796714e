"""The cluster behaves as clusters do, and jobs/slurm.py reads what it really says."""

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.slurm import Slurm, SlurmRefused
from tests.slurm.trial import CLUSTER, Handle, call

pytestmark = pytest.mark.slurm
Until = Callable[..., None]


def script(folder: Path, body: str, *options: str) -> str:
    options = ("--job-name=trial", "--open-mode=append", f"--output={folder}/%A_%a.out", *options)
    return "\n".join(["#!/bin/bash", *(f"#SBATCH {option}" for option in options), textwrap.dedent(body)])


def said(command: str) -> str:
    return subprocess.run(command, shell=True, capture_output=True, text=True, check=True).stdout


def test_two_nodes_of_two_processes_each_have_names_and_gpus_of_their_own(cluster: Handle) -> None:
    shown = "echo $SLURM_PROCID $SLURM_NODEID $SLURM_LOCALID $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES"

    lines = said(f"srun --nodes=2 --ntasks-per-node=2 --gpus-per-node=2 bash -c '{shown}'")

    assert sorted(lines.splitlines()) == ["0 0 0 bdg1 0,1", "1 0 1 bdg1 0,1", "2 1 0 bdg2 0,1", "3 1 1 bdg2 0,1"]


def test_the_seam_reads_the_partitions(cluster: Handle) -> None:
    low, high = sorted(Slurm().partitions(), key=lambda nodes: not nodes.default)

    assert (low.partition, high.partition, low.default, high.default) == ("low", "high", True, False)
    assert low.up
    assert (low.nodes, low.cpus, low.gpus, low.time_min) == (2, 4, 2, None)
    assert low.mem_gb == pytest.approx(32000 / 1024)
    assert Slurm().max_array_size() == 1001


def test_the_seam_follows_an_array_from_the_queue_to_the_accounts(
    cluster: Handle, tmp_path: Path, until: Until
) -> None:
    slurm = Slurm()
    body = 'sleep 3; [ "$SLURM_ARRAY_TASK_ID" != 2 ]'
    array = slurm.sbatch(script(tmp_path, body, "--array=0-3%3", "'--comment=demo, twice'", "--exclusive=user"))
    child = slurm.sbatch(script(tmp_path, "true"), f"afterok:{array}_1")
    orphan = slurm.sbatch(script(tmp_path, "true"), f"afterok:{array}_2")

    until(lambda: sum(job.state == "RUNNING" for job in slurm.queue()) == 3)
    queue = {job.id: job for job in slurm.queue()}
    until(lambda: not slurm.queue())
    until(lambda: "RUNNING" not in {row.state for row in slurm.accounting([array, child, orphan])}, 10)
    rows = {row.id: row for row in slurm.accounting([array, child, orphan])}

    assert queue[f"{array}_0"].state == "RUNNING"
    assert queue[f"{array}_0"].node in ("bdg1", "bdg2")
    assert (queue[f"{array}_3"].state, queue[f"{array}_3"].reason) == ("PENDING", "JobArrayTaskLimit")
    assert (queue[f"{array}_0"].name, queue[f"{array}_0"].comment) == ("trial", "demo, twice")
    assert (queue[child].state, queue[child].reason, queue[child].node) == ("PENDING", "Dependency", "")
    assert {id: row.state for id, row in rows.items()} == {
        f"{array}_0": "COMPLETED",
        f"{array}_1": "COMPLETED",
        f"{array}_2": "FAILED",
        f"{array}_3": "COMPLETED",
        child: "COMPLETED",
        orphan: "CANCELLED",
    }
    assert rows[f"{array}_2"].exit == "1:0"
    assert rows[f"{array}_1"].elapsed_s >= 3
    assert rows[orphan].node == ""


def test_the_seam_cancels_a_task_and_leaves_the_others(cluster: Handle, tmp_path: Path, until: Until) -> None:
    slurm = Slurm()
    array = slurm.sbatch(script(tmp_path, "sleep 60", "--array=0-2"))
    until(lambda: {job.state for job in slurm.queue()} == {"RUNNING"})

    slurm.cancel([f"{array}_1"])
    until(lambda: {job.id for job in slurm.queue()} == {f"{array}_0", f"{array}_2"})
    slurm.cancel([array, "999999"])

    until(lambda: not slurm.queue())


def test_the_accounts_keep_each_run_of_a_task_that_lost_its_node(cluster: Handle, tmp_path: Path, until: Until) -> None:
    slurm = Slurm()
    body = '[ -n "$SLURM_RESTART_COUNT" ] || srun sleep 60'
    job = slurm.sbatch(script(tmp_path, body, "--nodes=2", "--requeue", "--array=7"))
    until(lambda: "RUNNING" in {queued.state for queued in slurm.queue()})

    cluster.crash("bdg2")
    cluster.start("bdg2")
    until(lambda: not slurm.queue())

    until(lambda: [row.state for row in slurm.accounting([job])] == ["NODE_FAIL", "COMPLETED"], 10)


def test_high_takes_the_nodes_of_low_and_gives_them_back(cluster: Handle, tmp_path: Path, until: Until) -> None:
    slurm = Slurm()
    # one that obeys has left before its time of grace is over, and is not requeued
    body = '[ -n "$SLURM_RESTART_COUNT" ] || srun bash -c "trap \\"\\" TERM; exec sleep 60"'
    low = slurm.sbatch(script(tmp_path, body, "--nodes=2", "--exclusive", "--requeue", "--array=0"))
    until(lambda: "RUNNING" in {queued.state for queued in slurm.queue()})

    high = slurm.sbatch(script(tmp_path, "true", "--nodes=2", "--exclusive", "--partition=high"))
    until(lambda: not slurm.queue())

    until(lambda: [row.state for row in slurm.accounting([low])] == ["PREEMPTED", "COMPLETED"], 10)
    assert [row.state for row in slurm.accounting([high])] == ["COMPLETED"]


def test_what_could_never_run_is_refused_in_slurms_words(cluster: Handle, tmp_path: Path) -> None:
    Slurm().test_only(script(tmp_path, "true", "--nodes=2"))

    with pytest.raises(SlurmRefused, match=r"More processors requested than permitted|configuration is not available"):
        Slurm().test_only(script(tmp_path, "true", "--nodes=2", "--gpus-per-node=3"))


def test_two_clusters_do_not_see_each_other(cluster: Handle, tmp_path: Path) -> None:
    other = Path(f"{cluster.state}-b")
    try:
        printed = call(sys.executable, str(CLUSTER), "up", "--state", str(other), "--nodes", "1", "--apart", "no")
        nodes = [
            said(f"SLURM_CONF={conf} sinfo -h -N -p low -o %N").split()
            for conf in (f"{cluster.state}/slurm.conf", f"{other}/slurm.conf")
        ]
    finally:
        call(sys.executable, str(CLUSTER), "down", "--state", str(other))

    assert printed == f"export SLURM_CONF={other}/slurm.conf\n"
    assert nodes == [["bdg1", "bdg2"], ["bdg1"]]
    assert not other.exists()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["crash", "bdg9"], "no node bdg9: there are bdg1, bdg2"),
        (["up", "--state", "/tmp/" + 60 * "x"], "too long for the sockets in it: 60 characters at most"),
        (["down", "--state", "/tmp/nowhere"], "no cluster in --state /tmp/nowhere: start one with"),
    ],
)
def test_what_a_cluster_cannot_do_is_said_in_a_line(cluster: Handle, words: list[str], error: str) -> None:
    done = subprocess.run(
        [sys.executable, CLUSTER, words[0], "--state", cluster.state, *words[1:]], capture_output=True, text=True
    )

    assert done.returncode == 1
    assert error in done.stderr
    assert done.stderr.count("\n") == 1
