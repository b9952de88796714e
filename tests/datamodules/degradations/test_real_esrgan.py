"""The parameters drawn are those of the published options, and each operation does what its step says."""

import json
import pickle
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from datamodules.degradations.base import from_bytes, to_bytes
from datamodules.degradations.jpeg import compressed
from datamodules.degradations.real_esrgan import KERNELS, NUM_OPERATIONS, STEPS, RealEsrgan

NUM_DRAWS = 3000
Step = dict[str, Any]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def chains() -> list[list[Step]]:
    """Steps of many whole chains in the size of the clean image, so that a factor is a resize's own."""
    chain, generator = RealEsrgan(8, scale=1), rng(7)
    return [chain.draw(8, generator)["steps"] for _ in range(NUM_DRAWS)]


@pytest.fixture(scope="module")
def first(chains: list[list[Step]]) -> list[list[Step]]:
    """Blur, resize, noise and JPEG of the first order."""
    return [steps[:4] for steps in chains]


@pytest.fixture(scope="module")
def second(chains: list[list[Step]]) -> list[list[Step]]:
    """Blur (or none), resize and noise of the second order."""
    return [steps[4:7] if steps[4]["op"] in ("blur", "sinc") else steps[4:6] for steps in chains]


@pytest.fixture(scope="module")
def last(chains: list[list[Step]], second: list[list[Step]]) -> list[list[Step]]:
    """The eighth operation."""
    return [steps[4 + len(middle) :] for steps, middle in zip(chains, second, strict=True)]


def share(values: list[Any], expected: float) -> None:
    """Asserts that so many are true, within 4.5 standard errors: once in 150,000 this fails by chance."""
    error = np.sqrt(expected * (1 - expected) / len(values))
    assert np.mean(values) == pytest.approx(expected, abs=4.5 * error)


def evenly(values: list[float], low: float, high: float) -> None:
    """Asserts a uniform distribution over [low, high]: no value outside, and Kolmogorov and Smirnov's distance as by chance."""
    found = np.sort((np.array(values) - low) / (high - low))
    assert 0 <= found[0] <= found[-1] <= 1
    assert np.abs(found - (np.arange(len(found)) + 0.5) / len(found)).max() < 2.4 / np.sqrt(len(found))  # 1 in 50,000


def kernel_name(step: Step) -> str:
    shape = "" if step["shape"] == "gaussian" else f"{step['shape']}_"
    return shape + ("iso" if step["sigma_x"] == step["sigma_y"] else "aniso")


@pytest.mark.parametrize(("order", "sigma"), [("first", (0.2, 3)), ("second", (0.2, 1.5))])
def test_kernels_are_drawn_as_published(order: str, sigma: tuple[float, float], request):
    blurs = [step for steps in request.getfixturevalue(order) for step in steps if step["op"] in ("blur", "sinc")]
    share([step["op"] == "sinc" for step in blurs], 0.1)
    gaussians = [step for step in blurs if step["op"] == "blur"]
    names = [kernel_name(step) for step in gaussians]
    for name, probability in zip(KERNELS, (0.45, 0.25, 0.12, 0.03, 0.12, 0.03), strict=True):
        share([n == name for n in names], probability)
    for size in range(7, 22, 2):
        share([step["size"] == size for step in blurs], 1 / 8)
    evenly([step["sigma_x"] for step in gaussians], *sigma)
    evenly([step["sigma_y"] for step, name in zip(gaussians, names, strict=True) if name.endswith("aniso")], *sigma)
    evenly([step["angle_rad"] for step in gaussians], -np.pi, np.pi)
    for shape, low, high in (("generalized", 0.5, 4), ("plateau", 1, 2)):
        betas = [step["beta"] for step in gaussians if step["shape"] == shape]
        evenly([beta for beta in betas if beta > 1], 1, high)
        share([beta <= 1 for beta in betas], 0.5)
        assert min(betas) >= low


def test_cutoff_of_a_small_kernel_is_higher(first):
    sincs = [step for steps in first for step in steps if step["op"] == "sinc"]
    evenly([step["cutoff_rad"] for step in sincs if step["size"] < 13], np.pi / 3, np.pi)
    evenly([step["cutoff_rad"] for step in sincs if step["size"] >= 13], np.pi / 5, np.pi)


def test_second_blur_is_left_out_in_a_fifth(second):
    share([len(steps) == 3 for steps in second], 0.8)


