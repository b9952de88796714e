import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from jobs import slurm
from jobs.geometry import Geometry
from jobs.slurm import Nodes, Slurm, SlurmMissing, SlurmRefused, check_fits, expand, minutes

SQUEUE = """\
12|0|RUNNING|node1|None|bdg-x-bridging|bdg-0123456789ab-bridging-1
12|1|COMPLETING|node2|None|bdg-x-bridging|bdg-0123456789ab-bridging-1
12|7|PENDING|n/a|JobArrayTaskLimit|bdg-x-bridging|bdg-0123456789ab-bridging-1
15|N/A|PENDING|n/a|Dependency|python|(null)
16|N/A|PENDING|n/a|Nodes required for job are DOWN, DRAINED or reserved|python|a|b
"""
SACCT = """\
12_0|PREEMPTED|0:0|62|node[1-2]
12_0|COMPLETED|0:0|240|node[07,09]
12_1|CANCELLED by 1000|0:15|5|node3,node4
12_[3-5,9%2]|PENDING|0:0|0|None assigned
15|NODE_FAIL|1:0|7|node1
"""
SINFO = """\
gpu*|up|2-00:00:00|3|128|1031000|gpu:a100:8(S:0-1),tmpdisk:100|a100,ib
gpu*|up|2-00:00:00|2|64|515000|gpu:4|v100
debug|up|30:00|1|8|16000|(null)|(null)
old|down|infinite|4|4|8000|(null)|(null)
"""


def answering(text: str, asked: list[Sequence[str]] | None = None) -> Slurm:
    def run(command: Sequence[str], given: str) -> str:
        if asked is not None:
            asked.append([*command, given])
        return text

    return Slurm(run)


def refusing(text: str) -> Slurm:
    def run(command: Sequence[str], given: str) -> str:
        raise SlurmRefused(f"{command[0]}: {text}")

    return Slurm(run)


def test_the_queue_has_each_task_of_an_array_by_itself() -> None:
    queue = answering(SQUEUE).queue()

    assert [job.id for job in queue] == ["12_0", "12_1", "12_7", "15", "16"]
    assert [job.node for job in queue] == ["node1", "node2", "", "", ""]
    assert (queue[2].state, queue[2].reason, queue[2].comment) == (
        "PENDING",
        "JobArrayTaskLimit",
        "bdg-0123456789ab-bridging-1",
    )
    assert (queue[3].index, queue[3].comment) == (None, "")
    assert (queue[4].reason, queue[4].comment) == ("Nodes required for job are DOWN, DRAINED or reserved", "a|b")


def test_the_queue_is_asked_for_this_users_jobs_with_arrays_expanded() -> None:
    asked: list[Sequence[str]] = []
    answering("", asked).queue()

    assert {"--array", "--noheader"} <= {*asked[0]}
    assert any(word.startswith("--user=") for word in asked[0])


def test_accounting_tells_every_run_of_a_job_and_expands_what_waits() -> None:
    rows = answering(SACCT).accounting(["12", "15"])

    assert [row.id for row in rows] == ["12_0", "12_0", "12_1", "12_3", "12_4", "12_5", "12_9", "15"]
    assert [row.state for row in rows[:3]] == ["PREEMPTED", "COMPLETED", "CANCELLED"]
    assert [row.node for row in rows[:4]] == ["node1", "node07", "node3", ""]
    assert (rows[1].elapsed_s, rows[2].exit) == (240, "0:15")


def test_a_cluster_without_accounting_tells_nothing() -> None:
    assert refusing("Slurm accounting storage is disabled").accounting(["12"]) == []
    with pytest.raises(SlurmRefused):
        refusing("Invalid user").accounting(["12"])


def test_no_command_is_longer_than_a_system_takes() -> None:
    asked: list[Sequence[str]] = []
    cluster = answering("", asked)
    cluster.accounting(map(str, range(1200)))
    cluster.cancel(map(str, range(1200)))

    assert [command[0] for command in asked] == ["sacct"] * 3 + ["scancel"] * 3


def test_partitions_have_a_line_for_each_kind_of_nodes() -> None:
    large, small, debug, old = answering(SINFO).partitions()

    assert (large.partition, large.default, large.gpus, large.cpus, large.nodes) == ("gpu", True, 8, 128, 3)
    assert (small.gpus, small.features, small.time_min) == (4, ("v100",), 2880)
    assert (debug.default, debug.gpus, debug.time_min, debug.features) == (False, 0, 30, ())
    assert (old.up, old.time_min) == (False, None)
    assert large.mem_gb == pytest.approx(1031000 / 1024)


