"""Restoring with our networks against the straightforward ones: speed, memory, precision, tiles, side by side in one run.

    python benchmarks/restore.py           # sizes T, S and L; under nine minutes on two quiet cores
    python benchmarks/restore.py --quick   # the same on small images, in half a minute

Prints markdown. Both implementations have the same weights and restore the same image with the same noise and sampler; that
they agree is checked before anything is timed. Memory is what a call needs at its peak beyond what is held before it. Time is
linear in steps and nearly so in pixels, so images are small, and L, the slowest, takes few steps. What tiles change is measured
with the packaged weights on photographs of the package with a haze of ours: random weights would say nothing about it.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from circumstances import circumstances
from network import CLOCKS, SIZES, Full, PreNorm, Residual, Straightforward, same_function, seconds
from torch import Tensor, nn

import datamodules
from bdg import devices
from bdg.denoiser import Denoiser
from bdg.diffusion import Diffusion
from bdg.networks.blocks import Attention
from bdg.networks.unet import UNet
from bdg.restoration import Autocast, Restorer
from datamodules.degradations.haze import Haze
from datamodules.images import read_image

CPU = torch.device("cpu")
PHOTOGRAPHS = ("bridge.jpg", "hills.jpg")


@dataclass(frozen=True)
class Plan:
    """What a run measures.

    whole, tiled: steps by size. screen, camera: height and width of the image for attention and of the large picture.
    gaps: tiles to compare with the whole, on so many pixels of an edge of a photograph.
    """

    height: int
    width: int
    tile: int
    whole: dict[str, tuple[int, ...]]
    tiled: dict[str, tuple[int, ...]]
    rounds: int
    screen: tuple[int, int]
    camera: tuple[int, int]
    memory_gb: float
    gaps: tuple[int, ...]
    edge: int


FULL = Plan(
    *(160, 224, 128),
    whole={"T": (1, 2, 3, 10), "S": (1, 2, 3, 10), "L": (1, 3)},
    tiled={"T": (1, 3, 10), "S": (1, 3), "L": (1,)},
    rounds=3,
    screen=(720, 1280),
    camera=(3000, 4000),
    memory_gb=2.0,
    gaps=(64, 128, 256),
    edge=512,
)
QUICK = Plan(
    *(64, 96, 48),
    whole={"T": (1, 3), "S": (1,), "L": (1,)},
    tiled={"T": (1,), "S": (1,), "L": (1,)},
    rounds=1,
    screen=(180, 320),
    camera=(300, 400),
    memory_gb=0.8,
    gaps=(32, 64),
    edge=96,
)


class Reader(nn.Module):
    """A straightforward network, called as ours is."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_t: Tensor, x_lq: Tensor, time_: Tensor, features: object = ()) -> tuple[Tensor, dict]:
        return self.network(x_t, x_lq, time_), {}


def restorers(size: str) -> dict[str, Restorer]:
    """By implementation and precision; all compute the same function."""
    torch.manual_seed(0)
    straightforward = Straightforward(*SIZES[size])
    ours = same_function(straightforward).fold()
    networks = {"straightforward, float32": Reader(straightforward), "ours, float32": ours}
    networks["ours, bf16"] = Autocast(ours, "cpu")
    return {name: Restorer(Denoiser(network.eval(), Diffusion())) for name, network in networks.items()}


def measure(size: str, ours: dict[str, Restorer], steps: int, tile: int | None, plan: Plan, clock: str) -> None:
    """One size, with so many steps, whole or in tiles."""
    x_lq = torch.rand(1, 3, plan.height, plan.width) * 2 - 1
    calls = {name: partial(restorer, x_lq, ["a"], sample_steps=steps, tile=tile) for name, restorer in ours.items()}
    results, needed = zip(*map(observed, calls.values()), strict=True)
    differences = [(result - results[0]).abs().max().item() for result in results]
    for name, difference in zip(calls, differences, strict=True):
        assert difference < 1e-3 or "bf16" in name, f"size {size}: {name} differs by {difference}"
    times = seconds(calls, plan.rounds, clock)
    for name, difference, megabytes in zip(calls, differences, needed, strict=True):
        print(
            f"| {size} | {'whole' if tile is None else f'tiles of {tile}'} | {steps} | {name} | {times[name]:.3f} | "
            f"{1e-6 * plan.height * plan.width / times[name]:.3f} | "
            f"{times['straightforward, float32'] / times[name]:.2f} | {megabytes} | {difference:.0e} |",
            flush=True,
        )


