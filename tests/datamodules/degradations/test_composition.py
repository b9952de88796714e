"""Mixtures in Python and in YAML, and the replay of whatever recipe there is."""

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import conf
from bdg.commands.compose import build, compose
from datamodules.degradations.base import SEVERITIES, Replayable
from datamodules.degradations.composition import Composition, replay
from datamodules.degradations.haze import Haze
from datamodules.degradations.low_light import LowLight
from datamodules.degradations.noise import GaussianNoise
from datamodules.degradations.rain import Rain
from datamodules.degradations.real_esrgan import RealEsrgan

CHOICES = sorted(path.stem for path in (Path(conf.__file__).parent / "degradation").glob("*.yaml"))
CDD11 = ["low", "haze", "rain", "snow", "low_haze", "low_rain", "low_snow", "haze_rain", "haze_snow"]
CDD11 += ["low_haze_rain", "low_haze_snow"]
MIXED = Composition([LowLight(), Haze(), Rain()])


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config folder of one's own, with a config that is nothing but a choice of degradations, and with a mixture."""
    folder = tmp_path_factory.mktemp("conf")
    (folder / "only.yaml").write_text("defaults: [{degradation: five}]\n")
    (folder / "degradation").mkdir()
    (folder / "degradation" / "storm.yaml").write_text(
        "defaults:\n  - /degradation@storm.parts: [low_light, haze, rain]\n"
        "storm:\n  _target_: datamodules.degradations.composition.Composition\n  parts: {rain: {severity: 5}}\n"
    )
    return folder


@pytest.fixture(scope="module")
def chosen(folder: Path) -> Callable[..., dict[str, Any]]:
    """The degradations of a choice, built."""
    return cache(lambda *overrides: build(compose("only", overrides, str(folder)).degradation))


@pytest.fixture(scope="module")
def x_hq(photographs) -> np.ndarray:
    return photographs[0][:61, :90].copy()


# --- in Python ---


def test_parts_are_applied_in_their_order(x_hq):
    generator, expected = rng(3), x_hq
    for part in (LowLight(), Haze(), Rain()):
        expected, _ = part(expected, generator)
    assert np.array_equal(MIXED(x_hq, rng(3))[0], expected)
    assert not np.array_equal(Composition([Rain(), Haze(), LowLight()])(x_hq, rng(3))[0], expected)


def test_recipe_of_a_mixture_holds_those_of_its_parts(x_hq):
    recipe = MIXED(x_hq, rng())[1]
    assert recipe["degradation"] == "low_light_haze_rain"
    assert [part["degradation"] for part in recipe["parts"]] == ["low_light", "haze", "rain"]
    assert len({part["severity"] for part in recipe["parts"]}) == 3
    assert "severity" not in recipe


def test_one_severity_holds_for_all_parts(x_hq):
    recipe = Composition([LowLight(1), Haze(1)], severity=(3, 4))(x_hq, rng())[1]
    assert 3 <= recipe["severity"] <= 4
    assert {part["severity"] for part in recipe["parts"]} == {recipe["severity"]}


def test_mixtures_may_hold_mixtures(x_hq):
    nested = Composition({"a": MIXED, "b": GaussianNoise()}, severity=2, name="nested")
    x_lq, recipe = nested(x_hq, rng())
    assert recipe["parts"][0]["severity"] == 2
    assert np.array_equal(replay(x_hq, recipe, [nested]), x_lq)
    assert np.array_equal(replay(x_hq, recipe, [Rain(), Haze(), LowLight(), GaussianNoise()]), x_lq)


def test_mixture_travels_to_workers(x_hq):
    assert np.array_equal(pickle.loads(pickle.dumps(MIXED))(x_hq, rng())[0], MIXED(x_hq, rng())[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"parts": []}, "parts=.* name the degradations to apply"),
        ({"parts": ["low_light", "haze"]}, "'low_light' is no degradation .*in YAML, name the parts under defaults"),
        ({"parts": [Rain()], "severity": 7}, "severity=7 of 'rain': give one number from 1 to 5"),
        ({"parts": [Rain(), RealEsrgan()], "severity": 2}, "real_esrgan has none: leave it out"),
        ({"parts": [Composition([RealEsrgan()])], "severity": 2}, "real_esrgan has none: leave it out"),
    ],
)
def test_mixtures_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Composition(**arguments)


# --- replay ---


def test_recipe_finds_its_degradation_by_name_among_those_given(x_hq):
    x_lq, recipe = Haze(4)(x_hq, rng())
    assert np.array_equal(replay(x_hq, recipe, [Rain(), MIXED]), x_lq)


