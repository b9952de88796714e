"""Shards behind URLs, on a server of this machine and in fsspec's memory, and the bounded cache of their copies."""

import logging
import os
import shutil
import tarfile
import threading
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from itertools import islice, product
from pathlib import Path
from urllib.parse import quote

import fsspec
import pytest
import torch
from PIL import Image

from datamodules import remote, shards
from datamodules.images import decode
from datamodules.pack import pack
from datamodules.remote import Cache

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


SECRET = "aB3/x+9="


class Server(ThreadingHTTPServer):
    """Serves a folder whole files at a time, ignores ranges, and counts what is fetched.

    Answers for `broken` files end after 100 bytes; it does not say how long `endless` ones are. /moved/X redirects to X. With
    a `token` all else than ?token=... is forbidden.
    """

    def __init__(self, folder: Path) -> None:
        self.fetched: Counter[str] = Counter()
        self.broken: set[str] = set()
        self.endless: set[str] = set()
        self.token = ""
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.fetched[self.path] += 1
        super().do_GET()

    def send_head(self):
        if self.server.token and not self.path.endswith(f"?token={self.server.token}"):
            return self.send_error(403)
        if self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/moved"))
            self.send_header("Content-Length", "0")
            return self.end_headers()
        return super().send_head()

    def send_header(self, name, value):
        if name != "Content-Length" or self.path not in self.server.endless:
            super().send_header(name, value)

    def copyfile(self, source, outputfile):
        outputfile.write(source.read(100) if self.path in self.server.broken else source.read())


@pytest.fixture
def server(packed):
    with Server(packed) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """Manifests of addresses are kept by a process; tests do not wait."""
    shards._read_manifest.cache_clear()
    monkeypatch.setattr(remote, "RETRIES_S", (0.0,))
    monkeypatch.setattr(remote, "PATIENCE_S", 0.0)


@pytest.fixture
def memory(packed):
    """The packed folder in fsspec's memory."""
    filesystem = fsspec.filesystem("memory")
    filesystem.put(str(packed), "/set", recursive=True)
    yield "memory://set"
    filesystem.rm("/set", recursive=True)


def copies(cache):
    return sorted(p.name.partition("-")[2] for p in cache.folder.iterdir() if p.suffix == ".tar")


def size(packed):
    return (packed / "train-000000.tar").stat().st_size / 1e9


# --- the same samples ---


def test_addresses_expand_as_paths_do(memory, packed):
    names = [f"{memory}/train-{i:06d}.tar" for i in range(3)]
    assert [name.replace("memory:///", "memory://") for name in shards.expand(f"{memory}/*.tar")] == names
    assert shards.expand(f"{memory}/train-{{000000..000002}}.tar") == names
    assert shards.digest(names) == shards.digest(f"{packed}/*.tar")


@pytest.mark.parametrize("reader", ["indexed", "stream"])
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("place", ["memory", "server"])
def test_remote_shards_give_the_batches_of_local_ones(place, reader, num_workers, packed, data, request, tmp_path):
    where = request.getfixturevalue(place)
    local = data(packed, reader=reader, num_workers=num_workers)
    there = data(packed, reader=reader, num_workers=num_workers, cache=str(tmp_path / "cache"))
    there.shards = f"{getattr(where, 'url', where)}/train-{{000000..000002}}.tar"
    for one, other in zip(islice(local.stream(), 4), islice(there.stream(), 4), strict=True):
        assert torch.equal(one["x_lq"], other["x_lq"])


def test_index_beside_a_remote_shard_saves_reading_it(server, tmp_path):
    cache = Cache(tmp_path / "cache")
    samples = shards.index([f"{server.url}/train-000000.tar"], cache)
    assert len(samples) == 3
    assert server.fetched["/train-000000.tar"] == 0
    shards.index([f"{server.url}/train-000000.tar"], cache)
    assert server.fetched["/train-000000.tar.index"] == 1


def test_remote_shards_without_manifest_and_index_are_read_once(server, packed, tmp_path):
    for path in (*packed.glob("*.index"), packed / "manifest.json"):
        path.unlink()
    cache, url = Cache(tmp_path / "cache"), f"{server.url}/train-000000.tar"
    assert list(shards.index([url], cache)) == list(shards.index([url], cache))
    assert server.fetched["/train-000000.tar"] == 1