@pytest.mark.parametrize(
    ("answer", "job"), [("123\n", "123"), ("123;east\n", "123"), ("a plugin says hello\n123\n", "123")]
)
def test_submitting_returns_the_id(answer: str, job: str) -> None:
    assert answering(answer).sbatch("#!/bin/bash\n") == job


def test_a_job_whose_parent_failed_leaves_the_queue() -> None:
    asked: list[Sequence[str]] = []
    answering("1", asked).sbatch("text", "afterok:5_2")

    assert asked == [["sbatch", "--parsable", "--dependency=afterok:5_2", "--kill-on-invalid-dep=yes", "text"]]


@pytest.mark.parametrize(("text", "size"), [("x = 1\nMaxArraySize            = 1001\n", 1001), ("MaxArraySize = 0", 0)])
def test_the_largest_array_is_read(text: str, size: int) -> None:
    assert answering(text).max_array_size() == size


@pytest.mark.parametrize(
    ("indices", "expanded"),
    [("3", ["3"]), ("[3-5%2]", ["3", "4", "5"]), ("[1,4-5]", ["1", "4", "5"]), ("[0-6:3]", ["0", "3", "6"])],
)
def test_indices_are_expanded(indices: str, expanded: list[str]) -> None:
    assert expand(indices) == expanded


@pytest.mark.parametrize(
    ("limit", "found"), [("infinite", None), ("1-02:03:00", 1563), ("02:00:00", 120), ("30:00", 30), ("0:30", 1)]
)
def test_limits_are_read_in_minutes(limit: str, found: int | None) -> None:
    assert minutes(limit) == found


NODES = answering(SINFO).partitions()


def geometry(**changes: Any) -> Geometry:
    return Geometry.from_config({"kind": "slurm", "time_min": 60, "gpus": True} | changes)


@pytest.mark.parametrize(
    "fitting",
    [{}, {"devices": 8}, {"partition": "debug", "gpus": False, "time_min": 30}, {"nodes": 5, "devices": 4}],
)
def test_what_a_partition_has_is_fine(fitting: dict[str, Any]) -> None:
    check_fits(geometry(**fitting), NODES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"devices": 9}, "cluster.devices=9: partition gpu has 8 GPUs a node: lower cluster.devices"),
        ({"partition": "debug"}, "cluster.devices=1: partition debug has 0 GPUs a node"),
        ({"partition": "dbug"}, "cluster.partition=dbug does not exist: use one of debug, gpu, old"),
        ({"nodes": 4, "devices": 8}, "cluster.nodes=4: partition gpu has 3 such nodes"),
        ({"devices": 8, "cpus_per_device": 17}, "cluster.cpus_per_device=17: partition gpu has 128 CPUs a node"),
        ({"mem_gb": 1100}, "cluster.mem_gb=1100: partition gpu has 1007 GiB a node"),
        ({"time_min": 2881}, "cluster.time_min=2881: partition gpu has a limit of 2880 minutes"),
        ({"partition": "old", "gpus": False}, "cluster.partition=old is down"),
    ],
)
def test_what_a_partition_has_not_is_refused_with_what_it_has(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="cluster") as error:
        check_fits(geometry(**changes), NODES)

    assert message in str(error.value)


def test_a_cluster_without_a_default_partition_asks_for_one() -> None:
    nodes: list[Nodes] = [replace(some, default=False) for some in NODES]

    with pytest.raises(ValueError, match="partition=null, and this cluster has no default: use one of debug, gpu, old"):
        check_fits(geometry(), nodes)


def test_no_slurm_is_one_clear_error() -> None:
    with pytest.raises(
        SlurmMissing, match=r"there is no Slurm on this machine .no command no-such-sbatch.: go to a login"
    ):
        slurm.run(["no-such-sbatch"])


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("sinfo: fatal: Could not establish a configuration source", SlurmMissing),
        ("slurm_load_jobs error: Unable to contact slurm controller (connect failure)", SlurmMissing),
        ("Batch job submission failed: Job violates accounting/QOS policy", SlurmRefused),
    ],
)
def test_silence_and_refusal_are_two_things(said: str, error: type[OSError]) -> None:
    with pytest.raises(error, match=said.split(":")[-1].strip().partition("(")[0]):
        slurm.run([sys.executable, "-c", f"raise SystemExit({said!r})"])


def test_variables_of_a_job_that_we_are_in_are_not_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_CONF", "SBATCH_PARTITION", "SQUEUE_FORMAT"):
        monkeypatch.setenv(name, "x")

    names = slurm.run([sys.executable, "-c", "import os; print(*os.environ)"]).split()

    assert {n for n in names if n.startswith(("SLURM_", "SBATCH_", "SQUEUE_"))} == {"SLURM_CONF"}
