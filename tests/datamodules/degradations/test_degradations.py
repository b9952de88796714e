import json
import time
from itertools import pairwise

import numpy as np
import pytest

from datamodules.degradations.base import GAMMA, SEVERITIES, Degradation
from datamodules.degradations.blur import MotionBlur, path_kernel
from datamodules.degradations.haze import Haze
from datamodules.degradations.low_light import LowLight
from datamodules.degradations.noise import GaussianNoise
from datamodules.degradations.rain import Rain, streak

ALL = (Rain, Haze, MotionBlur, GaussianNoise, LowLight)
FLAT = np.full((128, 160, 3), 0.5, np.float32)

every = pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.name)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def psnr(x: np.ndarray, y: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((x - y) ** 2)))


@every
@pytest.mark.parametrize("shape", [(64, 96), (3, 200), (1, 1)])
def test_degraded_image_has_the_shape_type_and_range_of_the_clean_one(kind: type[Degradation], shape: tuple[int, int]):
    x_hq = rng().random((*shape, 3), np.float32)
    before = x_hq.copy()
    x_lq, _ = kind(5)(x_hq, rng())
    assert (x_lq.shape, x_lq.dtype) == (x_hq.shape, np.float32)
    assert 0 <= x_lq.min() <= x_lq.max() <= 1
    assert np.array_equal(x_hq, before)


@every
def test_recipe_read_back_from_json_gives_the_same_image_bit_for_bit(kind: type[Degradation], photographs):
    degrade = kind()
    x_lq, recipe = degrade(photographs[0], rng(5))
    assert np.array_equal(degrade.replay(photographs[0], json.loads(json.dumps(recipe))), x_lq)