@pytest.mark.parametrize("same_size", [True, False])
def test_copy_of_a_shard_that_changed_since_is_fetched_anew(server, packed, tar, tmp_path, same_size):
    (packed / "manifest.json").unlink()
    cache, path, url = Cache(tmp_path / "cache"), packed / "train-000000.tar", f"{server.url}/train-000000.tar"
    Path(f"{path}.index").unlink()
    for second, (name, length) in enumerate((("old", 10), ("new", 10 if same_size else 10_000))):
        tar(path, {f"{name}.png": b"\x89PNG" * length})
        os.utime(path, (second, second))
        (sample,) = shards.index([url], cache)
        assert (sample.key, len(shards.read(sample, cache).hq)) == (name, 4 * length)


def test_index_and_copy_are_of_the_version_that_the_manifest_tells(server, packed, clean, write, tmp_path):
    cache, url = Cache(tmp_path / "cache"), f"{server.url}/train-000000.tar"
    for value in (0, 255):  # flat images of one size
        for path in clean.glob("*.png"):
            Image.new("RGB", (48, 40), (value, value, value)).save(path)
        for path in packed.iterdir():
            path.unlink()
        pack(clean, packed, {"train": "rest"}, shard_size=3)
        shards._read_manifest.cache_clear()
        (sample, *_) = shards.index([url], cache)
        assert decode(shards.read(sample, cache).hq).max() == value


def test_redirections_are_followed(server, packed, tmp_path):
    url = f"{server.url}/moved/train-000000.tar"
    ours = shards.index([url], Cache(tmp_path / "cache"))
    assert [s.key for s in ours] == [s.key for s in shards.index([f"{packed}/train-000000.tar"])]
    assert shards.read(ours[0], Cache(tmp_path / "cache")).hq


# --- what can go wrong ---


def test_remote_index_of_another_version_is_an_error(server, packed, tar, tmp_path):
    (packed / "manifest.json").unlink()
    tar(packed / "train-000000.tar", {"new.png": b"\x89PNG" * 10_000})
    with pytest.raises(ValueError, match=r"train-000000\.tar\.index is of another version .*: copy both again"):
        shards.index([f"{server.url}/train-000000.tar"], Cache(tmp_path))


