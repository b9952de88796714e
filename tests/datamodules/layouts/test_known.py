"""Every data set of the field, as a small tree: recognised, paired by name, labelled, and split as it was published."""

from collections.abc import Callable
from pathlib import Path

import pytest

from datamodules.layouts import look
from datamodules.layouts.known import CDD11_MIXTURES, KNOWN

Touch = Callable[..., Path]


def summary(found) -> set[tuple]:
    return {(row["set"], row["part"], row["degradation"], row["pairs"], row["clean"]) for row in found.sets()}


def partners(found, source: Path) -> dict[str, str]:
    """Degraded image -> its clean one, both by their path below the source."""
    return {
        item.lq.relative_to(source).as_posix(): item.hq.relative_to(source).as_posix()
        for item in found.items
        if item.lq
    }


def pair(folder: str, lq: str, hq: str, *names: str) -> list[str]:
    """Files of a data set whose partners have the same name."""
    return [f"{folder}/{side}/{name}.png" for side in (lq, hq) for name in names]


TREES = {
    "diffuir": (
        [
            *pair("syn_rain/train", "input", "target", "1", "2"),
            *pair("syn_rain/test/Rain100L", "input", "target", "1"),
            *pair("syn_rain/test/Test2800", "input", "target", "1"),
            *pair("LOL/train", "low", "high", "2"),
            *pair("LOL/test", "low", "high", "1"),
            *pair("Snow100K/train", "synthetic", "gt", "a"),
            *pair("Snow100K/test/Snow100K-S", "synthetic", "gt", "a"),
            *pair("Snow100K/media/jdway/GameSSD/overlapping/test/Snow100K-L", "synthetic", "gt", "b"),
            *pair("Deblur/train", "input", "target", "GOPR1"),
            *pair("Deblur/test/GoPro", "input", "target", "GOPR2"),
            *pair("Deblur/test/HIDE", "input", "target", "3"),
            "RESIDE/OTS_ALPHA/haze/OTS/0025_0.8_0.04.jpg",
            "RESIDE/OTS_ALPHA/haze/OTS/0025_1_0.2.jpg",
            "RESIDE/OTS_ALPHA/clear/clear_images/0025.jpg",
            "RESIDE/SOTS/outdoor/hazy/0001_0.8_0.2.jpg",
            "RESIDE/SOTS/outdoor/gt/0001.png",
        ],
        {
            ("syn_rain", "train", "rain", 2, 0),
            ("Rain100L", "test", "rain", 1, 0),
            ("Test2800", "test", "rain", 1, 0),
            ("LOL", "train", "low_light", 1, 0),
            ("LOL", "test", "low_light", 1, 0),
            ("Snow100K", "train", "snow", 1, 0),
            ("Snow100K-S", "test", "snow", 1, 0),
            ("Snow100K-L", "test", "snow", 1, 0),
            ("GoPro", "train", "blur", 1, 0),
            ("GoPro", "test", "blur", 1, 0),
            ("HIDE", "test", "blur", 1, 0),
            ("OTS", "train", "haze", 2, 0),
            ("SOTS-outdoor", "test", "haze", 1, 0),
        },
    ),
    "airnet": (
        [
            "Train/Denoise/00001.bmp",
            "Train/Denoise/a5096.jpg",
            "Train/Derain/rainy/rain-1.png",
            "Train/Derain/gt/norain-1.png",
            "Train/Dehaze/synthetic/part1/0025_0.8_0.04.jpg",
            "Train/Dehaze/synthetic/part2/0025_0.8_0.1.jpg",
            "Train/Dehaze/original/0025.jpg",
            *pair("Train/Deblur", "blur", "sharp", "GOPR0372_07_00_000047"),
            *pair("Train/Enhance", "low", "gt", "2"),
            "test/denoise/bsd68/3096.jpg",
            *pair("test/derain/Rain100L", "input", "target", "1"),
            "test/dehaze/input/0001_0.8_0.2.jpg",
            "test/dehaze/target/0001.png",
            *pair("test/deblur/gopro", "input", "target", "GOPR0384_11_00_000001"),
            *pair("test/enhance/lol", "input", "target", "22"),
        ],
        {
            ("Denoise", "train", None, 0, 2),
            ("RainTrainL", "train", "rain", 1, 0),
            ("OTS", "train", "haze", 2, 0),
            ("GoPro", "train", "blur", 1, 0),
            ("LOL", "train", "low_light", 1, 0),
            ("bsd68", "test", None, 0, 1),
            ("Rain100L", "test", "rain", 1, 0),
            ("dehaze", "test", "haze", 1, 0),
            ("gopro", "test", "blur", 1, 0),
            ("lol", "test", "low_light", 1, 0),
        },
    ),
    "moceir": (
        [
            "denoising/WaterlooED/00001.bmp",
            "denoising/BSD400/a5096.jpg",
            "denoising/cBSD68/original_png/3096.png",
            "deraining/RainTrainL/rainy/rain-1.png",
            "deraining/RainTrainL/gt/norain-1.png",
            *pair("deraining/Rain100L", "rainy", "gt", "001"),
            "dehazing/RESIDE/part1/0025_0.8_0.04.jpg",
            "dehazing/RESIDE/part4/0025_1_0.2.jpg",
            "dehazing/RESIDE/clear/0025.jpg",
            "dehazing/SOTS/outdoor/hazy/0001_0.8_0.2.jpg",
            "dehazing/SOTS/outdoor/gt/0001.png",
            *pair("deblurring/GoPro/crop/train", "input_crops", "target_crops", "1-1"),
            *pair("deblurring/GoPro/test", "input", "target", "1"),
            *pair("llie/LOLv1/Train", "input", "target", "2"),
            *pair("llie/LOLv1/Test", "input", "target", "1"),
        ],
        {
            ("WaterlooED", "train", None, 0, 1),
            ("BSD400", "train", None, 0, 1),
            ("CBSD68", "test", None, 0, 1),
            ("RainTrainL", "train", "rain", 1, 0),
            ("Rain100L", "test", "rain", 1, 0),
            ("OTS", "train", "haze", 2, 0),
            ("SOTS-outdoor", "test", "haze", 1, 0),
            ("GoPro", "train", "blur", 1, 0),
            ("GoPro", "test", "blur", 1, 0),
            ("LOL", "train", "low_light", 1, 0),
            ("LOL", "test", "low_light", 1, 0),
        },
    ),
    "cdd11": (
        [
            f"{part}/{folder}/{name}.png"
            for part, names in (("train", ("00001", "00002")), ("test", ("00003",)))
            for folder in ("clear", *CDD11_MIXTURES)
            for name in names
        ],
        {("CDD-11", part, m, count, 0) for part, count in (("train", 2), ("test", 1)) for m in CDD11_MIXTURES},
    ),
    "lol": (
        [*pair("our485", "low", "high", "2", "5"), *pair("eval15", "low", "high", "1")],
        {("LOL", "train", "low_light", 2, 0), ("LOL", "test", "low_light", 1, 0)},
    ),
    "gopro": (
        [
            *pair("train/GOPR0372_07_00", "blur_gamma", "sharp", "000047", "000048"),
            *pair("test/GOPR0384_11_00", "blur_gamma", "sharp", "000047"),
        ],
        {("GoPro", "train", "blur", 2, 0), ("GoPro", "test", "blur", 1, 0)},
    ),
    "snow100k": (
        [
            *pair("all", "synthetic", "gt", "a", "b"),
            *(
                f"media/jdway/GameSSD/overlapping/test/Snow100K-{s}/{d}/c.jpg"
                for s in "SML"
                for d in ("synthetic", "gt")
            ),
        ],
        {("Snow100K", "train", "snow", 2, 0), *((f"Snow100K-{size}", "test", "snow", 1, 0) for size in "SML")},
    ),
    "reside": (
        [
            *(f"OTS_ALPHA/haze/OTS/0025_{a}_{b}.jpg" for a in (0.8, 0.85, 0.9, 0.95, 1) for b in range(7)),
            "OTS_ALPHA/clear/clear_images/0025.jpg",
            "SOTS/outdoor/hazy/0001_0.8_0.2.jpg",
            "SOTS/outdoor/gt/0001.png",
        ],
        {("OTS", "train", "haze", 35, 0), ("SOTS-outdoor", "test", "haze", 1, 0)},
    ),
    "realsr": (
        [
            f"{camera}/{part}/4/{camera}_001_{which}.png"
            for camera in ("Canon", "Nikon")
            for part in ("Train", "Test")
            for which in ("HR", "LR4")
        ],
        {("RealSR", "train", "real_sr", 2, 0), ("RealSR", "test", "real_sr", 2, 0)},
    ),
    "drealsr": (
        [
            "Train_x4/train_HR/sony_1_x4_3.png",
            "Train_x4/train_LR/sony_1_x1_3.png",
            "Test_x4/test_HR/sony_160_x4.png",
            "Test_x4/test_LR/sony_160_x1.png",
        ],
        {("DRealSR", "train", "real_sr", 1, 0), ("DRealSR", "test", "real_sr", 1, 0)},
    ),
}
"""Layout -> the files of a small tree, and the sets that it holds."""


