"""Degradations in images per second of one core, beside the same operations in albumentations and kornia where they exist.

    OMP_NUM_THREADS=1 python benchmarks/degradations.py > benchmarks/degradations_<date>.md

The rivals are no dependencies: pip install albumentations==2.0.8 kornia (the last albumentations under MIT); what is absent is
left out with a line that says so. Every contestant gets the same crops in the type that suits it best: ours float32 h w 3,
albumentations uint8 h w 3, kornia float32 1 3 h w. Draws and recipes count, decoding does not. CPU time of one thread, so that
a busy machine matters little; medians of rounds in which all take their turn.
"""

import argparse
import importlib
import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from circumstances import circumstances

import datamodules
from bdg.commands.compose import build, compose
from datamodules.images import decode

SIZES = (256, 400)
NUM_CROPS = 8
MEASURED = {"all": (), "cdd11": ("low", "rain", "low_haze_rain", "low_haze_snow"), "real_esrgan": ("order_8",)}
"""Choice of degradation -> its entries, or () for all of them."""
Work = Callable[[int], object]
"""Degrades crop i."""


def crops(size: int) -> list[np.ndarray]:
    """uint8 squares from the photographs of the package, those that are too small enlarged."""
    squares = []
    for path in sorted((Path(datamodules.__path__[0]) / "photographs").glob("*.jpg"))[:NUM_CROPS]:
        image = decode(path.read_bytes())
        enlarge = max(1, size / min(image.shape[:2]))
        image = cv2.resize(image, None, fx=enlarge, fy=enlarge, interpolation=cv2.INTER_CUBIC)
        squares.append(np.ascontiguousarray(image[:size, :size]))
    return squares


def ours(images: list[np.ndarray]) -> dict[str, Work]:
    """What is measured of the packaged degradations, each with parameters drawn from their whole range."""
    floats = [image.astype(np.float32) / np.float32(255) for image in images]
    rng = np.random.default_rng(0)
    nodes = {choice: compose("train", [f"degradation={choice}"]).degradation for choice in MEASURED}
    degradations = {
        name if choice == "all" else f"{choice} {name}": build(nodes[choice][name])
        for choice, names in MEASURED.items()
        for name in names or nodes[choice]
    }
    degradations["real_esrgan order_8, scale 1"] = build(nodes["real_esrgan"]["order_8"], scale=1)
    return {name: lambda i, degrade=degrade: degrade(floats[i], rng) for name, degrade in degradations.items()}


def of_albumentations(images: list[np.ndarray], a: Any) -> dict[str, Work]:
    noise = a.OneOf([a.GaussNoise(std_range=(1 / 255, 30 / 255), p=1), a.ShotNoise(scale_range=(0.01, 0.1), p=1)], p=1)
    order = [
        a.AdvancedBlur(blur_limit=(7, 21), p=1),
        a.RandomScale((-0.85, 0.5), p=1),
        noise,
        a.ImageCompression(quality_range=(30, 95), p=1),
    ]
    size = images[0].shape[0]
    transforms = {
        "rain": a.RandomRain(p=1),
        "haze": a.RandomFog(p=1),
        "blur": a.MotionBlur(blur_limit=(5, 19), p=1),
        "noise": a.GaussNoise(std_range=(10 / 255, 50 / 255), p=1),
        "snow": a.RandomSnow(method="texture", p=1),
        "jpeg": a.ImageCompression(quality_range=(10, 50), p=1),
        "downsample": a.Downscale(scale_range=(1 / 8, 1 / 2), p=1),
        "poisson": a.ShotNoise(scale_range=(0.003, 0.05), p=1),
        "real_esrgan order_8, scale 1": a.Compose([*order, *order, a.Resize(size, size, p=1)]),
    }
    return {name: lambda i, transform=transform: transform(image=images[i]) for name, transform in transforms.items()}


def of_kornia(images: list[np.ndarray], kornia: Any) -> dict[str, Work]:
    k = importlib.import_module("kornia.augmentation")
    tensors = [torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255 for image in images]
    transforms = {
        "rain": k.RandomRain(number_of_drops=(200, 900), drop_height=(9, 19), drop_width=(-5, 5), p=1),
        "blur": k.RandomMotionBlur(kernel_size=(5, 19), angle=90.0, direction=0.5, p=1),
        "noise": k.RandomGaussianNoise(std=0.12, p=1),
        "snow": k.RandomSnow(p=1),
        "jpeg": k.RandomJPEG(jpeg_quality=(10, 50), p=1),
    }
    return {name: lambda i, transform=transform: transform(tensors[i]) for name, transform in transforms.items()}


def rates(contestants: dict[str, Work], seconds: float, rounds: int) -> dict[str, float]:
    """Images per second of CPU time."""
    measured: dict[str, list[float]] = {name: [] for name in contestants}
    for work in contestants.values():
        work(0)  # what is loaded or compiled once
    for _ in range(rounds):
        for name, work in contestants.items():
            begin, done = time.process_time(), 0
            while time.process_time() - begin < seconds / rounds:
                work(done % NUM_CROPS)
                done += 1
            measured[name].append(done / (time.process_time() - begin))
    return {name: statistics.median(values) for name, values in measured.items()}


RIVALS = {"albumentations": of_albumentations, "kornia": of_kornia}


def rivals() -> dict[str, Any]:
    """The modules of those that are installed."""
    found = {}
    for package in RIVALS:
        with suppress(ImportError):
            found[package] = importlib.import_module(package)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3, help="CPU time for each contestant and size")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    warnings.simplefilter("ignore")  # rivals' deprecations
    begin = time.perf_counter()
    found = rivals()
    table: dict[str, dict[tuple[str, int], float]] = {}
    for size in SIZES:
        images = crops(size)
        teams = {"bdg": ours(images)} | {package: RIVALS[package](images, module) for package, module in found.items()}
        every = {(team, name): work for team, works in teams.items() for name, work in works.items()}
        for (team, name), rate in rates(every, options.seconds, options.rounds).items():
            table.setdefault(name, {})[team, size] = rate
    packages = ("numpy", "opencv-python-headless", "pillow", "torch", *found)
    print(
        f"# Degradations\n\n{circumstances(*packages)} {time.perf_counter() - begin:.0f} s.\n\n"
        f"Images per second of one core, medians of {options.rounds} rounds of {options.seconds / options.rounds:g} s.\n"
        + ("Of one name is what comes nearest, not the same: rivals' rain, for one, is some lines.\n" if found else "")
        + "".join(f"Not installed and left out: {package}.\n" for package in RIVALS if package not in found)
    )
    columns = [(team, size) for size in SIZES for team in ("bdg", *found)]
    print("|".join(["", "degradation", *(f"{team} {size} px" for team, size in columns), ""]))
    print("|---" * (len(columns) + 1) + "|")
    for name, row in table.items():
        print("|".join(["", name, *(f"{row[column]:.0f}" if column in row else "" for column in columns), ""]))


if __name__ == "__main__":
    main()
