"""`bdg import`: what a published checkpoint restores with us is what it restores at home; anything else is refused unread."""

import json
import os
import pickle
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from network import Straightforward
from torch import Tensor

from bdg.cli import main
from bdg.commands.chain import parent_of
from bdg.commands.compose import compose
from bdg.commands.request import Request
from bdg.commands.train import build_stage
from bdg.restoration import Restorer, noise_drawer
from bdg.schedule import Schedule
from bdg.weights import load_weights
from callbacks.inherit import inherit, read_parent
from datamodules.images import read_image, write_image


def reference() -> Straightforward:
    torch.manual_seed(0)
    return Straightforward(8, (1, 1), out_channels=3)


def named(network: Straightforward, prefix: str = "model.unet0.") -> dict[str, Tensor]:
    return {prefix + name: w for name, w in network.state_dict().items()}


def content() -> dict[str, Any]:
    """As DiffUIR's trainer saves: the averaged weights are in one of three places."""
    raw = {name: torch.zeros_like(w) for name, w in named(reference()).items()}
    averaged = named(reference(), "ema_model.model.unet0.")
    online = {f"online_model.{name}": w for name, w in raw.items()}
    buffers = {"betas": torch.zeros(1000)}
    ema = online | averaged | {"initted": torch.tensor(True), "step": torch.tensor(10)}
    return {
        "step": 300_000,
        "model": raw | buffers,
        "opt0": {"state": {}, "param_groups": []},
        "ema": ema,
        "scaler": None,
    }


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imported")
    torch.save(content(), folder / "model-300.pt")
    words = [str(folder / "model-300.pt"), str(folder / "w.safetensors"), f"json={folder}/told.json"]
    assert main(["import", "diffuir", *words]) == 0
    return folder


def test_averaged_weights_are_taken_and_the_rest_is_named(imported: Path) -> None:
    told = json.loads((imported / "told.json").read_text())
    _, about = load_weights(imported / "w.safetensors")

    assert told["taken"] == {"entry": "ema.ema_model", "tensors": len(reference().state_dict()), "step": 300_000}
    assert told["size"] == "dim 8, mults 1,1"
    assert {"opt0", "scaler", "step", "ema.initted", "model.betas"} <= set(told["ignored"])
    assert about["imported"]["file"] == "model-300.pt"
    assert str(imported) not in json.dumps(about)


def walked(x_lq: Tensor, noise: Tensor, steps: int) -> Tensor:
    """DiffUIR's way, written down once more."""
    network, schedule = reference(), Schedule()
    alpha, delta = schedule.alpha_bar[1:].float(), schedule.delta_bar[1:].float()
    x = (1 - delta[-1]) * x_lq + 0.01**0.5 * noise
    points = torch.linspace(-1, 999, steps + 1).int().tolist()[::-1]
    for t, s in pairwise(points):
        residual = network(x, x_lq, alpha[t].repeat(len(x)) * 1000).clamp(-1, 1)
        if s >= 0:
            x = x - (alpha[t] - alpha[s]) * residual + (delta[t] - delta[s]) * x_lq
    return x_lq - residual


@torch.no_grad()
def test_it_restores_as_diffuir_does(imported: Path) -> None:
    restorer = Restorer.load(imported / "w.safetensors")
    x_lq = torch.rand(1, 3, 24, 20, generator=torch.Generator().manual_seed(1)) * 2 - 1

    expected = walked(x_lq, noise_drawer(["a"], 0)(x_lq), steps=3).clamp(-1, 1)

    torch.testing.assert_close(restorer(x_lq, ["a"]), expected, atol=2e-5, rtol=0)


def test_bdg_restore_takes_it(imported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "a.png", np.full((20, 24, 3), 90, np.uint8))
    assert main(["restore", "a.png", "b.png", f"weights={imported}/w.safetensors"]) == 0
    assert read_image(tmp_path / "b.png").array.shape == (20, 24, 3)


@pytest.fixture(scope="module")
def record(shared: Path) -> dict[str, Any]:
    return torch.load(shared / "golden" / "diffuir_tiny.pt", weights_only=True)