def test_missing_remote_shard_is_an_error_of_one_line(server, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train-000009\.tar: there is no such shard: check the address$"):
        shards.index([f"{server.url}/train-000009.tar"], Cache(tmp_path))


def test_server_that_does_not_answer_is_an_error_of_one_line(tmp_path):
    with pytest.raises(OSError, match=r"http://127\.0\.0\.1:9/.*cannot be read .*: check the address, the rights and"):
        shards.index(["http://127.0.0.1:9/x.tar"], Cache(tmp_path))


@pytest.mark.skipif(find_spec("s3fs") is not None, reason="s3fs is installed")
def test_protocol_that_needs_an_extra_names_it(tmp_path):
    with pytest.raises(OSError, match=r"s3://bucket/.*Install s3fs.*, with pip install$"):
        shards.index(["s3://bucket/x.tar"], Cache(tmp_path))


def test_download_that_breaks_off_leaves_nothing(server, packed, tmp_path):
    cache = Cache(tmp_path / "cache")
    (sample, *_) = shards.index([f"{server.url}/train-000000.tar"], cache)
    server.broken.add("/train-000000.tar")
    with pytest.raises(OSError, match=r"train-000000\.tar.*"):
        shards.read(sample, cache)
    assert server.fetched["/train-000000.tar"] == 2  # tried once more
    assert [p.suffix for p in cache.folder.iterdir() if p.suffix in (".tar", ".tmp")] == []
    server.broken.clear()
    assert shards.read(sample, cache).hq


def test_server_that_does_not_say_a_length_is_an_error_of_one_line(server, packed, tmp_path):
    (packed / "manifest.json").unlink()
    server.endless.add("/train-000000.tar")
    with pytest.raises(
        OSError, match=r"train-000000\.tar: the server does not say how long it is: copy the shards to a"
    ):
        shards.index([f"{server.url}/train-000000.tar"], Cache(tmp_path))


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("reader", ["indexed", "stream"])
def test_shard_that_is_gone_when_its_turn_comes_is_an_error_of_one_line(
    server, packed, data, tmp_path, num_workers, reader
):
    module = data(packed, reader=reader, num_workers=num_workers, cache=str(tmp_path / "cache"))
    module.shards = f"{server.url}/train-00000{{0..2}}.tar"
    stream = module.stream()
    (packed / "train-000001.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"train-000001\.tar: there is no such file: check the address$"):
        list(islice(stream, 4))


# --- tokens ---


def test_neighbours_of_an_address_are_behind_its_token():
    assert (
        remote.beside(f"https://host/set/a.tar?token={SECRET}", "b.json") == f"https://host/set/b.json?token={SECRET}"
    )
    assert remote.beside("memory://a.tar", "b.json") == "memory://b.json"
    assert remote.beside("set/what?.tar", "b.json") == "set/b.json"


@pytest.mark.parametrize(
    ("address", "seen"),
    [
        (f"https://host/a.tar?token={SECRET}", "https://host/a.tar?***"),
        (f"https://user:{SECRET.replace('/', '')}@host/a b.tar", "https://host/a b.tar"),
        (f"https://host/it's/a.tar#{SECRET}", "https://host/it's/a.tar?***"),
        ("set/what?.tar", "set/what?.tar"),
        ("s3://bucket/a@2.tar", "s3://bucket/a@2.tar"),
    ],
)
def test_people_see_addresses_without_what_is_secret(address, seen):
    assert remote.shown(address) == seen


@pytest.fixture
def secret(server):
    """The address of shards that are handed out with a token only."""
    server.token = SECRET
    return f"{server.url}/train-00000{{0..2}}.tar?token={SECRET}"


@pytest.mark.parametrize("reader", ["indexed", "stream"])
@pytest.mark.parametrize("with_manifest", [True, False])
def test_shards_behind_a_token_give_the_batches_of_local_ones(secret, packed, data, tmp_path, reader, with_manifest):
    local = data(packed, reader=reader)
    wanted, digest = list(islice(local.stream(), 4)), local.digest
    if not with_manifest:
        for path in (*packed.glob("*.index"), packed / "manifest.json"):
            path.unlink()
    there = data(packed, reader=reader, cache=str(tmp_path / "cache"))
    there.shards = secret
    assert all(torch.equal(a["x_lq"], b["x_lq"]) for a, b in zip(wanted, islice(there.stream(), 4), strict=True))
    assert (there.digest == digest) == with_manifest
    assert there.digest == shards.digest(secret)
    assert not [path.name for path in there.cache.folder.iterdir() if "token" in path.name]


def test_neighbour_that_a_server_does_not_hand_out_is_not_needed(server, packed, tmp_path):
    """Many servers say so of what there is not, and a signed address is good for one file."""
    server.token = "of the shard alone"
    assert remote.load(f"{server.url}/manifest.json") is None
    with pytest.raises(PermissionError, match=r"does not hand it out: check the address, the rights and the token$"):
        shards.index([f"{server.url}/train-000000.tar"], Cache(tmp_path))


def wrong_token(server, packed):
    server.token = "another"


def broken(server, packed):
    os.truncate(packed / "train-000001.tar", 3000)
    (packed / "train-000001.tar.index").unlink()


def not_said(server, packed):
    server.endless.add(f"/train-000001.tar?token={SECRET}")


def twice(server, packed):
    for name in ("tar", "tar.index"):
        (packed / f"train-000001.{name}").write_bytes((packed / f"train-000000.{name}").read_bytes())


def lacking(server, packed):
    with tarfile.open(packed / "train-000001.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("a.txt"))
    (packed / "train-000001.tar.index").unlink()


def other_index(server, packed):
    shutil.copy(packed / "train-000002.tar.index", packed / "train-000001.tar.index")


def no_index(server, packed):
    (packed / "train-000001.tar.index").write_bytes(b"something else")


def missing(server, packed):
    (packed / "train-000001.tar").unlink()


def cut_short(server, packed):
    server.broken.add(f"/train-000001.tar?token={SECRET}")
    (packed / "train-000001.tar.index").unlink()


def closed(server, packed):
    server.server_close()


def replaced(server, packed):
    (packed / "train-000001.tar").write_bytes(b"\1" * (packed / "train-000001.tar").stat().st_size)


FAULTS = [wrong_token, broken, not_said, twice, lacking, other_index, no_index, missing, cut_short, closed, replaced]


@pytest.mark.parametrize("fault", FAULTS)
def test_token_is_in_no_message_and_no_name_whatever_goes_wrong(fault, secret, server, packed, data, tmp_path, caplog):
    (packed / "manifest.json").unlink()
    fault(server, packed)
    caplog.set_level(logging.INFO, "bdg")
    cache = tmp_path / "cache"
    for reader, on_error in product(("indexed", "stream"), ("stop", "skip")):
        module = data(packed, reader=reader, on_error=on_error, cache=str(cache))
        module.shards = secret
        expected = pytest.raises((ValueError, OSError)) if on_error == "stop" else suppress(ValueError, OSError)
        with expected as caught:
            list(islice(module.stream(), 4))
        module.teardown("fit")
        if caught:
            said = "".join(traceback.format_exception(caught.value))
            assert "127.0.0.1" in f"{caught.value}"
            assert not [line for line in said.splitlines() if SECRET in line or quote(SECRET, safe="") in line]
    assert SECRET not in caplog.text
    assert not [path.name for path in cache.rglob("*") if "token" in path.name]


def test_stars_behind_a_token_are_refused_with_the_way_out():
    with pytest.raises(
        ValueError, match=r"stars do not go with a token: number them, as in \{000000\.\.000099\}"
    ) as caught:
        shards.expand(f"https://host/*.tar?token={SECRET}")
    assert SECRET not in f"{caught.value}"


# --- the bounded cache ---


def test_what_was_used_longest_ago_goes_first(server, packed, tmp_path):
    cache = Cache(tmp_path / "cache", gigabytes=2.1 * size(packed))
    samples = {
        os.path.basename(s.shard): s
        for s in shards.index(shards.expand(f"{server.url}/train-00000{{0..2}}.tar"), cache)
    }
    for name in ("train-000000.tar", "train-000002.tar", "train-000000.tar", "train-000001.tar"):
        shards.read(samples[name], cache)
    assert copies(cache) == ["train-000000.tar", "train-000001.tar"]


def test_what_is_in_use_stays(server, packed, tmp_path):
    cache = Cache(tmp_path / "cache", gigabytes=1.5 * size(packed))
    first, *_, last = shards.index(shards.expand(f"{server.url}/train-00000{{0..1}}.tar"), cache)
    with cache.open(first.shard), pytest.raises(OSError, match=r"data\.cache_gb=.* does not fit beside what is in use"):
        shards.read(last, cache)
    assert copies(cache) == ["train-000000.tar"]
    shards.read(last, cache)
    assert copies(cache) == ["train-000001.tar"]


def test_shard_larger_than_the_cache_is_an_error(server, packed, tmp_path):
    cache = Cache(tmp_path / "cache", gigabytes=0.5 * size(packed))
    sample = shards.index([f"{server.url}/train-000000.tar"], cache)[0]
    with pytest.raises(
        OSError, match=r"data\.cache_gb=\S+: http.*GB does not fit .*: give more, or a smaller data\.window"
    ):
        shards.read(sample, cache)


def test_shard_that_many_want_is_fetched_once(server, tmp_path):
    cache = Cache(tmp_path / "cache")
    samples = list(shards.index([f"{server.url}/train-000000.tar"], cache)) * 4
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(partial(shards.read, cache=cache), samples))
    assert server.fetched["/train-000000.tar"] == 1
    assert found[:3] == found[3:6]


def test_download_of_a_killed_process_is_cleared_away(server, packed, tmp_path):
    cache = Cache(tmp_path / "cache", gigabytes=1.5 * size(packed))
    sample = shards.index([f"{server.url}/train-000000.tar"], cache)[0]
    left = cache.folder / ".0123-other.tar.999999.tmp"
    left.write_bytes(b"half")
    shards.read(sample, cache)
    assert not left.exists()


def test_shuffle_over_more_than_the_cache_holds_is_refused(server, packed, data, tmp_path):
    module = data(packed, cache=str(tmp_path / "cache"), cache_gb=2.5 * size(packed))
    module.shards = f"{server.url}/train-00000{{0..2}}.tar"
    with pytest.raises(ValueError, match=r"holds 2 of 3 remote shards, but data\.window=None reads from 3 at a time"):
        module.stream()
    module.window = 1
    assert next(iter(module.stream()))["key"]
