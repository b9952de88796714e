"""Planted faults are found, each under its name and at its place; sets without faults are left in peace."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage.feature import graycomatrix, graycoprops

from bdg.glcm import MasGlcm
from datamodules.degradations.base import Degradation
from datamodules.degradations.haze import Haze
from datamodules.degradations.low_light import LowLight
from datamodules.degradations.noise import GaussianNoise
from datamodules.doctor import KINDS, Seen, compare, diagnose, statistics
from datamodules.exams import TEXTURE, describe, examine, glance
from datamodules.pack import pack
from datamodules.sets import open_sets

RGB = NDArray[np.uint8]
SIDE = 200


@pytest.fixture(scope="module")
def squares(photographs: list[NDArray[np.float32]]) -> list[RGB]:
    """The middles of six photographs."""
    return [
        np.rint(255 * p[p.shape[0] // 2 - 100 :][:SIDE, p.shape[1] // 2 - 100 :][:, :SIDE]).astype(np.uint8)
        for p in photographs[:6]
    ]


def save(path: Path, image: RGB | Image.Image, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


def degraded(image: RGB, degrade: Degradation, seed: int = 0) -> RGB:
    x_lq, _ = degrade(image.astype(np.float32) / 255, np.random.default_rng(seed))
    return np.rint(x_lq * 255).astype(np.uint8)


@pytest.fixture
def hazy(tmp_path: Path, squares: list[RGB]) -> Path:
    """Six pairs without fault."""
    for i, square in enumerate(squares):
        save(tmp_path / "haze" / "gt" / f"{i}.png", square)
        save(tmp_path / "haze" / "lq" / f"{i}.png", degraded(square, Haze(severity=3), i))
    return tmp_path / "haze"


@pytest.fixture
def photos(tmp_path: Path, squares: list[RGB]) -> Path:
    """Six clean images without fault."""
    for i, square in enumerate(squares):
        save(tmp_path / "photos" / f"{i}.png", square)
    return tmp_path / "photos"


def look(source: Path | str, crop: int | None = None, **reading: str) -> list[Seen]:
    return [
        Seen(data, [examine(entry, crop=crop) for entry in data.entries]) for data in open_sets(str(source), **reading)
    ]


def faults(source: Path | str, crop: int | None = None, **reading: str) -> dict[str, tuple[str, ...]]:
    """Kind -> places, of all sets in a source."""
    found = [finding for seen in look(source, crop, **reading) for finding in diagnose(seen)]
    assert len({finding.what for finding in found}) == len(found)
    return {finding.what: finding.where for finding in found}


def test_sets_without_fault_have_no_findings(hazy, photos):
    assert faults(hazy, crop=SIDE) == faults(photos, crop=SIDE) == {}


# --- files ---


@pytest.mark.parametrize("kept", [0, 0.5, 0.99])
def test_a_cut_file_is_unreadable(photos, kept):
    path = save(photos / "cut.jpg", Image.open(photos / "0.png"))
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    (place,) = faults(photos)["unreadable"]
    assert place.startswith("cut.jpg: ")


@pytest.mark.parametrize("end", [b"\xff\xd9", bytes(2000)])
def test_a_cut_jpeg_that_decoders_take_for_whole_is_found(photos, end):
    path = save(photos / "cut.jpg", Image.open(photos / "0.png"), quality=95)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] + end)
    assert faults(photos).keys() & {"cut off", "unreadable"}
    if end == b"\xff\xd9":
        save(photos / "saved_again.png", Image.open(path))
        assert faults(photos)["cut off"] == ("cut.jpg: 200x200", "saved_again.png: 200x200")


def test_a_file_that_is_gone_when_it_is_read_is_unreadable(photos):
    (data,) = [data for data in open_sets(str(photos)) if data.entries]
    (photos / "3.png").unlink()
    exams = [examine(entry) for entry in data.entries]
    assert [fault[0] for exam in exams for fault in exam.faults] == ["unreadable"]


@pytest.mark.parametrize(
    ("kind", "convert"),
    [
        ("gray", lambda image: image.convert("L")),
        ("palette", lambda image: image.quantize(64)),
        ("alpha", lambda image: image.convert("RGBA")),
        ("16 bits", lambda image: Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)),
    ],
)
def test_what_is_no_plain_rgb_is_noted(photos, squares, kind, convert):
    save(
        photos / "odd.png", convert(Image.fromarray(squares[0][::-1, ::-1].copy()).transpose(Image.Transpose.ROTATE_90))
    )
    (photos / "0.png").unlink()
    assert faults(photos)[kind] == ("odd.png: 200x200",)
    assert KINDS[kind][0] == "note"


def test_transparency_is_warned_of(photos):
    image = Image.open(photos / "0.png").convert("RGBA")
    image.putpixel((3, 3), (1, 2, 3, 128))
    save(photos / "0.png", image)
    assert faults(photos) == {"transparent": ("0.png: 200x200",)}


# --- pairs ---


def test_images_without_a_partner_do_not_stop_the_others_from_being_looked_at(hazy, squares):
    save(hazy / "lq" / "alone.png", squares[0])
    assert list(faults(hazy)) == ["no partner"]
    assert sum(len(seen.exams) for seen in look(hazy)) == 6


def test_sizes_that_do_not_fit_are_an_error_and_whole_factors_are_noted(hazy, squares):
    save(hazy / "lq" / "0.png", squares[0][:150])
    save(hazy / "lq" / "1.png", cv2.resize(squares[1], (50, 50), interpolation=cv2.INTER_AREA))
    found = faults(hazy)
    assert found == {
        "sizes differ": ("lq/0.png: 200x150, gt/0.png: 200x200",),
        "scale": ("lq/1.png: 50x50, gt/1.png: 200x200, x4",),
    }


def test_clean_images_smaller_than_the_crop_are_found(hazy):
    assert len(faults(hazy, crop=SIDE + 1)["too small"]) == 6


def test_a_pair_shifted_by_1_7_pixels_is_found_with_its_shift(hazy):
    path = hazy / "lq" / "2.png"
    moved = cv2.warpAffine(cv2.imread(str(path)), np.float32([[1, 0, 1.7], [0, 1, -0.3]]), (SIDE, SIDE), borderMode=4)
    cv2.imwrite(str(path), moved)
    (place,) = faults(hazy)["misaligned"]
    assert place.startswith("lq/2.png: ")
    (measured,) = (e.pair.shift for seen in look(hazy) for e in seen.exams if e.entry.lq == "lq/2.png")
    assert (measured.right, measured.down) == pytest.approx((1.7, -0.3), abs=0.2)


def test_identical_images_are_an_error_and_not_counted_in_psnr(hazy):
    shutil.copy(hazy / "gt" / "3.png", hazy / "lq" / "3.png")
    assert faults(hazy) == {"identical": ("lq/3.png, gt/3.png",)}
    row = statistics(look(hazy)[-1])[0]
    assert row["images"] == 6
    assert np.isfinite(row["psnr"]["mean"])


def test_exchanged_partners_are_named(hazy):
    a, b = hazy / "lq" / "1.png", hazy / "lq" / "4.png"
    contents = a.read_bytes(), b.read_bytes()
    b.write_bytes(contents[0]), a.write_bytes(contents[1])
    first, second = faults(hazy)["wrong partner"]
    assert first.startswith("lq/1.png shows the same as gt/4.png")
    assert second.startswith("lq/4.png shows the same as gt/1.png")


def test_a_rotated_and_a_foreign_image_are_found(hazy, photographs):
    save(hazy / "lq" / "0.png", Image.open(hazy / "lq" / "0.png").transpose(Image.Transpose.ROTATE_90))
    save(hazy / "lq" / "1.png", np.rint(255 * photographs[9][:SIDE, :SIDE]).astype(np.uint8))
    found = faults(hazy)
    assert found["turned"][0].startswith("lq/0.png shows the same as gt/0.png")
    assert found["unlike"][0].startswith("lq/1.png, gt/1.png")


def test_one_gray_image_of_a_pair_is_found(hazy):
    save(hazy / "lq" / "0.png", Image.open(hazy / "lq" / "0.png").convert("L"))
    assert faults(hazy).keys() == {"half gray", "gray"}


@pytest.mark.parametrize(
    ("label", "degrade"),
    [
        ("low_light", partial(degraded, degrade=LowLight(severity=2))),
        ("noise", partial(degraded, degrade=GaussianNoise(severity=2))),
        ("blur", lambda image: cv2.GaussianBlur(image, (0, 0), 1.5)),
    ],
)
def test_a_pair_whose_images_have_changed_places_is_found(tmp_path, squares, label, degrade: Callable[[RGB], RGB]):
    for i, square in enumerate(squares):
        places = ("gt", "lq") if i == 2 else ("lq", "gt")
        for place, image in zip(places, (degrade(square), square), strict=True):
            save(tmp_path / "set" / place / f"{i}.png", image)
    (place,) = faults(tmp_path / "set", label=label)["exchanged"]
    assert place.startswith(f"lq/2.png: {label}, but ")


def test_how_blurred_images_were_averaged_is_told_and_mixtures_are_found(tmp_path, photographs):
    for i, photograph in enumerate(photographs[6:12]):
        sharp = [photograph[60:220, 100 + by : 300 + by] for by in range(-8, 9)]
        linear = np.mean([frame**2.2 for frame in sharp], axis=0) ** (1 / 2.2)
        blurred = {
            "display": np.mean(sharp, axis=0),
            "linear": linear,
            "mixed": linear if i in (1, 4) else np.mean(sharp, axis=0),
        }
        for name, image in blurred.items():
            save(tmp_path / name / "gt" / f"{i}.png", np.rint(255 * sharp[8]).astype(np.uint8))
            save(tmp_path / name / "lq" / f"{i}.png", np.rint(255 * image).astype(np.uint8))
    display, linear, mixed = (faults(tmp_path / name, label="blur") for name in ("display", "linear", "mixed"))
    assert display["average"] == ("6 of 6 blurred images are averages of display values, as GoPro's blur",)
    assert linear["average"] == ("6 of 6 blurred images are averages of linear light, as GoPro's blur_gamma",)
    assert mixed["two averages"] == ("lq/1.png", "lq/4.png")
    assert not display.keys() & {"two averages", "exchanged", "misaligned"}


# --- the same picture twice ---


def test_duplicates_are_the_same_files_and_alike_are_copies_that_were_changed(photos):
    shutil.copy(photos / "1.png", photos / "copy.png")
    save(photos / "small.jpg", Image.open(photos / "2.png").resize((120, 110)), quality=60)
    assert faults(photos) == {"duplicate": ("1.png is copy.png",), "alike": ("2.png, small.jpg",)}


def test_one_clean_image_in_several_pairs_is_no_duplicate(hazy):
    shutil.copy(hazy / "gt" / "0.png", hazy / "gt" / "again.png")
    save(hazy / "lq" / "again.png", degraded(np.asarray(Image.open(hazy / "gt" / "0.png")), Haze(severity=5)))
    assert faults(hazy) == {}
    assert statistics(look(hazy)[-1])[0]["photographs"] == 6
    shutil.copy(hazy / "lq" / "0.png", hazy / "lq" / "again.png")
    assert faults(hazy) == {"duplicate": ("lq/0.png is lq/again.png",)}


def test_a_leak_between_sets_is_found_in_whatever_encoding_and_position(hazy, tmp_path, squares):
    save(tmp_path / "test" / "a.jpg", np.rot90(squares[4]), quality=70)
    save(tmp_path / "test" / "b.png", squares[0][:, ::-1] // 2 + 60)
    save(tmp_path / "test" / "c.png", np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8))
    first, second = look(tmp_path / "test")[-1], look(hazy)[-1]
    (finding,) = compare(first, second)
    assert (finding.what, finding.severity) == ("leak", "warning")
    assert [place.partition(" (")[0] for place in finding.where] == [
        "a.jpg shows the same as gt/4.png",
        "b.png shows the same as gt/0.png",
    ]


def test_what_two_test_sets_have_in_common_is_only_noted(tmp_path, squares):
    for part in ("train", "test"):
        for name in ("one", "two"):
            save(tmp_path / name / part / "gt" / "0.png", squares[part == "test"])
            save(tmp_path / name / part / "lq" / "0.png", degraded(squares[part == "test"], Haze()))
    seen = [each for name in ("one", "two") for each in look(tmp_path / name) if each.exams]
    of_part = {each.set.part: [other for other in seen if other.set.part == each.set.part] for each in seen}
    assert [compare(*pair)[0].what for pair in of_part.values()] == ["shared", "shared"]


# --- numbers ---


def test_statistics_count_and_measure(hazy, squares):
    (row, clean) = statistics(look(hazy)[-1])
    psnr = [
        10 * np.log10(255**2 / np.square(np.asarray(Image.open(hazy / "lq" / f"{i}.png"), float) - square).mean())
        for i, square in enumerate(squares)
    ]
    assert (row["degradation"], row["images"], row["photographs"]) == ("haze", 6, 6)
    assert row["psnr"] == pytest.approx({"mean": np.mean(psnr), "std": np.std(psnr)})
    assert row["smallest"] == row["largest"] == (SIDE, SIDE)
    assert (clean["degradation"], clean["images"]) == (None, 6)


def test_texture_is_that_of_scikit_image(squares):
    gray = cv2.cvtColor(squares[0], cv2.COLOR_RGB2GRAY)
    theirs = graycomatrix(gray // 4, [1], [0], levels=64, normed=True)
    values = dict(zip(TEXTURE, describe(theirs[..., 0, 0]), strict=True))
    expected = {name: graycoprops(theirs, name).item() for name in TEXTURE}
    assert values == pytest.approx(expected | {"entropy": expected["entropy"] / np.log(2)})
    glcm = MasGlcm(levels=64, angles=[0], scales=[1])
    matrix = glcm.matrix(torch.from_numpy(gray)[None, None])[0, 0].double().numpy()
    assert describe(matrix) == pytest.approx(tuple(values.values()), rel=1e-4)
    assert describe(np.eye(4)[:, :1] * np.eye(4)[:1]) == (0, 0, 1, 1, 1)


# --- shards ---


def test_shards_are_looked_at_as_the_folder_they_were_packed_from(hazy, tmp_path):
    shutil.copy(hazy / "gt" / "3.png", hazy / "lq" / "3.png")
    pack(hazy, tmp_path / "packed", {"train": 0.5, "test": 0.5}, shard_size=2)
    (folder,) = (statistics(seen)[0] for seen in look(hazy) if seen.exams)
    parts = look(tmp_path / "packed")
    assert sorted(f"{seen.set.part}" for seen in parts) == ["test", "train"]
    assert sum(statistics(seen)[0]["images"] for seen in parts) == folder["images"]
    (place,) = (place for seen in parts for finding in diagnose(seen) for place in finding.where)
    assert "3.lq" in place


def test_a_broken_shard_is_a_finding_and_the_others_are_looked_at(hazy, tmp_path):
    pack(hazy, tmp_path / "packed", {"train": "rest"}, shard_size=2)
    broken = tmp_path / "packed" / "train-000001.tar"
    broken.write_bytes(broken.read_bytes()[:3000])
    (seen,) = look(f"{tmp_path}/packed/train-*.tar")
    (finding,) = diagnose(seen)
    assert (finding.what, len(seen.exams)) == ("unreadable", 4)
    assert "train-000001.tar" in finding.where[0]


def test_a_source_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"source=.*nowhere: no such folder"):
        open_sets(f"{tmp_path}/nowhere")
    with pytest.raises(FileNotFoundError, match="gone"):
        open_sets([f"{tmp_path}/gone-0.tar"])


# --- real sets ---


def glanced(folder: Path) -> Seen:
    (data,) = (data for data in open_sets(str(folder)) if data.entries)
    return Seen(data, [glance(entry) for entry in data.entries])


def test_pictures_that_published_sets_share_are_found(shared):
    def found(first: str, second: str) -> list[tuple[str, str]]:
        pairs = [glanced(shared / "data" / name) for name in (first, second)]
        places = [place for finding in compare(*pairs) for place in finding.where]
        return [(Path(p.split()[0]).stem, Path(p.split()[5]).stem) for p in places]

    assert found("lowlight/lol_eval15", "lowlight/lol_our485") == [("22", "21"), ("23", "21")]
    assert found("denoise/cbsd68/gt", "derain/rain100l") == [
        ("189080", "train_10"),
        ("19021", "train_11"),
        ("196073", "train_13"),
        ("197017", "train_14"),
        ("253055", "train_73"),
    ]


@pytest.mark.slow
def test_real_sets_have_the_faults_that_they_are_known_for_and_no_others(shared):
    found = {}
    for folder in sorted((shared / "data").glob("*/*/gt")):
        source = folder.parent if (folder.parent / "lq").is_dir() else folder
        found[folder.parent.name] = set(faults(source)) - {"scale", "average", "gray", "unused"}
    assert {name: kinds for name, kinds in found.items() if kinds} == {
        "levin09_gray": {"misaligned"},
        "lol_eval15": {"alike"},
    }
