"""What would go wrong is found before it is submitted: broken configurations, each with the key that is to blame."""

import copy
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from bdg.cli import main
from bdg.commands.cells import points
from bdg.commands.checks import ERROR, NOTE, WARNING, Checks, Fault
from bdg.commands.findings import Finding, Work, check, of_plan, show
from bdg.commands.planning import plan_cells
from bdg.commands.preflight import chain
from bdg.commands.request import Request
from bdg.weights import save_weights
from datamodules.pack import pack
from jobs.slurm import Slurm, SlurmMissing, SlurmRefused

SINFO = "low*|up|4:00:00|2|8|64000|gpu:4|(null)\nhigh|up|1-00:00:00|1|8|64000|gpu:4|(null)\n"


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """A request with six images of noise to train on and two to validate with."""
    folder = tmp_path_factory.mktemp("preflight")
    for i in range(8):
        image = np.random.default_rng(i).integers(0, 255, (72, 80, 3), np.uint8)
        (folder / "clean").mkdir(exist_ok=True)
        assert cv2.imwrite(f"{folder / 'clean' / f'{i}.png'}", image)
    pack(folder / "clean", folder / "packed", {"train": "rest", "val": ["6"], "test": ["7"]}, shard_size=3)
    return ("experiment=demo_smoke", f"data.root={folder / 'packed'}", f"root={folder / 'runs'}")


@pytest.fixture(scope="module")
def works(words: tuple[str, ...]) -> dict[str, Work]:
    """The three stages, sound."""
    found, faults = chain(Request("train", words))
    assert not faults
    return {work.config["stage"]["name"]: work for work in found}


@pytest.fixture(scope="module")
def checks() -> Checks:
    """What one test has found out is known to the next."""
    return Checks()


@pytest.fixture
def found(works: dict[str, Work], checks: Checks) -> Callable[..., list[Finding]]:
    """The findings of a stage with some values exchanged."""

    def of(
        changes: dict[str, Any], stage: str = "bridging", slurm: Slurm | None = None, **fields: Any
    ) -> list[Finding]:
        given = {"config": with_values(works[stage].config, changes), "before": works[stage].before, **fields}
        return check([Work(cells=("cell",), **given)], slurm or cluster(), checks)

    return of


def with_values(config: Any, changes: dict[str, Any]) -> Any:
    config = copy.deepcopy(config)
    for key, value in changes.items():
        *path, last = key.split(".")
        place = config
        for name in path:
            place = place[name]
        place[last] = value
    return config


def cluster(sinfo: str = SINFO, refused: str = "") -> Slurm:
    """A Slurm with two partitions, which may refuse every job."""

    def run(command: Sequence[str], text: str) -> str:
        if command[0] == "sbatch" and refused:
            raise SlurmRefused(refused)
        return sinfo if command[0] == "sinfo" else ""

    return Slurm(run)


def errors(findings: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.level == ERROR]


def slurm(**changed: Any) -> dict[str, Any]:
    """Two GPUs of a cluster, with some values exchanged."""
    shape = {
        "kind": "slurm",
        "nodes": 1,
        "devices": 2,
        "gpus": True,
        "cpus_per_device": 4,
        "time_min": 60,
        "max_restarts": 2,
    }
    shape |= changed
    return {"cluster": shape, "trainer.devices": shape["devices"], "trainer.num_nodes": shape["nodes"]}


def test_a_sound_request_has_no_faults(works: dict[str, Work], checks: Checks) -> None:
    findings = check([*works.values()], cluster(), checks)

    assert [f.level for f in findings] == [NOTE]  # of the disk
    assert checks.num_built == 3


