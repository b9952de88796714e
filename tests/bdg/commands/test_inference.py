"""What conf/inference.yaml says reaches the restorer, and reports name what is unusual."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import conf
from bdg.commands.restore import restoring
from bdg.denoiser import Denoiser
from bdg.diffusion import Diffusion
from bdg.networks.unet import UNet
from bdg.restoration import Restorer

USUAL = {"sampler": "ddim", "sample_steps": 3, "seed": 0, "tile": "auto", "overlap": None, "device": "cpu"}


def given(**changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The call's settings and the report's."""
    config = OmegaConf.load(Path(conf.__path__[0]) / "inference.yaml")
    restorer = Restorer(Denoiser(UNet(8, (1,)), Diffusion()))
    restore, settings = restoring(restorer, OmegaConf.merge(config, changes))
    return restore.keywords, settings


def test_a_report_names_the_usual_settings_only():
    """Evaluations are named by them: one that was made before there were further settings is found again."""
    assert given()[1] == USUAL


@pytest.mark.parametrize(
    "changes", [{"strength": 0.5}, {"ensemble": 4}, {"keep_color": True}, {"memory_gb": 2.0}, {"keep_color": "auto"}]
)
def test_unusual_settings_are_named(changes):
    assert given(**changes)[1] == USUAL | changes


def test_settings_reach_the_call():
    call, _ = given(strength=0.5, ensemble=4, keep_color=True, memory_gb=2, tile=64, sample_steps=7, seed=5)
    assert {name: call[name] for name in ("strength", "ensemble", "keep_color", "memory_gb")} == {
        "strength": 0.5,
        "ensemble": 4,
        "keep_color": True,
        "memory_gb": 2,
    }
    assert (call["tile"], call["sample_steps"], call["seed"]) == (64, 7, 5)


def test_precision_is_the_networks_and_said():
    call, settings = given(precision="bf16")
    assert "precision" not in call
    assert settings["precision"] == "bf16"


def test_the_guard_of_colours_is_off_where_nobody_knows_the_degradation():
    assert given(keep_color="auto")[0]["keep_color"] is False
