"""The weights that come with the package restore photographs they have not seen."""

import dataclasses
from pathlib import Path

import numpy as np
import torch
import yaml

import conf
from bdg.commands.restore import PACKAGED
from bdg.metrics import RestorationMetrics
from bdg.restoration import Restorer
from datamodules.degradations.blur import MotionBlur
from datamodules.degradations.haze import Haze
from datamodules.degradations.low_light import LowLight
from datamodules.degradations.noise import GaussianNoise
from datamodules.degradations.rain import Rain
from datamodules.images import read_image

DEGRADATIONS = {"rain": Rain(), "haze": Haze(), "blur": MotionBlur(), "noise": GaussianNoise(), "low_light": LowLight()}
PHOTOGRAPHS = Path(conf.__file__).parents[1] / "datamodules" / "photographs"


def test_packaged_weights_are_small_and_of_the_last_stage() -> None:
    assert PACKAGED.stat().st_size <= 4_000_000
    assert Restorer.load(PACKAGED).about["stage"] == "restoration"


def test_packaged_weights_improve_photographs_never_trained_on() -> None:
    names = yaml.safe_load((Path(conf.__file__).parent / "parts" / "photographs.yaml").read_text())["test"]
    restorer, metrics = Restorer.load(PACKAGED), RestorationMetrics(list(DEGRADATIONS))
    for name in names:
        whole = read_image(PHOTOGRAPHS / f"{name}.jpg").to_rgb()
        top, left = ((side - 160) // 2 for side in whole.shape[:2])
        x_hq = np.ascontiguousarray(whole[top : top + 160, left : left + 160])
        for label, degradation in enumerate(DEGRADATIONS.values()):
            degrade = dataclasses.replace(degradation, severity=4)
            x_lq, _ = degrade(x_hq.copy(), np.random.default_rng([label, len(name)]))
            clean, degraded = (torch.from_numpy(x).permute(2, 0, 1)[None] * 2 - 1 for x in (x_hq, x_lq))
            metrics.update(restorer(degraded, [name]), clean, degraded, torch.tensor([label]))

    scores = metrics.compute()

    assert scores["mean"]["gain"] > 1
    assert scores["low_light"]["gain"] > 1