BROKEN: dict[str, tuple[dict[str, Any], str, str]] = {
    "levels that no byte has": ({"glcm.levels": 1000}, "glcm.levels", "2..256"),
    "an angle that is none": ({"glcm.angles": [float("inf")]}, "glcm.angles", "radians"),
    "scales beyond the crop": ({"glcm.scales": [1, 40]}, "glcm.scales", "smaller scales"),
    "no texture for a loss that reads it": ({"glcm": {"_target_": None}}, "glcm", "glcm=paper"),
    "a width that norms cannot share": ({"network.dim": 12}, "network.dim", "multiple of 8"),
    "a word for a list": ({"network.mults": "big"}, "network.mults", "a list"),
    "an argument that nobody takes": ({"network.width": 64}, "network.width", "leave it out"),
    "code that is not trusted": ({"network._target_": "os.system"}, "network._target_", "no config may call"),
    "a process without noise": ({"diffusion.curves": ["alpha"]}, "diffusion.curves", "beta"),
    "a path of no step": ({"diffusion.schedule.num_steps": 0}, "diffusion.schedule.num_steps", "at least 1"),
    "more jumps than steps": ({"sampler.sample_steps": 50}, "sampler.sample_steps", "choose 1 to 3"),
    "a weight of no loss": ({"stage.weights.brigde": 1.0}, "stage.weights.brigde", "the terms are"),
    "a weight that is no number": ({"stage.weights.bridge": "much"}, "stage.weights.bridge", "give a number"),
    "a lambda below zero": ({"stage.lambda": -0.1}, "stage.lambda", "from 0 on"),
    "a norm that does not exist": ({"stage.terms.noise.norm": "l3"}, "stage.terms.noise.norm", "l1"),
    "an option of no optimizer": ({"stage.optimizer.lrr": 1e-3}, "stage.optimizer.lrr", "leave it out"),
    "a scheduler without end": ({"stage.scheduler.total_steps": 0}, "stage.scheduler.total_steps", "positive"),
    "a severity beyond five": ({"degradation.rain.severity": 9}, "degradation.rain.severity", "1"),
    "a batch that ranks cannot share": (slurm() | {"data.batch_size": 5}, "data.batch_size", "such as 6"),
    "a part that no batch has": ({"data.micro_batch": 3}, "data.micro_batch", "take one of 1, 2, 4"),
    "one image, and nothing to compare it with": ({"data.batch_size": 1}, "data.batch_size", "data.batch_size=2"),
    "a crop larger than the images": ({"data.crop": 96}, "data.crop", "smaller crop"),
    "a quota of no degradation": ({"data.quotas": {"fog": 1}}, "data.quotas", "rain"),
    "fewer shards than readers": ({"data.reader": "stream", "data.num_workers": 9}, "data.reader", "indexed"),
    "a batch size that is a word": ({"data.batch_size": "4x"}, "data.batch_size", "whole number"),
    "no shards to train on": ({"data.shards": "none/train-*.tar"}, "data.shards", "bdg pack"),
    "no shards to validate with": ({"data.val_shards": "none/val-*.tar"}, "data.val_shards", "bdg pack"),
    "a precision that nobody has": ({"trainer.precision": "bf17"}, "trainer.precision", "bf16"),
    "a clip of no kind": ({"trainer.gradient_clip_algorithm": "x"}, "trainer.gradient_clip_algorithm", "norm"),
    "an option of no trainer": ({"trainer.max_stepz": 3}, "trainer.max_stepz", "max_steps"),
    "parts of a step that follow": (
        {"trainer.accumulate_grad_batches": 2},
        "trainer.accumulate_grad_batches",
        "micro_batch",
    ),
    "no steps": ({"max_steps.bridging": 0}, "max_steps.bridging", "from 1 on"),
    "a seed that is none": ({"seed": "x"}, "seed", "whole number"),
    "an average that forgets nothing": ({"callbacks.ema.decay": 2.0}, "callbacks.ema.decay", "0.995"),
    "nobody who saves": ({"callbacks.checkpoint": None}, "callbacks.checkpoint", "begin anew"),
    "nobody who inherits": ({"callbacks.inherit": None}, "callbacks.inherit", "at random"),
    "a project that is a path": ({"project": "a/b"}, "project", "without separators"),
    "weights that are not there": ({"inherit.from": "none.safetensors"}, "inherit.from", "inherit.from=none"),
    "devices in two places": ({"trainer.devices": 4}, "trainer.devices", "cluster.devices only"),
    "a cluster without a time": (slurm(time_min=None), "cluster.time_min", "minutes"),
    "memory that is a word": (slurm(mem_gb="all"), "cluster.mem_gb", "a number"),
    "a partition that does not exist": (slurm(partition="gpu"), "cluster.partition", "high, low"),
    "more GPUs than a node has": (slurm(devices=8, cpus_per_device=1), "cluster.devices", "4 GPUs"),
    "more nodes than there are": (slurm(nodes=3), "cluster.nodes", "2 such nodes"),
    "more time than a job may have": (slurm(time_min=1000), "cluster.time_min", "240 minutes"),
}


