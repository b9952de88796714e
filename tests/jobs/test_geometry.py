from typing import Any

import pytest
from omegaconf import OmegaConf

from bdg.commands.compose import compose
from jobs.geometry import Geometry, check_job

SLURM = {"kind": "slurm", "time_min": 60}


def plain(*overrides: str) -> Any:
    return OmegaConf.to_container(compose("train", overrides).cluster, resolve=True)


def test_the_packaged_choices_are_geometries() -> None:
    local, slurm = Geometry.from_config(plain()), Geometry.from_config(plain("cluster=slurm", "cluster.time_min=60"))

    assert (local.kind, local.world_size, local.at_once) == ("local", 1, 1)
    assert (slurm.kind, slurm.world_size, slurm.gpus) == ("slurm", 1, True)


def test_the_trainer_reads_what_the_cluster_gives() -> None:
    trainer = compose("train", ["cluster=slurm", "cluster.nodes=2", "cluster.devices=4"]).trainer

    assert (trainer.num_nodes, trainer.devices) == (2, 4)


def test_devices_can_be_given_to_the_trainer() -> None:
    assert compose("train", ["trainer.devices=2"]).trainer.devices == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"node": 2}, "cluster.node means nothing: a cluster has kind, name, nodes"),
        ({"kind": "pbs"}, "cluster.kind=pbs does not exist: use local or slurm"),
        ({"kind": "local", "nodes": 2}, "cluster.nodes=2: this machine is one, use cluster=slurm"),
        ({"nodes": 0}, "cluster.nodes=0: give 1 or more"),
        ({"devices": 0}, "cluster.devices=0: give 1 or more"),
        ({"devices": "4"}, "cluster.devices='4' must be a whole number"),
        ({"devices": 1.5}, "cluster.devices=1.5 must be a whole number"),
        ({"devices": True}, "cluster.devices=True must be a whole number"),
        ({"gpus": 4}, "cluster.gpus=4 must be true or false"),
        ({"cpus_per_device": 0}, "cluster.cpus_per_device=0: give 1 or more"),
        ({"mem_gb": -1}, "cluster.mem_gb=-1: give 0 or more"),
        ({"mem_gb": "64G"}, "cluster.mem_gb='64G' must be a number or null"),
        ({"time_min": "???"}, "cluster.time_min is not given: add cluster.time_min="),
        ({"time_min": None}, "cluster.time_min=null: give the minutes"),
        ({"time_min": 0}, "cluster.time_min=0: give 1 or more"),
        ({"time_min": "1:00:00"}, "cluster.time_min='1:00:00' must be a whole number or null"),
        ({"at_once": 0}, "cluster.at_once=0: give 1 or more"),
        ({"max_restarts": -1}, "cluster.max_restarts=-1: give 0 or more"),
        ({"lead_s": 3600}, "cluster.lead_s=3600 is no less than cluster.time_min=60"),
        ({"partition": "a b"}, "cluster.partition='a b' holds characters"),
        ({"partition": "a\n#SBATCH --uid=0"}, "cluster.partition='a\\n#SBATCH --uid=0' holds characters"),
        ({"options": ["--x=1\n#SBATCH -p y"]}, "cluster.options has '--x=1\\n#SBATCH -p y': write --option=value"),
        ({"options": ["gres=gpu"]}, "cluster.options has 'gres=gpu': write --option=value"),
        ({"options": "--x"}, "cluster.options='--x' must be a list of words"),
        ({"environment": {"A B": "1"}}, "cluster.environment has 'A B', which is no name of a variable"),
        ({"environment": {"A": "1\n2"}}, "cluster.environment.A='1\\n2' has a line break"),
        ({"setup": ["a\nb"]}, "cluster.setup='a\\nb' has a line break"),
        ({"launcher": [1]}, "cluster.launcher=[1] must be a list of words"),
        ({"scratch": "tmp"}, "cluster.scratch=tmp: give a folder of the nodes"),
    ],
)
def test_what_cannot_be_is_refused_by_its_key(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="cluster") as error:
        Geometry.from_config(SLURM | wrong)

    assert message in str(error.value).replace("\n", "\\n")


def test_numbers_and_words_arrive_as_their_fields_say() -> None:
    geometry = Geometry.from_config(SLURM | {"mem_gb": 64, "setup": ["module load x"], "environment": {"A": 1}})

    assert (geometry.mem_gb, geometry.setup, geometry.environment) == (64.0, ("module load x",), {"A": "1"})


@pytest.mark.parametrize(
    ("changes", "save_s", "lead_s"),
    [({}, None, 180), ({}, 100.0, 260), ({"lead_s": 7}, 100.0, 7), ({"time_min": 1}, None, 30)],
)
def test_the_lead_is_what_saving_took_and_leaves_half_of_a_job(
    changes: dict[str, Any], save_s: float | None, lead_s: int
) -> None:
    assert Geometry.from_config(SLURM | changes).lead(save_s) == lead_s


STEP = {"SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "4", "SLURM_STEP_ID": "0"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}


@pytest.mark.parametrize(
    ("devices", "nodes", "environment"),
    [
        (4, 2, STEP),
        ("4", 2, STEP),
        ([0, 1, 2, 3], 2, STEP),
        ("auto", 2, STEP),
        (4, 2, TORCHRUN),
        (4, 2, TORCHRUN | {"SLURM_NTASKS": "2", "SLURM_NNODES": "2"}),
        (2, 1, {}),
        (2, 1, STEP | {"SLURM_JOB_NAME": "interactive"}),
        (1, 1, {"SLURM_NTASKS": "1", "SLURM_NNODES": "1"}),
    ],
)
def test_a_job_of_the_trainers_shape_is_fine(devices: Any, nodes: int, environment: dict[str, str]) -> None:
    check_job(devices, nodes, environment)


@pytest.mark.parametrize(
    ("devices", "nodes", "environment", "message"),
    [
        (
            2,
            1,
            STEP,
            "8 processes in all: give cluster.nodes=2 cluster.devices=4, or --nodes=1 --ntasks-per-node=2",
        ),
        (8, 1, STEP, "trainer.num_nodes=1 x trainer.devices=8, but this job has 2 nodes"),
        ("auto", 1, STEP, "trainer.devices=auto, but this job has 2 nodes"),
        (1, 1, TORCHRUN, "or torchrun --nnodes=1 --nproc-per-node=1"),
        (
            4,
            2,
            STEP | {"SLURM_NTASKS_PER_NODE": "2"},
            "start it with --nodes=2 --ntasks-per-node=4 and without --ntasks",
        ),
        (4, 2, {k: v for k, v in STEP.items() if k != "SLURM_STEP_ID"}, "write srun in front of bdg"),
    ],
)
def test_a_job_of_another_shape_is_refused(devices: Any, nodes: int, environment: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=r"processes|SLURM_NTASKS") as error:
        check_job(devices, nodes, environment)

    assert message in str(error.value)


@pytest.mark.parametrize(("devices", "nodes"), [(0, 1), ("0", 1), ([], 1), (1, 0)])
def test_a_training_without_processes_is_refused(devices: Any, nodes: int) -> None:
    with pytest.raises(ValueError, match=r"trainer\.(devices|num_nodes)=(0|\[\]): give 1 or more"):
        check_job(devices, nodes, {})
