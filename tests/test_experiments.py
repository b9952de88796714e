"""Every experiment file, and every ablation of the method, composes and trains one step of each of its stages."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

import conf
from bdg.commands.request import Request
from bdg.commands.train import build_stage

EXPERIMENTS = sorted(path.stem for path in (Path(conf.__file__).parent / "experiment").glob("*.yaml"))
ABLATIONS = [
    "stage.lambda=0.05",
    "stage.lambda=0",
    "glcm.scales=[1]",
    "glcm.angles=[0,1.5708]",
    "glcm.levels=32",
    "glcm.power=1",
    "glcm=paper_literal glcm.levels=16",
    "glcm=stacked glcm.levels=16",
    "glcm=none stage.lambda=0",
    "stage.estimate=both",
    "stage.estimate=residual",
    "stage.anchor=1",
    "stage.terms.bridge.targets=class",
    "stage.terms.negative.literal=true",
    "stage.terms.noise.norm=l2",
    "stage.terms.restored.relative=0.5",
    "sampler=ddpm sampler.sample_steps=2",
    "sampler=paper",
    "sampler=diffuir",
    "diffusion.time=alpha",
    "diffusion.time=index",
    "network=S",
    "stages=[restoration]",
]


def batch() -> dict[str, Any]:
    g = torch.Generator().manual_seed(0)
    x_hq, x_lq = torch.rand(2, 5, 3, 32, 32, generator=g) * 2 - 1
    label = torch.arange(5)
    return {"x_hq": x_hq, "x_lq": x_lq, "label": label, "index": label, "severity": torch.full((5,), 3.0)}


class Losses(L.Callback):
    def __init__(self) -> None:
        self.seen: dict[str, float] = {}

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.seen |= {name: value.item() for name, value in trainer.callback_metrics.items()}


def one_step_of_each_stage(*overrides: str) -> None:
    request = Request("pipeline", (*overrides, "data.root=photographs"))
    for stage in request.compose().stages:
        config = request.compose({"stage": stage})
        config.run_folder = ""
        losses, one = Losses(), DataLoader([batch()], batch_size=None)  # type: ignore[arg-type]
        trainer = L.Trainer(
            fast_dev_run=1, logger=False, accelerator="cpu", callbacks=losses, enable_progress_bar=False
        )
        made = build_stage(config)
        trainer.fit(made, one, one)
        expected = {name for name, weight in config.stage.weights.items() if weight}
        logged = {name.removeprefix("loss/"): v for name, v in losses.seen.items() if name.startswith("loss/")}
        assert logged.keys() == expected | {"total"}
        assert all(torch.isfinite(torch.tensor(v)) for v in logged.values())
        assert trainer.callback_metrics["val/prior_noise_loss"].isfinite()


pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_trains(experiment: str) -> None:
    one_step_of_each_stage(f"experiment={experiment}", "network=smoke", "glcm.levels=16")


@pytest.mark.parametrize("overrides", ABLATIONS)
def test_ablation_is_one_choice(overrides: str) -> None:
    named = [] if "network=" in overrides else ["network=smoke"]
    named += [] if "glcm.levels" in overrides or "glcm=" in overrides else ["glcm.levels=16"]
    one_step_of_each_stage(*named, *overrides.split())


def test_an_ablation_joins_another_experiment() -> None:
    config = Request("pipeline", ("experiment=[demo,ablation_without_bridging]",)).compose()

    assert config.project == "demo"
    assert list(config.stages) == ["generation", "restoration"]