@pytest.mark.parametrize(("changes", "key", "way_out"), BROKEN.values(), ids=BROKEN)
def test_what_is_broken_is_found_under_its_key(
    changes: dict[str, Any], key: str, way_out: str, found: Callable[..., list[Finding]]
) -> None:
    findings = errors(found(changes, "restoration" if changes.get("data.batch_size") == 1 else "bridging"))

    assert key in {finding.key for finding in findings}, findings
    finding = next(finding for finding in findings if finding.key == key)
    assert str(finding).startswith(f"{key}: ")
    assert way_out in str(finding)
    assert finding.cells == ("cell",)


def test_all_that_is_broken_is_found_at_once(found: Callable[..., list[Finding]]) -> None:
    findings = errors(found({"glcm.levels": 1000, "trainer.precision": "bf17", "data.crop": 96, "project": "a/b"}))

    assert {f.key for f in findings} == {"glcm.levels", "trainer.precision", "data.crop", "project"}


def test_a_root_that_cannot_be_written(found: Callable[..., list[Finding]], tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    (finding,) = errors(found({"root": f"{tmp_path / 'file' / 'runs'}"}))

    assert finding.key == "root"
    assert "another folder" in finding.message


def test_weights_of_another_network_do_not_fit(
    found: Callable[..., list[Finding]], works: dict[str, Work], checks: Checks, tmp_path: Path
) -> None:
    model, _ = checks.model(with_values(works["generation"].config, {"network.dim": 16}))
    assert model is not None
    weights = tmp_path / "ema.safetensors"
    save_weights(weights, model.stage.to_empty(device="cpu").state_dict(), {})

    (finding,) = errors(found({"inherit.from": f"{weights}"}))

    assert finding.key == "inherit.from"
    assert "in the parent and" in finding.message


def test_a_planned_parent_lacks_what_the_stage_takes_over(
    found: Callable[..., list[Finding]], works: dict[str, Work]
) -> None:
    (finding,) = errors(found({}, "restoration", before=works["generation"].config))

    assert finding.key == "inherit.from"
    assert "inherit.fresh=[PREFIX]" in finding.message


def test_a_machine_without_slurm_is_said(found: Callable[..., list[Finding]]) -> None:
    def run(command: Sequence[str], text: str) -> str:
        raise SlurmMissing("there is no Slurm on this machine: train here with cluster=local")

    (finding,) = errors(found(slurm(), slurm=Slurm(run)))

    assert finding.key == "cluster"
    assert "cluster=local" in finding.message


def test_what_slurm_refuses_is_said(found: Callable[..., list[Finding]]) -> None:
    (finding,) = errors(found(slurm(), slurm=cluster(refused="sbatch: Invalid account")))

    assert finding.key == "cluster"
    assert "Invalid account" in finding.message


def test_more_jobs_than_a_run_may_take(
    found: Callable[..., list[Finding]], works: dict[str, Work], tmp_path: Path
) -> None:
    changes = slurm() | {"root": f"{tmp_path}", "trainer.max_steps": 1000}
    config = with_values(works["bridging"].config, changes)
    earlier = tmp_path / "demo_smoke" / "bridging" / "0123456789ab"
    earlier.mkdir(parents=True)
    (earlier / "config.yaml").write_text(json.dumps(config))
    (earlier / "throughput.json").write_text('{"step_s": 3.0}')

    assert not errors(found(changes))  # 50 min
    assert not errors(found(changes | {"trainer.max_steps": 3000}))  # three jobs, two restarts
    (finding,) = errors(found(changes | {"trainer.max_steps": 4000}))
    assert finding.key == "cluster.time_min"
    assert "cluster.max_restarts=2" in finding.message


def test_a_disk_without_room(found: Callable[..., list[Finding]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**6))

    (finding,) = errors(found({}))

    assert finding.key == "root"
    assert "another root" in finding.message


def test_a_batch_of_more_images_than_there_are_is_a_warning(found: Callable[..., list[Finding]]) -> None:
    findings = found({"data.batch_size": 64})

    assert [f.key for f in findings if f.level == WARNING] == ["data.batch_size"]
    assert not errors(findings)


def test_an_equal_fault_of_two_cells_is_one_finding(works: dict[str, Work], checks: Checks) -> None:
    config = with_values(works["bridging"].config, {"data.crop": 96})
    cells = [Work((name,), config, works["generation"].config) for name in ("one", "two")]

    findings = errors(check(cells, cluster(), checks))

    assert [(f.key, f.cells) for f in findings] == [("data.crop", ("one", "two"))]


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("glcm.levles=32", "glcm.levles"),
        ("network=XXL", "network"),
        ("stages=[]", "stages"),
        ("data.root=???", "data.root"),
        ("stage.lambda=${stage.lamda}", "stage"),
    ],
)
def test_what_cannot_be_composed_is_found_under_its_key(words: tuple[str, ...], word: str, key: str) -> None:
    kept = [other for other in words if not other.startswith(word.partition("=")[0] + "=")]

    _, (fault,) = chain(Request("train", (*kept, word)))

    assert fault.key.startswith(key)


