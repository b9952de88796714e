import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules import shards
from datamodules.draws import hash64
from datamodules.index import CLEAN, Kind
from datamodules.pack import pack
from datamodules.remote import Cache
from datamodules.shards import read, write_index


def png(height=8, width=12, **how):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(buffer, "PNG", **how)
    return buffer.getvalue()


def turned(height, width):
    exif = Image.Exif()
    exif[0x0112] = 6
    return png(height, width, exif=exif)


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


@pytest.fixture
def read_only(monkeypatch):
    """Nothing can be written into these folders, also by an administrator."""
    folders: list[Path] = []
    write_bytes = Path.write_bytes

    def refuse(path, data):
        if path.parent in folders:
            raise PermissionError(13, "Permission denied", str(path))
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", refuse)
    return folders.append


# --- what it holds ---


def test_index_knows_keys_places_sizes_labels_and_scales(tmp_path, tar):
    haze, small = {"degradation": "haze"}, {"degradation": "down", "scale": 4}
    members = {
        **{"a.png": png(20, 30), "b.hq.png": png(8, 12), "b.lq.png": png(8, 12), "b.json": json.dumps(haze).encode()},
        **{"c.hq.png": png(8, 12), "c.lq.png": png(2, 3), "c.json": json.dumps(small).encode()},
        **{"d.hq.png": png(9, 12), "d.lq.png": png(3, 4), "d.json": b'{"degradation": "down"}'},
        **{"e.png": turned(20, 30), "f.png": b"\x89PNG is not read further"},
    }
    samples = shards.index([str(tar(tmp_path / "x.tar", members))])
    found = {s.key: (s.size, s.degradation, s.scale, s.lq is not None) for s in samples}
    assert found == {
        "a": ((20, 30), None, 1, False),
        "b": ((8, 12), "haze", 1, True),
        "c": ((8, 12), "down", 4, True),
        "d": ((9, 12), "down", 3, True),
        "e": ((30, 20), None, 1, False),
        "f": (None, None, 1, False),
    }
    assert samples.kinds == {CLEAN: 3, Kind(True, "haze"): 1, Kind(True, "down"): 2}
    assert samples.smallest == 8
    assert all(read(s).hq == members.get(f"{s.key}.png", members.get(f"{s.key}.hq.png")) for s in samples)


def test_samples_of_some_kinds_are_found_among_the_others(tmp_path, tar):
    names = [("haze", "rain", None)[i % 3] for i in range(9)]
    paths = []
    for part in range(2):
        members = {}
        for i, name in enumerate(names):
            members[f"{part}{i}.hq.png"] = png()
            if name:
                members |= {f"{part}{i}.lq.png": png(), f"{part}{i}.json": json.dumps({"degradation": name}).encode()}
        paths.append(str(tar(tmp_path / f"{part}.tar", members)))
    samples = shards.index(paths)
    rain, clean = samples.of(Kind(True, "rain")), samples.of(CLEAN)
    assert [s.key for s in rain] == ["01", "04", "07", "11", "14", "17"]
    assert [s.key for s in clean] == ["02", "05", "08", "12", "15", "18"]
    assert list(rain.counts) == [3, 3]
    assert len(samples.of(Kind(True, "rain"), CLEAN)) == 12
    assert not samples.of(Kind(True, "snow"))
    assert samples.are_pairs().tolist() == [True, True, False] * 6


def test_index_of_a_shard_without_samples_is_empty(tmp_path, tar):
    samples = shards.index([str(tar(tmp_path / "x.tar", {"README": b"nothing"}))])
    assert len(samples) == 0
    assert samples.decoded_bytes == 0


# --- when it is made ---


def test_packing_leaves_an_index_beside_each_shard(packed):
    assert sorted(p.name for p in packed.glob("*.index")) == [f"train-{i:06d}.tar.index" for i in range(3)]


def test_index_is_made_on_first_use_and_kept(packed):
    index = packed / "train-000000.tar.index"
    index.unlink()
    first = list(shards.index([str(packed / "train-000000.tar")]))
    made = index.stat().st_mtime_ns
    assert list(shards.index([str(packed / "train-000000.tar")])) == first
    assert index.stat().st_mtime_ns == made


@pytest.mark.parametrize("same_size", [True, False])
def test_index_of_another_version_of_the_shard_is_made_anew(tmp_path, tar, same_size):
    one, other = ({"degradation": name} for name in ("haze", "rain" if same_size else "low_light" * 100))
    for second, info in enumerate((one, other)):
        path = tar(tmp_path / "x.tar", {"a.hq.png": png(), "a.lq.png": png(), "a.json": json.dumps(info).encode()})
        os.utime(path, (second, second))
        assert shards.index([str(path)])[0].degradation == info["degradation"]