@pytest.mark.parametrize(
    ("order", "probabilities", "within"),
    [("first", (0.2, 0.7, 0.1), (0.15, 1.5)), ("second", (0.3, 0.4, 0.3), (0.3, 1.2))],
)
def test_resizes_are_drawn_as_published(order, probabilities, within, request):
    resizes = [step for steps in request.getfixturevalue(order) for step in steps if step["op"] == "resize"]
    assert len(resizes) == NUM_DRAWS
    factors = np.array([step["factor"] for step in resizes])
    for kind, probability in zip((factors > 1, factors < 1, factors == 1), probabilities, strict=True):
        share(list(kind), probability)
    evenly(list(factors[factors > 1]), 1, within[1])
    evenly(list(factors[factors < 1]), within[0], 1)
    for method in ("area", "bilinear", "bicubic"):
        share([step["method"] == method for step in resizes], 1 / 3)


@pytest.mark.parametrize(("order", "sigma", "scale"), [("first", (1, 30), (0.05, 3)), ("second", (1, 25), (0.05, 2.5))])
def test_noise_is_drawn_as_published(order, sigma, scale, request):
    noises = [
        step for steps in request.getfixturevalue(order) for step in steps if step["op"] in ("gaussian", "poisson")
    ]
    assert len(noises) == NUM_DRAWS
    share([step["op"] == "gaussian" for step in noises], 0.5)
    share([step["gray"] for step in noises], 0.4)
    evenly([step["sigma"] for step in noises if step["op"] == "gaussian"], *sigma)
    evenly([step["scale"] for step in noises if step["op"] == "poisson"], *scale)
    assert len({step["seed"] for step in noises}) > 0.99 * NUM_DRAWS


def test_jpeg_qualities_are_drawn_evenly_and_reach_both_ends(first, last):
    for steps in (first, last):
        qualities = [step["quality"] for each in steps for step in each if step["op"] == "jpeg"]
        assert len(qualities) == NUM_DRAWS
        assert set(qualities) == set(range(30, 96))
        evenly([quality + 0.5 for quality in qualities], 30, 96)


def test_the_end_has_its_sinc_in_four_fifths_and_either_order(last):
    kinds = Counter(tuple(step["op"] for step in steps) for steps in last)
    for kind, probability in {
        ("jpeg", "resize", "sinc"): 0.4,
        ("resize", "sinc", "jpeg"): 0.4,
        ("jpeg", "resize"): 0.1,
        ("resize", "jpeg"): 0.1,
    }.items():
        share([True] * kinds[kind] + [False] * (NUM_DRAWS - kinds[kind]), probability)
    evenly([s["cutoff_rad"] for steps in last for s in steps if s["op"] == "sinc"], np.pi / 3, np.pi)
    assert {s["factor"] for steps in last for s in steps if s["op"] == "resize"} == {1}


def test_options_change_what_is_drawn():
    chain = RealEsrgan(
        8, scale=1, kernel_list=["aniso"], kernel_prob=[1], sinc_prob=0, second_blur_prob=0, jpeg_range2=[7, 7]
    )
    drawn = [chain.draw(8, rng(i))["steps"] for i in range(50)]
    assert {kernel_name(steps[0]) for steps in drawn} == {"aniso"}
    assert {steps[4]["op"] for steps in drawn} == {"resize"}
    assert {[s for s in steps if s["op"] == "jpeg"][1]["quality"] for steps in drawn} == {7}


def test_orders_are_drawn_evenly():
    x_hq = np.full((8, 8, 3), 0.5, np.float32)
    orders = [RealEsrgan()(x_hq, rng(i))[1]["stop_after"] for i in range(400)]
    for order in range(1, 9):
        share([o == order for o in orders], 1 / 8)


def test_eight_orders_of_one_seed_are_states_of_one_chain():
    x_hq = np.full((8, 8, 3), 0.5, np.float32)
    recipes = [RealEsrgan(k)(x_hq, rng(5))[1] for k in range(1, NUM_OPERATIONS + 1)]
    assert [recipe["stop_after"] for recipe in recipes] == list(range(1, 9))
    whole = recipes[-1]["steps"]
    for order, recipe in enumerate(recipes[:-1], start=1):
        *steps, ending = recipe["steps"]
        assert steps == whole[: len(steps)]
        assert len(steps) in (order, order - 1)  # without the second blur one less
        assert ending == next(step for step in whole[len(steps) :] if step["op"] == "resize" and step["factor"] == 0.25)