def test_every_known_layout_has_a_tree() -> None:
    assert TREES.keys() == KNOWN.keys()


@pytest.mark.parametrize("layout", TREES)
def test_a_data_set_is_recognised_whole(layout: str, tmp_path: Path, touch: Touch) -> None:
    files, sets = TREES[layout]
    found = look(touch(tmp_path, *files))
    assert found.layout == layout
    assert summary(found) == sets
    assert not found.gaps
    assert not found.unused
    assert len({item.key for item in found.items}) == len(found.items)


@pytest.mark.parametrize("layout", TREES)
def test_one_image_less_is_noticed(layout: str, tmp_path: Path, touch: Touch) -> None:
    touch(tmp_path, *TREES[layout][0])
    before = look(tmp_path)
    pairs = [item for item in before.items if item.lq]
    assert pairs[-1].lq is not None
    pairs[-1].lq.unlink()
    found = look(tmp_path)
    clean_is_shared = sum(item.hq == pairs[-1].hq for item in pairs) > 1
    assert len(found.items) == len(before.items) - 1
    assert found.num_unpaired == (0 if clean_is_shared else 1)


def test_reside_pairs_by_the_part_before_the_first_underscore(tmp_path: Path, touch: Touch) -> None:
    files = ["10_0.8_0.1.jpg", "1_0.9_0.2.jpg", "1_1_0.1.jpg"]
    touch(tmp_path / "SOTS/outdoor", *(f"hazy/{name}" for name in files), "gt/1.png", "gt/10.png")
    assert partners(look(tmp_path), tmp_path / "SOTS/outdoor") == {
        f"hazy/{name}": f"gt/{name.partition('_')[0]}.png" for name in files
    }