def test_index_that_was_copied_with_other_times_is_known_by_the_manifest(packed, tmp_path):
    shutil.copytree(packed, tmp_path / "copy", copy_function=shutil.copyfile)
    index = tmp_path / "copy" / "train-000000.tar.index"
    before = index.stat().st_mtime_ns
    shards.index([str(index.with_suffix(""))])
    assert index.stat().st_mtime_ns == before


def test_index_goes_to_the_cache_where_it_cannot_lie_beside_the_shard(packed, cache, read_only):
    path = packed / "train-000000.tar"
    Path(f"{path}.index").unlink()
    read_only(packed)
    samples = shards.index([str(path)], cache)
    assert len(samples) == 3
    assert not Path(f"{path}.index").exists()
    assert [p.name for p in cache.folder.iterdir()] == [f"{hash64(str(path)):016x}-train-000000.tar.index"]
    assert list(shards.index([str(path)], cache)) == list(samples)


def test_stale_index_in_a_folder_that_cannot_be_written_is_passed_over(packed, tar, cache, read_only):
    path = packed / "train-000000.tar"
    (packed / "manifest.json").unlink()
    tar(path, {"new.png": png()})
    read_only(packed)
    assert [s.key for s in shards.index([str(path)], cache)] == ["new"]


def test_file_of_somebody_else_with_that_name_is_left_alone(packed):
    index = packed / "train-000000.tar.index"
    index.write_bytes(b"0 512 a.png\n")
    with pytest.raises(ValueError, match=r"train-000000\.tar\.index is no index of a shard .*: remove it, or move it"):
        shards.index([str(index.with_suffix(""))])
    assert index.read_bytes() == b"0 512 a.png\n"


@pytest.mark.parametrize(
    "head", [b"\n", b"[]\n", b'{"format": "bdg-index-1"}\n', b'{"format": "bdg-index-0", "size": 1}\n', b"{" * 100]
)
def test_what_only_looks_like_an_index_is_refused(packed, head):
    index = packed / "train-000000.tar.index"
    index.write_bytes(head)
    with pytest.raises(ValueError, match=r"train-000000\.tar\.index is no index of a shard .*: remove it, or move it"):
        shards.index([str(index.with_suffix(""))])


def test_index_that_is_cut_off_is_refused(packed):
    index = packed / "train-000000.tar.index"
    os.truncate(index, length := index.stat().st_size - 1)
    with pytest.raises(ValueError, match=rf"has {length} bytes and not {length + 1}: copy it again, or remove it"):
        shards.index([str(index.with_suffix(""))])


def test_index_whose_digest_is_not_that_of_the_manifest_is_made_anew(packed):
    """Same size, same time: of two packings that were copied over one another."""
    path = packed / "train-000000.tar"
    before = list(shards.index([str(path)]))
    manifest = json.loads((packed / "manifest.json").read_text())
    manifest["shards"][path.name]["sha256"] = "0" * 64
    (packed / "manifest.json").write_text(json.dumps(manifest))
    made = Path(f"{path}.index").stat().st_mtime_ns
    assert list(shards.index([str(path)])) == before
    assert Path(f"{path}.index").stat().st_mtime_ns > made


