"""`bdg replay`: a step comes out as it was recorded, and what is wrong with it is named."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bdg.cli import main
from callbacks.guard import save_tensors

pytestmark = pytest.mark.filterwarnings("ignore")  # a user's process, whose warnings are not ours to raise

TRAIN = (
    "experiment=demo_smoke",
    "stage=bridging",
    "inherit.from=none",
    "data.num_workers=0",
    "callbacks.guard.record=1",
)
TRAIN += ("max_steps.bridging=2", "glcm.levels=16", "data.val_crop=32", "data.val_severities=[4]")
Edit = Callable[[dict[str, Any]], Any]


def steps(root: Path) -> list[Path]:
    return sorted(root.glob("runs/*/*/*/faults/step_*.pt"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with packed photographs and the file of step 1 of a bridging stage."""
    folder = tmp_path_factory.mktemp("replay")
    assert main(["pack", "pkg://datamodules/photographs", f"{folder}/photographs", "parts=photographs"]) == 0
    assert main(["train", *TRAIN, f"data.root={folder}/photographs", f"root={folder}/runs"]) == 0
    return folder


@pytest.fixture
def edited(folder: Path, tmp_path: Path) -> Callable[[Edit], Path]:
    """The file of that step after an edit."""

    def edit(change: Edit) -> Path:
        (path,) = steps(folder)
        file = torch.load(path, weights_only=True)
        change(file)
        save_tensors(file, tmp_path / "edited.pt")
        return tmp_path / "edited.pt"

    return edit


def replayed(path: Path, *overrides: str) -> dict[str, Any]:
    report = path.with_name("report.json")
    assert main(["replay", f"{path}", "device=cpu", f"json={report}", *overrides]) == 0
    return json.loads(report.read_text())


