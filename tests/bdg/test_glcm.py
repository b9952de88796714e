"""MAS-GLCM against skimage's graycomatrix, which defines it."""

import math
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.feature import graycomatrix

import bdg.glcm
from bdg.glcm import MasGlcm, glcm, offset_at, quantise, to_gray, to_uint8

ANGLES = [k * math.pi / 8 for k in range(9)]
SCALES = [1, 2, 3, 4, 5, 6]
ALL_ROUND = [k * math.pi / 6 for k in range(-6, 7)]  # every quadrant, and sines of one half
PHOTOGRAPHS = ["astronaut", "camera", "chelsea", "coffee", "rocket"]


def random_gray(levels: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, levels, shape, dtype=np.uint8))


def skimage_matrices(gray: torch.Tensor, scales, angles, levels, symmetric=False) -> np.ndarray:
    """levels, levels, scales, angles of one image; each sums to 1."""
    return graycomatrix(gray.numpy(), scales, angles, levels, symmetric=symmetric, normed=True)


def crop(name: str) -> torch.Tensor:
    """The middle 128x160 pixels of a photograph, as a batch of one."""
    picture = getattr(skimage.data, name)()
    picture = picture if picture.ndim == 3 else picture[..., None]
    y, x = (picture.shape[0] - 128) // 2, (picture.shape[1] - 160) // 2
    return torch.from_numpy(picture[None, y : y + 128, x : x + 160].copy()).permute(0, 3, 1, 2)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("levels", [2, 8, 13, 16, 32, 33, 64, 256])
