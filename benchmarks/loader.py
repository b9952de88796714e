"""The loader against pure decoding, over formats, decoders and numbers of shards; and a simulated set of ten million samples.

    OMP_NUM_THREADS=1 python benchmarks/loader.py > benchmarks/loader_<date>.md

Takes about 7 minutes and 2 GB in a temporary folder; what it does goes to stderr. A try of a minute: --seconds 0.2 --rounds 1
--pairs 1000 --shards 10 100 --samples 100000.

Pairs of 512 px images in tar shards, 256 px crops, as many workers as cores. "Pure decoding" is the same decoder in the same
number of processes, on bytes in memory, and nothing else. Loader and pure decoding take turns, so that a busy machine slows
both alike; medians over the rounds, of shares over the shares of each.
"""

import argparse
import importlib.util
import io
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch
from circumstances import circumstances
from PIL import Image

from bdg.glcm import MasGlcm
from datamodules import index as index_file
from datamodules import shards
from datamodules.images import decode
from datamodules.restoration import RestorationData, keep_freed_memory
from datamodules.shards import Sample

PHOTOGRAPHS = sorted((Path(shards.__file__).parent / "photographs").glob("*.jpg"))
SIZE, CROP, BATCH = 512, 256, 20
PER_GPU = 250  # images a second that a GPU trains on
COSTS = ("making the index, us/sample", "opening the set, ms", "order, us/sample", "reading, us/sample")
FORMATS: dict[str, dict[str, object]] = {
    "png": {"format": "PNG"},
    "jpg": {"format": "JPEG", "quality": 95},
    "webp": {"format": "WEBP", "lossless": True},
}


def photographs(size: int) -> list[Image.Image]:
    """The photographs of the package, made square."""
    found = []
    for path in PHOTOGRAPHS:
        with Image.open(path) as image:
            side = min(image.size)
            found.append(image.convert("RGB").crop((0, 0, side, side)).resize((size, size), Image.Resampling.LANCZOS))
    return found


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **FORMATS[kind])  # type: ignore[arg-type]
    return buffer.getvalue()


def write_shards(folder: Path, images: Sequence[bytes], kind: str, num_shards: int, each: int) -> str:
    """Shards of pairs, both halves the same image; returns their pattern."""
    folder.mkdir(parents=True)
    info = json.dumps({"degradation": "none"}).encode()
    for shard in range(num_shards):
        with tarfile.open(folder / f"train-{shard:06d}.tar", "w") as tar:
            for i in range(each):
                image = images[(shard * each + i) % len(images)]
                for name, data in ((f"hq.{kind}", image), (f"lq.{kind}", image), ("json", info)):
                    header = tarfile.TarInfo(f"{shard:06d}_{i:06d}.{name}")
                    header.size = len(data)
                    tar.addfile(header, io.BytesIO(data))
    return f"{folder}/train-*.tar"


def data(pattern: str, workers: int, crop: int = CROP, **options: object) -> RestorationData:
    made = {"crop": crop, "flip": True, "batch_size": BATCH, "num_workers": workers, "seed": 0, **options}
    return RestorationData({"none": None}, pattern, val_crop=None, val_severities=None, **made)  # type: ignore[arg-type]


# --- decoders ---