@pytest.mark.parametrize("inside", ["", "media/"])
def test_archives_of_snow100k_may_each_have_a_folder(inside: str, tmp_path: Path, touch: Touch) -> None:
    touch(tmp_path / "Snow100K-training", *pair("all", "synthetic", "gt", "a"))
    touch(
        tmp_path / "Snow100K-testset",
        *pair(f"{inside}jdway/GameSSD/overlapping/test/Snow100K-S", "synthetic", "gt", "a"),
    )
    found = look(tmp_path)
    assert summary(found) == {("Snow100K", "train", "snow", 1, 0), ("Snow100K-S", "test", "snow", 1, 0)}
    assert not found.unused


def test_cdd11_pairs_with_the_clear_image_of_the_same_part_and_number(tmp_path: Path, touch: Touch) -> None:
    touch(tmp_path, *TREES["cdd11"][0])
    found = partners(look(tmp_path), tmp_path)
    assert found["train/low_haze_rain/00002.png"] == "train/clear/00002.png"
    assert found["test/snow/00003.png"] == "test/clear/00003.png"


def test_realsr_and_drealsr_pair_by_what_their_names_share(tmp_path: Path, touch: Touch) -> None:
    realsr, drealsr = (touch(tmp_path / name, *TREES[name][0]) for name in ("realsr", "drealsr"))
    assert partners(look(realsr), realsr)["Canon/Test/4/Canon_001_LR4.png"] == "Canon/Test/4/Canon_001_HR.png"
    assert partners(look(drealsr), drealsr) == {
        "Train_x4/train_LR/sony_1_x1_3.png": "Train_x4/train_HR/sony_1_x4_3.png",
        "Test_x4/test_LR/sony_160_x1.png": "Test_x4/test_HR/sony_160_x4.png",
    }


