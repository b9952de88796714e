import hashlib
import json
import tarfile
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from datamodules import pack as pack_module
from datamodules.images import decode
from datamodules.pack import pack
from datamodules.shards import MANIFEST

ALL = {"train": "rest"}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]


def keys(manifest: dict) -> dict[str, list[str]]:
    """Keys of each part, in order."""
    parts: dict[str, list[str]] = {}
    for name, entry in manifest["shards"].items():
        parts.setdefault(name.rpartition("-")[0], []).extend(sample["key"] for sample in entry["samples"])
    return parts


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
        assert {f"{s['key']}.hq.png" for s in entry["samples"]} == {n for n in members(packed / name) if "hq" in n}
        assert all((s["height"], s["width"]) == (40, 48) and s["source"] == f"{s['key']}.png" for s in entry["samples"])


def test_order_is_shuffled_by_the_seed(clean, tmp_path):
    orders = [keys(pack(clean, tmp_path / f"{seed}", ALL, seed=seed))["train"] for seed in (0, 1)]
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
    parts = keys(pack(clean, tmp_path / "out", {"train": 0.6, "val": 0.2, "test": 0.2}))
    assert {part: len(members) for part, members in parts.items()} == {"train": 4, "val": 2, "test": 1}
    assert Counter(chain(*parts.values())) == Counter(f"photo{i}" for i in range(7))


def test_same_clean_image_goes_to_one_part_whatever_its_name(tmp_path, write):
    for i in range(6):
        for name in ("rain", "haze"):
            write(tmp_path / "in" / name / "gt" / f"{name}{i}.png", i)
            write(tmp_path / "in" / name / "lq" / f"{name}{i}.png", 100 + i)
    parts = keys(pack(tmp_path / "in", tmp_path / "out", {"train": 0.5, "test": 0.5}))
    photographs = {part: {key[-1] for key in members} for part, members in parts.items()}
    assert not photographs["train"] & photographs["test"]
    assert len(parts["train"]) == len(parts["test"]) == 6


def test_named_photographs_go_where_they_are_named_and_the_rest_to_the_rest(clean, tmp_path):
    parts = keys(pack(clean, tmp_path / "out", {"train": "rest", "val": 0.2, "test": ["photo3", "photo5"]}))
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
    manifest = pack(tmp_path / "in", tmp_path / "out", ALL)
    samples = {s["key"]: (s["height"], s["width"]) for s in manifest["shards"]["train-000000.tar"]["samples"]}
    assert samples == {"gray": (40, 40), "deep": (40, 40), "narrow": (40, 3)}
