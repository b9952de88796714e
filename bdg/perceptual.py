"""Measures that were fitted to what people see: LPIPS, DISTS, NIQE, and those of pyiqa where that is installed.

Their weights are other people's work and not part of the package: `bdg weights fetch NAME` gets them. Without them a measure
says so before anything is restored; it never goes on with others.
"""

import importlib
import os
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torch.nn import functional as F

from bdg.metrics import Levels, Measure
from bdg.types import Image
from bdg.weights import load_weights

ALEXNET = ((64, 11, 4, 2), (192, 5, 1, 2), (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1))
"""Convolutions of AlexNet: channels, side of the kernel, stride, padding."""
VGG16 = (2, 2, 3, 3, 3)
"""Convolutions of VGG16 between poolings."""
BLOCK = 96
"""Side of NIQE's blocks."""

Values = Float[Tensor, " b"]
Block = Float64[Tensor, "n rows columns"]


def cache() -> Path:
    """Where fetched weights lie: $BDG_CACHE, else ~/.cache/bdg."""
    return Path(os.environ.get("BDG_CACHE") or Path.home() / ".cache" / "bdg")


def weights_path(name: str) -> Path:
    return cache() / "metrics" / f"{name}.safetensors"


def read_weights(name: str) -> dict[str, Tensor]:
    """The tensors of a measure. Raises FileNotFoundError and ValueError for what `bdg weights fetch` mends."""
    path = weights_path(name)
    if not path.is_file():
        raise FileNotFoundError(
            f"{name} needs weights that are not part of bdg (looked for {path}): get them with: bdg weights fetch {name}"
        )
    try:
        return load_weights(path)[0]
    except ValueError as error:
        raise ValueError(f"{name}: {error}; or get it anew: bdg weights fetch {name} overwrite=true") from None


class Lpips(Measure):
    """LPIPS v0.1 with AlexNet (Zhang et al. 2018): a distance of features, 0 for equal images; images in their own size."""

    color = "rgb"
    least = (31, 31)
    larger_is_better = False
    text = "LPIPS v0.1 of AlexNet"
    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        hold(self, read_weights("lpips"))
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, image: Levels, clean: Levels | None) -> Values:
        assert clean is not None
        total = image.new_zeros(len(image))
        for place, (x, y) in enumerate(zip(self._features(image), self._features(clean), strict=True)):
            apart = (_unit(x) - _unit(y)).square()
            total = total + F.conv2d(apart, self.get_buffer(f"head_{place}")).mean(dim=(1, 2, 3))
        return total

    def _features(self, levels: Levels) -> list[Tensor]:
        x, found = (levels / 127.5 - 1 - self.shift) / self.scale, []
        for place, (_, _, stride, padding) in enumerate(ALEXNET):
            x = F.max_pool2d(x, 3, 2) if place in (1, 2) else x
            weight, bias = (self.get_buffer(f"{kind}_{place}") for kind in ("weight", "bias"))
            x = F.relu(F.conv2d(x, weight, bias, stride, padding))
            found.append(x)
        return found


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)


class Dists(Measure):
    """DISTS with VGG16 (Ding et al. 2020): structure and texture, 0 for equal images; images in their own size.

    The authors shrink the shorter side to 256 pixels first in their demo, which changes the number; most tables do not.
    """

    color = "rgb"
    least = (16, 16)
    larger_is_better = False
    text = "DISTS in full size"
    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        hold(self, read_weights("dists"))
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)
        hanning = torch.tensor([0.5, 1.0, 0.5])
        self.register_buffer("window", (hanning[:, None] * hanning / 4)[None, None], persistent=False)

    @torch.no_grad()
    def forward(self, image: Levels, clean: Levels | None) -> Values:
        assert clean is not None
        alike, c, begin = image.new_zeros(len(image)), 1e-6, 0
        alpha, beta = self.get_buffer("alpha").flatten(), self.get_buffer("beta").flatten()
        for x, y in zip(self._features(image / 255), self._features(clean / 255), strict=True):
            part = slice(begin, begin := begin + x.shape[1])
            mu_x, mu_y = (f.mean(dim=(2, 3), keepdim=True) for f in (x, y))
            var_x, var_y, cov = (
                (a * b).mean(dim=(2, 3)) for a, b in ((x - mu_x, x - mu_x), (y - mu_y, y - mu_y), (x - mu_x, y - mu_y))
            )
            texture = ((2 * mu_x * mu_y + c) / (mu_x**2 + mu_y**2 + c)).flatten(1)
            structure = (2 * cov + c) / (var_x + var_y + c)
            alike = alike + texture @ alpha[part] + structure @ beta[part]
        return 1 - alike / (alpha.sum() + beta.sum())

    def _features(self, x: Image) -> list[Tensor]:
        """The image itself in 0..1, and the last layer before each pooling."""
        found, place = [x], 0
        x = (x - self.mean) / self.std
        for group, layers in enumerate(VGG16):
            x = self._pooled(x) if group else x
            for _ in range(layers):
                weight, bias = (self.get_buffer(f"{kind}_{place}") for kind in ("weight", "bias"))
                x, place = F.relu(F.conv2d(x, weight, bias, padding=1)), place + 1
            found.append(x)
        return found

    def _pooled(self, x: Tensor) -> Tensor:
        """Half the size, by the root of the smoothed squares."""
        channels = x.shape[1]
        window = self.get_buffer("window").expand(channels, 1, 3, 3)
        return (F.conv2d(x.square(), window, stride=2, padding=1, groups=channels) + 1e-12).sqrt()


