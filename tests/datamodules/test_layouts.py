from pathlib import Path

import pytest

from datamodules.layouts import find


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_clean_images_are_found_at_any_depth_and_other_files_are_not(tmp_path):
    touch(tmp_path, "b.png", "sub/a.JPG", "notes.txt", ".hidden/c.png", ".d.png")
    assert [item.key for item in find(tmp_path)] == ["b", "sub_a"]


@pytest.mark.parametrize(("lq", "gt"), [("lq", "gt"), ("input", "target")])
def test_pairs_go_by_name_not_by_place_and_not_by_extension(tmp_path, lq, gt):
    touch(tmp_path / "rain", f"{lq}/1.png", f"{lq}/2.jpg", f"{lq}/10.png", f"{gt}/10.png", f"{gt}/1.png", f"{gt}/2.png")
    items = find(tmp_path / "rain")
    assert all(item.lq is not None and item.lq.stem == item.hq.stem == item.key for item in items)
    assert {item.degradation for item in items} == {"rain"}


def test_several_folders_of_pairs_are_labelled_by_their_names(tmp_path):
    for name in ("rain", "haze"):
        touch(tmp_path / name, "lq/1.png", "gt/1.png")
    assert [(item.key, item.degradation) for item in find(tmp_path)] == [("haze_1", "haze"), ("rain_1", "rain")]


def test_label_replaces_the_name_of_the_folder(tmp_path):
    touch(tmp_path, "lq/1.png", "gt/1.png")
    assert find(tmp_path, label="snow")[0].degradation == "snow"


def test_label_for_pairs_of_several_degradations_is_refused(tmp_path):
    for name in ("rain", "haze"):
        touch(tmp_path / name, "lq/1.png", "gt/1.png")
    with pytest.raises(ValueError, match=r"label=snow: .*several degradations \(haze, rain\)"):
        find(tmp_path, label="snow")


def test_files_without_a_partner_stop_with_their_names(tmp_path):
    touch(tmp_path, "lq/1.png", "lq/2.png", "gt/1.png", "gt/3.png")
    with pytest.raises(ValueError, match=r"1 of 2 images in .*lq have no partner of the same name in .*gt: 2: add"):
        find(tmp_path)


def test_long_lists_of_names_are_shortened(tmp_path):
    touch(tmp_path, "gt/0.png", "lq/0.png", *(f"lq/{i}.png" for i in range(1, 9)))
    with pytest.raises(ValueError, match=r"8 of 9 .* 1, 2, 3, 4, 5 and 3 more"):
        find(tmp_path)


def test_half_a_folder_of_pairs_is_not_taken_for_clean_images(tmp_path):
    touch(tmp_path, "lq/1.png")
    with pytest.raises(ValueError, match=r"lq has no folder gt/ beside it"):
        find(tmp_path)


def test_images_beside_folders_of_pairs_are_refused(tmp_path):
    touch(tmp_path, "rain/lq/1.png", "rain/gt/1.png", "stray.png")
    with pytest.raises(ValueError, match=r"beside 1 other images, such as .*stray.png"):
        find(tmp_path)


@pytest.mark.parametrize("names", [("a.png", "a.jpg"), ("a.b.png", "a_b.png"), ("s/a.png", "s_a.png")])
def test_names_that_would_clash_are_refused(tmp_path, names):
    touch(tmp_path, *names)
    with pytest.raises(ValueError, match="rename"):
        find(tmp_path)


def test_folder_without_images_and_missing_folder_are_errors(tmp_path):
    with pytest.raises(ValueError, match="no image in it"):
        find(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        find(tmp_path / "missing")