@pytest.fixture(scope="module")
def recorded(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Restorer:
    path = tmp_path_factory.mktemp("recorded") / "w.safetensors"
    assert main(["import", "diffuir", str(shared / "golden" / "diffuir_tiny.pt"), str(path)]) == 0
    return Restorer.load(path)


@torch.no_grad()
@pytest.mark.parametrize("i", range(5))
def test_recorded_runs_are_repeated_to_the_digit(recorded: Restorer, record: dict[str, Any], i: int) -> None:
    run = record["sampler"][i]
    noises = iter(run["step_noise"])

    restored = recorded.sampler(
        recorded.denoise,
        recorded.denoise.diffusion,
        2 * run["lq"] - 1,
        run["init_noise"],
        sample_steps=run["steps"],
        draw=lambda x: next(noises, torch.zeros_like(x)),
        eta=run["eta"],
    )

    torch.testing.assert_close((restored.clamp(-1, 1) + 1) / 2, run["images"][-1], atol=2e-5, rtol=0)


def test_bridging_begins_from_it(imported: Path) -> None:
    path = str(imported / "w.safetensors")
    words = ["network=smoke", "network.mults=[1,1]", "network.heads=4", "diffusion.time=alpha", f"inherit.from={path}"]
    config = compose("train", ["stage=bridging", *words])
    config.run_folder = ""
    stage = build_stage(config)

    parent = parent_of(config, Request("train", tuple(words)))
    report = inherit(stage, read_parent(path), path, stage.fresh, stage.dropped)

    assert parent is not None
    assert parent.weights == Path(path)
    assert len(report.inherited) == len(reference().state_dict())
    assert all(name.startswith("discriminator.") for name in report.fresh)
    assert not report.dropped


# --- what is refused ---


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("owned",)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x/data.pkl", bytes(10_000_000))


def saved(change: Any) -> Any:
    def write(path: Path) -> None:
        torch.save(change(content()), path)

    return write


def without(name: str) -> Any:
    return saved(lambda found: {key: w for key, w in named(reference()).items() if not key.endswith(name)})


def with_tensor(name: str, w: Any) -> Any:
    return saved(lambda found: named(reference()) | {f"model.unet0.{name}": w})


REFUSED = {
    "cut off": (cut, "is not what torch.save writes, or cut off"),
    "a text": (lambda path: path.write_text("weights"), "is not what torch.save writes, or cut off"),
    "empty": (lambda path: path.write_bytes(b""), "is not what torch.save writes, or cut off"),
    "a bare pickle": (lambda path: path.write_bytes(pickle.dumps(Evil())), "is not what torch.save writes"),
    "a pickle with code": (saved(lambda found: found | {"evil": Evil()}), "could run code and is not read"),
    "a zip bomb": (bomb, "10000000 bytes in a file of"),
    "a list": (saved(lambda found: [1, 2]), "holds a list and no named tensors"),
    "foreign": (saved(lambda found: {"head.weight": torch.zeros(1)}), r"no tensor is named model\.unet0\.\*"),
    "RDDM's": (saved(lambda found: named(reference()) | {"model.unet1.a": torch.zeros(1)}), "has a second network"),
    "without a head": (without("final_conv.weight"), r"final_conv\.weight is missing"),
    "without a block": (without("mid_block1.mlp.1.bias"), "1 are missing, surplus or of another shape, such as mid"),
    "of another shape": (with_tensor("final_conv.bias", torch.zeros(9)), "such as final_conv.bias"),
    "no tensor": (with_tensor("final_conv.bias", 3), "is no tensor"),
    "more than it holds": (with_tensor("final_conv.bias", torch.zeros(1).expand(10**12)), "claims more values"),
    "of no width": (with_tensor("init_conv.weight", torch.zeros(0, 6, 7, 7)), "dim=0"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_such_checkpoint_is_refused_in_one_line(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write, message = REFUSED[kind]
    torch.save(content(), "model.pt")
    write(Path("model.pt"))

    assert main(["import", "diffuir", "model.pt", "w.safetensors"]) == 1

    error = capsys.readouterr().err
    assert error.startswith("bdg import: error: model.pt"), error
    assert "weights_only" not in error  # torch's text shows how to run what is in the file
    assert error.count("\n") == 1
    with pytest.raises(ValueError, match=message):
        raise ValueError(error)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rddm", "m.pt", "w.safetensors"], "kind=rddm: choose one of diffuir"),
        (["diffuir", "gone.pt", "w.safetensors"], "gone.pt: no such file"),
        (["diffuir", "m.pt", "w.pt"], "output=w.pt: weights are NAME.safetensors"),
        (["diffuir", "m.pt", "there.safetensors"], "there.safetensors: exists already"),
        (["diffuir", "m.pt", "w.safetensors", "sample_steps=0"], "sample_steps=0: give at least 1"),
    ],
)
def test_wrong_words_are_refused(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.pt").write_text("")
    Path("there.safetensors").write_text("")
    assert main(["import", *words]) == 1
    assert message in capsys.readouterr().err


def test_a_file_too_large_is_not_read(monkeypatch: pytest.MonkeyPatch, imported: Path, capsys: Any) -> None:
    monkeypatch.setattr("bdg.networks.diffuir.MAX_BYTES", 1000)
    assert main(["import", "diffuir", str(imported / "model-300.pt"), str(imported / "x.safetensors")]) == 1
    assert "GiB, more than" in capsys.readouterr().err
