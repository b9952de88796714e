"""A panel shows every picture, unchanged where it fits, in the place it was given."""

import numpy as np
import pytest
import torch

from bdg.panel import GAP, panel, to_uint8

RNG = np.random.default_rng(0)


def picture(height: int = 24, width: int = 32) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_pictures_of_the_right_width_appear_pixel_for_pixel():
    rows = [[picture(), picture()], [picture(), picture()]]
    shown = panel(rows, width=32)
    assert shown.shape == (2 * 24 + 3 * GAP, 2 * 32 + 3 * GAP, 3)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            top, left = GAP + i * (24 + GAP), GAP + j * (32 + GAP)
            np.testing.assert_array_equal(shown[top : top + 24, left : left + 32], image)


def test_captions_and_titles_get_room_and_ink():
    row = [np.full((20, 90, 3), 255, np.uint8)] * 2
    plain, full = panel([row], width=90), panel([row], [["25.1 dB", "31.4 dB"]], ["degraded", "restored"], width=90)
    assert full.shape[0] > plain.shape[0]
    assert full[:, :90].min() < 128
    assert full[:, 94:].min() < 128
    assert plain.min() == 255


def test_pictures_of_different_shapes_share_a_panel():
    shown = panel([[picture(1, 3), picture(100, 40)]], [["a" * 500, "…"]], width=64)
    assert shown.shape[1] == 2 * 64 + 3 * GAP


def test_enlarged_pixels_stay_squares():
    shown = panel([[picture(1, 3)]], width=30)
    assert len(np.unique(shown[GAP : GAP + 10, GAP : GAP + 30].reshape(-1, 3), axis=0)) == 3


def test_what_does_not_match_is_refused():
    with pytest.raises(ValueError, match=r"rows of \[\] images"):
        panel([])
    with pytest.raises(ValueError, match=r"rows of \[1, 2\] images"):
        panel([[picture()], [picture(), picture()]])
    with pytest.raises(ValueError, match=r"captions of \[2\]: give 1 rows of 1"):
        panel([[picture()]], [["a", "b"]])
    with pytest.raises(ValueError, match="2 titles for 1 columns"):
        panel([[picture()]], titles=["a", "b"])


def test_to_uint8_rounds_and_clips():
    image = torch.tensor([-1.5, -1.0, 0.0, 0.999, 2.0]).expand(3, 1, 5)
    assert to_uint8(image)[0, :, 0].tolist() == [0, 0, 128, 255, 255]