def test_a_step_comes_out_bit_for_bit(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = steps(folder)

    found = replayed(path)

    assert found["same"] is True
    assert [term["name"] for term in found["terms"]] == ["noise", "residual", "bridge", "classify"]
    assert sum(term["weight"] * term["value"] for term in found["terms"]) == pytest.approx(found["loss"], rel=1e-6)
    assert all(term["gradient"] > 0 for term in found["terms"])
    assert "the same, bit for bit" in capsys.readouterr().out


@pytest.mark.slow
def test_a_step_in_parts_comes_out_bit_for_bit(folder: Path) -> None:
    where = (f"data.root={folder}/photographs", f"root={folder}/parts/runs", "data.micro_batch=2")
    assert main(["train", *TRAIN, *where]) == 0
    (path,) = steps(folder / "parts")

    found = replayed(path)

    assert found["same"] is True
    assert len(found["samples"]) == 4


def test_the_samples_terms_are_those_of_the_step(folder: Path) -> None:
    found = replayed(steps(folder)[0])

    assert len(found["samples"]) == 4
    for term in found["terms"][:2]:
        own = [sample["terms"][term["name"]] for sample in found["samples"]]
        assert sum(own) / len(own) == pytest.approx(term["value"], rel=1e-5)


def test_the_poisoned_sample_and_the_first_module_are_named(
    edited: Callable[[Edit], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    found = replayed(edited(lambda file: file["batches"][0][0]["noise"][2].fill_(float("nan"))))

    assert found["loss"] == "nan"
    assert found["samples"][0]["terms"]["noise"] == "nan"
    assert [sample["terms"]["noise"] == "nan" for sample in found["samples"]] == [True, False, False, False]
    assert found["module"].startswith("network.init_conv")
    assert found["gradient"]
    assert found["weights"] == []
    assert found["module"] in capsys.readouterr().out


def test_weights_that_were_damaged_before_are_named(edited: Callable[[Edit], Path]) -> None:
    name = "discriminator.classifier.0.weight"

    def damage(file: dict[str, Any]) -> None:
        assert name in file["weights"], list(file["weights"])
        file["weights"][name][0] = float("inf")

    found = replayed(edited(damage))

    assert found["weights"] == [name]
    assert found["module"].startswith("discriminator.classifier")
    assert [term["value"] == "nan" for term in found["terms"]] == [False, False, False, True]


@pytest.mark.slow
def test_the_features_of_other_ranks_take_part(folder: Path, edited: Callable[[Edit], Path]) -> None:
    """A step of two ranks has the contrastive terms of one rank with both halves."""

    def halve(file: dict[str, Any]) -> None:
        ((batch,),) = file["batches"]
        file["batches"] = [[{name: value[part] for name, value in batch.items()} for part in (slice(2), slice(2, 4))]]
        file["world_size"] = 2

    whole, halves = replayed(steps(folder)[0]), [replayed(edited(halve), f"rank={rank}") for rank in (0, 1)]

    for name, one, two, both in zip(
        *([t[key] for t in r["terms"]] for r, key in ((whole, "name"), *((r, "value") for r in (*halves, whole)))),
        strict=True,
    ):
        if name in ("bridge", "classify"):
            assert one == pytest.approx(both, rel=1e-5)
        assert (one + two) / 2 == pytest.approx(both, rel=1e-5)


def hostile(text: str) -> Edit:
    """The config's network replaced by something else."""

    def change(file: dict[str, Any]) -> None:
        file["config"] = file["config"].replace("_target_: bdg.networks.unet.UNet", text)
        assert text in file["config"]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (hostile("_target_: json.JSONDecoder"), "network._target_ is 'json.JSONDecoder'"),
        (hostile("_target_: os.system"), "os.system"),
        (hostile("_target_: torch.hub.load"), "torch.hub.load"),
        (
            lambda file: (
                hostile("_target_: json.JSONDecoder")(file),
                file.update(config=file["config"].replace("trust: []", "trust: [json]")),
            ),
            "network._target_ is 'json.JSONDecoder'",
        ),
        (hostile("_target_: ${oc.env:HOME}"), "is an interpolation"),
        (hostile('_target_: "\\x24{oc.env:HOME}"'), "is an interpolation"),
        (hostile('_target_: "\\\\\\x24{oc.env:HOME}"'), "is an interpolation"),
        (lambda file: file.update(config=""), "describes no stage"),
        (lambda file: file.update(config="a: [1"), "describes no stage"),
        (lambda file: file.update(config="stage: 3"), "describes no stage"),
        (lambda file: file.update(format="x"), "does not say 'bdg replay 1'"),
        (lambda file: file.pop("loss"), "its 'loss' is no Tensor"),
        (lambda file: file["batches"][0][0].pop("t"), "batches are not those of 1 ranks"),
        (lambda file: file.update(batches=[]), "it has 0 batches"),
        (lambda file: file["weights"].popitem(), "do not fit the stage"),
        (lambda file: file.update(precision="transformer-engine"), "has no replay"),
    ],
)
def test_a_hostile_or_damaged_file_runs_nothing_and_is_one_line(
    edited: Callable[[Edit], Path], change: Edit, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = edited(change)

    status = main(["replay", f"{path}"])

    error = capsys.readouterr().err
    assert status == 1
    assert message in error
    assert "Traceback" not in error


def test_a_pickle_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "exploded",))

    torch.save({"format": Bomb()}, tmp_path / "bomb.pt")

    assert main(["replay", f"{tmp_path}/bomb.pt"]) == 1

    assert not (tmp_path / "exploded").exists()
    assert "is no replay file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"), [(["nowhere.pt"], "no such file"), (["{path}", "rank=1"], "rank=1: the step")]
)
def test_what_cannot_be_replayed_is_one_clear_error(
    folder: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", *(word.format(path=steps(folder)[0]) for word in words)]) == 1

    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_step_of_two_processes_comes_out_bit_for_bit(folder: Path) -> None:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    where = (f"data.root={folder}/photographs", f"root={folder}/two/runs", "trainer.devices=2", "+trainer.strategy=ddp")
    command = [sys.executable, "-m", "bdg", "train", *TRAIN, *where, "trainer.accelerator=cpu"]
    subprocess.run(command, env=env, check=False, timeout=400)  # the step is what counts here, not how the run ends

    found = replayed(steps(folder / "two")[0])

    assert found["world_size"] == 2
    assert found["same"] is True