@every
def test_same_generator_gives_the_same_image_and_another_one_another(kind: type[Degradation], photographs):
    x_hq = photographs[0][:64, :64]
    first, again, other = (kind()(x_hq, rng(seed))[0] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@every
def test_psnr_falls_with_severity_on_average_over_the_photographs(kind: type[Degradation], photographs):
    small = [x[:160, :160] for x in photographs]
    means = [np.mean([psnr(x, kind(s)(x, rng(i))[0]) for i, x in enumerate(small)]) for s in SEVERITIES]
    assert all(easier > harder for easier, harder in pairwise(means)), means


@every
def test_severity_is_drawn_from_its_whole_range(kind: type[Degradation]):
    severities = [kind((2, 4))(FLAT[:8, :8], rng(i))[1]["severity"] for i in range(100)]
    assert 2 <= min(severities) < 2.2
    assert 3.8 < max(severities) <= 4


@every
@pytest.mark.parametrize("severity", [0, 5.5, (4, 2), (0, 3)])
def test_severity_out_of_range_is_refused(kind: type[Degradation], severity):
    with pytest.raises(ValueError, match=r"severity=.*give one number from 1 to 5"):
        kind(severity)


@every
def test_recipe_names_its_degradation_and_severity(kind: type[Degradation]):
    _, recipe = kind(3)(FLAT, rng())
    assert (recipe["degradation"], recipe["severity"]) == (kind.name, 3.0)


@pytest.mark.parametrize("severity", SEVERITIES[:4])
def test_sigma_measured_on_a_flat_image_is_that_of_the_recipe(severity: float):
    x_lq, recipe = GaussianNoise(severity)(FLAT, rng())
    assert np.std(x_lq - FLAT) * 255 == pytest.approx(recipe["sigma"], rel=0.05)


def test_haze_obeys_the_scattering_law_pixel_by_pixel(photographs):
    x_hq = photographs[0]
    x_lq, recipe = Haze(2)(x_hq, rng())
    airlight = np.float32(recipe["airlight"])
    seen = np.abs(x_hq - airlight) > 0.2
    transmission = np.where(seen, (x_lq - airlight) / np.where(seen, x_hq - airlight, 1), np.nan)
    spread = np.nanmax(transmission, axis=2) - np.nanmin(np.where(seen, transmission, np.inf), axis=2)
    assert np.exp(-recipe["beta"]) - 1e-4 <= np.nanmin(transmission)
    assert np.nanmax(transmission) < 1
    assert np.nanmax(spread[np.isfinite(spread)]) < 1e-4  # one transmission for all three channels


def test_thick_haze_over_black_shows_less_than_the_airlight():
    x_lq, recipe = Haze(5)(np.zeros_like(FLAT), rng())
    assert (x_lq < np.float32(recipe["airlight"])).all()


def test_rain_only_adds_light_and_leaves_white_alone(photographs):
    x_lq, _ = Rain(5)(photographs[0], rng())
    white, _ = Rain(5)(np.ones_like(FLAT), rng())
    assert (x_lq >= photographs[0] - 1e-6).all()
    assert (white == 1).all()


def test_streak_has_its_length_and_its_slant():
    kernel = streak(length_px=15, angle_deg=20)
    y, x = np.mgrid[: kernel.shape[0], : kernel.shape[1]] - kernel.shape[0] // 2
    spread = np.cov(np.stack([x.ravel(), y.ravel()]), aweights=kernel.ravel())
    values, vectors = np.linalg.eigh(spread)
    assert np.sqrt(12 * values[1]) == pytest.approx(15, abs=1)  # a bar of length l has variance l ** 2 / 12
    assert abs(np.degrees(np.arctan2(*vectors[:, 1]))) % 180 == pytest.approx(20, abs=2)


@pytest.mark.parametrize("length_px", [1.0, 4.0, 18.0])
def test_blur_kernel_sums_to_one_and_its_centre_of_mass_is_its_middle(length_px: float):
    kernel = path_kernel(length_px, angle_rad=0.7, turn_rad=1.2, wobble_rad=-0.8)
    y, x = np.mgrid[: kernel.shape[0], : kernel.shape[1]] - kernel.shape[0] // 2
    assert kernel.sum() == pytest.approx(1, abs=1e-6)
    assert [(kernel * y).sum(), (kernel * x).sum()] == pytest.approx([0, 0], abs=1e-5)


def test_straight_path_has_its_length():
    kernel = path_kernel(12, angle_rad=0, turn_rad=0, wobble_rad=0)
    assert (kernel.sum(axis=0) > 1e-3).sum() == pytest.approx(12, abs=2)
    assert kernel.sum(axis=1).max() == pytest.approx(1, abs=1e-6)


def test_blur_keeps_a_flat_image_and_its_light():
    x_lq, _ = MotionBlur(5)(FLAT, rng())
    assert np.abs(x_lq - FLAT).max() < 1e-5


def test_low_light_scales_linear_light_by_its_stops():
    x_lq, recipe = LowLight(1)(FLAT, rng())
    light = np.mean(x_lq.astype(np.float64) ** GAMMA) / 0.5**GAMMA
    assert light == pytest.approx(2.0 ** -recipe["stops"], rel=0.01)


def test_low_light_of_a_brighter_place_has_more_noise_but_a_better_signal_to_noise_ratio():
    def signal_and_noise(x: float) -> tuple[float, float]:
        light = LowLight(3)(np.full_like(FLAT, x), rng())[0] ** GAMMA
        return float(light.mean()), float(light.std())

    (dim, dim_noise), (bright, bright_noise) = signal_and_noise(0.3), signal_and_noise(0.9)
    assert bright_noise > dim_noise
    assert bright / bright_noise > dim / dim_noise


@every
def test_a_crop_of_96_pixels_takes_milliseconds_not_tens_of_them(kind: type[Degradation]):
    x_hq, degrade, generator = rng().random((96, 96, 3), np.float32), kind(), rng()
    degrade(x_hq, generator)
    durations_s = []
    for _ in range(20):
        begin = time.perf_counter()
        degrade(x_hq, generator)
        durations_s.append(time.perf_counter() - begin)
    assert min(durations_s) < 0.005  # measured below 0.001; the rest is for busy machines
