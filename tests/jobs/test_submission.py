import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.geometry import Geometry
from jobs.plan import Cell, Plan, Task
from jobs.slurm import Slurm, SlurmMissing, SlurmRefused
from jobs.submission import read_submissions, save_s, submit

GEOMETRY = {"kind": "slurm", "name": "site", "time_min": 60, "max_restarts": 3}


class Cluster:
    """A Slurm of this process: it keeps what was submitted, and starts nothing."""

    def __init__(self, max_array_size: int = 1001, refuse: Callable[[int], bool] = lambda number: False) -> None:
        self.max_array_size, self.refuse = max_array_size, refuse
        self.jobs: dict[str, dict[str, Any]] = {}
        self.queue: dict[str, str] = {}
        self.deaf = False

    def run(self, command: Sequence[str], text: str) -> str:
        match command[0]:
            case "sbatch":
                return self.sbatch(command, text)
            case "squeue":
                return "".join(self.rows())
            case "scancel":
                for job in command[2:]:
                    self.queue.pop(job)
            case "sinfo":
                return "main*|up|infinite|9|64|512000|gpu:8|(null)\n"
            case "scontrol":
                return f"MaxArraySize = {self.max_array_size}\n"
        return ""

    def sbatch(self, command: Sequence[str], text: str) -> str:
        if self.refuse(len(self.jobs)):
            raise SlurmRefused("sbatch: error: Batch job submission failed: Job violates accounting/QOS policy")
        job = str(100 + len(self.jobs))
        options = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", text, re.MULTILINE))
        after = [word.partition("=")[2] for word in command if word.startswith("--dependency=")]
        self.jobs[job] = options | {"dependency": after[0] if after else None}
        self.queue[job] = options["comment"]
        if self.deaf:
            raise SlurmMissing("Slurm does not answer")
        return f"{job}\n"

    def rows(self) -> list[str]:
        found = []
        for job, comment in self.queue.items():
            array = self.jobs[job].get("array", "N/A")
            for index in [i for part in array.split(",") for i in _range(part)]:
                found.append(f"{job}|{index}|PENDING|n/a|Priority|x|{comment}\n")
        return found

    @property
    def arrays(self) -> list[tuple[str, str | None]]:
        return [(job.get("array", ""), job["dependency"]) for job in self.jobs.values()]


def _range(part: str) -> list[str]:
    first, _, last = part.partition("%")[0].partition("-")
    return [first] if not last else [str(i) for i in range(int(first), int(last) + 1)]


def tree(*branches: tuple[str, str | None], name: str = "sweep", **extra: Any) -> Plan:
    """Tasks given as (identity, parent): g... is of generation, b... of bridging, r... of restoration."""
    stages = {"g": "generation", "b": "bridging", "r": "restoration"}
    tasks = {}
    for identity, parent in branches:
        stage = stages[identity[0]]
        words = (f"stage={stage}", "seed=1", *extra.get("words", ()))
        tasks[identity] = Task(stage, identity, f"runs/bdg/{stage}/{identity}", parent, words, (0,), 10)
    return Plan(name, "runs", "bdg", (Cell("all", {}, tuple(tasks)),), tasks)


def fan(bridges: int, restorations: int = 1) -> Plan:
    """One generation, under it `bridges`, under each of them `restorations`."""
    below = [(f"b{i}", "g") for i in range(bridges)]
    leaves = [(f"r{i}x{k}", f"b{i}") for i in range(bridges) for k in range(restorations)]
    return tree(("g", None), *below, *leaves)


@pytest.fixture(autouse=True)
def _somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def give(plan: Plan, cluster: Cluster, wanted: Sequence[str] | None = None, **changes: Any) -> Any:
    geometry = Geometry.from_config(GEOMETRY | changes)
    names = plan.tasks if wanted is None else wanted
    return submit(plan, set(names), geometry, Slurm(cluster.run), Path("frozen/0123"))


