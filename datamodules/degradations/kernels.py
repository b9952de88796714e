"""Blur kernels of Real-ESRGAN: Gaussians and their relatives with heavier tails or flatter tops, and the sinc of an ideal lens.

Source: Real-ESRGAN (Wang et al. 2021, arXiv 2107.10833), section 3.1 and supplement; generalised and plateau shapes by Liu et
al. 2020. A kernel is an odd square of weights that sum to 1.
"""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FAINTEST = 1e-5  # of a kernel, which sums to 1

SHAPES: dict[str, Callable[[Array, float], Array]] = {  # q: squared distance in standard deviations
    "gaussian": lambda q, beta: np.exp(-0.5 * q),
    "generalized": lambda q, beta: np.exp(-0.5 * q**beta),
    "plateau": lambda q, beta: 1 / (1 + q**beta),
}


def gaussian(
    size: int, sigma_x: float, sigma_y: float, angle_rad: float = 0.0, shape: str = "gaussian", beta: float = 1.0
) -> NDArray[np.float32]:
    """A kernel of one of `SHAPES`, whose axes are turned from the columns' and rows' by `angle_rad`; sigmas in pixels."""
    x, y = _axes(size)
    along, across = x * np.cos(angle_rad) + y * np.sin(angle_rad), y * np.cos(angle_rad) - x * np.sin(angle_rad)
    weights = SHAPES[shape]((along / sigma_x) ** 2 + (across / sigma_y) ** 2, beta)
    return (weights / weights.sum()).astype(np.float32)


def sinc(size: int, cutoff_rad: float) -> NDArray[np.float32]:
    """The ideal circular low-pass, cut off at `cutoff_rad` per pixel (pi: nothing is lost); rings, as sharpening does.

    k(r) = w J1(w r) / (2 pi r), and w ** 2 / (4 pi) in its middle.
    """
    x, y = _axes(size)
    squared, back = np.unique((x**2 + y**2).ravel(), return_inverse=True)  # an eighth of the kernel is all of it
    radius = np.sqrt(squared[1:])
    weights = np.concatenate(
        [[cutoff_rad**2 / (4 * np.pi)], cutoff_rad * bessel_j1(cutoff_rad * radius) / (2 * np.pi * radius)]
    )
    kernel = weights[back].reshape(size, size)
    return (kernel / kernel.sum()).astype(np.float32)


def bessel_j1(z: Array) -> Array:
    """J1(z) = 1 / pi * integral from 0 to pi of cos(s - z sin s) ds; exact to rounding for |z| < 80.

    The mean over equally spaced points, as that of any smooth periodic function, has no error that could be seen.
    """
    s = 2 * np.pi * np.arange(128) / 128
    return np.cos(s - z[:, None] * np.sin(s)).mean(axis=1)


def convolved(x: NDArray[np.float32], kernel: NDArray[np.float32]) -> NDArray[Any]:
    """The image x (h w 3), mirrored at its borders, blurred by a kernel of this file: the kernel is its own mirror image."""
    kernel = trimmed(kernel)
    column, row = kernel.sum(axis=1), kernel.sum(axis=0)
    if np.allclose(
        np.outer(column, row), kernel, rtol=0, atol=FAINTEST
    ):  # a Gaussian along the axes: many times faster
        return cv2.sepFilter2D(x, -1, row, column, borderType=cv2.BORDER_REFLECT_101)
    return cv2.filter2D(x, -1, kernel, borderType=cv2.BORDER_REFLECT_101)


def trimmed(kernel: NDArray[np.float32]) -> NDArray[np.float32]:
    """Without the outer rings in which there is next to nothing: up to 11 pixels OpenCV needs no Fourier transform."""
    y, x = _axes(kernel.shape[0])
    rings = np.bincount(np.maximum(abs(x), abs(y)).astype(int).reshape(-1), np.abs(kernel).reshape(-1))
    outside = np.append(np.cumsum(rings[::-1])[::-1], 0)  # of the square with so many rings, what is not in it
    cut = len(rings) - max(1, int(np.argmax(outside < FAINTEST)))
    return kernel[cut : kernel.shape[0] - cut, cut : kernel.shape[0] - cut].copy()


def _axes(size: int) -> tuple[Array, Array]:
    axis = np.arange(size, dtype=np.float64) - (size - 1) / 2
    return axis[None, :], axis[:, None]
