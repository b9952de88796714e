"""MAS-GLCM against skimage's loop: time per image on one core, error, and work memory. Linux only.

    OMP_NUM_THREADS=1 python benchmarks/glcm.py > benchmarks/glcm_<date>.md

32 images of 256x256 pixels, 9 angles x 6 scales, one thread. Per round every contestant takes the whole batch once, in
turn, so that a busy machine slows all alike; medians over the rounds. `graycomatrix` is skimage's loop over offsets and
pixels without normalising or averaging; "normed, mean" is skimage's way to the matrix that `glcm` returns.
"""

import ctypes
import math
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import skimage.data
import torch
from circumstances import circumstances
from skimage.feature import graycomatrix

from bdg.glcm import MasGlcm, glcm, quantise, to_gray

ROUNDS = 7
BATCH, SIZE = 32, 256
ANGLES = [k * math.pi / 8 for k in range(9)]
SCALES = [1, 2, 3, 4, 5, 6]
PHOTOGRAPHS = [
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "moon",
    "retina",
    "rocket",
]


def photographs(rng: np.random.Generator) -> torch.Tensor:
    """uint8 luma, b h w: crops at random places of the photographs in scikit-image's wheel."""
    crops = []
    for k in range(BATCH):
        picture = getattr(skimage.data, PHOTOGRAPHS[k % len(PHOTOGRAPHS)])()
        y, x = (rng.integers(0, extent - SIZE + 1) for extent in picture.shape[:2])
        patch = torch.from_numpy(np.atleast_3d(picture)[y : y + SIZE, x : x + SIZE].copy())
        crops.append(to_gray(patch.permute(2, 0, 1)[None])[0, 0])
    return torch.stack(crops)


def image_sets() -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(0)
    photos = photographs(rng)
    noisy = (photos.numpy() + rng.normal(0, 25, photos.shape)).clip(0, 255).astype(np.uint8)
    noise = rng.integers(0, 256, photos.shape, dtype=np.uint8)
    return {
        "photographs": photos,
        "the same, noise sigma 25": torch.from_numpy(noisy),
        "random": torch.from_numpy(noise),
    }


def medians(contestants: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Milliseconds per image."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(ROUNDS):
        for name, contestant in contestants.items():
            begin = time.perf_counter()
            contestant()
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(times) / BATCH * 1e3 for name, times in seconds.items()}


def peak_memory_mb(work: Callable[[], object]) -> float:
    """How far the process's memory rises above its level before `work`, with what was freed before given back."""

    def status(key: str) -> float:
        return int(re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024

    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    work()
    return status("VmHWM") - before


def speed_row(name: str, images: torch.Tensor, levels: int) -> str:
    gray = quantise(images, levels)
    arrays = list(gray.numpy())
    groups = MasGlcm(levels, ANGLES, SCALES).groups

    def skimage_result() -> np.ndarray:
        return np.stack([graycomatrix(a, SCALES, ANGLES, levels, normed=True).mean((2, 3)) for a in arrays])

    error = np.abs(glcm(gray, groups, levels)[:, 0].numpy() - skimage_result()).max()
    ms = medians(
        {
            "bdg": lambda: glcm(gray, groups, levels),
            "loop": lambda: [graycomatrix(a, SCALES, ANGLES, levels) for a in arrays],
            "mean": skimage_result,
        }
    )
    return (
        f"| {name} | {levels} | {ms['bdg']:.2f} | {ms['loop']:.2f} | {ms['mean']:.2f} "
        f"| {ms['loop'] / ms['bdg']:.2f}x | {ms['mean'] / ms['bdg']:.2f}x | {error:.0e} |"
    )


def memory_row(levels: int) -> str:
    """RGB float32 in, what the encoder sees out."""
    descriptor, images = MasGlcm(levels, ANGLES, SCALES), torch.rand(BATCH, 3, SIZE, SIZE) * 2 - 1
    descriptor(images[:1, :, :16, :16])  # loads code, not data
    one, batch = (peak_memory_mb(lambda b=b: descriptor(images[:b])) / b - levels**2 * 4 / 2**20 for b in (1, BATCH))
    return f"| {levels} | {one:.1f} | {batch:.1f} |"


def main() -> None:
    torch.set_num_threads(1)
    begin = time.perf_counter()
    memory = [memory_row(levels) for levels in (8, 32, 64, 256)]
    speed = [
        speed_row(name, images, levels) for name, images in image_sets().items() for levels in (8, 16, 32, 64, 256)
    ]
    print(
        f"# MAS-GLCM\n\n{circumstances('torch', 'scikit-image')} {time.perf_counter() - begin:.0f} s.\n\n"
        f"{BATCH} images of {SIZE}x{SIZE}, 9 angles x 6 scales, one thread, medians of {ROUNDS} rounds in turn.\n\n"
        "| images | levels | bdg ms/image | graycomatrix ms/image | normed, mean ms/image "
        "| faster than graycomatrix | than normed, mean | largest error |\n|---|---|---|---|---|---|---|---|"
    )
    print(*speed, sep="\n")
    print("\nWork memory per image beside input and output, from RGB images to the encoder's input.\n")
    print(f"| levels | MB, a single image | MB, one of {BATCH} |\n|---|---|---|", *memory, sep="\n")


if __name__ == "__main__":
    main()