def test_random_images_agree_with_skimage(levels, symmetric):
    gray = random_gray(levels, 3, 40, 57)
    offsets = [offset_at(scale, angle) for scale in SCALES for angle in ANGLES]
    ours = glcm(gray, [offsets], levels, symmetric)
    for image, matrix in zip(gray, ours, strict=True):
        theirs = skimage_matrices(image, SCALES, ANGLES, levels, symmetric).mean((2, 3))
        np.testing.assert_allclose(matrix[0].numpy(), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize("levels", [32, 256])
def test_photographs_agree_with_skimage(name, levels):
    image = crop(name)
    theirs = skimage_matrices(quantise(to_gray(image), levels)[0, 0], SCALES, ANGLES, levels).mean((2, 3))
    np.testing.assert_allclose(MasGlcm(levels).matrix(image)[0, 0].numpy(), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("folder", ["denoise/cbsd68_noisy_ref", "derain/rain100h", "lowlight/lol_eval15"])
def test_degraded_photographs_agree_with_skimage(shared: Path, folder):
    path = min(path for path in (shared / "data" / folder).rglob("*") if path.suffix in {".png", ".jpg"})
    image = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None]
    theirs = skimage_matrices(quantise(to_gray(image), 64)[0, 0], SCALES, ANGLES, 64).mean((2, 3))
    np.testing.assert_allclose(MasGlcm().matrix(image)[0, 0].numpy(), theirs, rtol=0, atol=1e-6)


def test_offsets_of_every_quadrant_and_halves_agree_with_skimage():
    gray, scales = random_gray(8, 1, 12, 13), [1, 1.5, 2, 3, 5]
    offsets = [offset_at(scale, angle) for scale in scales for angle in ALL_ROUND]
    ours = glcm(gray, [[offset] for offset in offsets], 8)[0].numpy()
    theirs = skimage_matrices(gray[0], scales, ALL_ROUND, 8)
    np.testing.assert_allclose(ours, np.moveaxis(theirs.reshape(8, 8, -1), -1, 0), rtol=0, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    levels=st.sampled_from([2, 3, 8, 20, 32, 50]),
    size=st.tuples(st.integers(4, 9), st.integers(4, 9)),
    offsets=st.lists(
        st.tuples(st.integers(-3, 3), st.integers(-3, 3)).filter(lambda offset: offset != (0, 0)),
        min_size=1,
        max_size=12,
    ),
    seed=st.integers(0, 1000),
)
def test_any_list_of_offsets_agrees_with_counting_by_hand(levels, size, offsets, seed):
    gray = random_gray(levels, 1, *size, seed=seed)
    (h, w), expected = size, np.zeros((levels, levels))
    for row, col in offsets:
        pairs = [
            (gray[0, x, y], gray[0, x + row, y + col])
            for x in range(max(0, -row), h - max(0, row))
            for y in range(max(0, -col), w - max(0, col))
        ]
        for i, j in pairs:
            expected[i, j] += 1 / len(pairs) / len(offsets)
    np.testing.assert_allclose(glcm(gray, [offsets], levels)[0, 0].numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("h", "w"), [(7, 7), (7, 40), (40, 7)])
@pytest.mark.parametrize("levels", [8, 32, 256])
def test_image_of_largest_offset_plus_one_agrees_with_skimage(h, w, levels):
    gray = random_gray(levels, 1, h, w)
    offsets = [offset_at(scale, angle) for scale in SCALES for angle in ANGLES]
    theirs = skimage_matrices(gray[0], SCALES, ANGLES, levels).mean((2, 3))
    np.testing.assert_allclose(glcm(gray, [offsets], levels)[0, 0].numpy(), theirs, rtol=0, atol=1e-6)


def test_images_of_one_row_or_column_have_pairs_along_it():
    gray = random_gray(8, 1, 1, 9)
    theirs = skimage_matrices(gray[0], [3], [0], 8)[..., 0, 0]
    np.testing.assert_allclose(glcm(gray, [[(0, 3)]], 8)[0, 0].numpy(), theirs, rtol=0, atol=1e-6)
    np.testing.assert_allclose(glcm(gray.mT, [[(-3, 0)]], 8)[0, 0].numpy(), theirs.T, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("h", "w"), [(6, 40), (40, 6), (3, 3)])
def test_smaller_image_is_an_error_that_names_size_and_way_out(h, w):
    with pytest.raises(ValueError, match=rf"image of {h}x{w} pixels.*needs 7x7.*glcm\.scales"):
        MasGlcm()(torch.zeros(1, 3, h, w))


@pytest.mark.parametrize("levels", [8, 32, 64, 256])
@pytest.mark.parametrize("value", [0, 77, 255])
def test_flat_image_gives_a_single_one(levels, value):
    matrix = MasGlcm(levels).matrix(torch.full((1, 3, 20, 30), value, dtype=torch.uint8))[0, 0]
    level = value * levels // 256
    assert matrix[level, level].item() == pytest.approx(1, abs=1e-6)
    assert matrix.count_nonzero() == 1


@pytest.mark.parametrize("levels", [16, 32, 64])
def test_path_for_accelerators_equals_the_one_for_cpus(levels):
    gray = random_gray(levels, 4, 30, 41)
    groups = [[offset_at(scale, angle) for angle in ALL_ROUND] for scale in SCALES]
    expected = glcm(gray, groups, levels)
    base, size = levels + 1, 3 if levels <= 32 else 2
    matrix = torch.zeros(4, len(groups), base, base)
    plan = bdg.glcm._plan(tuple(map(tuple, groups)), size, 30, 41)
    bdg.glcm._add_pairs(matrix, gray.long(), plan, bdg.glcm._scatter_count)
    torch.testing.assert_close(matrix[..., :levels, :levels], expected, rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("levels", [8, 32, 64, 256])
def test_cuda_equals_cpu_and_never_waits(levels):
    image = random_gray(256, 4, 3, 64, 80)
    descriptor = MasGlcm(levels, reduce="scales", channels="rgb")
    expected = descriptor(image)
    on_device = image.cuda()
    descriptor(on_device)  # the first call may set up the library
    torch.cuda.set_sync_debug_mode("error")
    try:
        ours = descriptor(on_device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(ours.cpu(), expected, rtol=1e-5, atol=1e-6)


def test_reduce_keeps_a_channel_for_each_scale_or_offset():
    image = random_gray(256, 2, 1, 20, 25)
    theirs = skimage_matrices(quantise(image, 16)[1, 0], [1, 3], ANGLES, 16)
    scales = MasGlcm(16, ANGLES, [1, 3], reduce="scales")
    assert scales.out_channels == 2
    np.testing.assert_allclose(scales.matrix(image)[1].numpy(), np.moveaxis(theirs.mean(3), 2, 0), rtol=0, atol=1e-6)
    offsets = MasGlcm(16, ANGLES, [1, 3], reduce="offsets")
    assert offsets.out_channels == 18
    by_offset = np.moveaxis(theirs.reshape(16, 16, 18), 2, 0)
    np.testing.assert_allclose(offsets.matrix(image)[1].numpy(), by_offset, rtol=0, atol=1e-6)
    assert MasGlcm(16, ANGLES, [1, 3]).out_channels == 1


def test_every_channel_sums_to_one():
    for reduce in ("mean", "scales", "offsets"):
        matrix = MasGlcm(reduce=reduce, channels="rgb").matrix(random_gray(256, 2, 3, 33, 20))
        torch.testing.assert_close(matrix.sum((-1, -2)), torch.ones(matrix.shape[:2]), rtol=0, atol=1e-5)


def test_rgb_is_the_mean_over_the_planes():
    image = random_gray(256, 2, 3, 20, 20)
    planes = [MasGlcm(32).matrix(image[:, k : k + 1]) for k in range(3)]
    torch.testing.assert_close(MasGlcm(32, channels="rgb").matrix(image), sum(planes) / 3, rtol=0, atol=1e-6)


def test_encoder_sees_the_scaled_matrix_to_a_power():
    image = random_gray(256, 2, 3, 20, 20)
    matrix = MasGlcm(32).matrix(image)
    torch.testing.assert_close(MasGlcm(32, power=0.25)(image), (32**2 * matrix) ** 0.25)
    torch.testing.assert_close(MasGlcm(32, power=1)(image), 32**2 * matrix)
    assert MasGlcm(32)(image).dtype == torch.float32


@pytest.mark.parametrize("levels", [8, 64])
def test_image_in_a_batch_gives_what_it_gives_alone(levels):
    descriptor, images = MasGlcm(levels), random_gray(256, 7, 3, 20, 20)
    alone = torch.cat([descriptor(image[None]) for image in images])
    torch.testing.assert_close(descriptor(images), alone, rtol=0, atol=0)


def test_empty_batch_gives_an_empty_result():
    assert MasGlcm(8)(torch.zeros(0, 3, 20, 20)).shape == (0, 1, 8, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_float_images_equal_the_bytes_they_came_from(dtype):
    image = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(to_uint8(image.to(dtype) / 127.5 - 1), image)


def test_float_images_are_clipped():
    assert to_uint8(torch.tensor([-3.0, 3.0]).reshape(1, 1, 1, 2)).flatten().tolist() == [0, 255]


def test_luma_is_pillows():
    image = random_gray(256, 1, 3, 64, 64)
    theirs = np.array(Image.fromarray(image[0].permute(1, 2, 0).numpy()).convert("L"))
    np.testing.assert_array_equal(to_gray(image)[0, 0].numpy(), theirs)


@pytest.mark.parametrize("levels", [2, 7, 64, 255, 256])
def test_quantising_takes_the_floor(levels):
    expected = [gray * levels // 256 for gray in range(256)]
    assert quantise(torch.arange(256, dtype=torch.uint8), levels).tolist() == expected


def test_module_is_absent_from_checkpoints():
    assert MasGlcm().state_dict() == {}
    assert list(MasGlcm().parameters()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 1}, r"levels=1 is outside 2\.\.256"),
        ({"levels": 257}, r"levels=257 is outside 2\.\.256"),
        ({"levels": -8}, r"levels=-8 is outside 2\.\.256"),
        ({"angles": []}, r"angles=\[\] must be finite numbers"),
        ({"angles": [0.0, math.nan]}, r"angles=\[0\.0, nan\] must be finite numbers"),
        ({"angles": [math.inf]}, r"angles=\[inf\] must be finite numbers"),
        ({"scales": []}, r"scales=\[\] must be distances of at least 1"),
        ({"scales": [1, 0]}, r"scales=\[1, 0\] must be distances of at least 1"),
        ({"scales": [-2]}, r"scales=\[-2\] must be distances"),
        ({"scales": [math.nan]}, r"scales=\[nan\] must be distances"),
        ({"scales": [math.inf]}, r"scales=\[inf\] must be distances"),
        ({"reduce": "max"}, r"reduce='max' is unknown: write glcm\.reduce=mean, scales or offsets"),
        ({"channels": "hsv"}, r"channels='hsv' is unknown: write glcm\.channels=luma"),
        ({"power": 0}, r"power=0 must be greater than 0"),
        ({"power": math.nan}, r"power=nan must be greater than 0"),
    ],
)
def test_option_out_of_range_is_an_error_that_names_option_value_and_way_out(options, message):
    with pytest.raises(ValueError, match=message) as error:
        MasGlcm(**options)
    assert "glcm." in str(error.value)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(1, 4, 20, 20), "image of 4 channels: give RGB"),
        (torch.zeros(1, 3, 20, 20, dtype=torch.int64), r"image of torch\.int64: give uint8 in \[0, 255\] or float"),
    ],
)
def test_what_is_no_image_is_an_error(image, message):
    with pytest.raises(ValueError, match=message):
        MasGlcm()(image)


