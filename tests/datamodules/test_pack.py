import errno
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules import pack as pack_module
from datamodules.images import decode
from datamodules.layouts import look
from datamodules.pack import leaks, pack, packed_samples
from datamodules.processes import processes
from datamodules.shards import MANIFEST

ALL = {"train": "rest"}


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a packing; an index says when its shard was written, and is no part of the data."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".index"}


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]


def keys(output: Path) -> dict[str, list[str]]:
    """Keys of each part, in order."""
    parts: dict[str, list[str]] = {}
    for sample in packed_samples(output):
        parts.setdefault(sample["shard"].rpartition("-")[0], []).append(sample["key"])
    return parts


def packed_keys(source: Any, output: Path, *parts: Any, **options: Any) -> dict[str, list[str]]:
    pack(source, output, *parts, **options)
    return keys(output)


def test_packing_twice_gives_the_same_bytes(clean, tmp_path):
    pack(clean, tmp_path / "a", ALL, shard_size=3)
    moved = clean.rename(tmp_path / "moved")
    pack(moved, tmp_path / "b", ALL, shard_size=3)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_images_keep_their_encoding(clean, write, tmp_path):
    write(clean / "photograph.jpg", 9)
    pack(clean, tmp_path / "out", ALL)
    packed = members(tmp_path / "out" / "train-000000.tar")
    assert packed["photograph.hq.jpg"] == (clean / "photograph.jpg").read_bytes()
    assert packed["photo0.hq.png"] == (clean / "photo0.png").read_bytes()


def test_manifest_tells_count_size_and_sha256_of_each_shard_and_the_place_of_each_image(packed):
    manifest = json.loads((packed / MANIFEST).read_text())
    assert [entry["count"] for entry in manifest["shards"].values()] == [3, 3, 1]
    assert manifest["count"] == 7
    for name, entry in manifest["shards"].items():
        data = (packed / name).read_bytes()
        assert (entry["sha256"], entry["bytes"]) == (hashlib.sha256(data).hexdigest(), len(data))
        samples = [sample for sample in packed_samples(packed) if sample["shard"] == name]
        assert {f"{s['key']}.hq.png" for s in samples} == {n for n in members(packed / name) if "hq" in n}
        assert all((s["height"], s["width"]) == (40, 48) and s["source"] == f"{s['key']}.png" for s in samples)


def test_the_manifest_that_every_reader_loads_does_not_grow_with_the_samples(clean, tmp_path):
    few = pack(clean, tmp_path / "few", ALL)
    for number in range(20):
        shutil.copy(clean / "photo0.png", clean / f"copy{number}.png")
    many = pack(clean, tmp_path / "many", ALL)
    assert many["count"] == few["count"] + 20
    assert len(json.dumps(many)) < len(json.dumps(few)) + 10


def test_order_is_shuffled_by_the_seed(clean, tmp_path):
    orders = [packed_keys(clean, tmp_path / f"{seed}", ALL, seed=seed)["train"] for seed in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]
    assert orders[0] != sorted(orders[0])


def test_pairs_hold_both_images_and_their_degradation(paired):
    packed = members(paired / "train-000000.tar")
    assert set(packed) == {f"{i}.{end}" for i in range(3) for end in ("hq.png", "lq.png", "json")}
    assert json.loads(packed["0.json"])["degradation"] == "haze"


def test_larger_images_are_reduced_losslessly_and_smaller_ones_left(clean, write, tmp_path):
    write(clean / "large.jpg", 1, (100, 60, 3))
    pack(clean, tmp_path / "out", ALL, max_size=50)
    packed = members(tmp_path / "out" / "train-000000.tar")
    assert decode(packed["large.hq.png"]).shape == (50, 30, 3)
    assert packed["photo0.hq.png"] == (clean / "photo0.png").read_bytes()


def test_shares_split_by_photograph_without_loss_or_overlap(clean, tmp_path):
    parts = packed_keys(clean, tmp_path / "out", {"train": 0.6, "val": 0.2, "test": 0.2})
    assert {part: len(members) for part, members in parts.items()} == {"train": 4, "val": 2, "test": 1}
    assert Counter(chain(*parts.values())) == Counter(f"photo{i}" for i in range(7))