def test_the_verb_prints_all_and_fails(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")

    status = main(["preflight", *words, "stages=[generation]", "data.crop=96", f"json={tmp_path / 'found.json'}"])

    assert status == 1
    out, err = capsys.readouterr()
    assert "data.crop" in out
    assert "1 errors" in err
    assert json.loads((tmp_path / "found.json").read_text())["findings"][0]["key"] == "data.crop"


def test_a_cell_that_is_broken_is_named(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")

    status = main(["preflight", *words, "stages=[generation,bridging]", "glcm.levels=16,1000"])

    out, _ = capsys.readouterr()
    assert status == 1
    assert "levels=1000" in out
    assert "levels=16 " not in out
    assert "3 stages checked: 1 errors" in out


def test_the_ends_of_a_search_are_checked(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")

    status = main(["preflight", *words, "stages=[generation,bridging]", "sweep.search={glcm.levels:[16,1000]}"])

    assert status == 1
    assert "levels=1000" in capsys.readouterr().out


def test_a_sweep_that_cannot_be_planned_is_said_with_all_else(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")

    assert (
        main(["preflight", *words, "stages=[generation]", "data.shards=none.tar", "data.val_crop=-1", "seed=1,2"]) == 1
    )

    out, _ = capsys.readouterr()
    assert "data.shards" in out
    assert "data.val_crop" in out


@pytest.mark.slow
def test_the_checks_of_a_hundred_cells_build_few_models(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    composed = []
    compose = Request.compose
    monkeypatch.setattr(Request, "compose", lambda *arguments: composed.append(1) or compose(*arguments))
    grid = {
        "stage.lambda": [0.05, 0.1, 0.2, 0.4],
        "glcm.scales": [[1], [1, 2], [1, 2, 4], [2, 4], [1, 2, 3, 4]],
        "glcm.angles": [[0.0], [0.0, 1.5708], [0.0, 0.7854], [0.7854], [1.5708]],
    }

    planned = plan_cells(Request("train", words), points({}, grid), "hundred", one_stage=False)
    checks = Checks()
    findings = check(of_plan(planned), cluster(), checks)

    assert len(planned.plan.cells) == 100
    assert not errors(findings)
    assert checks.num_built <= 1 + 2 * 5  # a texture has a channel for each scale
    assert len(composed) <= 20  # a composition takes a quarter of a second


def test_names_with_brackets_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    show([Finding("root", ("scales=[1]",), "root=[bold]x: give another", ERROR)], 1)

    out, _ = capsys.readouterr()
    assert "root=[bold]x" in out
    assert "scales=[1]" in out


def test_a_fault_names_its_key_once() -> None:
    assert str(Finding("root", (), "root: full", ERROR)) == "root: full"
    assert Fault("root", "full").level == ERROR