class Niqe(Measure):
    """NIQE (Mittal et al. 2013): how far an image's statistics are from those of natural photographs; needs no clean image.

    On luma rounded to integers, in blocks of 96 x 96 pixels, with the authors' model: as their MATLAB code and BasicSR.
    """

    reference = False
    color = "y_uint8"
    least = (BLOCK, 2 * BLOCK)  # one block has no covariance
    larger_is_better = False
    text = "NIQE of the authors' model"

    def __init__(self) -> None:
        super().__init__()
        hold(self, read_weights("niqe"))

    @torch.no_grad()
    def forward(self, image: Levels, clean: Levels | None) -> Values:
        return torch.stack([self._one(y) for y in image[:, 0].double().cpu()]).to(image)

    def _one(self, y: Float64[Tensor, "h w"]) -> Float64[Tensor, ""]:
        rows, columns = (side // BLOCK for side in y.shape)
        y, features = y[: rows * BLOCK, : columns * BLOCK], []
        for side in (BLOCK, BLOCK // 2):
            normal = normalised(y, self.get_buffer("window").cpu())
            blocks = normal.unfold(0, side, side).unfold(1, side, side).flatten(0, 1)
            features.append(block_features(blocks))
            y = halved(y)
        seen = torch.cat(features, dim=1)
        mu = seen.nanmean(0)
        cov = seen[~seen.isnan().any(1)].T.cov()  # a flat block has no statistics
        apart = self.get_buffer("mu").cpu() - mu
        return (apart @ torch.linalg.pinv((self.get_buffer("cov").cpu() + cov) / 2) @ apart).sqrt()


def normalised(y: Float64[Tensor, "h w"], window: Float64[Tensor, "k k"]) -> Float64[Tensor, "h w"]:
    """(y - mu) / (sigma + 1) with mean and deviation of the window around each pixel, the edge repeated (eq. 1)."""
    padded = F.pad(y[None, None], (window.shape[0] // 2,) * 4, "replicate")
    mu, squares = (F.conv2d(x, window[None, None])[0, 0] for x in (padded, padded.square()))
    return (y - mu) / ((squares - mu.square()).abs().sqrt() + 1)


def halved(y: Float64[Tensor, "h w"]) -> Float64[Tensor, "rows columns"]:
    """Half the size as MATLAB's imresize: the bicubic of twice the width, edges mirrored with the pixel at the edge."""
    at = torch.arange(-3.5, 4, dtype=y.dtype).abs() / 2
    near = 1.5 * at**3 - 2.5 * at**2 + 1
    far = -0.5 * at**3 + 2.5 * at**2 - 4 * at + 2
    weights = torch.where(at <= 1, near, far) / 2
    weights = weights / weights.sum()
    for _ in range(2):
        mirrored = torch.cat([y[:3].flip(0), y, y[-3:].flip(0)])
        y = (mirrored.unfold(0, 8, 2) @ weights).T
    return y


def block_features(blocks: Block) -> Float64[Tensor, "n 18"]:
    """Shape and spread of the values, and of their products with the four neighbours (eq. 4 to 8)."""
    alpha, left, right = asymmetric(blocks)
    features = [alpha, (left + right) / 2]
    for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
        alpha, left, right = asymmetric(blocks * blocks.roll(shift, dims=(1, 2)))
        mean = (right - left) * (torch.lgamma(2 / alpha) - torch.lgamma(1 / alpha)).exp()
        features += [alpha, mean, left, right]
    return torch.stack(features, dim=1)


def asymmetric(blocks: Block) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " n"], Float64[Tensor, " n"]]:
    """alpha and both beta of the asymmetric generalised Gaussian that has a block's moments (Lasmar et al. 2009)."""
    x = blocks.flatten(1)
    left, right = ((x.square() * side).sum(1).div(side.sum(1)).sqrt() for side in (x < 0, x > 0))
    ratio = left / right
    rho = x.abs().mean(1).square() / x.square().mean(1)
    wanted = rho * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1).square()
    alphas = torch.arange(200, 10001, dtype=x.dtype) / 1000
    g = torch.lgamma(1 / alphas), torch.lgamma(2 / alphas), torch.lgamma(3 / alphas)
    reached = (2 * g[1] - g[0] - g[2]).exp()  # rises with alpha
    place = (reached - wanted[:, None]).abs().argmin(1)
    spread = ((g[0] - g[2]) / 2).exp()[place]
    nothing = wanted.isnan()  # a flat block
    return alphas[place].masked_fill(nothing, torch.nan), left * spread, right * spread


class Pyiqa(Measure):
    """A measure of the package pyiqa, if the user has installed it: MUSIQ, MANIQA, CLIP-IQA, BRISQUE and others.

    pyiqa's licence (PolyForm Noncommercial) forbids commercial use, it needs torchvision, and it downloads its weights.
    """

    color = "rgb"

    def __init__(self, metric: str) -> None:
        super().__init__()
        try:
            pyiqa: Any = importlib.import_module("pyiqa")
        except ImportError:
            raise ValueError(
                f"metrics={metric} is computed by pyiqa, which is not installed: pip install pyiqa, if its licence "
                "(PolyForm Noncommercial) permits your use; it needs torchvision in the build of your torch"
            ) from None
        made = pyiqa.create_metric(metric, device="cpu")
        self.reference = made.metric_mode == "FR"
        self.larger_is_better = not made.lower_better
        self.text = f"{metric} of pyiqa {pyiqa.__version__}"
        self._made = [made]  # in a list, so that its parameters are not taken for parameters of what measures

    @torch.no_grad()
    def forward(self, image: Levels, clean: Levels | None) -> Values:
        images = [x.cpu() / 255 for x in (image, clean) if x is not None][: 2 if self.reference else 1]
        return self._made[0](*images).flatten().float().to(image.device)


def hold(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Tensors as buffers that no optimizer, checkpoint or average of weights sees."""
    for name, tensor in tensors.items():
        module.register_buffer(name, tensor, persistent=False)
