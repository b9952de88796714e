from pathlib import Path

import pytest

from datamodules.layouts import find, look
from datamodules.layouts.generic import PAIRS


def test_clean_images_are_found_at_any_depth_and_other_files_are_not(touch, tmp_path):
    touch(tmp_path, "b.png", "sub/a.JPG", "notes.txt", ".hidden/c.png", ".d.png")
    assert [item.key for item in find(tmp_path)] == ["b", "sub_a"]


@pytest.mark.parametrize(("lq", "gt"), [("lq", "gt"), ("input", "target")])
def test_pairs_go_by_name_not_by_place_and_not_by_extension(touch, tmp_path, lq, gt):
    touch(tmp_path / "rain", f"{lq}/1.png", f"{lq}/2.jpg", f"{lq}/10.png", f"{gt}/10.png", f"{gt}/1.png", f"{gt}/2.png")
    items = find(tmp_path / "rain")
    assert all(item.lq is not None and item.lq.stem == item.hq.stem == item.key for item in items)
    assert {item.degradation for item in items} == {"rain"}


def test_several_folders_of_pairs_are_labelled_by_their_names(touch, tmp_path):
    for name in ("rain", "haze"):
        touch(tmp_path / name, "lq/1.png", "gt/1.png")
    assert [(item.key, item.degradation) for item in find(tmp_path)] == [("haze_1", "haze"), ("rain_1", "rain")]


def test_label_replaces_the_name_of_the_folder(touch, tmp_path):
    touch(tmp_path, "lq/1.png", "gt/1.png")
    assert find(tmp_path, label="snow")[0].degradation == "snow"


def test_label_for_pairs_of_several_degradations_is_refused(touch, tmp_path):
    for name in ("rain", "haze"):
        touch(tmp_path / name, "lq/1.png", "gt/1.png")
    with pytest.raises(ValueError, match=r"label=snow: .*several degradations \(haze, rain\)"):
        find(tmp_path, label="snow")


def test_files_without_a_partner_stop_with_their_names(touch, tmp_path):
    touch(tmp_path, "lq/1.png", "lq/2.png", "gt/1.png", "gt/3.png")
    with pytest.raises(
        ValueError, match=r"1 of 2 images in .*lq have no partner of the same name in .*gt: 2\n1 of 2 .*: 3: add"
    ):
        find(tmp_path)


def test_long_lists_of_names_are_shortened(touch, tmp_path):
    touch(tmp_path, "gt/0.png", "lq/0.png", *(f"lq/{i}.png" for i in range(1, 9)))
    with pytest.raises(ValueError, match=r"8 of 9 .* 1, 2, 3, 4, 5 and 3 more"):
        find(tmp_path)


def test_half_a_folder_of_pairs_is_not_taken_for_clean_images(touch, tmp_path):
    touch(tmp_path, "lq/1.png")
    with pytest.raises(ValueError, match=r"lq has no folder gt/ beside it"):
        find(tmp_path)


def test_images_beside_folders_of_pairs_are_refused(touch, tmp_path):
    touch(tmp_path, "rain/lq/1.png", "rain/gt/1.png", "stray.png")
    with pytest.raises(ValueError, match=r"beside 1 other images, such as .*stray.png"):
        find(tmp_path)


@pytest.mark.parametrize("names", [("a.png", "a.jpg"), ("a.b.png", "a_b.png"), ("s/a.png", "s_a.png")])
def test_names_that_would_clash_are_refused(touch, tmp_path, names):
    touch(tmp_path, *names)
    with pytest.raises(ValueError, match="rename"):
        find(tmp_path)