def finish(plan: Plan, identity: str) -> None:
    folder = Path(plan.tasks[identity].folder)
    (folder / "weights").mkdir(parents=True)
    (folder / "weights" / "ema.safetensors").touch()
    (folder / "STATUS").write_text("done\n")


def arguments(plan: Plan, script: str, index: int = 0) -> list[str]:
    path = plan.folder / Path(script).with_suffix(".d") / f"{index}.args"
    return path.read_text(encoding="utf-8").split("\0")[:-1]


# --- what waits for what ---


def test_a_shared_stage_is_submitted_once_and_chains_align() -> None:
    plan, cluster = fan(8), Cluster()
    give(plan, cluster)

    assert cluster.arrays == [("0", None), ("0-7", "afterok:100_0"), ("0-7", "aftercorr:101")]


def test_each_task_waits_for_its_own_parent() -> None:
    """Whatever the arrays are: by index, the parent of each is what its dependency names."""
    plan, cluster = (
        tree(
            *[(f"g{i}", None) for i in range(3)],
            *[(f"b{i}x{k}", f"g{i}") for i in range(3) for k in range(i + 1)],
            *[(f"r{i}x{k}", f"b{i}x{k}") for i in (1, 2) for k in range(i + 1)],
        ),
        Cluster(),
    )
    submissions = give(plan, cluster)

    place = {identity: (line.job, index) for line in submissions for index, identity in line.tasks.items()}
    assert place.keys() == plan.tasks.keys()
    for line in submissions:
        for index, identity in line.tasks.items():
            kind, _, what = (line.dependency or "").partition(":")
            parent = plan.tasks[identity].parent
            expected = {"": None, "afterok": tuple(what.split("_")), "aftercorr": (what, index)}[kind]
            assert (place[parent] if parent else None) == expected


@pytest.mark.parametrize(("bridges", "restorations", "arrays"), [(2, 5, 2), (5, 2, 2), (3, 3, 3), (4, 1, 1)])
def test_the_fewest_arrays_are_made(bridges: int, restorations: int, arrays: int) -> None:
    cluster = Cluster()
    give(fan(bridges, restorations), cluster)

    assert len(cluster.arrays) == 2 + arrays


def test_arrays_are_split_where_the_cluster_says() -> None:
    cluster = Cluster(max_array_size=4)
    give(fan(6), cluster)

    assert cluster.arrays == [
        ("0", None),
        ("0-3", "afterok:100_0"),
        ("0-1", "afterok:100_0"),
        ("0-3", "aftercorr:101"),
        ("0-1", "aftercorr:102"),
    ]


def test_a_parent_that_is_done_is_not_waited_for() -> None:
    plan, cluster = fan(2), Cluster()
    finish(plan, "g")
    give(plan, cluster, ["b0", "b1"])

    assert cluster.arrays == [("0-1", None)]


def test_a_parent_that_is_done_in_another_project_is_not_waited_for() -> None:
    plan, cluster = fan(1), Cluster()
    plan.tasks["g"] = replace(plan.tasks["g"], folder="runs/clean/generation/g")
    finish(plan, "g")
    give(plan, cluster, ["b0"])

    assert cluster.arrays == [("0", None)]


def test_a_parent_in_the_queue_is_waited_for_whichever_sweep_it_is_of() -> None:
    cluster = Cluster()
    give(tree(("g", None), ("b0", "g"), name="first"), cluster)
    give(tree(("g", None), ("b1", "g"), name="second"), cluster)

    assert cluster.arrays == [("0", None), ("0", "afterok:100_0"), ("0", "afterok:100_0")]


def test_a_parent_that_nobody_makes_is_an_error() -> None:
    cluster = Cluster()

    with pytest.raises(ValueError, match="bridging b0 waits for generation g, which is neither done nor in the queue"):
        give(fan(1), cluster, ["b0"])
    assert not cluster.jobs


