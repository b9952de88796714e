"""Shards behind URLs, on a server of this machine and in fsspec's memory, and the bounded cache of their copies."""

import os
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import fsspec
import pytest
import torch

from datamodules import remote, shards
from datamodules.remote import Cache

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


class Server(ThreadingHTTPServer):
    """Serves a folder and counts what is fetched; answers for `broken` files end after 100 bytes."""

    def __init__(self, folder: Path) -> None:
        self.fetched: Counter[str] = Counter()
        self.broken: set[str] = set()
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
    shards._manifest.cache_clear()
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


def test_copy_of_a_shard_that_changed_since_is_fetched_anew(server, packed, tar, tmp_path):
    (packed / "manifest.json").unlink()
    cache, url = Cache(tmp_path / "cache"), f"{server.url}/train-000000.tar"
    Path(f"{packed}/train-000000.tar.index").unlink()
    shards.index([url], cache)
    tar(packed / "train-000000.tar", {"new.png": b"\x89PNG" * 10_000})
    assert [s.key for s in shards.index([url], cache)] == ["new"]


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
    with pytest.raises(OSError, match=r"s3://bucket/.*s3fs.*pip install 'bdg\[remote\]'"):
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
