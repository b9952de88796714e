"""Readers of foreign files against damaged ones: any bytes give a value, or one clear ValueError or OSError, and soon.

    python benchmarks/fuzz.py 2000    # cases per reader; prints a Markdown table

`tests/test_fuzz.py` runs some of these cases. A case is a file that we wrote, or arbitrary bytes, after up to eight edits.
"""

import io
import json
import os
import random
import re
import resource
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from circumstances import circumstances
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from bdg.commands.compose import build, compose
from bdg.commands.degrade import read_records
from bdg.documents import parse
from bdg.weights import load_weights
from datamodules import index, shards
from datamodules.degradations.composition import replay
from datamodules.images import read_image, upright_size

ROOM = 2**30
"""Bytes of memory that a case may ask for."""
PATIENCE_S = 20.0
"""After which a case hangs."""


# --- what the readers are given ---


def image(suffix: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    shades = np.arange(16 * 12 * 3, dtype=np.uint8).reshape(16, 12, 3)
    Image.fromarray(shades).save(buffer, suffix, **options)
    return buffer.getvalue()


@lru_cache(maxsize=1)
def images() -> list[bytes]:
    exif = Image.Exif()
    exif[274], exif[271] = 6, "maker"
    kinds: dict[str, dict[str, Any]] = {
        "PNG": {"exif": exif},
        "JPEG": {"exif": exif, "progressive": True},
        "WEBP": {"lossless": True, "exif": exif},
        "TIFF": {"compression": "tiff_lzw"},
        "BMP": {},
        "GIF": {},
    }
    return [image(kind, **options) for kind, options in kinds.items()]


def tar(members: Mapping[str, bytes], kind: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as file:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            file.addfile(header, io.BytesIO(data))
    return buffer.getvalue()


@lru_cache(maxsize=1)
def shard_files() -> list[bytes]:
    """Clean images, a pair with its JSON, long and foreign names."""
    png, said = image("PNG"), json.dumps({"degradation": "rain", "scale": 1}).encode()
    members = {"a.hq.png": png, "b.hq.png": png, "b.lq.png": png, "b.json": said, "c.txt": b"text", "./d/e.png": png}
    return [tar(members), tar({"ä" * 120 + ".png": png, **members}, tarfile.PAX_FORMAT), tar({"n" * 200 + ".png": png})]


@lru_cache(maxsize=1)
def index_files() -> list[bytes]:
    data = shard_files()[0]
    return [index.build(io.BytesIO(data), "x.tar", len(data), 7)]


@lru_cache(maxsize=1)
def degradations() -> list[Any]:
    config = compose("degrade", ["degradation=[all,cdd11,real_esrgan,poisson,bicubic_x4]"])
    return [build(node) for node in config.degradation.values() if node]


@lru_cache(maxsize=1)
def recipes() -> list[bytes]:
    x_hq = np.full((16, 12, 3), 0.5, np.float32)
    drawn = [each(x_hq, np.random.default_rng(0))[1] for each in degradations()]
    records = [{"image": "a.png", "entry": "e", "recipe": recipe, "hq_sha256": "0", "versions": {}} for recipe in drawn]
    return [json.dumps(value).encode() for value in (*drawn, *records, records)]


@lru_cache(maxsize=1)
def manifests() -> list[bytes]:
    size = len(shard_files()[0])
    entry = {"sha256": "0" * 64, "bytes": size, "count": 1, "samples": [{"key": "a", "height": 16, "width": 12}]}
    return [json.dumps({"format": "bdg-shards-1", "complete": True, "count": 1, "shards": {"x.tar": entry}}).encode()]


@lru_cache(maxsize=1)
def weights() -> list[bytes]:
    said = {"network": {"_target_": "bdg.networks.unet.UNet", "dim": 8}, "diffusion": {"_target_": "x"}}
    return [safetensors.torch.save({}, {"bdg": json.dumps(said)})]


# --- edits ---

VALUES = [
    b"-1",
    b"0",
    b"1",
    b"7.5",
    b"1e999",
    b"NaN",
    b"1e18",
    b"9" * 40,
    b"null",
    b"true",
    b'"x"',
    b'"../.."',
    b"1e-9",
]
VALUES += [b"[]", b"{}", b"[1]", b"[[1, 2], [3, 4]]", b"[[[1]]]", b'{"op": "resize"}', b'{"degradation": "rain"}']
VALUE = re.compile(rb'[\[,:] ?("[^"]*"|[-+.\deE]+|true|false|null)')
CHARACTERS = 4096  # of a file, in which values are looked for
PIECES = [
    bytes([0]),
    b"\xff",
    b"\xff\xff\xff\xff",
    b"\x80" + bytes(7),
    b"../",
    b"/",
    b"\n",
    b"[" * 3000,
    b"77777777777",
]
Edit = tuple[int, str, bytes]


def edits() -> st.SearchStrategy[list[Edit]]:
    kinds = st.sampled_from(["set", "insert", "delete", "cut", "copy", "value"])
    pieces = st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from(PIECES), st.sampled_from(VALUES))
    places = st.integers(0, 2**20)
    anything = st.lists(st.tuples(places, kinds, pieces), min_size=1, max_size=8)
    return anything | st.lists(st.tuples(places, st.just("value"), st.sampled_from(VALUES)), min_size=1, max_size=4)


def edited(data: bytes, changes: list[Edit]) -> bytes:
    """The bytes after these edits; a "value" takes the place of one in JSON."""
    for place, kind, piece in changes:
        at = place % (len(data) + 1)
        match kind:
            case "set":
                data = data[:at] + piece + data[at + len(piece) :]
            case "insert":
                data = data[:at] + piece + data[at:]
            case "delete":
                data = data[:at] + data[at + len(piece) :]
            case "cut":
                data = data[:at]
            case "copy":
                data = data[:at] + data[at // 2 :]
            case "value":
                if spans := [found.span(1) for found in VALUE.finditer(data[:CHARACTERS])]:
                    begin, end = spans[place % len(spans)]
                    data = data[:begin] + piece + data[end:]
    return data


def cases(files: Callable[[], list[bytes]]) -> st.SearchStrategy[bytes]:
    return st.one_of(
        st.builds(edited, st.deferred(lambda: st.sampled_from(files())), edits()), st.binary(max_size=2048)
    )


# --- the readers ---


@contextmanager
def folder_with(**files: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        for name, data in files.items():
            (Path(folder) / name.replace("__", ".")).write_bytes(data)
        yield Path(folder)


def read_all(path: Path) -> None:
    """Every sample of a shard, as a data module takes them."""
    samples = shards.index(shards.expand(str(path)), on_error="skip")
    samples.are_pairs()
    for place in range(min(len(samples), 20)):
        sample = samples[place]
        assert ".." not in sample.key.split("/")
        assert not sample.key.startswith("/")
        shards.read(sample)


def of_index(data: bytes) -> None:
    index.load(io.BytesIO(data), "x.index")
    tar_data = shard_files()[0]
    with folder_with(x__tar=tar_data, x__tar__index=data) as folder:
        os.utime(folder / "x.tar", ns=(7, 7))
        read_all(folder / "x.tar")


def of_shard(data: bytes) -> None:
    with folder_with(x__tar=data) as folder:
        read_all(folder / "x.tar")


def of_manifest(data: bytes) -> None:
    with folder_with(x__tar=shard_files()[0], manifest__json=data) as folder:
        assert shards.digest(str(folder / "x.tar"))


def of_recipe(data: bytes) -> None:
    with folder_with(r__json=data) as folder:
        records = read_records(folder / "r.json")
    x_hq = np.full((16, 12, 3), 0.5, np.float32)
    for record in records[:3]:
        assert record["entry"] not in ("", ".", "..")
        assert "/" not in record["entry"]
        assert replay(x_hq, record["recipe"], degradations()).shape == x_hq.shape


def of_weights(data: bytes) -> None:
    with folder_with(w=data) as folder:
        assert isinstance(load_weights(folder / "w")[1], dict)


def of_image(data: bytes) -> None:
    size = upright_size(io.BytesIO(data))
    array = read_image(data).array
    assert size in (None, array.shape[:2])


READERS: dict[str, tuple[Callable[[bytes], Any], Callable[[], list[bytes]]]] = {
    "index of a shard": (of_index, index_files),
    "shard": (of_shard, shard_files),
    "manifest": (of_manifest, manifests),
    "recipe": (of_recipe, recipes),
    "metadata of weights": (of_weights, weights),
    "JSON": (parse, recipes),
    "image": (of_image, images),
}
"""What is read -> the reader, and whole files for it."""


def holds(reader: Callable[[bytes], Any], data: bytes) -> bool:
    """Whether the bytes were taken; they may be refused by a ValueError or an OSError with words. Raises anything else."""
    begin = time.perf_counter()
    taken = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            reader(data)
        except (ValueError, OSError) as error:
            taken = False
            if not (type(error) is ValueError or isinstance(error, OSError)) or len(str(error)) < 8:
                raise AssertionError(f"{type(error).__name__} '{error}' is not clear") from error
    assert time.perf_counter() - begin < PATIENCE_S, "hangs"
    return taken


def fuzz(name: str, number: int, start: int) -> int:
    """Runs so many cases of a reader; returns how many were taken for valid."""
    reader, files = READERS[name]
    taken = 0

    @seed(start)
    @settings(
        max_examples=number,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases(files))
    def run(data: bytes) -> None:
        nonlocal taken
        taken += holds(reader, data)

    run()
    return taken


def main() -> None:
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    start = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(2**32)
    for files in (images, shard_files, index_files, recipes, manifests, weights):
        files()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, resource.RLIM_INFINITY))
    begin = time.perf_counter()
    rows = [(name, number, fuzz(name, number, start)) for name in READERS]
    print(f"# Damaged files\n\n{circumstances('hypothesis', 'pillow', 'numpy')} {time.perf_counter() - begin:.0f} s.\n")
    print(f"{sum(cases for _, cases, _ in rows)} cases, seed {start}. Taken: valid, in spite of the edits.\n")
    print("| reader | cases | taken | refused | anything else |", "|---|---|---|---|---|", sep="\n")
    for name, cases_run, taken in rows:
        print(f"| {name} | {cases_run} | {taken} | {cases_run - taken} | 0 |")


if __name__ == "__main__":
    main()
