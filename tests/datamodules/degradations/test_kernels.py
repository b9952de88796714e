import cv2
import numpy as np
import pytest
from scipy.special import j1

from datamodules.degradations.kernels import SHAPES, bessel_j1, convolved, gaussian, sinc, trimmed

every_shape = pytest.mark.parametrize("shape", SHAPES)


def moments(kernel: np.ndarray) -> np.ndarray:
    """Its covariance in pixels; rows and columns x, y."""
    y, x = np.mgrid[: kernel.shape[0], : kernel.shape[1]] - kernel.shape[0] // 2
    return np.einsum("hw,ihw,jhw->ij", kernel, np.stack([x, y]), np.stack([x, y]))


@every_shape
@pytest.mark.parametrize("size", [7, 13, 21])
def test_kernels_sum_to_one_and_are_their_own_mirror_image(shape: str, size: int):
    kernel = gaussian(size, 2.5, 0.8, angle_rad=0.7, shape=shape, beta=0.6)
    assert kernel.shape == (size, size)
    assert kernel.sum() == pytest.approx(1, abs=1e-5)
    assert np.abs(kernel - kernel[::-1, ::-1]).max() < 1e-7


def test_gaussian_has_its_sigmas_along_its_axes():
    angle = 0.5
    values, vectors = np.linalg.eigh(moments(gaussian(41, sigma_x=4, sigma_y=2, angle_rad=angle).astype(np.float64)))
    assert np.sqrt(values) == pytest.approx([2, 4], rel=0.01)
    assert np.arctan2(vectors[1, 1], vectors[0, 1]) % np.pi == pytest.approx(angle, abs=0.01)


def test_beta_makes_tails_and_tops():
    heavy, plain, flat = (gaussian(21, 2, 2, shape="generalized", beta=beta) for beta in (0.5, 1, 4))
    assert np.abs(plain - gaussian(21, 2, 2)).max() < 1e-7
    assert heavy[10, 0] > 100 * plain[10, 0]
    assert flat[10, 11] / flat[10, 10] > 0.95 > plain[10, 11] / plain[10, 10]
    plateau = gaussian(21, 2, 2, shape="plateau", beta=2)
    assert plateau[10, 12] == pytest.approx(plateau[10, 10] / 2, rel=1e-5)  # half its height at one sigma


def test_bessel_function_is_that_of_scipy():
    z = np.linspace(0, 80, 2001)
    assert np.abs(bessel_j1(z) - j1(z)).max() < 1e-12


@pytest.mark.parametrize("cutoff_rad", [np.pi / 5, np.pi / 3, 2.0])
def test_sinc_passes_what_is_below_its_cutoff_and_stops_the_rest(cutoff_rad: float):
    kernel = sinc(21, cutoff_rad)
    response = np.abs(np.fft.fft2(kernel, (512, 512)))
    y, x = np.meshgrid(*[2 * np.pi * np.fft.fftfreq(512)] * 2, indexing="ij")
    frequency = np.hypot(x, y)
    assert kernel.sum() == pytest.approx(1, abs=1e-6)
    assert response[frequency < cutoff_rad - 0.3].min() > 0.85
    assert response[frequency > cutoff_rad + 0.3].max() < 0.15


@pytest.mark.parametrize("shape", [(40, 50), (3, 5), (1, 1)])
@pytest.mark.parametrize(
    "kernel",
    [
        gaussian(21, 0.4, 0.4),
        gaussian(21, 3, 3),
        gaussian(21, 3, 0.5, 1.0),
        gaussian(21, 2, 2, 0, "plateau", 1),
        sinc(15, 1),
    ],
    ids=["tiny", "round", "long", "plateau", "sinc"],
)
def test_convolution_by_shortcuts_is_that_of_the_whole_kernel(kernel: np.ndarray, shape: tuple[int, int]):
    x = np.random.default_rng(0).random((*shape, 3), np.float32)
    expected = cv2.filter2D(x.astype(np.float64), -1, kernel.astype(np.float64), borderType=cv2.BORDER_REFLECT_101)
    assert np.abs(convolved(x, kernel) - expected).max() < 3e-5  # a hundredth of a grey level


def test_a_point_becomes_the_kernel():
    point = np.zeros((41, 41, 3), np.float32)
    point[20, 20] = 1
    kernel = gaussian(21, 2.5, 1.2, 0.4, "generalized", 0.8)
    assert np.abs(convolved(point, kernel)[10:31, 10:31, 1] - kernel).max() < 1e-5


def test_trimming_takes_empty_rings_away_and_nothing_else():
    tight = trimmed(gaussian(21, 1, 1))
    assert 7 <= tight.shape[0] <= 11
    assert tight.sum() == pytest.approx(1, abs=2e-5)
    assert trimmed(sinc(21, 1.0)).shape == (21, 21)
    assert trimmed(gaussian(7, 0.01, 0.01)).shape == (1, 1)