@pytest.mark.parametrize("lq", ["sony_160_x1", "sony_160_x4"])
def test_one_folder_of_drealsr_or_stablesr_is_enough(lq: str, tmp_path: Path, touch: Touch) -> None:
    touch(tmp_path / "DrealSRVal_crop128", f"test_LR/{lq}.png", "test_HR/sony_160_x4.png")
    assert summary(look(tmp_path / "DrealSRVal_crop128")) == {("DrealSRVal_crop128", "test", "real_sr", 1, 0)}


# --- versions of the same images ---


def gopro(folder: Path, touch: Touch) -> Path:
    for blur in ("blur", "blur_gamma"):
        touch(folder, *pair("train/GOPR0372_07_00", blur, "sharp", "000047"))
    return folder


def test_which_blur_of_gopro_is_meant_is_asked_for(tmp_path: Path, touch: Touch) -> None:
    with pytest.raises(ValueError, match="choose gopro=blur or gopro=blur_gamma"):
        look(gopro(tmp_path, touch))


@pytest.mark.parametrize("blur", ["blur", "blur_gamma"])
def test_the_blur_that_was_chosen_is_paired_and_the_other_not_used(blur: str, tmp_path: Path, touch: Touch) -> None:
    (item,) = (found := look(gopro(tmp_path, touch), gopro=blur)).items
    assert item.lq is not None
    assert item.lq.parent.name == blur
    assert found.unused == {"blur_gamma" if blur == "blur" else "blur": 1}


def test_a_choice_that_the_folder_does_not_offer_is_refused(tmp_path: Path, touch: Touch) -> None:
    touch(tmp_path, *TREES["gopro"][0])
    with pytest.raises(ValueError, match=r"gopro=blur: .* holds only blur_gamma"):
        look(tmp_path, gopro="blur")
    with pytest.raises(ValueError, match=r"scale=4: .* no versions to choose from"):
        look(tmp_path, scale="4")


def test_the_scale_of_realsr_is_asked_for(tmp_path: Path, touch: Touch) -> None:
    touch(tmp_path, *(f"Canon/Test/{s}/Canon_001_{which}.png" for s in (2, 4) for which in ("HR", f"LR{s}")))
    with pytest.raises(ValueError, match="choose scale=2 or scale=4"):
        look(tmp_path)
    assert [item.key for item in look(tmp_path, scale="4").items] == ["Canon_Test_4_Canon_001_LR4"]


# --- AirNet's lists ---


@pytest.fixture
def airnet(tmp_path: Path, touch: Touch) -> Path:
    touch(tmp_path / "data", *TREES["airnet"][0], "Train/Derain/rainy/rain-2.png", "Train/Derain/gt/norain-2.png")
    lists = {
        "noisy/denoise.txt": "00001.bmp\n",
        "rainy/rainTrain.txt": "rainy/rain-2.png\n",
        "hazy/hazy_outside.txt": "synthetic/part2/0025_0.8_0.1.jpg\n",
    }
    for name, text in lists.items():
        path = tmp_path / "data_dir" / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return tmp_path


