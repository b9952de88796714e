import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest
import webdataset

from datamodules import shards
from datamodules.pack import pack

PNG = b"\x89PNG not decoded by the index"


def test_braces_and_stars_expand_in_order(packed):
    names = [f"{packed}/train-{i:06d}.tar" for i in range(3)]
    assert shards.expand(f"{packed}/train-{{000000..000002}}.tar") == names
    assert shards.expand(f"{packed}/*.tar") == names
    assert shards.expand([f"{packed}/train-000002.tar", f"{packed}/train-00000{{0,1}}.tar"]) == [names[2], *names[:2]]
    assert shards.expand(None) == []


def test_missing_shards_are_counted_and_the_way_out_is_named(packed):
    with pytest.raises(FileNotFoundError, match=r"1 of 4 do not exist, such as .*train-000003\.tar.*bdg pack SOURCE"):
        shards.expand(f"{packed}/train-{{000000..000003}}.tar")
    with pytest.raises(FileNotFoundError, match="no such file"):
        shards.expand(f"{packed}/nothing-*.tar")


def test_pipes_are_refused():
    with pytest.raises(ValueError, match="a pipe runs a command, which no data may do"):
        shards.expand("pipe:cat x.tar")


def test_address_of_a_file_is_its_path(packed):
    assert shards.expand(f"file://{packed}/*.tar") == shards.expand(f"{packed}/*.tar")


def test_shards_of_an_interrupted_packing_are_refused(packed):
    manifest = json.loads((packed / "manifest.json").read_text()) | {"complete": False}
    (packed / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="run the same bdg pack again"):
        shards.expand(f"{packed}/*.tar")


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves the files it has read to the collector
def test_index_and_webdataset_see_the_same_samples(packed, paired):
    paths = [*shards.expand(f"{packed}/*.tar"), *shards.expand(f"{paired}/*.tar")]
    ours = {s.key: shards.read(s) for s in shards.index(paths)}
    theirs = {s["__key__"]: s for s in webdataset.WebDataset(paths, shardshuffle=False, empty_check=False)}
    gc.collect()
    assert ours.keys() == theirs.keys()
    for key, (hq, lq, info) in ours.items():
        assert hq == theirs[key]["hq.png"]
        assert lq == theirs[key].get("lq.png")
        assert info == json.loads(theirs[key]["json"])


@pytest.mark.parametrize("name", ["a.jpg", "a.PNG", "a.hq.webp", "a.gt.png", "./dir/a.jpg"])
def test_anybodys_names_of_the_clean_image_are_understood(tmp_path, tar, name):
    path = tar(tmp_path / "x.tar", {name: PNG, "dir/README": b"no sample"})
    (sample,) = shards.index([str(path)])
    assert shards.read(sample) == (PNG, None, {})


def test_shards_written_by_webdataset_are_understood(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "x.tar")) as writer:
        for i in range(3):
            writer.write({"__key__": f"{i:03d}", "hq.png": PNG, "lq.png": PNG[::-1], "json": {"degradation": "rain"}})
    samples = shards.index([str(tmp_path / "x.tar")])
    assert [s.key for s in samples] == ["000", "001", "002"]
    assert shards.read(samples[1]) == (PNG, PNG[::-1], {"degradation": "rain"})


def test_sample_without_a_clean_image_is_refused(tmp_path, tar):
    path = tar(tmp_path / "x.tar", {"a.jpg": PNG, "b.lq.jpg": PNG, "b.json": b"{}"})
    with pytest.raises(
        ValueError, match=r"x\.tar: sample 'b' has no clean image, only lq\.jpg, json: its name must be"
    ):
        shards.index([str(path)])


@pytest.mark.parametrize("extension", ["pyd", "pkl", "meta.pickle", "pth"])
def test_pickled_members_are_refused(tmp_path, tar, extension):
    path = tar(tmp_path / "x.tar", {"a.jpg": PNG, f"a.{extension}": b"cos\nsystem\n"})
    with pytest.raises(ValueError, match=rf"pickled member 'a\.{extension}'"):
        shards.index([str(path)])


@pytest.mark.parametrize("kept", [0.999, 0.75, 0.5, 0.3, 0.1])
def test_shard_that_is_cut_off_is_refused_wherever_the_cut_is(tmp_path, clean, kept):
    pack(clean, tmp_path / "out", {"train": "rest"})
    shard = tmp_path / "out" / "train-000000.tar"
    data = shard.read_bytes().rstrip(b"\0")
    (tmp_path / "cut.tar").write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ValueError, match=r"cut\.tar: the shard is cut off: .* byte \d+.* again"):
        shards.index([str(tmp_path / "cut.tar")])


def test_shard_cut_between_two_samples_is_refused(tmp_path, tar):
    whole = tar(tmp_path / "x.tar", {"a.jpg": PNG, "b.jpg": PNG}).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:1024])
    with pytest.raises(ValueError, match="the end mark is missing at byte 1024"):
        shards.index([str(tmp_path / "cut.tar")])


def test_shard_that_is_shorter_than_its_manifest_says_is_refused(packed):
    shard = packed / "train-000000.tar"
    shard.write_bytes(shard.read_bytes()[:-5000])
    with pytest.raises(ValueError, match=r"manifest\.json says .* copy it again"):
        shards.index([str(shard)])


@pytest.mark.parametrize("data", [b"", b"\x1f\x8b compressed", b"not a tar file " * 100])
def test_what_is_not_a_tar_file_is_refused(tmp_path, data):
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(ValueError, match=r"x\.tar: (not a tar file|the shard is cut off)"):
        shards.index([str(tmp_path / "x.tar")])


@pytest.mark.parametrize("said", [[], {"shards": {"train-000000.tar": 7}}, {"complete": False}])
def test_manifest_of_somebody_else_says_nothing(packed, said):
    for path in packed.glob("*.index"):
        path.unlink()
    (packed / "manifest.json").write_text(json.dumps(said))
    assert len(shards.index(shards.expand(f"{packed}/*.tar"))) == 7


def test_manifest_that_is_no_json_is_an_error_of_one_line(packed):
    (packed / "manifest.json").write_text('{"format": "bdg-sh')
    with pytest.raises(ValueError, match=r"manifest\.json: not JSON .*: pack the folder again, or remove this file$"):
        shards.expand(f"{packed}/*.tar")


def test_digest_tells_contents_apart_and_not_places(clean, write, tmp_path):
    for name in ("a", "b"):
        pack(clean, tmp_path / name, {"train": "rest"}, shard_size=3)
    write(clean / "photo0.png", 99)
    pack(clean, tmp_path / "c", {"train": "rest"}, shard_size=3)
    a, b, c = (shards.digest(f"{tmp_path}/{name}/*.tar") for name in ("a", "b", "c"))
    assert a == b
    assert a != c


def test_digest_without_a_manifest_is_of_names_and_sizes(packed):
    (packed / "manifest.json").unlink()
    digests = [shards.digest(f"{packed}/*.tar"), shards.digest(f"{packed}/train-00000[01].tar")]
    assert digests[0] != digests[1]
    assert digests[0] == shards.digest(f"{packed}/train-{{000000..000002}}.tar")


def test_digest_needs_no_torch():
    code = "import sys, datamodules.shards; sys.exit(bool({'torch', 'lightning', 'webdataset'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