def decoders() -> dict[str, Callable[[bytes], object]]:
    """Those that are here, for all formats or, with "JPEG" in their name, for that alone."""

    def pillow(data: bytes) -> object:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))

    def opencv(data: bytes) -> object:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)

    def cropped(data: bytes) -> object:
        return decode(data, box=(128, 128, CROP, CROP))

    def eighth(data: bytes) -> object:
        """Reads all of the compressed data, as decoding a part must, and makes 1 of 64 pixels of them."""
        with Image.open(io.BytesIO(data)) as image:
            image.draft("RGB", (SIZE // 8, SIZE // 8))
            return np.asarray(image)

    found = {
        "ours (Pillow, checked)": decode,
        f"ours, {CROP} px of it": cropped,
        "Pillow": pillow,
        "OpenCV": opencv,
        "Pillow, JPEG at 1/8": eighth,
    }
    if importlib.util.find_spec("simplejpeg"):
        import simplejpeg

        found["simplejpeg, JPEG"] = simplejpeg.decode_jpeg
    return found


def decoder_rows(images: dict[str, list[bytes]], rounds: int) -> list[str]:
    """Milliseconds of one core per image, with the memory of images given back to the system, and kept."""
    times: dict[tuple[str, str, bool], list[float]] = {}
    for kept in (False, True):
        if kept:
            keep_freed_memory()
        for _ in range(rounds):
            for name, decoder in decoders().items():
                for kind in [kind for kind in images if kind == "jpg" or "JPEG" not in name]:
                    begin = time.process_time()
                    for data_ in images[kind]:
                        decoder(data_)
                    times.setdefault((name, kind, kept), []).append(
                        (time.process_time() - begin) / len(images[kind]) * 1e3
                    )
    rows = []
    for name in decoders():
        cells = []
        for kind in images:
            before, after = (times.get((name, kind, kept)) for kept in (False, True))
            cells.append(
                f"{statistics.median(before):.2f} / {statistics.median(after):.2f}" if before and after else ""
            )
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


# --- the loader beside pure decoding ---


def decode_for(images: Sequence[bytes], seconds: float, done: object) -> None:
    cv2.setNumThreads(0)
    keep_freed_memory()
    number, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        decode(images[number % len(images)])
        number += 1
    done.put(number)  # type: ignore[attr-defined]


def pure_speed(images: Sequence[bytes], workers: int, seconds: float) -> float:
    """Images per second, decoded by so many processes."""
    context = multiprocessing.get_context("fork")
    done = context.SimpleQueue()
    processes = [context.Process(target=decode_for, args=(images, seconds, done)) for _ in range(workers)]
    for process in processes:
        process.start()
    total = sum(done.get() for _ in processes)
    for process in processes:
        process.join()
    return total / seconds


def loader_speed(batches: Iterator[dict], workers: int, seconds: float) -> float:
    """Images per second, two for each pair, after what the workers have made ahead."""
    for _ in islice(batches, 4 * max(1, workers)):
        pass
    number, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        number += 2 * len(next(batches)["key"])
    return number / (time.perf_counter() - begin)


def speed_row(kind: str, images: list[bytes], folder: Path, workers: int, seconds: float, rounds: int) -> str:
    pattern = write_shards(folder / kind, images, kind, 10, 48)
    readers = {reader: iter(data(pattern, workers, reader=reader).stream()) for reader in ("indexed", "stream")}
    speeds: dict[str, list[float]] = {"pure": [], **{reader: [] for reader in readers}}
    for _ in range(rounds):
        speeds["pure"].append(pure_speed(images, workers, seconds))
        for reader, batches in readers.items():
            speeds[reader].append(loader_speed(batches, workers, seconds))
    shares = [
        statistics.median(s / p for s, p in zip(speeds[reader], speeds["pure"], strict=True)) for reader in readers
    ]
    kilobytes = sum(map(len, images)) / len(images) / 1e3
    cells = [
        f"{kilobytes:.0f}",
        *(f"{statistics.median(s):.0f}" for s in speeds.values()),
        *(f"{s:.0%}" for s in shares),
    ]
    return f"| {kind} | {' | '.join(cells)} |"


# --- growing numbers of shards ---


def shard_row(folder: Path, num_shards: int, pairs: int, workers: int, seconds: float, rounds: int) -> str:
    """Pairs of 64 px, so that nearly all of the time is the loader's own."""
    images = [encoded(image, "jpg") for image in photographs(64)]
    pattern = write_shards(folder / f"{num_shards}", images, "jpg", num_shards, pairs // num_shards)
    made = {reader: data(pattern, workers, crop=48, reader=reader) for reader in ("indexed", "stream")}
    begin = time.perf_counter()
    cases = made["indexed"].plan(0, 0, 1, 1).cases
    indexing = (time.perf_counter() - begin) / len(cases.samples) * 1e6
    begin = time.perf_counter()
    made["stream"].plan(0, 0, 1, 1)
    opening = (time.perf_counter() - begin) * 1e3
    drawn: list[Sample] = []
    order = microseconds(lambda i: drawn.append(cases[i].sample), range(3000))
    reading = microseconds(shards.read, drawn)
    batches = {reader: iter(each.stream()) for reader, each in made.items()}
    speeds = [[loader_speed(each, workers, seconds) for each in batches.values()] for _ in range(rounds)]
    costs = (indexing, opening, order, reading, *map(statistics.median, zip(*speeds, strict=True)))
    return f"| {num_shards} | {' | '.join(f'{cost:.0f}' for cost in costs)} |"


def microseconds(function: Callable, arguments: Sequence) -> float:
    begin = time.perf_counter()
    for argument in arguments:
        function(argument)
    return (time.perf_counter() - begin) / len(arguments) * 1e6


# --- ten million samples ---

START = """
import json, re, sys, time
from datamodules.restoration import RestorationData

def memory():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024

before, begin = memory(), time.perf_counter()
data = RestorationData({"none": None}, sys.argv[1], crop=256, flip=True, batch_size=20, num_workers=0, val_crop=None,
                       val_severities=None, seed=0, window=json.loads(sys.argv[2]))
cases = data.plan(0, 0, 1, 1).cases
first = cases[0]
started = time.perf_counter() - begin
at_start, begin = memory(), time.perf_counter()
for i in range(5000):
    cases[i]
each = (time.perf_counter() - begin) / 5000
print(json.dumps([len(cases.samples), started, before, at_start, memory(), each * 1e6]))
"""


def simulate(folder: Path, num_samples: int, num_shards: int) -> str:
    """Indexes of shards of pairs that are not there, beside files that are as long."""
    folder.mkdir()
    each, sample = num_samples // num_shards, 4 * index_file.BLOCK
    rows, rng = np.zeros(each, index_file.row_type(12)), np.random.default_rng(0)
    rows["kind"], rows["hq"] = 2, np.arange(each) * sample
    rows["lq"], rows["info"] = rows["hq"] + 1024, rows["hq"] + 1536
    rows["hq_size"], rows["lq_size"], rows["info_size"] = 100, 100, 2
    rows["height"], rows["width"], rows["scale"] = SIZE, SIZE, 1
    for shard in range(num_shards):
        path = folder / f"train-{shard:06d}.tar"
        with path.open("wb") as file:
            file.truncate(each * sample)
        rows["key"] = [f"{shard:06d}{i:06d}" for i in range(each)]
        head = {
            "size": each * sample,
            "mtime_ns": path.stat().st_mtime_ns,
            "sha256": None,
            "labels": ["none"],
            "counts": [0, 0, each],
            "problems": [],
            "smallest": SIZE,
            "decoded_bytes": each * 6 * SIZE**2,
            "key_bytes": 12,
        }
        keys = rng.integers(1, 2**64, each, np.uint64)
        path.with_name(path.name + ".index").write_bytes(index_file.dump(head, keys, rows))
    return f"{folder}/train-*.tar"


def size_rows(folder: Path, num_samples: int, num_shards: int) -> list[str]:
    pattern, rows = simulate(folder, num_samples, num_shards), []
    for window in ("null", "16"):
        out = subprocess.run([sys.executable, "-c", START, pattern, window], capture_output=True, text=True, check=True)
        number, started, before, at_start, after, each = json.loads(out.stdout)
        rows.append(
            f"| {number} | {num_shards} | {window} | {started:.1f} | {before:.0f} | {at_start:.0f} | {after:.0f} | {each:.0f} |"
        )
    return rows


# --- MAS-GLCM in the workers or on the device ---


def glcm_rows(decoding_ms: float, rounds: int) -> list[str]:
    """What one core needs for the matrix of a crop, beside decoding a pair, and what a device needs."""
    crops = (
        torch.from_numpy(np.stack([np.asarray(image) for image in photographs(CROP)])).permute(0, 3, 1, 2) / 127.5 - 1
    )
    presets = {
        "paper": MasGlcm(),
        "stacked": MasGlcm(32, [k * np.pi / 4 for k in range(4)], [1, 2, 4, 8], "scales", "rgb", True),
    }
    rows = []
    for name, glcm in presets.items():
        glcm(crops[:1])
        times = []
        for _ in range(rounds):
            begin = time.process_time()
            for crop in crops:
                glcm(crop[None])
            times.append((time.process_time() - begin) / len(crops) * 1e3)
        ms = statistics.median(times)
        cores = [f"{gpus * PER_GPU * ms / 1e3:.1f}" for gpus in (1, 8)]
        device = device_ms(glcm, crops, rounds) if torch.cuda.is_available() else None
        share = ["", ""] if device is None else [f"{device:.3f}", f"{device * PER_GPU / 1e3:.1%}"]
        rows.append(f"| {name} | {ms:.1f} | {ms / (2 * decoding_ms):.0%} | {' | '.join([*cores, *share])} |")
    return rows


def device_ms(glcm: MasGlcm, crops: torch.Tensor, rounds: int) -> float:
    batch = crops.repeat(BATCH // len(crops), 1, 1, 1).cuda()
    times = []
    for _ in range(rounds + 1):  # the first one prepares
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(10):
            glcm(batch)
        torch.cuda.synchronize()
        times.append((time.perf_counter() - begin) / 10 / len(batch) * 1e3)
    return statistics.median(times[1:])


# --- the result file ---


def table(about: str, columns: Sequence[str], rows: Sequence[str]) -> None:
    print(f"\n{about}\n", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}", *rows, sep="\n", flush=True)


def step(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3, help="of each measurement of a speed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--pairs", type=int, default=20_000, help="in growing numbers of shards")
    parser.add_argument("--shards", type=int, nargs="+", default=[10, 1000, 10_000], help="those numbers")
    parser.add_argument("--samples", type=int, default=10_000_000, help="of the simulated set")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    workers, seconds, rounds, begin = options.workers, options.seconds, options.rounds, time.perf_counter()
    step("decoders")
    images = {kind: [encoded(image, kind) for image in photographs(SIZE)] for kind in FORMATS}
    decoding = decoder_rows(images, rounds)
    with tempfile.TemporaryDirectory() as name:
        folder, speeds, growing = Path(name), [], []
        for kind in FORMATS:
            step(f"loader and pure decoding, {kind}")
            speeds.append(speed_row(kind, images[kind], folder, workers, seconds, rounds))
        for number in options.shards:
            step(f"{number} shards")
            growing.append(shard_row(folder, number, options.pairs, workers, seconds, rounds))
        step(f"{options.samples} samples")
        simulated = size_rows(folder / "simulated", options.samples, options.shards[-1])
    step("MAS-GLCM")
    matrices = glcm_rows(microseconds(decode, images["jpg"] * 3) / 1e3, rounds)

    print(f"# The loader, {date.today()}\n\n{circumstances('torch', 'pillow', 'opencv-python-headless', 'webdataset')}")
    print(f"{time.perf_counter() - begin:.0f} s, {workers} workers, {rounds} rounds of {seconds:g} s.")
    table(
        f"Decoders, {SIZE} px, ms of one core per image; memory of images given back to the system / kept. What JPEG at 1/8 "
        f"takes, no decoder can save that makes only a part of the pixels; of the rest a crop of {CROP} px is a quarter.",
        ["decoder", *images],
        decoding,
    )
    table(
        f"Pairs of {SIZE} px, {CROP} px crops, batches of {BATCH}: images decoded in a second. Aim: 90 % of pure decoding.",
        ["format", "KB", "pure", "indexed", "stream", "indexed / pure", "stream / pure"],
        speeds,
    )
    table(
        f"{options.pairs} pairs of 64 px in more and more shards; the index is made, then found.",
        ["shards", *COSTS, "indexed, pairs/s", "stream, pairs/s"],
        growing,
    )
    table(
        "A simulated set; MB of the process before, at the start, and after 5000 samples were looked up. Aim: seconds, 500 MB.",
        ["samples", "shards", "window", "start, s", "before", "at the start", "after", "order and place, us/sample"],
        simulated,
    )
    table(
        f"MAS-GLCM of {CROP} px crops for GPUs that take {PER_GPU} images a second each: in the workers, whose cores 8 GPUs "
        f"share, or on the device{'' if torch.cuda.is_available() else ' (none was at hand)'}, which pays for its own.",
        [
            "glcm",
            "ms of a core",
            "of decoding a JPEG pair",
            "cores for 1 GPU",
            "for 8",
            "ms of the device",
            "of its time",
        ],
        matrices,
    )


if __name__ == "__main__":
    main()
