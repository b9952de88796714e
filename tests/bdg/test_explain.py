"""Explanations on made-up pictures: what is found again, what is unusual, what files are refused."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from bdg.explain import (
    CLEAN,
    Description,
    Explainer,
    Known,
    Scores,
    balanced,
    calibration_error,
    encoder_of,
    fit,
    squares,
    temperature_of,
)
from bdg.networks.discriminator import MasEncoder
from bdg.weights import load_weights, save_weights

GLCM = {"levels": 16, "angles": [0.0, 1.5708], "scales": [1], "power": 0.25}
ENCODER_GLCM = {"_target_": "bdg.glcm.MasGlcm", "levels": 16, "angles": [0.0], "scales": [1, 2], "reduce": "scales"}


def picture(seed: int, size: int = 48) -> Tensor:
    """Soft blobs, uint8 1 3 h w."""
    blobs = cv2.GaussianBlur(np.random.default_rng(seed).random((size, size, 3)), (0, 0), 3)
    made = cv2.normalize(blobs, None, 30, 220, cv2.NORM_MINMAX, cv2.CV_8U)
    return torch.from_numpy(made).permute(2, 0, 1)[None]


def darker(x: Tensor) -> Tensor:
    return x // 4


def noisy(x: Tensor) -> Tensor:
    noise = torch.randint(-60, 61, x.shape, generator=torch.Generator().manual_seed(0))
    return (x.int() + noise).clamp(0, 255).to(torch.uint8)


WAYS = {CLEAN: lambda x: x, "low_light": darker, "noise": noisy}


def known(description: Description, seeds: range) -> Known:
    made = [(f"{seed}", way, description(degrade(picture(seed)))) for seed in seeds for way, degrade in WAYS.items()]
    names, ways, features = zip(*made, strict=True)
    return Known(torch.cat(features), names, ways, [None if way == CLEAN else 3.0 for way in ways])


@pytest.fixture(scope="module")
def pictures() -> tuple[Description, Known, Known]:
    description = Description(GLCM, statistics=["wavelet"], side=48)
    return description, known(description, range(12)), known(description, range(12, 18))


@pytest.fixture(scope="module")
def fitted(pictures: tuple[Description, Known, Known]) -> tuple[Explainer, Scores]:
    return fit(*pictures, width=16)


@pytest.mark.parametrize("way", WAYS)
def test_a_new_picture_is_recognised(fitted: tuple[Explainer, Scores], way: str) -> None:
    (found,) = fitted[0](WAYS[way](picture(100)))

    assert next(iter(found.probabilities)) == way
    assert sum(found.probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert found.nearest[0][1] == way


def test_a_known_picture_is_its_own_nearest_neighbour(fitted: tuple[Explainer, Scores]) -> None:
    (found,) = fitted[0](noisy(picture(7)))

    name, degradation, severity, distance = found.nearest[0]
    assert (name, degradation, severity) == ("7", "noise", 3.0)
    assert distance < 1e-2  # the bank is kept in 16 bits
    assert not found.unusual


def test_pictures_like_none_are_unusual(fitted: tuple[Explainer, Scores]) -> None:
    stripes = (torch.arange(48) % 2 * 255).to(torch.uint8).expand(1, 3, 48, 48)

    (found,) = fitted[0](stripes)

    assert found.unusual
    assert found.distance > found.limit


def test_held_out_pictures_are_measured(fitted: tuple[Explainer, Scores]) -> None:
    scores = fitted[1]

    assert scores.accuracy > 0.9
    assert (scores.num_pictures, scores.num_photographs) == (18, 6)
    assert scores.recall.keys() == set(WAYS)
    assert 0 <= scores.ece <= 1


def test_the_same_pictures_give_the_same_bytes(
    pictures: tuple[Description, Known, Known], fitted: tuple[Explainer, Scores], tmp_path: Path
) -> None:
    again, _ = fit(*pictures, width=16)

    fitted[0].save(tmp_path / "a")
    again.save(tmp_path / "b")

    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_file_explains_as_what_it_was_made_from(tmp_path: Path) -> None:
    torch.manual_seed(0)
    description = Description(GLCM, MasEncoder(2, 16), ENCODER_GLCM, side=32, grid=2)
    made, _ = fit(description, known(description, range(3)), known(description, range(3, 5)), width=4)
    made.save(tmp_path / "e")

    read = Explainer.load(tmp_path / "e")

    assert read.description.seen_by == "MAS-GLCM, F_mas"
    (one,), (other,) = made(picture(50)), read(picture(50))
    assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
    assert [each[:3] for each in one.nearest] == [each[:3] for each in other.nearest]
    assert one.distance == pytest.approx(other.distance, abs=1e-5)


def test_pictures_of_any_size_are_described(fitted: tuple[Explainer, Scores]) -> None:
    for height, width in ((1, 1), (3, 500), (33, 40)):
        (found,) = fitted[0](torch.zeros(1, 3, height, width, dtype=torch.uint8))
        assert np.isfinite(found.distance)


def test_squares_lie_evenly_and_within() -> None:
    image = torch.arange(100).expand(1, 3, 40, 100).to(torch.uint8)

    found = squares(image, side=32, grid=3)

    assert len(found) == 6
    assert {square.shape[-2:] for square in found} == {(32, 32)}
    assert [int(square[0, 0, 0, 0]) for square in found[:3]] == [0, 34, 68]


def test_calibration_error_is_the_gap_between_confidence_and_truth() -> None:
    probabilities, label = torch.tensor([[0.8, 0.2]] * 10), torch.tensor([0] * 8 + [1] * 2)

    share = torch.full((10,), 0.1, dtype=torch.float64)

    assert calibration_error(probabilities, label, share) == pytest.approx(0, abs=1e-6)
    assert calibration_error(probabilities, 1 - label, share) == pytest.approx(0.6, abs=1e-6)


def test_temperature_undoes_overconfidence() -> None:
    rng = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(4000, 3, generator=rng)
    label = torch.multinomial(logits.softmax(1), 1, generator=rng)[:, 0]

    assert temperature_of(4 * logits, label, balanced(label)) == pytest.approx(4, rel=0.15)


def test_classes_weigh_the_same() -> None:
    share = balanced(torch.tensor([0, 0, 0, 1]))

    assert share.tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2])


def test_photographs_must_be_held_out() -> None:
    description = Description(GLCM)
    few = known(description, range(2))

    with pytest.raises(ValueError, match="2 photographs are both known and held out, such as '0'"):
        fit(description, few, few)
    with pytest.raises(ValueError, match="among held-out pictures there is none, or no class, of low_light, noise"):
        fit(description, few, Known(few.features[:1], ["x"], [CLEAN], [None]))
    with pytest.raises(ValueError, match="1 held-out photographs"):
        fit(description, few, known(description, range(4, 5)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "holds no explainer of this version: make one with bdg calibrate"),
        ({"classes": ["clean"]}, "do not fit together"),
        ({"k": 10**6}, "do not fit together"),
        ({"glcm": {"_target_": "os.system"}}, "its glcm is 'os.system'"),
        ({"statistics": ["exit"]}, "choose among wavelet"),
        ({"side": 0}, "give squares of at least 16 pixels"),
    ],
)
def test_files_that_are_not_what_they_say_are_refused(
    fitted: tuple[Explainer, Scores], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    fitted[0].save(tmp_path / "e")
    tensors, about = load_weights(tmp_path / "e")
    save_weights(tmp_path / "e", tensors, about | changes)

    with pytest.raises(ValueError, match=message):
        Explainer.load(tmp_path / "e")


def test_an_encoder_is_read_from_its_tensors() -> None:
    encoder = MasEncoder(4, 24)
    tensors = {f"a.{name}": value for name, value in encoder.state_dict().items()}

    x = torch.rand(2, 4, 16, 16)

    assert torch.equal(encoder_of(tensors, "a.")(x), encoder(x))