def test_index_is_whole_or_not_there(packed, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device")

    Path(f"{packed}/train-000000.tar.index").unlink()
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_index(packed / "train-000000.tar")
    assert [p.name for p in packed.iterdir() if "000000" in p.name] == ["train-000000.tar"]


# --- samples that cannot be used ---

BAD = {
    "has no clean image, only lq.png": {"b.lq.png": png()},
    "is a pair with degradation 'rain', but lacks its degraded image b.lq.EXT": {
        "b.hq.png": png(),
        "b.json": b'{"degradation": "rain"}',
    },
    "has a .json member that is not JSON": {"b.png": png(), "b.json": b"{"},
    "has a .json member that is no object": {"b.png": png(), "b.json": b"[]"},
    "has scale 0, which must be a whole number": {"b.png": png(), "b.json": b'{"scale": 0}'},
}


def test_sample_with_a_name_in_another_alphabet_stops_or_is_left_out(tmp_path, caplog):
    with tarfile.open(tmp_path / "x.tar", "w", encoding="latin-1", format=tarfile.GNU_FORMAT) as file:
        for name in ("a.png", "f\xfcnf.png"):
            header = tarfile.TarInfo(name)
            header.size = len(png())
            file.addfile(header, io.BytesIO(png()))
    with pytest.raises(
        ValueError, match=r"1 of 2 samples cannot be used: .*sample 'f\?nf' has a name that is not UTF-8"
    ):
        shards.index([f"{tmp_path}/x.tar"])
    assert [s.key for s in shards.index([f"{tmp_path}/x.tar"], on_error="skip")] == ["a"]


@pytest.mark.parametrize("fault", BAD)
def test_sample_that_lacks_something_stops_or_is_left_out_and_told(tmp_path, tar, fault, caplog):
    path = str(tar(tmp_path / "x.tar", {"a.png": png(), **BAD[fault], "c.png": png()}))
    with pytest.raises(ValueError, match=rf"1 of 3 samples .*x\.tar: sample 'b' {fault}.*data\.on_error=skip"):
        shards.index([path])
    samples = shards.index([path], on_error="skip")
    assert [s.key for s in samples] == ["a", "c"]
    assert f"1 of 3 samples cannot be used: {path}: sample 'b' {fault}" in caplog.text


def test_two_samples_with_one_key_in_a_shard_stop_or_the_second_is_left_out(tmp_path, tar):
    path = str(tar(tmp_path / "x.tar", [("a.png", png()), ("b.png", png()), ("a.png", png(1, 1))]))
    with pytest.raises(ValueError, match=r"1 of 3 samples cannot be used: .*sample 'a' comes twice"):
        shards.index([path])
    assert [(s.key, s.size) for s in shards.index([path], on_error="skip")] == [("a", (8, 12)), ("b", (8, 12))]


def test_two_members_with_one_name_are_told(tmp_path, tar):
    path = str(tar(tmp_path / "x.tar", [("a.png", png()), ("a.png", png())]))
    with pytest.raises(ValueError, match="sample 'a' has two members of one name among png, png"):
        shards.index([path])


def test_two_samples_with_one_key_in_a_folder_stop_or_the_later_is_left_out(tmp_path, tar, caplog):
    one = str(tar(tmp_path / "1.tar", {"a.png": png(), "b.png": png()}))
    other = str(tar(tmp_path / "2.tar", {"c.png": png(), "b.png": png(), "a.png": png()}))
    with pytest.raises(ValueError, match=rf"2 of 5 samples .*{other}: sample 'b' has the key of another in {one}"):
        shards.index([one, other])
    samples = shards.index([one, other], on_error="skip")
    assert [(s.shard, s.key) for s in samples] == [(one, "a"), (one, "b"), (other, "c")]
    assert [s.key for s in samples.of(CLEAN)] == ["a", "b", "c"]


def test_samples_of_other_folders_may_have_the_same_keys(tmp_path, tar):
    for folder in ("rain", "haze"):
        (tmp_path / folder).mkdir()
        tar(tmp_path / folder / "train.tar", {"1.png": png(), "2.png": png()})
    samples = shards.index(shards.expand(f"{tmp_path}/*/train.tar"))
    assert [s.key for s in samples] == ["1", "2", "1", "2"]


def test_shard_named_twice_is_told(packed):
    path = str(packed / "train-000000.tar")
    with pytest.raises(ValueError, match="3 of 6 samples cannot be used"):
        shards.index([path, path])


# --- reading by it ---


def test_shard_that_was_replaced_since_is_not_read(tmp_path, tar):
    path = tar(tmp_path / "x.tar", {"a.png": png()})
    (sample,) = shards.index([str(path)])
    tar(path, {"b.png": png(100, 100)})
    with pytest.raises(ValueError, match=r"sample 'a' is not where it was: the shard was replaced .*: start again"):
        read(sample)


def test_shard_that_was_cut_off_since_is_not_read(packed):
    *_, sample = shards.index([str(packed / "train-000000.tar")])
    os.truncate(sample.shard, sample.hq.offset + 10)
    with pytest.raises(ValueError, match=r"the shard is cut off: 'photo\d' ends at byte \d+, the file at byte \d+"):
        read(sample)


def test_names_longer_than_a_tar_header_holds_are_read(tmp_path, tar):
    key = "folder/" * 30 + "name"
    path = tar(tmp_path / "x.tar", {f"{key}.hq.png": png(), f"{key}.json": b'{"a": 1}'})
    (sample,) = shards.index([str(path)])
    assert (sample.key, read(sample)) == (key, (png(), None, {"a": 1}))


def test_packs_of_the_same_images_have_the_same_samples(clean, tmp_path):
    for name in ("a", "b"):
        pack(clean, tmp_path / name, {"train": "rest"}, shard_size=3)
    one, other = (shards.index(shards.expand(f"{tmp_path}/{name}/*.tar")) for name in ("a", "b"))
    assert [s.key for s in one] == [s.key for s in other]
