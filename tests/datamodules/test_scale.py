import numpy as np
import pytest

from datamodules.scale import enlarged, scale_of


@pytest.mark.parametrize(
    ("hq", "lq", "scale"),
    [((40, 48), (40, 48), 1), ((40, 48), (10, 12), 4), ((40, 48), (20, 12), None), ((41, 48), (10, 12), None)],
)
def test_scale_is_a_whole_number_the_same_in_both_directions(hq, lq, scale):
    assert scale_of(hq, lq) == scale


def test_a_degraded_image_larger_than_the_clean_one_has_no_scale():
    assert scale_of((10, 12), (40, 48)) is None


def test_enlarging_keeps_flat_images_flat():
    assert (enlarged(np.full((5, 6, 3), 77, np.uint8), (20, 24)) == np.full((20, 24, 3), 77)).all()
