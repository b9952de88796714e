"""The UNet that sees x_t and x_lq and predicts residual and noise; it knows no schedule and no loss.

The architecture is DiffUIR's (Zheng et al., CVPR 2024), so that its published weights fit (see `diffuir.py`).
"""

import copy
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bdg.networks.blocks import GROUPS, Attention, LinearAttention, ResBlock, SinCos


class Down(nn.Module):
    """One level on the way down. Returns what goes on, and the two skips that the way up will want."""

    def __init__(self, width: int, width_out: int, time_width: int, heads: int, halve: bool) -> None:
        super().__init__()
        self.res1 = ResBlock(width, width, time_width)
        self.res2 = ResBlock(width, width, time_width)
        self.attention = LinearAttention(width, heads)
        self.resample = nn.Conv2d(width, width_out, 4, 2, 1) if halve else nn.Conv2d(width, width_out, 3, 1, 1)

    def forward(self, x: Tensor, time: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        first = self.res1(x, time)
        second = self.attention(self.res2(first, time))
        return self.resample(second), (first, second)


class Mid(nn.Module):
    """The coarsest level."""

    def __init__(self, width: int, time_width: int, heads: int) -> None:
        super().__init__()
        self.res1 = ResBlock(width, width, time_width)
        self.attention = Attention(width, heads)
        self.res2 = ResBlock(width, width, time_width)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.res2(self.attention(self.res1(x, time)), time)


class Up(nn.Module):
    """One level on the way up, with the skips of its level."""

    def __init__(self, width: int, width_out: int, time_width: int, heads: int, double: bool) -> None:
        super().__init__()
        self.res1 = ResBlock(width + width_out, width, time_width)
        self.res2 = ResBlock(width + width_out, width, time_width)
        self.attention = LinearAttention(width, heads)
        self.enlarge = nn.Upsample(scale_factor=2) if double else nn.Identity()
        self.resample = nn.Conv2d(width, width_out, 3, 1, 1)

    def forward(self, x: Tensor, skips: tuple[Tensor, Tensor], time: Tensor) -> Tensor:
        first, second = skips
        x = self.res1(torch.cat((x, second), dim=1), time)
        x = self.res2(torch.cat((x, first), dim=1), time)
        return self.resample(self.enlarge(self.attention(x)))


class UNet(nn.Module):
    """(x_t, x_lq, time) -> (prediction, features).

    dim: width of the first level, a multiple of 8. mults: width of each level's output in multiples of dim, one per level;
    the last level keeps the resolution.
    heads: of every attention, 32 wide each; DiffUIR has 4. At small dim they are most of the cost.
    in_channels: x_t and x_lq together. out_channels: as many for [residual | noise], half as many for the residual alone.

    With both heads, the x_lq slice of the first convolution and the residual rows of the last start at zero: a fresh network
    ignores x_lq and predicts no residual, so bridging begins with the noise estimate that generation ended with.
    """

    def __init__(
        self, dim: int, mults: Sequence[int], in_channels: int = 6, out_channels: int = 6, heads: int = 4
    ) -> None:
        super().__init__()
        _check(dim, mults, in_channels, out_channels, heads)
        self.in_channels = in_channels
        self.pad_to = 2 ** len(mults)  # one halving more than there are: kept, since DiffUIR's weights were trained so
        time_width = 4 * dim
        levels = list(pairwise([dim, *(dim * mult for mult in mults)]))
        last = len(levels) - 1
        self.init_conv = nn.Conv2d(in_channels, dim, 7, padding=3)
        self.time_mlp = nn.Sequential(
            SinCos(dim), nn.Linear(dim, time_width), nn.GELU(), nn.Linear(time_width, time_width)
        )
        self.downs = nn.ModuleList(Down(a, c, time_width, heads, halve=i < last) for i, (a, c) in enumerate(levels))
        self.mid = Mid(dim * mults[-1], time_width, heads)
        self.ups = nn.ModuleList(
            Up(c, a, time_width, heads, double=i < last) for i, (a, c) in enumerate(reversed(levels))
        )
        self.final_res = ResBlock(2 * dim, dim, time_width)
        self.final_conv = nn.Conv2d(dim, out_channels, 1)
        self.widths = {f"down{i}": c for i, (_, c) in enumerate(levels)}
        self.widths |= {"mid": dim * mults[-1]}
        self.widths |= {f"up{i}": a for i, (a, _) in enumerate(reversed(levels))}
        if out_channels == in_channels:
            self._start_blind()

    def feature_widths(self) -> dict[str, int]:
        """Channels of each block's output, by the block's name: down0 .., mid, up0 .. in the order they are computed."""
        return dict(self.widths)

    def forward(
        self,
        x_t: Float[Tensor, "b c h w"],
        x_lq: Float[Tensor, "b c h w"],
        time: Float[Tensor, " b"],
        features: Sequence[str] = ("mid",),
    ) -> tuple[Float[Tensor, "b out h w"], dict[str, Tensor]]:
        """Any h and w: padded at the right and the bottom, and the prediction is cropped again.

        time: in 0 .. 1000 and not rounded. features: names of blocks whose output to return; "mid" is the paper's F_diff.
        They are as large as the padded image makes them.
        """
        unknown = [name for name in features if name not in self.widths]
        if unknown:
            raise ValueError(f"features={unknown}: no such block in this network; choose from {list(self.widths)}")
        h, w = x_t.shape[2:]
        found: dict[str, Tensor] = {}

        def keep(name: str, output: Tensor) -> Tensor:
            if name in features:
                found[name] = output
            return output

        x = start = self.init_conv(self._padded(torch.cat((x_t, x_lq), dim=1)))
        time = self.time_mlp(time)
        skips = []
        for i, down in enumerate(self.downs):
            x, pair = down(x, time)
            keep(f"down{i}", x)
            skips.append(pair)
        x = keep("mid", self.mid(x, time))
        for i, up in enumerate(self.ups):
            x = keep(f"up{i}", up(x, skips.pop(), time))
        x = self.final_conv(self.final_res(torch.cat((x, start), dim=1), time))
        return x[..., :h, :w], found

    def fold(self) -> "UNet":
        """A frozen copy for inference with the kernels standardised once instead of in every call.

        A copy, not a cache: training goes on, weights are loaded and averages are swapped in without it noticing. Its
        state_dict has the same names but other values, so save this network's and not the copy's.
        """
        network = copy.deepcopy(self)
        for module in network.modules():
            if isinstance(module, ResBlock):
                module.fold()
        network.eval().requires_grad_(False)
        on_cpu = self.final_conv.weight.device.type == "cpu"
        return network.to(memory_format=torch.channels_last) if on_cpu else network  # type: ignore[call-overload]

    def _start_blind(self) -> None:
        half = self.in_channels // 2
        assert self.final_conv.bias is not None
        with torch.no_grad():
            self.init_conv.weight[:, half:] = 0
            self.final_conv.weight[:half] = 0
            self.final_conv.bias[:half] = 0

    def _padded(self, x: Tensor) -> Tensor:
        """Reflected to multiples of pad_to; an image narrower than what it lacks has too little to reflect: edge repeated."""
        _, c, h, w = x.shape
        if c != self.in_channels:
            raise ValueError(f"x_t and x_lq have {c} channels together, but this network takes {self.in_channels}")
        bottom, right = -h % self.pad_to, -w % self.pad_to
        x = F.pad(x, (0, right, 0, bottom), "reflect" if bottom < h and right < w else "replicate")
        # CPU convolutions, norms and attention are all faster so; CUDA's group norm would copy back at every call.
        return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else x


def _check(dim: int, mults: Sequence[int], in_channels: int, out_channels: int, heads: int) -> None:
    if dim < GROUPS or dim % GROUPS:
        raise ValueError(f"dim={dim}: choose a multiple of {GROUPS}, the number of groups in each norm")
    if not mults or min(mults) < 1:
        raise ValueError(f"mults={list(mults)}: give one whole number from 1 per level, e.g. [1, 2, 2, 4]")
    if in_channels < 2 or in_channels % 2:
        raise ValueError(f"in_channels={in_channels}: x_t and x_lq together, so twice an image's channels, e.g. 6")
    if out_channels not in (in_channels, in_channels // 2):
        raise ValueError(
            f"out_channels={out_channels}: choose {in_channels} for residual and noise, or {in_channels // 2} for residual"
        )
    if heads < 1:
        raise ValueError(f"heads={heads}: every attention needs at least one, e.g. 4")