def test_stages_may_be_left_out_in_some_chains() -> None:
    cluster = Cluster()
    give(tree(("g", None), ("r0", "g"), ("b1", "g"), ("r1", "b1")), cluster)

    assert [job["job-name"].rpartition("-")[2] for job in cluster.jobs.values()] == [
        *("generation", "restoration", "bridging", "restoration")
    ]
    assert [after for _, after in cluster.arrays] == [None, "afterok:100_0", "afterok:100_0", "afterok:102_0"]


def test_where_arrays_are_switched_off_each_task_is_a_job() -> None:
    plan, cluster = fan(2), Cluster(max_array_size=0)
    submissions = give(plan, cluster, arrays=False)

    assert cluster.arrays == [
        ("", None),
        ("", "afterok:100"),
        ("", "afterok:100"),
        ("", "afterok:101"),
        ("", "afterok:102"),
    ]
    assert submissions[1].tasks == {"": "b0"}
    assert arguments(plan, submissions[1].script)[0] == "runs/bdg/bridging/b0"
    assert cluster.jobs["101"]["output"].endswith("/%j.out")


# --- what is handed over ---


def test_the_words_are_those_of_the_task_with_its_identity_and_the_frozen_configs() -> None:
    plan, cluster = tree(("g", None), words=("cluster=site", "data.root='a $(b) \"c\"'")), Cluster()
    (line,) = give(plan, cluster)

    frozen = str(Path("frozen/0123/conf").absolute())
    assert arguments(plan, line.script) == [
        "runs/bdg/generation/g",
        *("train", "stage=generation", "seed=1", "cluster=site", "data.root='a $(b) \"c\"'"),
        *("identity='g'", "--config-dir", frozen),
    ]


def test_what_was_submitted_lies_beside_the_sweep() -> None:
    plan, cluster = fan(2), Cluster()
    submissions = give(plan, cluster, at_once=1)

    assert [line["job"] for line in read_submissions(plan.folder)] == [line.job for line in submissions]
    bridging = read_submissions(plan.folder)[1]
    assert bridging | {"time": ""} == {
        "job": "101",
        "time": "",
        "stage": "bridging",
        "tasks": {"0": "b0", "1": "b1"},
        "dependency": "afterok:100_0",
        "script": "jobs/bridging-1.sbatch",
        "where": "slurm",
        "cluster": "site",
    }
    assert "#SBATCH --array=0-1%1\n" in (plan.folder / bridging["script"]).read_text()
    assert (plan.folder / "jobs" / "logs").is_dir()


def test_the_lead_comes_from_the_saves_of_earlier_runs() -> None:
    plan, cluster = fan(1), Cluster()
    assert save_s(plan, "generation") is None
    log = Path("runs/bdg/generation/older/logs/version_0/metrics.csv")
    log.parent.mkdir(parents=True)
    log.write_text("step,checkpoint/seconds\n1,\n2,12.5\n3,100\n4,\n")
    give(plan, cluster)

    assert save_s(plan, "generation") == 100
    assert [job["signal"] for job in cluster.jobs.values()] == ["USR1@260", "USR1@180", "USR1@180"]


# --- once, and not by halves ---


def test_the_same_call_again_submits_nothing() -> None:
    plan, cluster = fan(3), Cluster()
    give(plan, cluster)
    again = give(plan, cluster)

    assert (len(cluster.jobs), again) == (3, [])


def test_what_left_the_queue_is_submitted_again_and_the_rest_is_not() -> None:
    plan, cluster = fan(2), Cluster()
    give(plan, cluster)
    del cluster.queue["102"]
    give(plan, cluster)

    assert cluster.arrays[3:] == [("0-1", "aftercorr:101")]
    assert [line["script"] for line in read_submissions(plan.folder)][-1] == "jobs/restoration-2.sbatch"