@pytest.mark.parametrize(
    ("folder", "label", "name", "part"),
    [
        ("derain/rain100l", "rain", "rain100l", None),
        ("rain/test/Rain100L", "rain", "Rain100L", "test"),
        ("syn_rain/train", "rain", "syn_rain", "train"),
        ("Deblur/Valid", "blur", "Deblur", "val"),
        ("lowlight", "low_light", "lowlight", None),
        ("mixed/foundir", "foundir", "foundir", None),
    ],
)
@pytest.mark.parametrize("source", ["", "*"])
def test_label_set_and_part_are_read_off_the_folders(touch, tmp_path, source, folder, label, name, part):
    """Whether the source is the first of these folders or the one above it."""
    touch(tmp_path / "all" / folder, "lq/1.png", "gt/1.png")
    (item,) = look(tmp_path / "all" / (folder.split("/")[0] if source else "")).items
    assert (item.degradation, item.set, item.part) == (label, name, part)


def test_label_is_that_of_the_folder_the_source_lies_in_as_well(touch, tmp_path):
    touch(tmp_path / "derain" / "rain100l", "lq/1.png", "gt/1.png")
    (item,) = look(tmp_path / "derain" / "rain100l").items
    assert (item.key, item.degradation, item.set) == ("1", "rain", "rain100l")


@pytest.mark.parametrize("rule", [rule for rule in PAIRS if rule.degradation])
def test_folders_named_as_in_a_data_set_are_pairs_of_its_degradation(touch, tmp_path, rule):
    touch(tmp_path, f"x/{rule.lq}/1.png", f"x/{rule.hq}/1.png")
    (item,) = look(tmp_path).items
    assert (item.degradation, item.set) == (rule.degradation, "x")


@pytest.mark.parametrize("lq", ["low", "rainy", "hazy", "blur", "input"])
def test_degraded_images_alone_are_not_taken_for_clean_ones(touch, tmp_path, lq):
    touch(tmp_path, f"a/{lq}/1.png")
    with pytest.raises(ValueError, match=f"{lq} has no folder"):
        find(tmp_path)
    assert [item.lq for item in look(tmp_path, layout="photographs").items] == [None]


def test_what_has_no_partner_is_counted_and_the_rest_found(touch, tmp_path):
    touch(tmp_path, "rain/lq/1.png", "rain/lq/2.png", "rain/gt/1.png", "snow/gt/5.png", "stray.png")
    found = look(tmp_path)
    assert [item.key for item in found.items] == ["rain_1"]
    assert found.num_unpaired == sum(gap.count for gap in found.gaps) == 3


def test_images_beside_the_pair_are_not_used_and_said_so(touch, tmp_path):
    touch(tmp_path, "lq/1.png", "gt/1.png", "extra/depth.png")
    assert look(tmp_path).unused == {"extra": 1}


def test_a_layout_that_does_not_exist_is_refused_with_those_that_do(touch, tmp_path):
    with pytest.raises(ValueError, match="layout=difuir: no such layout, there are diffuir, airnet"):
        look(touch(tmp_path, "a.png"), layout="difuir")


def test_a_layout_that_the_folder_does_not_have_is_an_error(touch, tmp_path):
    with pytest.raises(ValueError, match="no image in it for layout=lol"):
        look(touch(tmp_path, "a.png"), layout="lol")


def test_label_for_clean_images_is_refused(touch, tmp_path):
    with pytest.raises(ValueError, match=r"label=rain: .* holds no pairs"):
        look(touch(tmp_path, "a.png"), label="rain")


def test_links_to_folders_are_followed_and_a_circle_ends(touch, tmp_path):
    touch(tmp_path / "elsewhere", "a.png")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "elsewhere")
    assert [item.key for item in find(tmp_path / "photos")] == ["linked_a"]


@pytest.mark.parametrize("source", [".", "./photos/..", "photos/../"])
def test_a_source_may_be_written_in_any_way(touch, tmp_path, monkeypatch, source):
    touch(tmp_path, "photos/lq/1.png", "photos/gt/1.png")
    monkeypatch.chdir(tmp_path)
    assert [(item.key, item.set) for item in find(Path(source))] == [("photos_1", "photos")]


def test_folder_without_images_and_missing_folder_are_errors(touch, tmp_path):
    with pytest.raises(ValueError, match="no image in it"):
        find(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        find(tmp_path / "missing")
