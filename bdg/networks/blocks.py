"""The parts of the UNet: residual block, two attentions, time embedding; none knows its place in the network.

Images come and go as `b c h w` in any memory format. eps is 1e-5 everywhere. Under autocast the statistics of norm and
softmax are float32: torch computes them so on every device, whatever it reads and writes.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

GROUPS = 8
HEAD_WIDTH = 32


class SinCos(nn.Module):
    """time -> [sin(f_i time), cos(f_i time)] with f_i = exp(-i ln 10000 / (width / 2 - 1)), i = 0 .. width / 2 - 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, time: Float[Tensor, " b"]) -> Float[Tensor, "b width"]:
        half = self.width // 2
        i = torch.arange(half, device=time.device)
        angle = time[:, None] * torch.exp(i * (-math.log(10_000) / (half - 1)))
        return torch.cat((angle.sin(), angle.cos()), dim=1)


class StandardisedConv(nn.Conv2d):
    """A convolution whose kernels are brought to mean 0 and (biased) variance 1 per output channel before use."""

    def kernels(self) -> Float[Tensor, "c_out c_in k k"]:
        # (w - mean) * rsqrt(variance + eps) is what layer norm computes, in one fused call with a fused backward.
        return F.layer_norm(self.weight, self.weight.shape[1:], eps=1e-5)

    def forward(self, x: Float[Tensor, "b c_in h w"]) -> Float[Tensor, "b c_out h w"]:
        return F.conv2d(x, self.kernels(), self.bias, self.stride, self.padding)

    def folded(self) -> nn.Conv2d:
        """A plain convolution that computes the same: its weights are these kernels."""
        conv = nn.Conv2d(self.in_channels, self.out_channels, self.kernel_size, padding=self.padding, device="meta")  # type: ignore[arg-type]
        conv.weight, conv.bias = nn.Parameter(self.kernels().detach()), self.bias
        return conv


class ResBlock(nn.Module):
    """conv, norm, FiLM from time, SiLU; conv, norm, SiLU; plus the input. FiLM: x (scale + 1) + shift per channel."""

    conv1: nn.Conv2d
    conv2: nn.Conv2d

    def __init__(self, width_in: int, width: int, time_width: int) -> None:
        super().__init__()
        self.film = nn.Linear(time_width, 2 * width)
        self.conv1 = StandardisedConv(width_in, width, 3, padding=1)
        self.norm1 = nn.GroupNorm(GROUPS, width)
        self.conv2 = StandardisedConv(width, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(GROUPS, width)
        self.shortcut = nn.Identity() if width_in == width else nn.Conv2d(width_in, width, 1)

    def forward(self, x: Float[Tensor, "b c_in h w"], time: Float[Tensor, "b d"]) -> Float[Tensor, "b c_out h w"]:
        scale, shift = self.film(F.silu(time))[:, :, None, None].chunk(2, dim=1)
        y = F.silu(self.norm1(self.conv1(x)) * (scale + 1) + shift)
        return F.silu(self.norm2(self.conv2(y))) + self.shortcut(x)

    def fold(self) -> None:
        """Replace the standardised convolutions by plain ones, for good."""
        self.conv1, self.conv2 = (
            c.folded() if isinstance(c, StandardisedConv) else c for c in (self.conv1, self.conv2)
        )


class LinearAttention(nn.Module):
    """x + norm(out(attention(norm(x)))), at a cost that grows with the number of pixels n = h w and not with its square.

    With y = norm(x), d x n matrices q = W_q y, k = W_k y, v = W_v y per head (d = 32) and softmax over features for q, over
    pixels for k, the textbook computes

        context = softmax(k) (v / n)^T                  d x d
        out     = W_o context^T softmax(q) / sqrt(d)    c x n

    The same product in another order needs neither v nor context^T q at full size; scales and W_v, W_o meet on the small side:

        mix = (softmax(k) y^T) W_v^T W_o^T / (n sqrt(d))    d x c
        out = mix^T softmax(q)
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, bias=False)
        self.qkv = nn.Linear(width, 3 * heads * HEAD_WIDTH, bias=False)
        self.out = nn.Linear(heads * HEAD_WIDTH, width)
        self.out_norm = nn.LayerNorm(width, bias=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        b, _, h, w = x.shape
        W_q, W_k, W_v = self.qkv.weight.chunk(3)
        W_v, W_o = (W.unflatten(0, (self.heads, HEAD_WIDTH)) for W in (W_v, self.out.weight.T))
        y = self.norm(_pixels(x))
        # d x n and not n x d, so that softmax over the pixels reads memory in order
        k = torch.bmm(W_k.expand(b, -1, -1), y.mT).softmax(dim=-1)
        context = (k @ y).unflatten(1, (self.heads, HEAD_WIDTH)) @ W_v.mT
        mix = (context / (h * w * math.sqrt(HEAD_WIDTH)) @ W_o).flatten(1, 2)
        del k  # q is as large
        q = F.linear(y, W_q).unflatten(2, (self.heads, HEAD_WIDTH)).softmax(dim=-1).flatten(2)
        return x + _image(self.out_norm(q @ mix + self.out.bias), h, w)


class Attention(nn.Module):
    """x + out(softmax(q k^T / sqrt(32)) v) with q, k, v from norm(x): every pixel sees every pixel."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, bias=False)
        self.qkv = nn.Linear(width, 3 * heads * HEAD_WIDTH, bias=False)
        self.out = nn.Linear(heads * HEAD_WIDTH, width)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        qkv = self.qkv(self.norm(_pixels(x))).unflatten(2, (3, self.heads, HEAD_WIDTH))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v)
        return x + _image(self.out(seen.transpose(1, 2).flatten(2)), *x.shape[2:])


def _pixels(x: Tensor) -> Tensor:
    """b c h w -> b (h w) c; a view if x is channels_last."""
    return x.flatten(2).mT


def _image(pixels: Tensor, h: int, w: int) -> Tensor:
    """b (h w) c -> b c h w; a channels_last view."""
    return pixels.mT.unflatten(2, (h, w))
