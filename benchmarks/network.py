"""The UNet against a straightforward implementation of the same equations: same results, side by side, in one run.

    python benchmarks/network.py           # forward, and forward + backward, at sizes T and L
    python benchmarks/network.py demo      # training steps of small networks: what the demo can afford

Prints markdown. `Straightforward` writes the architecture down literally, under DiffUIR's names, so that `from_diffuir`
reads its weights and both compute the same function; that they do is checked before anything is timed.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from circumstances import circumstances
from torch import Tensor, nn

from bdg.networks.diffuir import PREFIX, from_diffuir
from bdg.networks.unet import UNet

SIZES = {"T": (32, (1, 1, 1, 1)), "S": (32, (1, 2, 2, 4)), "B": (64, (1, 2, 2, 4)), "L": (64, (1, 2, 4, 8))}
# (dim, mults, heads) for the demo
CANDIDATES = [
    (8, (1, 2, 4, 8), 1),
    (16, (1, 1, 2, 2), 4),
    (16, (1, 2, 4), 4),
    (16, (1, 2, 2, 4), 4),
    (16, (1, 2, 2, 4), 1),
    (16, (1, 2, 4, 4), 1),
    (24, (1, 1, 2, 2), 4),
    (24, (1, 1, 2, 2), 1),
    (32, (1, 1, 1, 1), 4),
]


class StandardisedConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        variance = self.weight.var((1, 2, 3), unbiased=False, keepdim=True)
        weight = (self.weight - mean) * (variance + 1e-5).rsqrt()
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class ChannelNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        variance = x.var(1, unbiased=False, keepdim=True)
        return (x - x.mean(1, keepdim=True)) * (variance + 1e-5).rsqrt() * self.g


class Block(nn.Module):
    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.proj = StandardisedConv(width_in, width, 3, padding=1)
        self.norm = nn.GroupNorm(8, width)

    def forward(self, x: Tensor, film: tuple[Tensor, Tensor] | None = None) -> Tensor:
        x = self.norm(self.proj(x))
        if film is not None:
            x = x * (film[0] + 1) + film[1]
        return F.silu(x)


class Res(nn.Module):
    def __init__(self, width_in: int, width: int, time_width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(time_width, 2 * width))
        self.block1 = Block(width_in, width)
        self.block2 = Block(width, width)
        self.res_conv = nn.Conv2d(width_in, width, 1) if width_in != width else nn.Identity()

    def forward(self, x: Tensor, time_: Tensor) -> Tensor:
        scale, shift = self.mlp(time_)[:, :, None, None].chunk(2, 1)
        return self.block2(self.block1(x, (scale, shift))) + self.res_conv(x)


class Linear(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_qkv = nn.Conv2d(width, 384, 1, bias=False)
        self.to_out = nn.Sequential(nn.Conv2d(128, width, 1), ChannelNorm(width))

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        q, k, v = self.to_qkv(x).reshape(b, 3, 4, 32, h * w).unbind(1)
        q = q.softmax(-2) * 32**-0.5
        k = k.softmax(-1)
        context = torch.einsum("bhdn,bhen->bhde", k, v / (h * w))
        return self.to_out(torch.einsum("bhde,bhdn->bhen", context, q).reshape(b, 128, h, w))


class Full(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_qkv = nn.Conv2d(width, 384, 1, bias=False)
        self.to_out = nn.Conv2d(128, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        q, k, v = self.to_qkv(x).reshape(b, 3, 4, 32, h * w).unbind(1)
        weights = torch.einsum("bhdi,bhdj->bhij", q * 32**-0.5, k).softmax(-1)
        return self.to_out(torch.einsum("bhij,bhdj->bhdi", weights, v).reshape(b, 128, h, w))


class PreNorm(nn.Module):
    def __init__(self, width: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = ChannelNorm(width)
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.norm(x))


class Residual(nn.Module):
    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x) + x


class SinCos(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.half = width // 2

    def forward(self, time_: Tensor) -> Tensor:
        angle = time_[:, None] * torch.exp(torch.arange(self.half) * (-math.log(10000) / (self.half - 1)))
        return torch.cat((angle.sin(), angle.cos()), 1)


class Straightforward(nn.Module):
    """The UNet as the equations have it: NCHW, one operation per symbol, DiffUIR's names."""

    def __init__(self, dim: int, mults: tuple[int, ...], in_channels: int = 6, out_channels: int = 6) -> None:
        super().__init__()
        widths = [dim, *(dim * m for m in mults)]
        pairs = list(pairwise(widths))
        time_width = 4 * dim
        self.init_conv = nn.Conv2d(in_channels, dim, 7, padding=3)
        self.time_mlp = nn.Sequential(
            SinCos(dim), nn.Linear(dim, time_width), nn.GELU(), nn.Linear(time_width, time_width)
        )
        self.downs = nn.ModuleList()
        for i, (a, c) in enumerate(pairs):
            last = i == len(pairs) - 1
            resample = nn.Conv2d(a, c, 3, padding=1) if last else nn.Conv2d(a, c, 4, 2, 1)
            attention = Residual(PreNorm(a, Linear(a)))
            self.downs.append(nn.ModuleList([Res(a, a, time_width), Res(a, a, time_width), attention, resample]))
        self.mid_block1 = Res(widths[-1], widths[-1], time_width)
        self.mid_attn = Residual(PreNorm(widths[-1], Full(widths[-1])))
        self.mid_block2 = Res(widths[-1], widths[-1], time_width)
        self.ups = nn.ModuleList()
        for i, (a, c) in enumerate(reversed(pairs)):
            last = i == len(pairs) - 1
            conv = nn.Conv2d(c, a, 3, padding=1)
            resample = conv if last else nn.Sequential(nn.Upsample(scale_factor=2), conv)
            attention = Residual(PreNorm(c, Linear(c)))
            self.ups.append(nn.ModuleList([Res(a + c, c, time_width), Res(a + c, c, time_width), attention, resample]))
        self.final_res_block = Res(2 * dim, dim, time_width)
        self.final_conv = nn.Conv2d(dim, out_channels, 1)

    def forward(self, x_t: Tensor, x_lq: Tensor, time_: Tensor) -> Tensor:
        h, w = x_t.shape[-2:]
        multiple = 2 ** len(self.downs)
        x = F.pad(torch.cat((x_t, x_lq), 1), (0, -w % multiple, 0, -h % multiple), "reflect")
        x = r = self.init_conv(x)
        time_ = self.time_mlp(time_)
        skips = []
        for res1, res2, attention, resample in self.downs:
            x = res1(x, time_)
            skips.append(x)
            x = attention(res2(x, time_))
            skips.append(x)
            x = resample(x)
        x = self.mid_block2(self.mid_attn(self.mid_block1(x, time_)), time_)
        for res1, res2, attention, resample in self.ups:
            x = res1(torch.cat((x, skips.pop()), 1), time_)
            x = res2(torch.cat((x, skips.pop()), 1), time_)
            x = resample(attention(x))
        return self.final_conv(self.final_res_block(torch.cat((x, r), 1), time_))[..., :h, :w]