def test_same_clean_image_goes_to_one_part_whatever_its_name(tmp_path, write):
    for i in range(6):
        for name in ("rain", "haze"):
            write(tmp_path / "in" / name / "gt" / f"{name}{i}.png", i)
            write(tmp_path / "in" / name / "lq" / f"{name}{i}.png", 100 + i)
    parts = packed_keys(tmp_path / "in", tmp_path / "out", {"train": 0.5, "test": 0.5})
    photographs = {part: {key[-1] for key in members} for part, members in parts.items()}
    assert not photographs["train"] & photographs["test"]
    assert len(parts["train"]) == len(parts["test"]) == 6


def test_named_photographs_go_where_they_are_named_and_the_rest_to_the_rest(clean, tmp_path):
    parts = packed_keys(clean, tmp_path / "out", {"train": "rest", "val": 0.2, "test": ["photo3", "photo5"]})
    assert set(parts["test"]) == {"photo3", "photo5"}
    assert (len(parts["train"]), len(parts["val"])) == (4, 1)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"train": 0.5, "val": 0.3}, "must add up to 1"),
        ({"train": 0.9, "val": 0.3}, "must add up to 1"),
        ({"train": "rest", "val": "rest"}, "one part 'rest'"),
        ({"train": "rest", "val": -0.1}, "must add up to 1"),
        ({"train": "rest", "val": ["nobody"]}, "names nobody, which the source does not have"),
        ({"train": ["photo1"], "val": ["photo1"]}, "'photo1' is in 'train' and in 'val'"),
        ({"train": "rest", "val": "photo1"}, "give a share"),
        ({"train": "rest", "val": 0.01}, "no photograph is left for 'val'"),
        ({"../train": "rest"}, "'../train' begins the names of shards"),
    ],
)
def test_split_that_does_not_fit_is_refused(clean, tmp_path, parts, message):
    with pytest.raises(ValueError, match=message):
        pack(clean, tmp_path / "out", parts)


def test_interrupted_packing_goes_on_without_writing_whole_shards_again(clean, tmp_path, monkeypatch):
    pack(clean, tmp_path / "whole", ALL, shard_size=3)
    write_shard, written = pack_module._write_shard, []

    def stops_at_the_third(path, *rest):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.name)
        return write_shard(path, *rest)

    monkeypatch.setattr(pack_module, "_write_shard", stops_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        pack(clean, tmp_path / "out", ALL, shard_size=3)
    written.clear()
    pack(clean, tmp_path / "out", ALL, shard_size=3)
    assert written == ["train-000002.tar"]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("left", [lambda line: line[:-20], lambda line: "12\n"])
def test_a_line_that_was_cut_off_in_the_journal_costs_one_shard(clean, tmp_path, monkeypatch, left):
    pack(clean, tmp_path / "whole", ALL, shard_size=3)
    monkeypatch.setattr(pack_module, "_write_manifest", stops_when_complete(pack_module._write_manifest))
    with pytest.raises(KeyboardInterrupt):
        pack(clean, tmp_path / "out", ALL, shard_size=3)
    monkeypatch.undo()
    journal = tmp_path / "out" / pack_module.JOURNAL
    *lines, last = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join([*lines, left(last)]))
    written = []
    monkeypatch.setattr(pack_module, "_write_shard", seen(pack_module._write_shard, written))
    pack(clean, tmp_path / "out", ALL, shard_size=3)
    assert [path.name for path in written] == ["train-000002.tar"]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def stops_when_complete(write_manifest):
    def write(*args, complete):
        if complete:
            raise KeyboardInterrupt
        return write_manifest(*args, complete=complete)

    return write


def seen(function, arguments):
    def call(first, *rest):
        arguments.append(first)
        return function(first, *rest)

    return call


def test_damaged_shard_is_written_again(clean, packed):
    before = contents(packed)
    (packed / "train-000001.tar").write_bytes(b"")
    pack(clean, packed, ALL, shard_size=3)
    assert contents(packed) == before


def test_output_with_other_content_is_refused_and_left_alone(clean, write, packed):
    before = contents(packed)
    with pytest.raises(FileExistsError, match="other images or settings: name another folder"):
        pack(clean, packed, ALL, shard_size=2)
    write(clean / "photo0.png", 99)
    with pytest.raises(FileExistsError, match="other images or settings"):
        pack(clean, packed, ALL, shard_size=3)
    assert contents(packed) == before


def test_output_that_is_no_packing_is_refused(clean, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="something that is not a packing"):
        pack(clean, tmp_path / "out", ALL)


