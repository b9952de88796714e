"""Images of any size restored: weights, a sampler, one noise per image and, where asked, tiles; knows no image files."""

import hashlib
import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bdg import draws, samplers
from bdg.denoiser import Denoiser
from bdg.diffusion import Diffusion
from bdg.samplers import Denoise
from bdg.types import Estimate, Image, Timestep
from bdg.weights import load_weights

Sampler = Callable[..., Image]
"""One of `bdg.samplers`, or one with some of its arguments given already."""

TRUSTED = ("bdg.networks", "bdg.diffusion", "bdg.schedule")
"""Where the classes that a weights file names may live: a file from elsewhere must not choose what code runs."""

DEFAULT_SAMPLER = {"_target_": "bdg.samplers.ddim", "sample_steps": 3}

SMALLEST_TILE = 32
"""Below, a tile is mostly border and the network's coarsest level sees next to nothing."""


@dataclass(frozen=True)
class Restorer:
    """Restores degraded images with one set of weights.

    sampler: how, unless a call says otherwise; a file of weights may name the one that its stage was validated with.
    about: the metadata of the weights; path: the file they came from.
    """

    denoise: Denoiser
    sampler: Sampler = samplers.ddim
    about: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu", trust: Sequence[str] = ()) -> "Restorer":
        """The restorer that a weights file describes. trust: further packages that its network may come from.

        Raises FileNotFoundError, and ValueError if the file is no BDG weights, names foreign code or does not fit.
        """
        tensors, about = load_weights(path)
        missing = {"network", "diffusion"} - about.keys()
        if missing:
            raise ValueError(f"{path}: its metadata lack {sorted(missing)}: give a file that bdg train wrote")
        network = build_trusted(about["network"], f"{path}: network", trust)
        diffusion = build_trusted(about["diffusion"], f"{path}: diffusion", trust)
        if not isinstance(diffusion, Diffusion):
            raise ValueError(f"{path}: its diffusion is a {type(diffusion).__name__}: give a file that bdg train wrote")
        own = {name.removeprefix("network."): value for name, value in tensors.items() if name.startswith("network.")}
        try:
            network.load_state_dict(own)
        except RuntimeError as error:
            raise ValueError(f"{path}: its tensors do not fit the network it names: {error}") from None
        if fold := getattr(
            network, "fold", None
        ):  # the same results, sooner; a network from elsewhere need not have it
            network = fold()
        network = network.eval().requires_grad_(False).to(device)
        denoise = Denoiser(network, diffusion.to(device), about.get("condition", "x_lq"))
        return cls(denoise, named_sampler(about.get("sampler", DEFAULT_SAMPLER), str(path)), about, Path(path))

    @property
    def device(self) -> torch.device:
        return self.denoise.diffusion.schedule.alpha_bar.device

    def __str__(self) -> str:
        stage, identity = self.about.get("stage", "unknown"), self.about.get("identity", "unknown")
        return f"{self.path or 'weights in memory'} (stage {stage}, identity {identity})"

    @torch.inference_mode()
    def __call__(
        self,
        x_lq: Image,
        names: Sequence[str],
        sampler: Sampler | None = None,
        sample_steps: int | None = None,
        seed: int = 0,
        tile: int | None = None,
        overlap: int | None = None,
    ) -> Image:
        """x_hq in [-1, 1] for x_lq, `b 3 h w` of any size, on the device of x_lq.

        names: one per image; with the seed it fixes the image's noise, whatever batch or device it is restored in.
        tile: edge in pixels of the squares that the network sees at a time, to bound memory (None: the whole image);
        overlap: pixels that neighbouring tiles share (None: a quarter of a tile).
        """
        steps = {} if sample_steps is None else {"sample_steps": sample_steps}
        draw = noise_drawer(names, seed)
        given = x_lq.to(self.device)
        denoise = self.denoise if tile is None else tiled(self.denoise, tile, overlap)
        x_hq = (sampler or self.sampler)(denoise, self.denoise.diffusion, given, draw(given), draw=draw, **steps)
        return x_hq.clamp(-1, 1).to(x_lq.device)


def noise_drawer(names: Sequence[str], seed: int) -> Callable[[Image], Image]:
    """The `draw` of a sampler: every image has its own stream of unit noise, a function of the seed and its name.

    Drawn on the CPU, so that every device restores the same image.
    """
    cpu = torch.device("cpu")
    digests = [hashlib.sha256(name.encode()).digest()[:8] for name in names]
    generators = [draws.generator(cpu, seed, int.from_bytes(digest)) for digest in digests]

    def draw(x: Image) -> Image:
        noise = [torch.randn(x.shape[1:], generator=generator) for generator in generators]
        return torch.stack(noise).to(x)

    return draw