def observed(call: Callable[[], Tensor]) -> tuple[Tensor, str]:
    """What the call returns, and the megabytes that it needs."""
    results: list[Tensor] = []
    needed = devices.needed_bytes(lambda: results.append(call()), CPU)
    return results[0], "unknown" if needed is None else f"{needed / 1e6:.0f}"


def attention(size: str, screen: tuple[int, int]) -> None:
    """The attention at the coarsest level for one image of a screen's size."""
    dim, mults = SIZES[size]
    width = dim * mults[-1]
    x = torch.randn(1, width, *(edge // 8 for edge in screen))
    modules = {"straightforward": Residual(PreNorm(width, Full(width))), "ours": Attention(width, 4)}
    for name, module in modules.items():
        with torch.inference_mode():
            module(x[..., :8, :8])
            began = time.perf_counter()
            _, needed = observed(partial(module, x))
        print(
            f"| {size} | {screen[1]}x{screen[0]} | {name} | {time.perf_counter() - began:.2f} | {needed} |", flush=True
        )


def tile_gaps(plan: Plan) -> None:
    """How far photographs restored in tiles are from the same restored whole, with the packaged weights and their sampler."""
    restorer = Restorer.load()
    for number, name in enumerate(PHOTOGRAPHS):
        photograph = read_image(Path(datamodules.__path__[0]) / "photographs" / name).to_srgb()
        hazy, _ = Haze(severity=4)(photograph[: plan.edge, : plan.edge], np.random.default_rng(number))
        x_lq = torch.from_numpy(hazy).permute(2, 0, 1)[None] * 2 - 1
        for tile in plan.gaps:
            gap = restorer.compare_tiled(x_lq, [name], tile=tile)
            print(
                f"| {name} | {gap.width}x{gap.height} | {gap.tile} | {gap.psnr:.2f} | {gap.seam_energy:.2f} |",
                flush=True,
            )


def large(height: int, width: int, memory_gb: float) -> None:
    """One step of size T on one large picture, by a process that may hold so much. Its peak is that of the process."""
    restorer = Restorer(Denoiser(UNet(*SIZES["T"]).fold(), Diffusion()))
    x_lq = torch.rand(1, 3, height, width) * 2 - 1
    tile = restorer.fitting_tile(height, width, memory_gb=memory_gb)
    expected = restorer.seconds(height, width, sample_steps=1, memory_gb=memory_gb)
    began = time.perf_counter()
    restorer(x_lq, ["a"], sample_steps=1, memory_gb=memory_gb)
    took, peak = time.perf_counter() - began, devices.peak_bytes()
    print(
        f"| {width}x{height} | {memory_gb} | {tile} | {expected:.0f} | {took:.0f} | {(peak or 0) / 1e9:.2f} |",
        flush=True,
    )


def header(*columns: str) -> None:
    print("", f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|", sep="\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small images, one round")
    parser.add_argument("--sizes", nargs="+", default=["T", "S", "L"], choices=FULL.whole)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: for one thread on a busy machine")
    parser.add_argument("--large", action="store_true", help="only the large picture, in this process")
    args = parser.parse_args()
    plan = QUICK if args.quick else FULL
    plan = replace(plan, rounds=args.rounds or plan.rounds)
    torch.set_num_threads(args.threads)
    if args.large:
        large(*plan.camera, plan.memory_gb)
        return
    began = time.perf_counter()
    how = f"median of {plan.rounds} rounds in turns, {args.threads} threads, {args.clock} seconds"
    print(f"One image of {plan.width}x{plan.height}, {how}.")
    header("size", "seen", "steps", "implementation", "s", "MP/s", "ratio", "MB", "largest difference")
    for size in args.sizes:
        ours = restorers(size)
        for tile, asked in ((None, plan.whole), (plan.tile, plan.tiled)):
            for steps in asked[size]:
                measure(size, ours, steps, tile, plan, args.clock)
    header("size", "image", "mid attention", "s", "MB")
    for size in args.sizes:
        attention(size, plan.screen)
    header("photograph, hazy", "image", "tile", "PSNR dB to the whole", "seam energy")
    tile_gaps(plan)
    header("image", "memory_gb", "tile", "expected s", "s", "peak GB of the process")
    sys.stdout.flush()
    options = ["--large", f"--threads={args.threads}", *(["--quick"] if args.quick else [])]
    subprocess.run([sys.executable, __file__, *options], check=True)
    print(f"\n{circumstances('torch')} {time.perf_counter() - began:.0f} s.")


if __name__ == "__main__":
    main()
