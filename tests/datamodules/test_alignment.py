"""A shift is measured to a fraction of a pixel, also of a degraded image, and where there is none, none is believed."""

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from datamodules.alignment import shift
from datamodules.degradations.base import Degradation
from datamodules.degradations.blur import MotionBlur
from datamodules.degradations.haze import Haze
from datamodules.degradations.low_light import LowLight
from datamodules.degradations.noise import GaussianNoise
from datamodules.degradations.rain import Rain

DEGRADATIONS = [Rain(severity=2), Haze(severity=5), LowLight(severity=5), GaussianNoise(severity=5)]


def pair(photograph: NDArray[np.float32], right: float, down: float) -> list[NDArray[np.float32]]:
    """A photograph at half its size, and how it is if everything is moved by so many pixels; h w 3."""
    images = []
    for by in ((0, 0), (right, down)):
        matrix = np.array([[2, 0, 20 - 2 * by[0]], [0, 2, 20 - 2 * by[1]]], np.float32)
        smooth = cv2.GaussianBlur(photograph, (0, 0), 1)
        size = (photograph.shape[1] // 2 - 20, photograph.shape[0] // 2 - 20)
        images.append(cv2.warpAffine(smooth, matrix, size, flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP).clip(0, 1))
    return images


def gray(image: NDArray[np.float32]) -> NDArray[np.float32]:
    return 255 * cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


@pytest.mark.parametrize("by", [(1.7, 0.0), (-0.4, 2.6), (0.0, -8.3)])
def test_a_shift_is_measured_and_explains_nearly_everything(photographs, by):
    for photograph in photographs[::4]:
        measured = shift(*map(gray, pair(photograph, *by)))
        assert measured[:2] == pytest.approx(by, abs=0.12)
        assert measured.explained > 0.9


@pytest.mark.parametrize("degrade", DEGRADATIONS, ids=lambda degrade: type(degrade).__name__)
def test_degradations_neither_hide_a_shift_nor_feign_one(photographs, degrade: Degradation):
    for photograph in photographs[::6]:
        for right in (0.0, 1.7):
            x_hq, moved = pair(photograph, right, 0)
            x_lq, _ = degrade(moved, np.random.default_rng(0))
            measured = shift(gray(x_hq), gray(x_lq))
            assert measured[:2] == pytest.approx((right, 0), abs=0.2)
            assert (measured.explained > 0.2) == (right > 0)


def test_a_long_motion_blur_is_no_shift_that_is_believed(photographs):
    for photograph in photographs[::6]:
        x_lq, _ = MotionBlur(severity=3)(photograph, np.random.default_rng(0))
        assert shift(gray(photograph), gray(x_lq)).explained < 0.2


def test_images_that_have_nothing_in_common_or_no_structure_have_no_shift(photographs):
    first, second = (gray(photograph[:256, :256]) for photograph in photographs[:2])
    assert shift(first, second).explained < 0.1
    flat = np.full_like(first, 100)
    assert shift(first, flat) == shift(flat, flat) == (0, 0, 0)