def test_image_that_is_none_stops_with_its_name(clean, tmp_path):
    (clean / "broken.png").write_text("no image")
    with pytest.raises(ValueError, match=r"broken\.png"):
        pack(clean, tmp_path / "out", ALL)
    (clean / "broken.png").unlink()
    assert pack(clean, tmp_path / "out", ALL)["complete"]


def test_pair_of_two_sizes_stops_with_both(tmp_path, write):
    write(tmp_path / "in" / "gt" / "1.png", 0, (40, 40, 3))
    write(tmp_path / "in" / "lq" / "1.png", 0, (20, 40, 3))
    with pytest.raises(ValueError, match=r"1\.png is 40x20, its clean partner .* 40x40"):
        pack(tmp_path / "in", tmp_path / "out", ALL)


@pytest.mark.parametrize("setting", [{"shard_size": 0}, {"max_size": 0}])
def test_settings_out_of_range_are_refused(clean, tmp_path, setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))}=0"):
        pack(clean, tmp_path / "out", ALL, **setting)


def test_gray_16_bit_and_tiny_images_are_packed_as_they_are(tmp_path, write):
    write(tmp_path / "in" / "gray.png", 0, (40, 40))
    write(tmp_path / "in" / "deep.png", 1, (40, 40, 3), np.uint16)
    write(tmp_path / "in" / "narrow.png", 2, (40, 3, 3))
    pack(tmp_path / "in", tmp_path / "out", ALL)
    samples = {s["key"]: (s["height"], s["width"]) for s in packed_samples(tmp_path / "out")}
    assert samples == {"gray": (40, 40), "deep": (40, 40), "narrow": (40, 3)}


# --- parts of the data set's own ---


@pytest.fixture
def official(tmp_path, write):
    """Eight pairs to train on and two to test on, of which one has the clean image of a training pair."""
    for folder, numbers in (("our485", range(8)), ("eval15", (7, 20))):
        for i in numbers:
            write(tmp_path / "LOL" / folder / "high" / f"{i}.png", i)
            write(tmp_path / "LOL" / folder / "low" / f"{i}.png", 100 + i)
    return tmp_path / "LOL"


def test_the_data_sets_own_split_becomes_the_parts(official, tmp_path):
    parts = packed_keys(official, tmp_path / "out", ALL)
    assert sorted(parts["test"]) == ["eval15_20", "eval15_7"]
    assert sorted(parts["train"]) == [f"our485_{i}" for i in range(8)]


def test_shares_divide_what_the_data_set_does_not_keep_apart(official, tmp_path):
    parts = packed_keys(official, tmp_path / "out", {"train": "rest", "val": 0.25})
    assert {part: len(members) for part, members in parts.items()} == {"train": 6, "val": 2, "test": 2}
    assert all(key.startswith("eval15") == (part == "test") for part, members in parts.items() for key in members)


def test_a_part_that_is_asked_for_is_dealt_anew(official, tmp_path):
    parts = packed_keys(official, tmp_path / "out", {"train": "rest", "test": ["eval15_20"]})
    assert parts["test"] == ["eval15_20"]
    assert len(parts["train"]) == 9


def test_a_data_set_of_test_pairs_only_needs_no_training_part(official, tmp_path):
    official.joinpath("our485").rename(tmp_path / "elsewhere")
    assert packed_keys(official, tmp_path / "out", ALL).keys() == {"test"}


def test_clean_images_in_several_parts_are_counted(official, clean, tmp_path):
    pack(official, tmp_path / "out", ALL)
    assert leaks(packed_samples(tmp_path / "out")) == 1
    pack(clean, tmp_path / "none", {"train": 0.5, "test": 0.5})
    assert leaks(packed_samples(tmp_path / "none")) == 0


# --- processes ---


@pytest.fixture
def mixed(tmp_path, write):
    """Images of several formats, of which one is cut off."""
    for i in range(6):
        write(tmp_path / "mixed" / f"{i}{('.png', '.jpg', '.bmp')[i % 3]}", i)
    broken = tmp_path / "mixed" / "broken.png"
    broken.write_bytes((tmp_path / "mixed" / "0.png").read_bytes()[:-100])
    return tmp_path / "mixed"