def tiled(denoise: Denoise, tile: int, overlap: int | None = None) -> Denoise:
    """A denoiser that looks at squares of `tile` pixels and blends what it believes of them.

    The sampler walks the whole image at once: tiles agree again at every step and share one noise, so they leave no seams
    that would have to be hidden at the end. A denoiser that looks at single pixels gives exactly what it gives untiled.
    """
    overlap = tile // 4 if overlap is None else overlap
    if tile < SMALLEST_TILE:
        raise ValueError(f"tile={tile}: give at least {SMALLEST_TILE} pixels, or null for the whole image at once")
    if not 0 <= overlap <= tile // 2:
        raise ValueError(f"overlap={overlap}: choose 0 to {tile // 2}, half of tile={tile}")

    def blended(x_t: Image, x_lq: Image, t: Timestep) -> Estimate:
        total = x_t.new_zeros((3, *x_t.shape))
        share = x_t.new_zeros(x_t.shape[-2:])
        for rows, row_weight in _strips(x_t.shape[-2], tile, overlap):
            for columns, column_weight in _strips(x_t.shape[-1], tile, overlap):
                weight = torch.outer(row_weight, column_weight).to(x_t)
                seen = denoise(x_t[..., rows, columns], x_lq[..., rows, columns], t)
                total[..., rows, columns] += weight * torch.stack([seen.x_hq, seen.residual, seen.noise])
                share[rows, columns] += weight
        return Estimate(*(total / share).unbind())

    return blended


def _strips(length: int, tile: int, overlap: int) -> Iterator[tuple[slice, Float[Tensor, " tile"]]]:
    """Evenly spread strips of `tile` that cover 0..length and share at least `overlap`, each with its weights."""
    size = min(tile, length)
    count = math.ceil((length - overlap) / (tile - overlap)) if length > tile else 1
    # rises as sin^2 over the overlap and falls as cos^2, so that neighbours at exactly this overlap add up to 1
    ramp = torch.sin(math.pi / 2 * (torch.arange(overlap) + 0.5) / max(overlap, 1)) ** 2
    weight = torch.ones(size)
    if count > 1:
        weight[:overlap] *= ramp
        weight[size - overlap :] *= ramp.flip(0)
    for k in range(count):
        start = (length - size) * k // max(count - 1, 1)
        yield slice(start, start + size), weight


def build_trusted(node: Mapping[str, Any], name: str, trust: Sequence[str] = ()) -> nn.Module:
    """The module that a node of metadata describes: the class `_target_` called with the node's other keys.

    Raises ValueError if a target lives outside TRUSTED and `trust`, does not exist or takes other arguments.
    """
    target = _trusted_class(str(node.get("_target_")), name, (*TRUSTED, *trust))
    arguments = {
        key: build_trusted(value, f"{name}.{key}", trust)
        if isinstance(value, Mapping) and "_target_" in value
        else value
        for key, value in node.items()
        if key not in ("_target_", "_convert_")
    }
    try:
        return target(**arguments)
    except TypeError as error:
        raise ValueError(
            f"{name}: {target.__name__} does not take these arguments ({error}): "
            "the file was written by another version of bdg; train again or use that version"
        ) from None


def _trusted_class(target: str, name: str, trusted: Sequence[str]) -> type[nn.Module]:
    module, _, attribute = target.rpartition(".")
    if not any(module == package or module.startswith(f"{package}.") for package in trusted):
        raise ValueError(
            f"{name}._target_ is '{target}', which is not code of {', '.join(trusted)}: "
            f"if you trust the file, add trust=[{module.partition('.')[0] or target}]"
        )
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError):
        raise ValueError(f"{name}._target_ is '{target}', which does not exist here: check version and name") from None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(f"{name}._target_ is '{target}', which is no torch module: the file is not what it says")
    return found


def named_sampler(node: Mapping[str, Any], name: str) -> Sampler:
    """The sampler that metadata name, of `bdg.samplers` only."""
    module, _, attribute = str(node.get("_target_")).rpartition(".")
    found = getattr(samplers, attribute, None) if module == samplers.__name__ else None
    if found is None or getattr(found, "__module__", None) != samplers.__name__:
        raise ValueError(
            f"{name}: sampler._target_ is '{node.get('_target_')}': only those of bdg.samplers are trusted"
        )
    return partial(found, **{key: value for key, value in node.items() if not key.startswith("_")})
