"""Restoring with our networks against the straightforward ones: speed, memory, precision, tiles, side by side in one run.

    python benchmarks/restore.py           # sizes T, S and L; under ten minutes on two quiet cores
    python benchmarks/restore.py --quick   # the same on small images, in a minute

Prints markdown. Both implementations have the same weights and restore the same image with the same noise and sampler; that
they agree is checked before anything is timed. Memory is what a call needs at its peak beyond what is held before it.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from circumstances import circumstances
from network import CLOCKS, SIZES, Full, PreNorm, Residual, Straightforward, same_function, seconds
from torch import Tensor, nn

from bdg import devices
from bdg.denoiser import Denoiser
from bdg.diffusion import Diffusion
from bdg.networks.blocks import Attention
from bdg.networks.unet import UNet
from bdg.restoration import Autocast, Restorer

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Plan:
    """What a run measures. steps: of T; S and L take the first of them. camera: height and width of the large picture."""

    height: int
    width: int
    tile: int
    steps: tuple[int, ...]
    rounds: int
    screen: tuple[int, int]
    camera: tuple[int, int]
    memory_gb: float


FULL = Plan(256, 384, 192, (1, 2, 5, 10), 3, (720, 1280), (3000, 4000), 2.0)
QUICK = Plan(96, 128, 64, (1, 3), 1, (360, 640), (640, 960), 0.8)


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


def measure(size: str, steps: int, tile: int | None, plan: Plan, clock: str) -> None:
    """One size, with so many steps, whole or in tiles."""
    x_lq = torch.rand(1, 3, plan.height, plan.width) * 2 - 1
    calls = {
        name: partial(restorer, x_lq, ["a"], sample_steps=steps, tile=tile)
        for name, restorer in restorers(size).items()
    }
    reference = calls["straightforward, float32"]()
    times = seconds(calls, plan.rounds, clock)
    for name, call in calls.items():
        difference = (call() - reference).abs().max().item()
        assert difference < 1e-3 or "bf16" in name, f"size {size}: {name} differs by {difference}"
        print(
            f"| {size} | {'whole' if tile is None else f'tiles of {tile}'} | {steps} | {name} | {times[name]:.3f} | "
            f"{1e-6 * plan.height * plan.width / times[name]:.3f} | "
            f"{times['straightforward, float32'] / times[name]:.2f} | {megabytes(call)} | {difference:.0e} |",
            flush=True,
        )


def megabytes(call: Callable[[], object]) -> str:
    needed = devices.needed_bytes(call, CPU)
    return "unknown" if needed is None else f"{needed / 1e6:.0f}"


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
            needed = megabytes(partial(module, x))
        print(
            f"| {size} | {screen[1]}x{screen[0]} | {name} | {time.perf_counter() - began:.2f} | {needed} |", flush=True
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
    parser.add_argument("--sizes", nargs="+", default=["T", "S", "L"], choices=SIZES)
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
        for steps in plan.steps if size == "T" else plan.steps[:1]:
            measure(size, steps, None, plan, args.clock)
        measure(size, 1, plan.tile, plan, args.clock)
    header("size", "image", "mid attention", "s", "MB")
    for size in args.sizes:
        attention(size, plan.screen)
    header("image", "memory_gb", "tile", "expected s", "s", "peak GB of the process")
    sys.stdout.flush()
    options = ["--large", f"--threads={args.threads}", *(["--quick"] if args.quick else [])]
    subprocess.run([sys.executable, __file__, *options], check=True)
    print(f"\n{circumstances('torch')} {time.perf_counter() - began:.0f} s.")


if __name__ == "__main__":
    main()
