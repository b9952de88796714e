"""Descriptors against reference implementations and their own claims; nearest neighbours against answers known by hand."""

from functools import partial

import numpy as np
import pytest
import pywt
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage import filters
from skimage.data import astronaut
from torch import Tensor

from bdg import probe
from bdg.glcm import to_gray

DESCRIPTORS = (
    probe.lq_pixels,
    probe.sobel,
    probe.laplace,
    probe.fourier,
    probe.sobel_histogram,
    probe.laplace_histogram,
    probe.fourier_profile,
    probe.lbp,
    probe.wavelet,
)
STATISTICS = DESCRIPTORS[4:]


@pytest.fixture(scope="module")
def photograph() -> Tensor:
    return torch.from_numpy(astronaut()[:128, 128:256].copy()).permute(2, 0, 1)[None]


@pytest.fixture(scope="module")
def gray(photograph: Tensor) -> np.ndarray:
    return to_gray(photograph)[0, 0].numpy().astype(np.float64)


def flip(images: Tensor) -> Tensor:
    return images.flip(-1)


def brighten(images: Tensor) -> Tensor:
    """By 20 grey levels, after making room for them."""
    return images + 20


# --- descriptors ---


@pytest.mark.parametrize("descriptor", DESCRIPTORS)
def test_an_image_is_described_alike_alone_and_in_a_batch(descriptor, photograph):
    batch = torch.cat([flip(photograph), photograph])
    torch.testing.assert_close(descriptor(batch)[1:], descriptor(photograph))


@pytest.mark.parametrize("descriptor", DESCRIPTORS)
def test_descriptors_are_finite_on_a_flat_image(descriptor):
    assert descriptor(torch.full((1, 3, 64, 64), 255, dtype=torch.uint8)).isfinite().all()


@pytest.mark.parametrize("descriptor", STATISTICS)
def test_statistics_do_not_change_when_the_image_is_flipped(descriptor, photograph):
    torch.testing.assert_close(descriptor(flip(photograph)), descriptor(photograph), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "descriptor", [probe.sobel_histogram, probe.laplace_histogram, probe.fourier_profile, probe.lbp]
)
def test_texture_statistics_do_not_see_brightness(descriptor, photograph):
    dark = photograph // 2
    torch.testing.assert_close(descriptor(brighten(dark)), descriptor(dark), atol=1e-4, rtol=1e-4)


def test_only_the_last_two_wavelet_statistics_see_brightness(photograph):
    dark = photograph // 2
    changed = (probe.wavelet(brighten(dark)) - probe.wavelet(dark)).abs()[0] > 1e-3
    assert changed.tolist() == [False] * 18 + [True] * 2


def test_the_fourier_profile_does_not_see_a_cyclic_shift(photograph):
    torch.testing.assert_close(
        probe.fourier_profile(photograph.roll((5, -9), (-2, -1))), probe.fourier_profile(photograph)
    )


def test_binary_patterns_see_only_the_order_of_grey_levels():
    gray = torch.randint(0, 16, (1, 1, 32, 32), generator=torch.Generator().manual_seed(0)).expand(1, 3, 32, 32)
    stretched = (gray**2).to(torch.uint8)
    torch.testing.assert_close(probe.lbp(stretched), probe.lbp(gray.to(torch.uint8)))


def test_sobel_and_laplace_are_those_of_scikit_image(photograph, gray):
    # scikit-image's kernels have gain 2, and it averages the squares of the two directions: sqrt(2) ours
    sobel = filters.sobel(gray)[1:-1, 1:-1] / np.sqrt(2)
    laplace = np.abs(filters.laplace(gray)[1:-1, 1:-1])
    whole = partial(torch.testing.assert_close, atol=1e-3, rtol=1e-4)
    whole(probe.sobel(photograph, size=126), torch.from_numpy(sobel).float().flatten()[None])
    whole(probe.laplace(photograph, size=126), torch.from_numpy(laplace).float().flatten()[None])


def test_wavelet_statistics_are_those_of_pywavelets(photograph, gray):
    approximation, *details = pywt.wavedec2(gray, "haar", level=3)
    bands = [band for level in reversed(details) for band in level] + [approximation]
    expected = [value for band in bands for value in (np.abs(band).mean(), np.sqrt((band**2).mean()))]
    torch.testing.assert_close(probe.wavelet(photograph)[0], torch.tensor(expected).log1p().float())


def test_binary_patterns_are_those_counted_pixel_by_pixel(gray):
    small = gray[:20, :20]
    ring = [(-2, -2), (-2, 0), (-2, 2), (0, 2), (2, 2), (2, 0), (2, -2), (0, -2)]
    counts = np.zeros(10)
    for row in range(2, 18):
        for column in range(2, 18):
            bits = [small[row + down, column + right] >= small[row, column] for down, right in ring]
            changes = sum(bits[place] != bits[place - 1] for place in range(8))
            counts[sum(bits) if changes <= 2 else 9] += 1
    images = torch.from_numpy(small.astype(np.uint8)).expand(1, 3, 20, 20)
    torch.testing.assert_close(probe.lbp(images, radii=(2,), power=1)[0], torch.from_numpy(counts / 256).float())


