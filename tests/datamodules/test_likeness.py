"""Copies and turned copies of a picture are found among others, and nothing else is."""

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from datamodules.likeness import likeness, matches, signature

Gray = NDArray[np.float32]


@pytest.fixture(scope="module")
def grays(photographs: list[NDArray[np.float32]]) -> list[Gray]:
    return [255 * cv2.cvtColor(photograph, cv2.COLOR_RGB2GRAY) for photograph in photographs]


def jpeg(gray: Gray) -> Gray:
    return cv2.imdecode(cv2.imencode(".jpg", gray, [cv2.IMWRITE_JPEG_QUALITY, 10])[1], 0).astype(np.float32)


def cropped(gray: Gray) -> Gray:
    h, w = gray.shape
    return gray[h // 100 : h - h // 100, w // 100 : w - w // 100]


@pytest.mark.parametrize(
    "change",
    [
        jpeg,
        cropped,
        lambda gray: cv2.resize(gray, (60, 90), interpolation=cv2.INTER_AREA),
        lambda gray: 255 * (gray / 255) ** 2.2,
        lambda gray: 0.1 * gray + 30,
    ],
    ids=["jpeg", "cropped", "resized", "gamma", "hazy"],
)
def test_a_changed_copy_is_the_only_match_of_every_photograph(
    grays: list[Gray], change: Callable[[Gray], Gray]
) -> None:
    found = list(matches([signature(gray) for gray in grays], [signature(change(gray)) for gray in grays]))
    assert [(m.first, m.second, m.turned) for m in found] == [(i, i, False) for i in range(len(grays))]


@pytest.mark.parametrize("quarters", range(4))
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_turned_copy_is_found_and_called_turned(grays: list[Gray], quarters: int, mirrored: bool) -> None:
    turned = [np.rot90(gray[:, ::-1] if mirrored else gray, quarters).copy() for gray in grays[:5]]
    found = list(matches([signature(gray) for gray in grays], [signature(gray) for gray in turned]))
    assert [(m.first, m.second, m.turned) for m in found] == [(i, i, mirrored or quarters > 0) for i in range(5)]
    assert min(match.likeness for match in found) > 0.99


def test_within_a_list_each_pair_is_found_once_across_blocks(
    grays: list[Gray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datamodules.likeness.BLOCK", 3)
    signatures = [signature(gray) for gray in (*grays[:7], jpeg(grays[1]), grays[5])]
    assert [(m.first, m.second) for m in matches(signatures)] == [(1, 7), (5, 8)]


def test_a_picture_of_one_colour_is_like_no_other(grays: list[Gray]) -> None:
    flat = signature(np.full((40, 50), 77.3, np.float32))
    assert likeness(flat, flat) == likeness(flat, signature(grays[0])) == 0
    assert not list(matches([flat, flat]))


def test_nothing_is_like_nothing() -> None:
    assert not list(matches([], []))
    assert not list(matches([]))
