"""`bdg export`: one folder that restores what the run restores, says what was measured and how, and names no machine."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from torch import nn

from bdg.cli import main
from bdg.commands.card import card, front
from bdg.commands.chain import parent_of
from bdg.commands.compose import compose
from bdg.commands.request import Request
from bdg.commands.restore import weights_file
from bdg.commands.tables import Table
from bdg.networks.unet import UNet
from bdg.restoration import PACKAGED, Restorer
from bdg.weights import load_weights, save_weights

RUN, PARENT, GENERATION, UNDONE = "a" * 12, "b" * 12, "c" * 12, "d" * 12
ABOUT = {
    "stage": "restoration",
    "identity": RUN,
    "network": {"_target_": "bdg.networks.unet.UNet", "dim": 8, "mults": [1, 2], "heads": 1},
    "diffusion": {"_target_": "bdg.diffusion.Diffusion"},
    "sampler": {"_target_": "bdg.samplers.ddim", "_partial_": True, "sample_steps": 1},
    "degradation": {"noise": {"_target_": "datamodules.degradations.noise.GaussianNoise"}},
    "data_digest": "d" * 64,
}
CONFIG = {
    "seed": 3,
    "trainer": {"max_steps": 40},
    "data": {"batch_size": 8, "crop": 64, "val_shards": "/home/me/private_project/shards/val-{000..001}.tar"},
    "logger": {"wandb": {"api_key": "swordfish-7"}},
    "stage": {"name": "restoration", "condition": "x_lq"},
    "protocol": {"_target_": "bdg.metrics.Protocol"},
}
SMALL = "side=32"
PROTOCOL = "RGB, border 0, rounded to uint8, mean over images"


def images() -> list[dict[str, Any]]:
    """Two of noise, one of rain."""
    values = [("noise", "a", 20.0, 25.0), ("noise", "b", 22.0, 26.0), ("rain", "a", 18.0, 18.5)]
    return [
        {
            "degradation": d,
            "key": k,
            "severity": 4.0,
            "psnr": after,
            "psnr_input": before,
            "ssim": 0.9,
            "ssim_input": 0.5,
        }
        for d, k, before, after in values
    ]


def evaluation(identity: str = RUN) -> dict[str, Any]:
    about = {
        "weights": f"x (stage restoration, identity {identity})",
        "data": "/home/me/shards/test-*.tar",
        "sampler": "ddim",
    }
    return {"protocol": {"text": PROTOCOL}, **about, "sample_steps": 1, "scores": {}, "images": images()}


def weights(path: Path, **about: Any) -> None:
    torch.manual_seed(0)
    network = UNet(dim=8, mults=(1, 2), heads=1)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    save_weights(path, tensors | {"discriminator.encoder": torch.zeros(3)}, ABOUT | about)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/demo: a run that is done and measured, its parent, one of generation, one that is not done."""
    place = tmp_path_factory.mktemp("place")
    runs = place / "runs" / "demo"
    for stage, identity, status in (
        ("restoration", RUN, "done"),
        ("bridging", PARENT, "done"),
        ("generation", GENERATION, "done"),
        ("restoration", UNDONE, "preempted"),
    ):
        folder = runs / stage / identity
        process = (
            {"_target_": "bdg.diffusion.Diffusion", "curves": ["beta"]} if stage == "generation" else ABOUT["diffusion"]
        )
        weights(folder / "weights" / "ema.safetensors", stage=stage, identity=identity, diffusion=process)
        (folder / "STATUS").write_text(f"{status}\n")
        (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
        parents = [PARENT] if identity == RUN else []
        code = {"commit": "0123456789abcdef" * 2, "diff": "fedcba987654"}
        (folder / "manifest.json").write_text(json.dumps({"parents": parents, "data_digest": "d" * 64, "code": code}))
    own = runs / "restoration" / RUN
    (own / "evaluation" / "test-0").mkdir(parents=True)
    (own / "evaluation" / "test-0" / "per_image.json").write_text(json.dumps(evaluation()))
    (place / "scores.json").write_text(json.dumps(evaluation()))
    (place / "others.json").write_text(json.dumps(evaluation("f" * 12)))
    save_weights(own / "weights" / "explain.safetensors", {"w": torch.zeros(1)}, {})
    weights(place / "w.safetensors")
    return place


@pytest.fixture
def here(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder beside the runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").symlink_to(place / "runs")
    return tmp_path


@pytest.fixture(scope="module")
def exported(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    words = [f"root={place}/runs", "license=cc-by-4.0", f"json={folder}/told.json", SMALL]
    assert main(["export", RUN, str(folder / "mine"), *words]) == 0
    return folder / "mine"


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main([*words]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"bdg {words[0]}: error: ")
    assert error.count("\n") == 1, error
    return error


def test_the_folder_holds_all_that_one_must_know(exported: Path) -> None:
    files = {str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file()}

    assert files == {
        *("model.safetensors", "explain.safetensors", "config.json", "lineage.json", "metrics.json", "README.md"),
        *("samples/panel.jpg", "samples/noise.png"),
    }
    told = json.loads((exported.parent / "told.json").read_text())
    assert told["files"] == {name: (exported / name).stat().st_size for name in files}
    assert [path.name for path in exported.parent.iterdir() if path.name.startswith(".")] == []


def test_weights_are_the_network_alone_and_restore_the_same(exported: Path, place: Path) -> None:
    tensors, about = load_weights(exported / "model.safetensors")
    x_lq = torch.rand(1, 3, 20, 24) * 2 - 1
    own = place / "runs" / "demo" / "restoration" / RUN

    assert {name.partition(".")[0] for name in tensors} == {"network"}
    assert about == ABOUT
    restored = [Restorer.load(weights_file(str(folder)))(x_lq, ["a"]) for folder in (exported, own)]
    assert torch.equal(*restored)


def test_no_file_names_the_machine_or_a_secret(exported: Path, place: Path) -> None:
    for name in ("config.json", "lineage.json", "metrics.json", "README.md"):
        text = (exported / name).read_text()
        assert [word for word in ("/home", "private_project", str(place), "swordfish") if word in text] == []
    config = json.loads((exported / "config.json").read_text())
    assert config["data"]["val_shards"] == ".../shards/val-{000..001}.tar"
    assert config["logger"]["wandb"]["api_key"] == "***"


def test_lineage_goes_back_to_the_beginning(exported: Path) -> None:
    found = json.loads((exported / "lineage.json").read_text())
    assert (found["stage"], found["identity"]) == ("restoration", RUN)
    assert found["parents"][0]["stage"] == "bridging"
    assert found["parents"][0]["code"]["commit"].startswith("0123")
    assert len(found["model_sha256"]) == 64
    assert (
        f"| bridging | {PARENT} | {'d' * 12} | 0123456789ab with changes | unknown |"
        in (exported / "README.md").read_text()
    )


def test_numbers_have_their_protocol_beside_them(exported: Path) -> None:
    (table,) = json.loads((exported / "metrics.json").read_text())
    assert table["protocol"] == PROTOCOL
    assert table["data"] == "shards/test-*.tar"
    assert table["scores"]["noise"] == {
        "psnr": 25.5,
        "psnr_input": 21.0,
        "ssim": 0.9,
        "ssim_input": 0.5,
        "num_images": 2,
    }
    assert table["scores"]["mean"]["psnr"] == 22.0
    text = (exported / "README.md").read_text()
    assert "| degradation | images | PSNR input | PSNR | SSIM input | SSIM |" in text
    assert "| noise | 2 | 21.00 | 25.50 | 0.5000 | 0.9000 |" in text
    assert "| mean | 3 | 19.50 | 22.00 | 0.5000 | 0.9000 |" in text


def test_the_hub_reads_the_card(exported: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")

    data = hub.ModelCard.load(exported / "README.md").data

    assert (data.library_name, data.pipeline_tag, data.license) == ("bdg", "image-to-image", "cc-by-4.0")
    found = {(each.dataset_name, each.metric_type): each for each in data.eval_results}
    assert found["shards/test-*.tar, noise", "psnr"].metric_value == 25.5
    assert all(PROTOCOL in each.metric_name for each in data.eval_results)


def facts(**more: Any) -> dict[str, Any]:
    usual = {
        "name": "x",
        "about": ABOUT,
        "settings": {"sampler": "ddim"},
        "license": None,
        "config": {},
        "digest": "0" * 64,
    }
    return usual | {"lineage": {}, "parameters": 1, "explain": False, "onnx": None, "own_photographs": False} | more


def test_what_is_not_known_the_card_says() -> None:
    text = card(facts(), [])
    assert "Not measured." in text
    assert "not stated" in text
    assert "**Training** unknown" in text
    assert "license" not in front(facts(), [])
    assert "model-index" not in front(facts(), [])


def test_a_foreign_name_stays_in_its_place() -> None:
    nasty = "x | y |\n---\nlicense: mit\n[a](http://b) <script>"
    about = ABOUT | {"degradation": {nasty: None}, "stage": nasty}
    table = Table("t", nasty, nasty, "", {nasty: {"psnr": 1.0}})

    text = card(facts(about=about, name=nasty), [table])

    assert "<script>" not in text
    _, head, body = text.split("---\n", 2)
    assert "license" not in yaml.safe_load(head)
    assert {line.count("|") for line in body.splitlines() if line.startswith("|")} == {4, 6}


def test_a_validation_stands_in_where_nothing_was_measured(here: Path, place: Path) -> None:
    own = shutil.copytree(place / "runs" / "demo" / "restoration" / RUN, here / "own" / "p" / "restoration" / RUN)
    shutil.rmtree(own / "evaluation")
    (own / "metrics.json").write_text(
        json.dumps({"val/noise/psnr": 20.0, "val/mean/psnr": 20.0, "val/prior_noise_loss": 1})
    )

    assert main(["export", str(own), "out", SMALL]) == 0

    (table,) = json.loads(Path("out/metrics.json").read_text())
    assert table["name"] == "validation"
    assert table["protocol"].startswith("RGB")
    assert table["scores"] == {"noise": {"psnr": 20.0}, "mean": {"psnr": 20.0}}


def test_a_weights_file_on_its_own_is_exported_with_what_it_says(here: Path, place: Path) -> None:
    assert main(["export", str(place / "w.safetensors"), "out", f"scores=[{place}/scores.json]"]) == 0
    text = Path("out/README.md").read_text()
    assert "unknown: exported from a weights file" in text
    assert "| noise | 2 |" in text
    assert json.loads(Path("out/lineage.json").read_text())["parents"] is None


def test_the_packaged_weights_are_exported(here: Path) -> None:
    assert main(["export", str(PACKAGED), "out", "degradation=noise", SMALL]) == 0
    assert Restorer.load("out/model.safetensors").about == Restorer.load(PACKAGED).about


def test_a_run_is_found_by_sweep_cell_and_stage(made: Any) -> None:
    made.sweep("mine", {"lambda=0.1": [("restoration", RUN)]})
    folder = made.run(RUN, stage="restoration")
    weights(folder / "weights" / "ema.safetensors")
    assert main(["export", "mine/lambda=0.1/restoration", "out", SMALL]) == 0
    assert load_weights("out/model.safetensors")[1]["identity"] == RUN


def test_a_stage_begins_from_an_export(exported: Path) -> None:
    config = compose("train", ["stage=restoration", f"inherit.from={exported}"])
    parent = parent_of(config, Request("train", ()))
    assert parent is not None
    assert parent.weights == exported / "model.safetensors"


def test_own_photographs_are_shown_when_asked_for_and_only_then(here: Path, place: Path) -> None:
    from datamodules.images import write_image

    write_image(here / "mine" / "holiday.png", torch.zeros(40, 40, 3, dtype=torch.uint8).numpy())
    assert main(["export", str(place / "w.safetensors"), "out", "photographs=mine", SMALL]) == 0
    assert "Photographs of whoever made this folder" in Path("out/README.md").read_text()


def test_a_run_is_measured_first_when_asked(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    monkeypatch.setattr("bdg.commands.export.measured", lambda folder, config: asked.append(folder))
    assert main(["export", RUN, "out", "measure=true", SMALL]) == 0
    assert [folder.name for folder in asked] == [RUN]


# --- what is refused ---


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([UNDONE, "out"], "is not done (preempted): finish it with bdg resume"),
        ([GENERATION, "out"], "restores nothing: export a run of bridging or restoration"),
        (["eeeeeeeeeeee", "out"], "no run 'eeeeeeeeeeee' in runs"),
        ([RUN, "out", "license=My licence"], "license=My licence: give it as the Hub spells it"),
        ([RUN, "out", "scores=[gone.json]"], "scores=gone.json: no such file"),
        ([RUN, "out", "scores=[other.json]"], "measured with x (stage restoration, identity ffffffffffff)"),
        ([RUN, "out", "scores=[empty.json]"], "scores=empty.json holds no measurement"),
        (["w.safetensors", "out", "measure=true"], "measure=true takes a run"),
        ([RUN, "out", "side=0"], "side=0: give the side of the samples"),
        ([RUN, "out", "photographs=empty"], "photographs=empty: no image there"),
        (["gone.safetensors", "out"], "gone.safetensors: no weights there"),
        (["cut.safetensors", "out"], "cut.safetensors: not a safetensors file, or cut off"),
        (["evil.safetensors", "out"], "evil.safetensors: not a safetensors file"),
        (["foreign.safetensors", "out"], "holds tensors but not BDG's metadata"),
        (["larger.safetensors", "out"], "its tensors do not fit the network it names"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_leaves_nothing(
    words: list[str], message: str, here: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(place / "others.json", "other.json")
    Path("empty").mkdir()
    Path("empty.json").write_text("{}")
    shutil.copy(place / "w.safetensors", ".")
    Path("cut.safetensors").write_bytes(Path("w.safetensors").read_bytes()[:-100])
    Path("evil.safetensors").write_bytes(pickle.dumps({"state_dict": {}}))
    safetensors.torch.save_file({"a": torch.zeros(1)}, "foreign.safetensors")
    weights(Path("larger.safetensors"), network=ABOUT["network"] | {"dim": 16})
    before = set(here.iterdir())

    assert message in refused(capsys, "export", *words)
    assert set(here.iterdir()) == before


def test_what_is_there_stays_unless_it_is_an_export_and_may_go(
    here: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(place / "w.safetensors")
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("dear")
    assert main(["export", source, "out", SMALL]) == 0

    assert "replace it with overwrite=true" in refused(capsys, "export", source, "out")
    for target in ("mine", "runs"):
        assert "is no export: name another folder" in refused(capsys, "export", source, target, "overwrite=true")
    assert main(["export", source, "out", "overwrite=true", "license=mit", SMALL]) == 0
    assert "license: mit" in Path("out/README.md").read_text()
    Path("out/letter.txt").write_text("dear")
    assert "is no export" in refused(capsys, "export", source, "out", "overwrite=true")


def test_a_failure_in_the_middle_leaves_the_old_export(
    here: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = str(place / "w.safetensors")
    assert main(["export", source, "out", SMALL]) == 0
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}

    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("bdg.commands.export.write_samples", full)
    assert main(["export", source, "out", "overwrite=true", SMALL]) == 1
    assert main(["export", source, "new", SMALL]) == 1
    assert {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in here.iterdir()) == ["out", "runs"]


def test_onnx_without_its_packages_says_what_to_install(
    here: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bdg.onnx.find_spec", lambda name: None)
    assert "pip install 'bdg[onnx]'" in refused(capsys, "export", str(place / "w.safetensors"), "out", "onnx=true")