def test_a_job_that_nobody_wrote_down_is_found_by_its_comment() -> None:
    plan, cluster = fan(3), Cluster()
    give(plan, cluster)
    path = plan.folder / "submissions.jsonl"
    written = path.read_text().splitlines(keepends=True)
    path.write_text(written[0] + written[1][:40])  # it died while it wrote the second of three lines

    assert give(plan, cluster) == []
    assert len(cluster.jobs) == 3
    found = read_submissions(plan.folder)
    assert [line["job"] for line in found] == ["100", "101", "102"]
    assert [line["tasks"] for line in found] == [json.loads(line)["tasks"] for line in written]


def test_jobs_of_a_sweep_of_the_same_name_elsewhere_are_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster()
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        monkeypatch.chdir(tmp_path / place)
        give(fan(1), cluster)

    assert len(cluster.jobs) == 6


@pytest.mark.parametrize("arrays", [True, False])
def test_a_refusal_in_the_middle_takes_all_back(arrays: bool) -> None:
    plan, cluster = fan(3), Cluster(refuse=lambda number: number == 2)
    give(tree(("g", None)), cluster, arrays=arrays)

    with pytest.raises(SlurmRefused, match="QOS policy") as error:
        give(plan, cluster, arrays=arrays)

    assert error.value.__notes__ == ["nothing is submitted: 1 arrays or jobs before it were cancelled"]
    assert [*cluster.queue] == ["100"]
    assert [line["job"] for line in read_submissions(plan.folder)] == ["100"]


def test_after_a_refusal_the_same_call_works() -> None:
    plan, cluster = fan(3), Cluster(refuse=lambda number: number == 2)
    with pytest.raises(SlurmRefused):
        give(plan, cluster)
    cluster.refuse = lambda number: False
    give(plan, cluster)

    assert cluster.arrays[2:] == [("0", None), ("0-2", "afterok:102_0"), ("0-2", "aftercorr:103")]


def test_a_job_whose_answer_was_lost_is_taken_back() -> None:
    plan, cluster = fan(1), Cluster()
    cluster.deaf = True

    with pytest.raises(SlurmMissing):
        give(plan, cluster)
    assert (len(cluster.jobs), cluster.queue) == (1, {})
    assert read_submissions(plan.folder) == []


def test_what_cannot_be_taken_back_is_named() -> None:
    plan, cluster = fan(1), Cluster(refuse=lambda number: number == 1)
    run = cluster.run

    def broken(command: Sequence[str], text: str) -> str:
        if command[0] == "scancel":
            raise SlurmMissing("Slurm does not answer")
        return run(command, text)

    cluster.run = broken  # type: ignore[method-assign]
    with pytest.raises(SlurmRefused) as error:
        give(plan, cluster)

    assert error.value.__notes__[0].endswith("scancel 100")
    assert [line["job"] for line in read_submissions(plan.folder)] == ["100"]


def test_two_at_a_time_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.submission.try_lock", lambda file: False)

    with pytest.raises(BlockingIOError, match="another process submits the sweep sweep: wait for it"):
        give(fan(1), Cluster())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpus": True, "devices": 9}, "cluster.devices=9: partition main has 8 GPUs a node"),
        ({"nodes": 10}, "cluster.nodes=10: partition main has 9 such nodes"),
        ({"partition": "other"}, "cluster.partition=other does not exist: use one of main"),
    ],
)
def test_what_the_cluster_has_not_is_an_error_before_anything_is_submitted(
    changes: dict[str, Any], message: str
) -> None:
    plan, cluster = fan(1), Cluster()

    with pytest.raises(ValueError, match=message):
        give(plan, cluster, **changes)
    assert not cluster.jobs
    assert not plan.folder.exists()


def test_a_cluster_that_refuses_arrays_is_an_error_with_the_way_out() -> None:
    cluster = Cluster(max_array_size=1)

    with pytest.raises(ValueError, match=r"this cluster refuses arrays .MaxArraySize.: use cluster.arrays=false"):
        give(fan(1), cluster)
    assert not cluster.jobs