def test_impossible_offsets_and_values_are_errors():
    gray = random_gray(8, 1, 10, 10)
    with pytest.raises(ValueError, match=r"\(0, 0\) pairs every pixel with itself"):
        glcm(gray, [[(0, 1), (0, 0)]], 8)
    with pytest.raises(ValueError, match="at least one offset"):
        glcm(gray, [[(0, 1)], []], 8)
    with pytest.raises(ValueError, match="at least one offset"):
        glcm(gray, [], 8)
    with pytest.raises(ValueError, match=r"value 7, but levels=4: call quantise\(gray, 4\)"):
        glcm(gray, [[(0, 1)]], 4)


@pytest.fixture
def composed():
    """Compose the group glcm as a training config does."""
    with initialize_config_module("conf", version_base=None):
        yield lambda choice, *overrides: compose(overrides=[f"+glcm={choice}", *overrides]).glcm


def test_paper_preset_spells_out_the_defaults(composed):
    preset, default = instantiate(composed("paper")), MasGlcm()
    for option in ("levels", "groups", "channels", "symmetric", "power"):
        assert getattr(preset, option) == getattr(default, option)


def test_other_presets_say_what_differs(composed):
    literal, stacked = instantiate(composed("paper_literal")), instantiate(composed("stacked"))
    assert (literal.levels, literal.power, literal.groups) == (256, 1, MasGlcm().groups)
    assert (stacked.levels, stacked.power, stacked.channels, stacked.symmetric) == (32, 0.5, "rgb", True)
    quarter = [k * math.pi / 4 for k in range(4)]
    assert stacked.groups == tuple(tuple(offset_at(scale, angle) for angle in quarter) for scale in (1, 2, 4, 8))
    assert composed("none")._target_ is None


def test_angles_and_scales_of_a_preset_can_be_overridden(composed):
    node = composed("paper", "glcm.scales=[1,2]", "glcm.angles=[0,1.5708]", "glcm.reduce=offsets")
    assert instantiate(node).groups == (((0, 1),), ((1, 0),), ((0, 2),), ((2, 0),))