@pytest.mark.parametrize("scale", [1, 3, 4])
@pytest.mark.parametrize("shape", [(67, 90), (5, 3), (1, 1)])
def test_result_has_the_size_of_the_clean_image(scale: int, shape: tuple[int, int]):
    x_hq = rng().random((*shape, 3), np.float32)
    before = x_hq.copy()
    for order in range(1, 9):
        x_lq, _ = RealEsrgan(order, scale=scale)(x_hq, rng(order))
        assert (x_lq.shape, x_lq.dtype) == (x_hq.shape, np.float32)
        assert 0 <= x_lq.min() <= x_lq.max() <= 1
        assert np.array_equal(from_bytes(to_bytes(x_lq)), x_lq)  # 8 bits
    assert np.array_equal(x_hq, before)


@pytest.mark.parametrize("order", range(1, 9))
def test_recipe_read_back_from_json_gives_the_same_image_bit_for_bit(order: int, photographs):
    x_hq = photographs[order][:150, :170]
    for seed in range(4):
        x_lq, recipe = RealEsrgan(order)(x_hq, rng(seed))
        again = RealEsrgan(scale=1).replay(x_hq, json.loads(json.dumps(recipe)))  # whatever the instance's own options
        assert np.array_equal(again, x_lq)


def test_chain_travels_to_workers_and_can_be_changed():
    chain = replace(pickle.loads(pickle.dumps(RealEsrgan(3, noise_range=(5, 5)))), stop_after=4)
    assert (chain.stop_after, chain.orders[0].noise_range) == (4, (5, 5))


def test_a_chain_of_nothing_leaves_the_image_as_it_is(photographs):
    recipe = {"stop_after": 1, "steps": [{"op": "resize", "factor": 1.0, "method": "area"}]}
    assert np.array_equal(RealEsrgan().replay(photographs[0], recipe), photographs[0])


def step(op: str, x: np.ndarray, **drawn: Any) -> np.ndarray:
    return STEPS[op](x, {"op": op, **drawn}, x.shape)


@pytest.mark.parametrize("gray", [False, True])
def test_gaussian_step_has_its_sigma_and_its_colour(gray: bool):
    flat = np.full((200, 200, 3), 0.5, np.float32)
    noise = step("gaussian", flat, sigma=20, gray=gray, seed=1) - flat
    assert noise.std() * 255 == pytest.approx(20, rel=0.02)
    assert (np.ptp(noise, axis=2).max() < 1e-6) == gray


@pytest.mark.parametrize("gray", [False, True])
def test_poisson_step_has_a_variance_in_proportion_to_the_mean(gray: bool):
    ramp = np.linspace(0.1, 0.7, 256, dtype=np.float32)[None, :, None].repeat(600, axis=0).repeat(3, axis=2)
    noise = step("poisson", ramp, scale=1.5, gray=gray, seed=1) - ramp
    num_levels = len(np.unique(to_bytes(ramp)))
    photons = 2 ** np.ceil(np.log2(num_levels))
    for columns in (slice(0, 40), slice(100, 140), slice(200, 240)):
        expected = 1.5**2 * ramp[:, columns].mean() / photons
        assert noise[:, columns].var() == pytest.approx(expected, rel=0.05)
    assert (np.ptp(noise, axis=2).max() < 1e-6) == gray


def test_jpeg_step_is_libjpegs(photographs):
    assert np.array_equal(step("jpeg", photographs[0], quality=40), compressed(photographs[0], 40))


def test_resize_step_goes_to_a_size_relative_to_the_clean_image():
    small = rng().random((10, 12, 3), np.float32)
    x = STEPS["resize"](small, {"op": "resize", "factor": 0.5, "method": "bicubic"}, (31, 60, 3))
    assert x.shape == (16, 30, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop_after": 9}, "stop_after=9 of 'real_esrgan': give 1 to 8, or null"),
        ({"stop_after": 0}, "stop_after=0"),
        ({"scale": 0}, "scale=0 of 'real_esrgan'"),
        ({"kernel_list": ["iso", "motion"]}, "kernel_list=.*give some of iso, aniso, generalized_iso"),
        (
            {"kernel_prob2": [0.5, 0.5]},
            "kernel_prob2=.* of 'real_esrgan': give probabilities of iso, .* that add up to 1",
        ),
        ({"resize_prob": [0.5, 0.5, 0.5]}, r"resize_prob=\[0.5, 0.5, 0.5\] .*up, down, keep"),
        ({"resize_range2": [1.2, 1.5]}, "resize_range2=.*one number below 1 and one above"),
        ({"jpeg_range": [0, 95]}, r"jpeg_range=\[0, 95\] of 'real_esrgan': give two numbers from 1 to 100"),
        ({"noise_range2": [25, 1]}, "noise_range2=.*in rising order"),
        ({"blur_kernel_size2": 12}, "blur_kernel_size2=12 .*odd number from 7 on"),
    ],
)
def test_options_that_do_not_fit_are_refused_by_name(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        RealEsrgan(**options)
