"""Colours of profiles come into sRGB as littleCMS brings them, and back without loss, also those that sRGB lacks."""

import io
import struct
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageCms

from datamodules import profiles as module
from datamodules.images import Picture, read_image, write_image
from datamodules.profiles import Shaped, encoded, linear, read_profile

RNG = np.random.default_rng(0)
NAMES = ("Display P3", "Adobe RGB", "ProPhoto RGB")
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def with_curve(icc: bytes, curve: bytes) -> bytes:
    """The same profile with another curve for all channels, behind its end."""
    end = len(icc)
    for k in range(struct.unpack_from(">I", icc, 128)[0]):
        at = 132 + 12 * k
        if icc[at + 1 : at + 4] == b"TRC":
            icc = icc[: at + 4] + struct.pack(">II", end, len(curve)) + icc[at + 12 :]
    return icc + curve


def by_littlecms(levels: np.ndarray, icc: bytes) -> np.ndarray:
    ends = (ImageCms.ImageCmsProfile(io.BytesIO(each)) for each in (icc, SRGB))
    transform = ImageCms.buildTransform(*ends, "RGB", "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC)
    return np.asarray(ImageCms.applyTransform(Image.fromarray(levels), transform)).astype(int)


@pytest.mark.parametrize("name", NAMES)
def test_colours_are_those_of_littlecms(profiles, name):
    levels = RNG.integers(0, 256, (64, 64, 3), np.uint8)
    found = Picture(levels, profiles[name]).to_srgb()
    expected = by_littlecms(levels, profiles[name])
    assert np.abs(np.rint(found * 255) - expected).max() <= 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [3, 4])
def test_unchanged_colours_stay_also_beyond_srgb(profiles, name, dtype, channels):
    array = RNG.integers(0, np.iinfo(dtype).max + 1, (64, 64, channels), dtype=dtype)
    picture = Picture(array, profiles[name])
    assert 0.05 < picture.beyond_srgb() < 0.95
    np.testing.assert_array_equal(picture.from_srgb(picture.to_srgb()).array, array)


@pytest.mark.parametrize("name", NAMES)
def test_a_change_in_srgb_arrives_as_this_change(profiles, name):
    picture = Picture(RNG.integers(16000, 40000, (32, 32, 3), np.uint16), profiles[name])
    srgb = picture.to_srgb()
    inside = (srgb > 0.02).all(-1) & (srgb < 0.9).all(-1)
    back = picture.from_srgb(srgb + np.float32(0.05)).to_srgb()
    assert inside.mean() > 0.2
    assert np.abs(back - srgb - 0.05)[inside].max() < 1e-4


def test_srgb_in_any_writing_is_no_conversion():
    picture = Picture(RNG.integers(0, 256, (8, 8, 3), np.uint8), SRGB)
    assert read_profile(SRGB, 3) is None
    np.testing.assert_array_equal(picture.to_srgb(), picture.to_rgb())


def test_gray_profiles_are_curves(gray_profile):
    picture = Picture(np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16, 1), gray_profile)
    srgb = picture.to_srgb()
    light = (picture.to_rgb() ** (461 / 256)).astype(np.float64)
    np.testing.assert_allclose(srgb, encoded(light), atol=1e-4)
    np.testing.assert_array_equal(picture.from_srgb(srgb).array, picture.array)


@pytest.fixture
def gray_profile(profiles) -> bytes:
    rgb = profiles["ProPhoto RGB"]
    return rgb[:16] + b"GRAY" + rgb[20:].replace(b"gTRC", b"kTRC", 1)


def test_curves_of_all_kinds_agree_where_they_say_the_same(profiles):
    numbers = np.linspace(0, 1, 1024)
    table = b"curv" + bytes(4) + struct.pack(">I1024H", 1024, *np.rint(numbers**1.8 * 65535).astype(int))
    given = {0: (1.8,), 1: (1.8, 1, 0), 2: (1.8, 1, 0, 0), 3: (1.8, 1, 0, 1, 0), 4: (1.8, 1, 0, 1, 0, 0, 0)}
    curves = [
        b"para" + bytes(4) + struct.pack(f">HH{len(p)}i", kind, 0, *(round(v * 65536) for v in p))
        for kind, p in given.items()
    ]
    picture = Picture(RNG.integers(0, 256, (16, 16, 3), np.uint8), profiles["ProPhoto RGB"])
    for curve in (table, *curves):
        other = replace(picture, icc=with_curve(profiles["ProPhoto RGB"], curve))
        np.testing.assert_allclose(other.to_srgb(), picture.to_srgb(), atol=2e-3)


def test_profiles_with_tables_go_through_littlecms(profiles, monkeypatch):
    levels = RNG.integers(0, 256, (32, 32, 3), np.uint8)
    picture = Picture(levels, profiles["Adobe RGB"])
    exact = picture.to_srgb()
    monkeypatch.setattr(module, "_shaped", lambda *_: None)
    read_profile.cache_clear()
    assert not isinstance(picture.profile, Shaped)
    assert np.abs(picture.to_srgb() - exact).max() < 1.5 / 255
    np.testing.assert_array_equal(picture.from_srgb(picture.to_srgb()).array, levels)
    read_profile.cache_clear()


@pytest.mark.parametrize(
    "damage",
    [
        lambda icc: b"a profile",
        lambda icc: icc[:140],
        lambda icc: icc[:16] + b"CMYK" + icc[20:],
        lambda icc: icc[:128] + b"\xff" * 4 + icc[132:200],
        lambda icc: icc.replace(b"para", b"what"),
        lambda icc: with_curve(icc, b"curv" + bytes(4) + struct.pack(">I3H", 3, 7, 7, 7)),
        lambda icc: with_curve(icc, b"para" + bytes(4) + struct.pack(">HH3i", 1, 0, 65536, 0, 0)),
        lambda icc: with_curve(icc, b"para" + bytes(4) + struct.pack(">HH", 9, 0)),
    ],
)
def test_a_damaged_profile_is_refused_and_taken_for_srgb(profiles, damage):
    picture = Picture(RNG.integers(0, 256, (8, 8, 3), np.uint8), damage(profiles["Display P3"]))
    with pytest.raises(ValueError, match="the colour profile"):
        _ = picture.profile
    np.testing.assert_array_equal(picture.to_srgb(), picture.to_rgb())
    np.testing.assert_array_equal(picture.from_srgb(picture.to_srgb()).array, picture.array)


def test_the_curve_of_srgb_and_its_inverse_go_beyond_it():
    numbers = np.linspace(-2, 2, 401)
    np.testing.assert_allclose(linear(encoded(numbers)), numbers, atol=1e-7)


def test_a_profile_survives_a_file(profiles, tmp_path):
    for suffix in (".png", ".jpg", ".webp", ".tif"):
        picture = Picture(RNG.integers(0, 256, (8, 8, 3), np.uint8), profiles["Display P3"])
        write_image(tmp_path / f"x{suffix}", picture)
        assert read_image(tmp_path / f"x{suffix}").icc == profiles["Display P3"]