def same_function(straightforward: Straightforward) -> UNet:
    """Our UNet with the straightforward implementation's weights."""
    return from_diffuir({PREFIX + name: w for name, w in straightforward.state_dict().items()})


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def seconds(functions: dict[str, Callable[[], object]], rounds: int, clock: str) -> dict[str, float]:
    """Median time of each, taken in turns so that what else the machine does hits all alike; the first round warms up."""
    now = CLOCKS[clock]
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            start = now()
            function()
            times[name].append(now() - start)
    return {name: statistics.median(t[1:]) for name, t in times.items()}


def forward(network: Callable[..., object], given: tuple[Tensor, Tensor, Tensor]) -> Callable[[], object]:
    def run() -> None:
        with torch.no_grad():
            network(*given)

    return run


def training_step(network: nn.Module, given: tuple[Tensor, Tensor, Tensor]) -> Callable[[], object]:
    def run() -> None:
        network.zero_grad()
        output = network(*given)
        prediction = output[0] if isinstance(output, tuple) else output
        prediction.abs().mean().backward()

    return run


def given(batch: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    x_t, x_lq = torch.randn(2, batch, 3, size, size)
    return x_t, x_lq, 1000 * torch.rand(batch)


def compare(size: str, batch: int, pixels: int, rounds: int, clock: str) -> None:
    """One size: agreement first, then forward and forward + backward of both implementations."""
    dim, mults = SIZES[size]
    straightforward = Straightforward(dim, mults)
    ours, images = same_function(straightforward), given(batch, pixels)
    folded = ours.fold()
    with torch.no_grad():
        error = (ours(*images)[0] - straightforward(*images)).abs().max().item()
    assert error < 1e-4, f"size {size}: the two implementations differ by {error}"
    forwards = {
        "straightforward": forward(straightforward, images),
        "ours": forward(ours, images),
        "ours, folded": forward(folded, images),
    }
    trainings = {"straightforward": training_step(straightforward, images), "ours": training_step(ours, images)}
    for what, functions in (("forward", forwards), ("forward + backward", trainings)):
        medians = seconds(functions, rounds, clock)
        for name, median in medians.items():
            ratio = medians["straightforward"] / median
            print(
                f"| {size} | {batch} x {pixels}x{pixels} | {what} | {name} | {median:.3f} | {ratio:.2f} | {error:.0e} |",
                flush=True,
            )


def candidates(batch: int, pixels: int, rounds: int, clock: str) -> None:
    """Training steps of small networks, in turns."""
    networks = {
        f"{dim} | {','.join(map(str, mults))} | {heads}": UNet(dim, mults, heads=heads)
        for dim, mults, heads in CANDIDATES
    }
    images = given(batch, pixels)
    steps = seconds({name: training_step(network, images) for name, network in networks.items()}, rounds, clock)
    forwards = seconds({name: forward(network.fold(), images) for name, network in networks.items()}, rounds, clock)
    for name, network in networks.items():
        parameters = sum(w.numel() for w in network.parameters())
        print(f"| {name} | {parameters:,} | {4e-6 * parameters:.2f} | {steps[name]:.3f} | {forwards[name]:.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["sizes", "demo"], default="sizes")
    parser.add_argument("--sizes", nargs="+", default=["T", "L"], choices=SIZES)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--pixels", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: for one thread on a busy machine")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    began = time.perf_counter()
    if args.what == "sizes":
        print(f"| size | input | what | implementation | median {args.clock} s | ratio | largest difference |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for size in args.sizes:
            compare(size, args.batch or 1, args.pixels or 256, args.rounds, args.clock)
    else:
        print(
            f"| dim | mults | heads | parameters | MB float32 | training step {args.clock} s | forward {args.clock} s |"
        )
        print("| --- | --- | --- | --- | --- | --- | --- |")
        candidates(args.batch or 16, args.pixels or 64, args.rounds, args.clock)
    took = f"{args.threads} threads, float32, {args.rounds} rounds, {time.perf_counter() - began:.0f} s"
    print(f"\n{circumstances('torch')} {took}.")


if __name__ == "__main__":
    main()