def test_recipe_of_an_unknown_degradation_says_where_to_look(x_hq):
    with pytest.raises(ValueError, match=r"'fog', which is not among rain, haze: .*degradation=\[all,cdd11\]"):
        replay(x_hq, {"degradation": "fog"}, [Rain(), Haze(), lambda x, rng: (x, {})])


def test_recipe_that_lacks_a_value_is_refused_with_its_name(x_hq):
    with pytest.raises(ValueError, match="a recipe of 'noise' lacks 'sigma'"):
        replay(x_hq, {"degradation": "noise", "seed": 1}, [GaussianNoise()])


def test_of_two_degradations_of_one_name_the_first_counts(x_hq):
    class Other(GaussianNoise):
        def replay(self, x_hq, recipe):
            return 1 - x_hq

    _, recipe = GaussianNoise()(x_hq, rng())
    assert np.array_equal(replay(x_hq, recipe, [Other(), GaussianNoise()]), 1 - x_hq)


# --- in YAML ---


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes_degrades_and_replays(choice: str, chosen):
    degradations = chosen(f"degradation={choice}")
    assert degradations
    for shape in ((33, 47), (1, 2)):
        image = rng().random((*shape, 3), np.float32)
        for name, degrade in degradations.items():
            assert isinstance(degrade, Replayable), name
            x_lq, recipe = degrade(image, rng(1))
            assert (x_lq.shape, x_lq.dtype) == (image.shape, np.float32)
            assert np.array_equal(replay(image, json.loads(json.dumps(recipe)), degradations.values()), x_lq)


def test_labels_are_in_the_documented_order(chosen):
    assert list(chosen("degradation=cdd11")) == CDD11
    assert {n: d.stop_after for n, d in chosen("degradation=real_esrgan").items()} == {
        f"order_{k}": k for k in range(1, 9)
    }
    assert list(chosen("degradation=all"))[:5] == list(chosen("degradation=five"))


def test_mixtures_of_cdd11_are_low_light_then_rain_or_snow_then_haze(chosen):
    for name, degrade in chosen("degradation=cdd11").items():
        parts = [part.name for part in degrade.parts] if isinstance(degrade, Composition) else [degrade.name]
        assert degrade.name == name
        assert sorted(parts) == sorted(name.split("_"))
        assert parts == [p for p in ("low", "rain", "snow", "haze") if p in parts]


def test_strengths_of_cdd11_are_the_published_ones(chosen):
    degradations = chosen("degradation=cdd11")
    x = np.full((64, 64, 3), 0.5, np.float32)
    drawn = [degradations["low_haze"](x, rng(i))[1]["parts"] for i in range(100)]
    for part, key, low, high in ((0, "power", 2, 3), (0, "sigma", 0.03 * 255, 0.08 * 255), (1, "beta", 1, 2)):
        values = [recipe[part][key] for recipe in drawn]
        assert low <= min(values) < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < max(values) <= high
    airlight = np.array([recipe[1]["airlight"] for recipe in drawn])
    assert 0.6 <= airlight.min() < airlight.max() <= 0.9
    assert np.ptp(airlight, axis=1).max() == 0  # grey
    rain = [degradations["rain"](np.zeros_like(x), rng(i))[0].mean() for i in range(20)]
    assert 0.06 < min(rain) < 0.1 < max(rain) < 0.17  # the published masks: 0.09 to 0.12


def test_a_mixture_of_ones_own_is_four_lines_and_its_parts_can_be_changed(x_hq, chosen):
    severities = []
    for change in ([], ["degradation.storm.parts.rain.severity=2"], ["+degradation.storm.severity=3"]):
        (storm,) = chosen("degradation=storm", *change).values()
        assert [part.name for part in storm.parts] == ["low_light", "haze", "rain"]
        severities.append(storm(x_hq, rng())[1]["parts"][2]["severity"])
    assert severities == [5, 2, 3]


def test_options_of_the_chain_are_keys_of_the_config(chosen):
    degradations = chosen(
        "degradation=real_esrgan", "+degradation.order_3.noise_range=[40,40]", "+degradation.order_3.scale=2"
    )
    assert list(degradations["order_3"].noise_range) == [40, 40]
    assert degradations["order_3"].scale == 2
    assert degradations["order_4"].scale == 4


@pytest.mark.parametrize("name", ["low_haze_rain", "haze_snow"])
def test_psnr_of_a_mixture_falls_with_its_severity(name: str, photographs, chosen):
    mixture = chosen("degradation=cdd11")[name]
    small = [x[:100, :100] for x in photographs[:8]]

    def psnr(severity: float) -> float:
        degrade = replace(mixture, severity=severity)
        return float(np.mean([-10 * np.log10(np.mean((degrade(x, rng(i))[0] - x) ** 2)) for i, x in enumerate(small)]))

    values = [psnr(severity) for severity in SEVERITIES[::2]]
    assert values == sorted(values, reverse=True)
