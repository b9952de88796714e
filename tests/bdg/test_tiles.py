"""Tiles cover an image, agree at their borders, and what they change is measured."""

import math
from itertools import pairwise

import pytest
import torch

from bdg.tiles import count, gap, strips, tiled
from bdg.types import Estimate


def photo(b: int = 1, h: int = 24, w: int = 32) -> torch.Tensor:
    return torch.rand(b, 3, h, w, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("tile", [32, 40, 64])
@pytest.mark.parametrize("overlap", [0, 5, 16])
@pytest.mark.parametrize("length", [1, 32, 33, 100, 257])
def test_strips_cover_all_and_their_weights_add_up_to_one(length, tile, overlap):
    total, found = torch.zeros(length), strips(length, tile, overlap)
    for place, weight in found:
        total[place] += weight
    torch.testing.assert_close(total, torch.ones(length))
    assert len(found) == count(length, tile, overlap)
    for (before, _), (after, _) in pairwise(found):
        assert before.stop - after.start >= overlap


def test_the_network_never_sees_more_than_a_tile_and_every_pixel_is_seen():
    sizes = []

    def denoise(x_t, x_lq, t):
        sizes.append(tuple(x_t.shape[-2:]))
        return Estimate(x_lq, x_t, x_t)

    x = photo(1, 70, 131)
    estimate = tiled(denoise, 32, 8)(x, x, torch.tensor([0]))
    assert set(sizes) == {(32, 32)}
    assert len(sizes) == math.ceil((70 - 8) / 24) * math.ceil((131 - 8) / 24)
    torch.testing.assert_close(estimate.x_hq, x)


def levels():
    """A denoiser whose every tile believes in another level."""
    counter = iter(range(100))

    def denoise(x_t, x_lq, t):
        level = torch.full_like(x_t, float(next(counter)))
        return Estimate(level, level, level)

    return denoise


def test_blended_tiles_have_no_seams():
    """Tiles that disagree by a constant are joined by slopes, not by steps."""
    x = photo(1, 32, 56)
    belief = tiled(levels(), 32, 8)(x, x, torch.tensor([0])).x_hq[0, 0, 0]
    assert (belief[0], belief[-1]) == (0, 1)
    assert belief.diff().min() >= 0
    assert belief.diff().max() < 0.25


def test_what_follows_from_x_hq_is_not_blended():
    def complete(x_hq, x_t, x_lq, t):
        return Estimate(x_hq, x_lq - x_hq, x_t)

    x = photo(1, 40, 56)
    estimate = tiled(levels(), 32, 8, complete)(x, x, torch.tensor([0]))
    assert torch.equal(estimate.residual, x - estimate.x_hq)
    assert torch.equal(estimate.noise, x)


def test_images_without_a_difference_have_no_gap():
    found = gap(photo(1, 70, 131), photo(1, 70, 131), 32)
    assert (found.psnr, found.seam_energy) == (math.inf, 1)
    assert "seam energy 1.00 (1: no seams)" in str(found)


def test_a_gap_is_the_psnr_of_colours_from_0_to_1():
    assert gap(photo() + 0.2, photo(), 32).psnr == pytest.approx(20, abs=1e-3)


def test_seams_are_told_from_a_difference_that_is_everywhere():
    x = torch.zeros(1, 3, 96, 96)
    noise = 0.01 * photo(1, 96, 96)
    assert gap(x + noise, x, 32, 0).seam_energy == pytest.approx(1, abs=0.3)
    with_seams = tiled(levels(), 32, 0)(x, x, torch.tensor([0])).x_hq
    assert gap(with_seams + noise, x, 32, 0).seam_energy > 100