def test_lists_restrict_training_to_their_names(airnet: Path) -> None:
    found = look(airnet / "data", lists=airnet / "data_dir")
    train = {item.key for item in found.items if item.part == "train" and item.set in ("Denoise", "RainTrainL", "OTS")}
    assert train == {"Train_Denoise_00001", "Train_Derain_rain-2", "Train_Dehaze_part2_0025_0_8_0_1"}
    assert not found.gaps
    assert found.unused == {"Denoise": 1, "gt": 1, "part1": 1, "rainy": 1}


def test_listed_names_that_are_not_there_are_reported(airnet: Path) -> None:
    (airnet / "data_dir/noisy/denoise.txt").write_text("00001.bmp\n00002.bmp\n")
    (gap,) = look(airnet / "data", lists=airnet / "data_dir").gaps
    assert gap.count == 1
    assert "1 of 2 names in" in gap.text
    assert gap.text.endswith("Train/Denoise: 00002.bmp")


def test_the_folder_above_data_is_recognised_too(airnet: Path) -> None:
    assert look(airnet).layout == "airnet"


def test_lists_that_are_missing_or_useless_are_errors(airnet: Path, tmp_path: Path, touch: Touch) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no .*denoise\.txt"):
        look(airnet / "data", lists=airnet)
    touch(tmp_path / "lol", *TREES["lol"][0])
    with pytest.raises(ValueError, match="layout=lol goes by no lists"):
        look(tmp_path / "lol", lists=airnet / "data_dir")


# --- what is said of the rest ---


def test_images_that_the_layout_does_not_speak_of_are_counted_by_folder(tmp_path: Path, touch: Touch) -> None:
    touch(tmp_path, *TREES["snow100k"][0])
    touch(tmp_path, *(f"media/jdway/GameSSD/overlapping/test/Snow100K-{size}/mask/c.jpg" for size in "SML"))
    found = look(tmp_path)
    assert found.unused == {"mask": 3}
    assert not found.gaps


def test_a_data_set_without_one_side_is_a_gap(tmp_path: Path, touch: Touch) -> None:
    touch(tmp_path, *pair("our485", "low", "high", "2"), "eval15/high/1.png")
    (gap,) = look(tmp_path).gaps
    assert gap.count == 1
    assert "high has no folder low/ beside it" in gap.text


def test_two_data_sets_in_one_folder_are_asked_for(tmp_path: Path, touch: Touch) -> None:
    touch(tmp_path, *TREES["lol"][0], *TREES["reside"][0])
    with pytest.raises(ValueError, match="say which, layout=lol or layout=reside"):
        look(tmp_path)
    assert look(tmp_path, layout="lol").layout == "lol"


def test_a_clean_image_that_is_there_twice_is_refused(tmp_path: Path, touch: Touch) -> None:
    touch(tmp_path, "SOTS/outdoor/hazy/1_2.png", "SOTS/outdoor/gt/1.png", "SOTS/outdoor/gt/1.jpg")
    with pytest.raises(ValueError, match=r"1\.jpg and .*1\.png would both be the partner of '1'"):
        look(tmp_path)


@pytest.mark.parametrize("layout", TREES)
def test_two_samples_with_one_key_are_refused_in_every_layout(layout: str, tmp_path: Path, touch: Touch) -> None:
    """A degraded image that is there as .png and as .webp."""
    touch(tmp_path, *TREES[layout][0])
    lq = next(item.lq for item in look(tmp_path).items if item.lq)
    lq.with_suffix(".webp").touch()
    with pytest.raises(ValueError, match=r"would both have the key .*: rename one"):
        look(tmp_path)