def test_any_number_of_processes_gives_the_same_bytes_and_the_same_error(mixed, tmp_path):
    settings = {"shard_size": 4, "encoding": "webp", "max_size": 44}
    for workers in (1, 2):
        with pytest.raises(ValueError, match=r"broken\.png: the image is cut off"):
            pack(mixed, tmp_path / f"{workers}", ALL, workers=workers, **settings)
        pack(mixed, tmp_path / f"{workers}", ALL, workers=workers, on_error="skip", **settings)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_a_process_that_is_killed_is_one_clear_error():
    with pytest.raises(OSError, match="workers=2: one of them was killed"), processes(2) as run:
        list(run(os._exit, [1, 1, 1]))


# --- encodings ---


@pytest.mark.parametrize(("encoding", "suffix"), [("png", "png"), ("webp", "webp")])
def test_lossless_encodings_keep_every_pixel(write, tmp_path, encoding, suffix):
    image = write(tmp_path / "in" / "a.bmp", 1)
    pack(tmp_path / "in", tmp_path / "out", ALL, encoding=encoding)
    (data, _) = members(tmp_path / "out" / "train-000000.tar").values()
    assert Image.open(io.BytesIO(data)).format == suffix.upper()
    assert np.array_equal(decode(data), decode(image.read_bytes()))


def test_an_image_that_is_encoded_so_already_is_left_alone(clean, tmp_path):
    pack(clean, tmp_path / "out", ALL, encoding="png")
    assert members(tmp_path / "out" / "train-000000.tar")["photo0.hq.png"] == (clean / "photo0.png").read_bytes()


def test_jpeg_has_the_quality_that_was_asked_for_also_where_the_source_is_jpeg(write, tmp_path):
    write(tmp_path / "in" / "a.png", 1)
    write(tmp_path / "in" / "b.jpg", 2)
    pack(tmp_path / "in", tmp_path / "out", ALL, encoding="jpeg", quality=80)
    Image.new("RGB", (8, 8)).save(tmp_path / "80.jpg", quality=80)
    tables = Image.open(io.BytesIO((tmp_path / "80.jpg").read_bytes())).quantization
    stored = {name: data for name, data in members(tmp_path / "out" / "train-000000.tar").items() if "hq" in name}
    assert stored.keys() == {"a.hq.jpg", "b.hq.jpg"}
    assert all(Image.open(io.BytesIO(data)).quantization == tables for data in stored.values())


def test_an_encoding_that_would_lose_bits_is_refused(tmp_path, write):
    write(tmp_path / "in" / "deep.png", 1, (40, 40, 3), np.uint16)
    with pytest.raises(
        ValueError, match=r"cannot hold 16 bits.*or leave the images as they are with encoding=original"
    ):
        pack(tmp_path / "in", tmp_path / "out", ALL, encoding="jpeg")


@pytest.mark.parametrize(
    "setting", [{"encoding": "gif"}, {"quality": 0}, {"workers": 0}, {"on_error": "ignore"}, {"on_unpaired": "ignore"}]
)
def test_choices_that_do_not_exist_are_refused(clean, tmp_path, setting):
    ((option, value),) = setting.items()
    with pytest.raises(ValueError, match=f"{option}={value}"):
        pack(clean, tmp_path / "out", ALL, **setting)


def test_another_encoding_is_another_packing(clean, tmp_path):
    pack(clean, tmp_path / "out", ALL, encoding="jpeg", quality=90)
    with pytest.raises(FileExistsError, match="other images or settings"):
        pack(clean, tmp_path / "out", ALL, encoding="jpeg", quality=80)


# --- super-resolution ---


@pytest.fixture
def smaller(tmp_path, write):
    """One pair whose degraded image is four times smaller."""
    write(tmp_path / "realsr" / "gt" / "1.png", 0, (40, 48, 3))
    write(tmp_path / "realsr" / "lq" / "1.png", 0, (10, 12, 3))
    return tmp_path / "realsr"


def test_the_scale_of_a_pair_is_recorded(smaller, tmp_path):
    pack(smaller, tmp_path / "out", ALL)
    (line,) = packed_samples(tmp_path / "out")
    said = json.loads(members(tmp_path / "out" / "train-000000.tar")["1.json"])
    assert line["scale"] == said["scale"] == 4
    assert (line["height"], line["width"]) == (40, 48)
    assert (said["degradation"], said["set"]) == ("real_sr", "realsr")


