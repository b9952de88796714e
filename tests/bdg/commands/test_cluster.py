from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from bdg.commands import cluster
from bdg.commands.compose import compose
from bdg.commands.request import Request
from jobs.geometry import Geometry
from jobs.slurm import Slurm, SlurmMissing, check_fits

SINFO = """\
cpu*|up|infinite|10|64|256000|(null)|(null)
gpu|up|2-00:00:00|3|128|1031000|gpu:a100:8|a100
gpu|up|2-00:00:00|1|64|515000|gpu:v100:4|v100
"""


@pytest.fixture(autouse=True)
def _somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def init(sinfo: str = SINFO, *overrides: str) -> None:
    words = ("action=init", *overrides)
    cluster.run(compose("cluster", words), Request("cluster", words), Slurm(lambda command, text: sinfo))


@pytest.mark.parametrize("sinfo", [SINFO, SINFO.replace("cpu*", "cpu").replace("gpu|", "gpu*|")])
def test_the_file_is_a_cluster_that_fits_what_there_is(sinfo: str) -> None:
    init(sinfo)

    config: Any = OmegaConf.to_container(compose("train", ["cluster=mysite"]).cluster, resolve=True)
    geometry = Geometry.from_config(config)
    check_fits(geometry, Slurm(lambda command, text: sinfo).partitions())
    assert (geometry.kind, geometry.name) == ("slurm", "mysite")
    assert (geometry.partition, geometry.gpus) == (("gpu", True) if "gpu*" in sinfo else ("cpu", False))


def test_the_partitions_to_choose_from_are_in_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    init()

    text = Path("conf/cluster/mysite.yaml").read_text()
    assert "#   cpu: 10 nodes of 0 GPUs, 64 CPUs, 250 GiB, no time limit, the default\n" in text
    assert "#   gpu: 3 nodes of 8 GPUs, 128 CPUs, 1007 GiB, 2880 minutes at most; 1 nodes of 4 GPUs" in text
    assert capsys.readouterr().out.startswith("conf/cluster/mysite.yaml: look at partition, account and setup")


def test_an_existing_file_stays() -> None:
    init()
    Path("conf/cluster/mysite.yaml").write_text("mine")

    with pytest.raises(
        ValueError, match=r"conf/cluster/mysite.yaml exists and stays as it is: edit it, or give another"
    ):
        init()
    assert Path("conf/cluster/mysite.yaml").read_text() == "mine"


@pytest.mark.parametrize("name", ["slurm", "local", "../x", "a b", "''"])
def test_a_name_that_cannot_be_chosen_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="give a file's name such as mysite"):
        init(SINFO, f"name='{name}'" if name != "''" else "name=''")


def test_another_action_is_refused() -> None:
    with pytest.raises(ValueError, match="action=show: there is only init: type bdg cluster init"):
        cluster.run(compose("cluster", ["action=show"]), Request("cluster", ()), Slurm(lambda command, text: SINFO))


def test_a_machine_without_slurm_gets_no_file() -> None:
    def missing(command: Sequence[str], text: str) -> str:
        raise SlurmMissing("there is no Slurm on this machine")

    with pytest.raises(SlurmMissing):
        cluster.run(compose("cluster", ["action=init"]), Request("cluster", ()), Slurm(missing))
    assert not Path("conf").exists()