def test_frequencies_sum_to_one_per_histogram(photograph):
    for descriptor, histograms in ((probe.sobel_histogram, 1), (probe.laplace_histogram, 1), (probe.lbp, 3)):
        assert descriptor(photograph, power=1).sum().item() == pytest.approx(histograms)


def test_a_wave_of_one_frequency_fills_one_ring():
    wave = torch.tensor([228, 128, 28, 128], dtype=torch.uint8).repeat(16)  # 0.25 cycles per pixel
    profile = probe.fourier_profile(wave.expand(1, 3, 64, 64), rings=4)
    assert (profile[0] > 1e-4).tolist() == [False, False, True, False]


@pytest.mark.parametrize(
    ("descriptor", "least"),
    [
        (probe.lq_pixels, 32),
        (probe.sobel, 34),
        (probe.laplace_histogram, 3),
        (probe.lbp, 7),
        (probe.wavelet, 8),
    ],
)
def test_an_image_too_small_for_a_descriptor_is_refused_with_its_size(descriptor, least):
    descriptor(torch.zeros(1, 3, least, least, dtype=torch.uint8))
    with pytest.raises(ValueError, match="pixels is too small for"):
        descriptor(torch.zeros(1, 3, least, least - 1, dtype=torch.uint8))


# --- nearest neighbours ---


def test_neighbours_come_nearest_first_and_equal_ones_in_order():
    train = torch.tensor([[3.0], [1.0], [-1.0], [0.5]])
    assert probe.neighbours(train, torch.tensor([[0.0]]), 4).tolist() == [[3, 1, 2, 0]]


def test_the_most_frequent_label_wins_and_a_tie_goes_to_the_nearest():
    labels = torch.tensor([[0, 1, 1, 2, 3], [2, 1, 0, 1, 2], [4, 3, 2, 1, 0], [0, 1, 1, 2, 2]])
    assert probe.vote(labels).tolist() == [1, 2, 4, 1]


def test_predictions_on_a_line_are_those_found_by_hand():
    features = torch.tensor([[0.0], [1.0], [10.0], [11.0], [5.0]])
    labels = torch.tensor([[0], [0], [1], [1], [1]])
    fold = torch.tensor([0, 1, 0, 1, 1])
    # to fold 0: 0 is nearest to 1 (label 0), 10 to 11 (1); to fold 1: 1 to 0 (0), 11 to 10 (1), 5 is as far from both (0)
    assert probe.predict(features, labels, fold, k=1).flatten().tolist() == [0, 0, 1, 1, 0]


def test_a_sample_is_never_its_own_neighbour():
    features, labels = torch.arange(12.0)[:, None], torch.arange(12)[:, None]
    fold = probe.fold_of(range(12), 4, seed=0)
    assert (probe.predict(features, labels, fold, k=1) != labels).all()


@given(
    st.lists(st.integers(0, 30), min_size=2, max_size=60).filter(lambda groups: len(set(groups)) > 1),
    st.integers(2, 6),
    st.integers(0, 1000),
)
def test_a_group_is_never_on_both_sides_and_folds_are_balanced(groups, folds, seed):
    folds = min(folds, len(set(groups)))
    fold = probe.fold_of(groups, folds, seed).tolist()
    homes = {group: {f for g, f in zip(groups, fold, strict=True) if g == group} for group in groups}
    assert all(len(home) == 1 for home in homes.values())
    sizes = [sum(home == {f} for home in homes.values()) for f in range(folds)]
    assert max(sizes) - min(sizes) <= 1


def test_a_random_split_lets_a_group_into_several_folds():
    fold = probe.fold_of(range(100), 5, seed=0)
    assert fold[:10].unique().numel() > 1  # ten images of one photograph


def test_folds_depend_on_the_seed_alone():
    names = [f"photo {number}" for number in range(40)]
    first, again, other = (probe.fold_of(names, 5, seed) for seed in (1, 1, 2))
    assert first.equal(again)
    assert not first.equal(other)


def test_the_error_of_a_share_counts_groups_not_samples():
    correct = torch.tensor([True, True, True, True, False, False, False, False, True, True, True, True])
    groups = ["a"] * 4 + ["b"] * 4 + ["c"] * 4
    share, error = probe.accuracy(correct, groups)
    assert share == pytest.approx(2 / 3)
    assert error == pytest.approx(np.std([1, 0, 1], ddof=1) / np.sqrt(3))


@pytest.mark.parametrize("k", [0, 5])
def test_more_neighbours_than_training_samples_are_refused(k):
    with pytest.raises(ValueError, match=f"k={k} neighbours of 4 training samples: k must be 1 to 4"):
        probe.neighbours(torch.zeros(4, 1), torch.zeros(1, 1), k)


@pytest.mark.parametrize("folds", [1, 4])
def test_folds_that_cannot_be_dealt_are_refused(folds):
    with pytest.raises(ValueError, match=f"folds={folds} with 3 .* must be 2 to 3"):
        probe.fold_of(["a", "b", "c"], folds, seed=0)