def test_max_size_that_would_tear_a_pair_apart_is_refused(smaller, tmp_path):
    with pytest.raises(ValueError, match=r"1\.png is 4 times smaller than .*leave max_size out"):
        pack(smaller, tmp_path / "out", ALL, max_size=20)


# --- bad input ---


def test_images_without_a_partner_stop_or_are_left_out_and_counted(tmp_path, write):
    for name in ("lq/1.png", "gt/1.png", "lq/2.png"):
        write(tmp_path / "rain" / name, 0)
    with pytest.raises(ValueError, match=r"1 of 2 images .*: 2: add the partners, .*on_unpaired=skip"):
        pack(tmp_path / "rain", tmp_path / "out", ALL)
    assert not (tmp_path / "out").exists()
    manifest = pack(tmp_path / "rain", tmp_path / "out", ALL, on_unpaired="skip")
    assert (manifest["count"], manifest["unpaired"]) == (1, 1)


def test_pairs_of_which_none_is_whole_are_no_packing(tmp_path, write):
    write(tmp_path / "rain" / "lq" / "1.png", 0)
    with pytest.raises(ValueError, match="none of its 1 images has a partner"):
        pack(tmp_path / "rain", tmp_path / "out", ALL, on_unpaired="skip")


def test_images_that_cannot_be_read_are_left_out_and_counted(mixed, tmp_path):
    manifest = pack(mixed, tmp_path / "out", ALL, on_error="skip")
    (entry,) = manifest["shards"].values()
    assert (manifest["count"], manifest["skipped"]) == (6, 1)
    assert entry["skipped"] == [{"key": "broken", "error": entry["skipped"][0]["error"]}]
    assert entry["skipped"][0]["error"].startswith("broken.png: the image is cut off")
    assert not any("broken" in name for name in members(tmp_path / "out" / "train-000000.tar"))


def test_pairs_of_two_sizes_are_left_out_as_well(tmp_path, write):
    for i, size in enumerate(((40, 40, 3), (20, 40, 3))):
        write(tmp_path / "rain" / "gt" / f"{i}.png", i, (40, 40, 3))
        write(tmp_path / "rain" / "lq" / f"{i}.png", i, size)
    assert pack(tmp_path / "rain", tmp_path / "out", ALL, on_error="skip")["skipped"] == 1


@pytest.mark.parametrize("change", ["another", "gone"])
def test_a_file_that_changes_while_it_is_packed_is_an_error(clean, write, tmp_path, change):
    def progress(what, done, total):
        if what == "reading" and done == total and change == "another":
            write(clean / "photo3.png", 99)
        elif what == "reading" and done == total:
            (clean / "photo3.png").unlink()

    with pytest.raises(OSError, match=r"photo3\.png was changed or removed while its folder was packed"):
        pack(clean, tmp_path / "out", ALL, on_error="skip", progress=progress)


@pytest.mark.parametrize(("where", "call", "left"), [("_add", 8, 2), ("write_index", 2, 2), ("_write_manifest", 2, 0)])
def test_a_full_disk_leaves_nothing_half_written_and_packing_goes_on_later(
    clean, tmp_path, monkeypatch, where, call, left
):
    pack(clean, tmp_path / "whole", ALL, shard_size=3)
    function, calls = getattr(pack_module, where), []

    def full(*args, **more):
        calls.append(args)
        if len(calls) == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        return function(*args, **more)

    monkeypatch.setattr(pack_module, where, full)
    with pytest.raises(OSError, match=r"output=.*out: the disk is full .*make room and run the same again"):
        pack(clean, tmp_path / "out", ALL, shard_size=3)
    monkeypatch.undo()
    assert not list((tmp_path / "out").glob("*.tmp"))
    assert all(
        data == contents(tmp_path / "whole")[n] for n, data in contents(tmp_path / "out").items() if n.endswith("tar")
    )
    written = []
    monkeypatch.setattr(pack_module, "_write_shard", seen(pack_module._write_shard, written))
    pack(clean, tmp_path / "out", ALL, shard_size=3)
    assert len(written) == left
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_what_was_looked_at_is_packed_as_it_was_found(tmp_path, write):
    for name in ("lq/1.png", "gt/1.png"):
        write(tmp_path / "in" / name, 0)
    manifest = pack(look(tmp_path / "in", label="fog"), tmp_path / "out", ALL)
    assert next(packed_samples(tmp_path / "out"))["degradation"] == "fog"
    assert manifest["layout"] == "pairs"
