"""Images of any size restored: weights, a sampler, one noise per image and, where asked, tiles; knows no image files."""

import hashlib
import importlib
import inspect
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bdg import devices, draws, samplers
from bdg.denoiser import Denoiser
from bdg.diffusion import Diffusion
from bdg.samplers import BAND, in_bands
from bdg.tiles import SMALLEST_TILE, TiledGap, checked_overlap, count, gap, tiled
from bdg.types import Estimate, Image, Timestep
from bdg.weights import load_weights

log = logging.getLogger("bdg")

Sampler = Callable[..., Image]
"""One of `bdg.samplers`, or one with some of its arguments given already."""

PACKAGED = Path(__file__).parent / "pretrained" / "demo.safetensors"
"""The weights that come with the package."""

TRUSTED = ("bdg.networks", "bdg.diffusion", "bdg.schedule")
"""Where the classes that a weights file names may live: a file from elsewhere must not choose what code runs."""

DEFAULT_SAMPLER = {"_target_": "bdg.samplers.ddim", "sample_steps": 3}

PRECISIONS = ("float32", "bf16")
ENSEMBLES = (1, 2, 4, 8)

PROBE = 192
"""Edge in pixels of the image that time and memory are measured with; none smaller is ever cut into tiles."""

COPIES_IN_STEP = 6
"""Images of the full size beside x_lq while x_t is updated: the first noise, x_t, the estimate of three, the next x_t."""

TEMPORARIES = 5
"""At most so many bands (or images, if smaller) beside them."""

BLIND_TILE = 512
"""The tile where memory cannot be measured."""

NETWORK_SHARE = 0.75
"""Of the memory left to the network, what is planned with: its need was seen to be 1.28 that of the image it is measured on."""

PICTURE = 0.5
"""Of x_lq, what the picture that it is made from takes, at most: 16 bits."""

COLOR_SCALE = 64
"""Colour that varies over more pixels than these is of low frequency."""


@dataclass(frozen=True)
class Cost:
    """What one pixel costs in one pass of the network: bytes at the peak (None where nobody knows), seconds."""

    bytes: float | None
    seconds: float


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
    def load(
        cls,
        path: str | Path | None = None,
        device: str | torch.device = "cpu",
        trust: Sequence[str] = (),
        precision: str = "float32",
    ) -> "Restorer":
        """The restorer that a weights file describes; None: the file that comes with the package.

        device: also "auto", a GPU if there is one. trust: further packages that its network may come from.
        precision: in which the network computes, float32 or bf16; all else is float32.

        Raises FileNotFoundError, and ValueError if the file is no BDG weights, names foreign code or does not fit, or if
        there is no such device or precision.
        """
        if precision not in PRECISIONS:
            raise ValueError(f"precision={precision!r}: choose one of {list(PRECISIONS)}")
        path, device = PACKAGED if path is None else path, devices.device(device)
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
            _, *faults = str(error).splitlines()
            raise ValueError(
                f"{path}: its tensors do not fit the network it names, in {len(faults)} places: {faults[0].strip()[:300]}"
            ) from None
        if fold := getattr(
            network, "fold", None
        ):  # the same results, sooner; a network from elsewhere need not have it
            network = fold()
        network = network.eval().requires_grad_(False).to(device)
        if precision == "bf16":
            network = Autocast(network, device.type)
        denoise = Denoiser(network, diffusion.to(device), about.get("condition", "x_lq"), about.get("clamp", True))
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
        tile: int | str | None = "auto",
        overlap: int | None = None,
        strength: float = 1.0,
        ensemble: int = 1,
        keep_color: bool = False,
        memory_gb: float | None = None,
    ) -> Image:
        """x_hq in [-1, 1] for x_lq, `b 3 h w` of any size, on the device of x_lq.

        names: one per image; with the seed it fixes the image's noise, whatever batch or device it is restored in.
        tile: edge in pixels of the squares that the network sees at a time, to bound memory; None: the whole image;
        "auto": the whole image if memory allows, else the largest squares that do, and smaller ones when memory runs out.
        overlap: pixels that neighbouring tiles share (None: a quarter of a tile, at most 64).
        strength: the share of the believed residual that is taken away, 0 (nothing) to 1.
        ensemble: 1, 2, 4 or 8 views, mirrored and turned, whose mean is returned; as many times the work.
        keep_color: what varies slowly keeps the colour of x_lq, against a drift of colour.
        memory_gb: 10^9 bytes that this process may hold on the device (None: what is free), for "auto".
        """
        _check(x_lq, names, strength, ensemble)
        h, w = x_lq.shape[-2:]
        if tile == "auto" and len(x_lq) > 1 and not self._fits_whole(len(x_lq), h, w, ensemble, memory_gb):
            settings = (sampler, sample_steps, seed, tile, overlap, strength, ensemble, keep_color, memory_gb)
            return torch.cat([self(x, [name], *settings) for x, name in zip(x_lq.split(1), names, strict=True)])
        given = x_lq.to(self.device)
        walk = partial(self._mean_view, given, names, sampler or self.sampler, sample_steps, seed, ensemble, overlap)
        if tile == "auto":
            edge = self.fitting_tile(h, w, overlap, ensemble, memory_gb)
            if edge:
                _say_tiled(h, w, edge)
            x_hq = self._in_memory(walk, (h, w), edge)
        else:
            x_hq = _or_out_of_memory(walk, _edge(tile))
        x_hq = x_hq.clamp(-1, 1)
        if keep_color:
            x_hq = with_colors_of(given, x_hq)
        return (torch.lerp(given, x_hq, strength) if strength < 1 else x_hq).to(x_lq.device)

    @cached_property
    def cost(self) -> Cost:
        """Measured once, on an image of PROBE x PROBE, after a smaller one that pays for what only a first pass costs."""
        x = torch.zeros(1, 3, PROBE, PROBE, device=self.device)
        t = torch.zeros(1, dtype=torch.long, device=self.device)

        def look(x: Tensor, passes: int) -> None:
            with torch.inference_mode():
                for _ in range(passes):
                    self.denoise(x, x, t)
            devices.synchronize(self.device)

        look(x[..., :SMALLEST_TILE, :SMALLEST_TILE], 1)
        began = time.perf_counter()
        needed = devices.needed_bytes(partial(look, x, 2), self.device)  # freed memory in pieces: a second takes more
        seconds = (time.perf_counter() - began) / 2
        return Cost(None if needed is None else needed / PROBE**2, seconds / PROBE**2)

    def fitting_tile(
        self, height: int, width: int, overlap: int | None = None, ensemble: int = 1, memory_gb: float | None = None
    ) -> int | None:
        """The tile of "auto": None if an image fits whole into memory, else the edge of the largest squares that do.

        It is no larger than its number of tiles demands. Raises ValueError if the smallest does not fit either.
        """
        return self._fitting_tile(height, width, overlap, ensemble, memory_gb)

    def _fitting_tile(
        self,
        height: int,
        width: int,
        overlap: int | None,
        ensemble: int,
        memory_gb: float | None,
        to_come: float = 0,
    ) -> int | None:
        """to_come: bytes that will be held by then, and are not yet."""
        if self._fits_whole(1, height, width, ensemble, memory_gb, to_come):
            return None
        pixel, free = self.cost.bytes, self._free_bytes(memory_gb, to_come)
        if free is None or pixel is None:
            return BLIND_TILE
        beside, step = self._beside_network(_bytes(height, width), ensemble)
        least = max(beside + pixel * SMALLEST_TILE**2 / NETWORK_SHARE, step)
        if free < least:
            raise ValueError(_too_little(f"{height} x {width}", str(self.device), free, least, memory_gb))
        edge = _multiple(math.isqrt(int(NETWORK_SHARE * (free - beside) / pixel)))
        return _no_larger_than_needed(edge, overlap, height, width)

    def _fits_whole(
        self, batch: int, height: int, width: int, ensemble: int, memory_gb: float | None, to_come: float = 0
    ) -> bool:
        if batch * height * width <= PROBE**2:
            return True
        pixel, free = self.cost.bytes, self._free_bytes(memory_gb, to_come)
        if free is None or pixel is None:
            return max(height, width) <= BLIND_TILE
        beside, step = self._beside_network(_bytes(height, width, batch), ensemble)
        return max(beside + pixel * batch * _padded(height) * _padded(width) / NETWORK_SHARE, step) <= free

    def _beside_network(self, image: int, ensemble: int) -> tuple[int, int]:
        """Bytes beside x_lq while the network works, and while x_t is updated. image: bytes of x_lq.

        Several views need x_lq turned and their sum as well.
        """
        views = 0 if ensemble == 1 else 2
        beside = 2 + (1 if self.denoise.clamp else 3) + views  # the first noise, x_t, what tiles are blended into
        return beside * image, (COPIES_IN_STEP + views) * image + TEMPORARIES * min(image, 4 * BAND)

    def seconds(
        self,
        height: int,
        width: int,
        batch: int = 1,
        sampler: Sampler | None = None,
        sample_steps: int | None = None,
        tile: int | str | None = "auto",
        overlap: int | None = None,
        ensemble: int = 1,
        memory_gb: float | None = None,
        **_: Any,
    ) -> float:
        """About how long a call with these settings takes; settings that cost nothing may be given as well.

        From the time of one small pass, so attention over very large whole images, whose time is the square of theirs, is
        underrated. To be asked before there is x_lq: raises ValueError if the call will, for want of memory.
        """
        if tile == "auto":
            to_come = (1 + PICTURE) * _bytes(height, width, batch)
            tile = self._fitting_tile(height, width, overlap, ensemble, memory_gb, to_come)
        edge = _edge(tile) or max(_padded(height), _padded(width))
        shared = checked_overlap(max(edge, SMALLEST_TILE), overlap)
        seen = math.prod(count(n, edge, shared) * min(_padded(n), edge) for n in (height, width))
        steps = _steps(sampler or self.sampler) if sample_steps is None else sample_steps
        return self.cost.seconds * seen * batch * steps * ensemble

    def compare_tiled(
        self,
        x_lq: Image,
        names: Sequence[str],
        tile: int | str | None = "auto",
        overlap: int | None = None,
        ensemble: int = 1,
        memory_gb: float | None = None,
        **settings: Any,
    ) -> TiledGap:
        """What tiles change: the images restored in tiles against the same restored whole, with a call's settings.

        Where the whole does not fit into memory, its centre is compared, as large as fits, with tiles of half of that.
        """
        h, w = x_lq.shape[-2:]
        largest = self.fitting_tile(h, w, None, ensemble, memory_gb)
        edge = largest if tile == "auto" else _edge(tile)
        if edge is None:
            return TiledGap(math.inf, 1.0, None, h, w)
        if largest is not None:
            x_lq, edge = _centre(x_lq, largest), min(edge, max(_multiple(largest // 2), SMALLEST_TILE))
        restore = partial(self, x_lq, names, overlap=overlap, ensemble=ensemble, **settings)
        return gap(restore(tile=edge), restore(tile=None), edge, overlap)

    def _mean_view(
        self,
        x_lq: Image,
        names: Sequence[str],
        sampler: Sampler,
        sample_steps: int | None,
        seed: int,
        ensemble: int,
        overlap: int | None,
        tile: int | None,
    ) -> Image:
        """The mean over views of the image, each with noise of its own."""
        steps = {} if sample_steps is None else {"sample_steps": sample_steps}
        diffusion, draw = self.denoise.diffusion, noise_drawer(names, seed)
        complete = partial(_complete, diffusion) if self.denoise.clamp else None
        denoise = self.denoise if tile is None else tiled(self.denoise, tile, overlap, complete)
        total: Image | None = None
        for view in range(ensemble):
            seen = turned(x_lq, view)
            x_hq = turned_back(sampler(denoise, diffusion, seen, draw(seen), draw=draw, **steps), view)
            total = x_hq if total is None else total + x_hq
        assert total is not None
        return total if ensemble == 1 else total / ensemble

    def _in_memory(self, walk: Callable[[int | None], Image], size: Sequence[int], tile: int | None) -> Image:
        """walk(tile), or with half of it as often as memory runs out."""
        while True:
            try:
                return walk(tile)
            except (RuntimeError, MemoryError) as error:
                if not devices.is_out_of_memory(error):
                    raise
            smaller = _multiple((tile or max(size)) // 2)
            if smaller < SMALLEST_TILE:
                raise ValueError(f"out of memory on {self.device} with the smallest tile: free some, or use another")
            log.warning("out of memory on %s with tile=%s: going on with tile=%d", self.device, tile, smaller)
            devices.release(self.device)
            tile = smaller

    def _free_bytes(self, memory_gb: float | None, to_come: float = 0) -> float | None:
        """What may be taken beyond what is held and will be."""
        if memory_gb is None:
            free = devices.free_bytes(self.device)
        else:
            held = devices.held_bytes(self.device)
            free = None if held is None else int(1e9 * memory_gb) - held
        return None if free is None else free - to_come


@lru_cache
def _say_tiled(height: int, width: int, tile: int) -> None:
    """Once for images of a size, since tiles change a result a little."""
    log.warning("images of %d x %d do not fit into memory whole: restored in tiles of %d", height, width, tile)


class Autocast(nn.Module):
    """A network that computes in bfloat16 wherever torch deems that safe."""

    def __init__(self, network: nn.Module, device_type: str) -> None:
        super().__init__()
        self.network = network
        self.device_type = device_type

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(self.device_type, torch.bfloat16):
            return self.network(*args, **kwargs)


def noise_drawer(names: Sequence[str], seed: int) -> Callable[[Image], Image]:
    """The `draw` of a sampler: every image has its own stream of unit noise, a function of the seed and its name.

    Drawn whole and on the CPU, so that every device, batch and tiling restores the same image.
    """
    cpu = torch.device("cpu")
    digests = [hashlib.sha256(name.encode()).digest()[:8] for name in names]
    generators = [draws.generator(cpu, seed, int.from_bytes(digest)) for digest in digests]

    def draw(x: Image) -> Image:
        noise = torch.empty(x.shape)
        for one, generator in zip(noise, generators, strict=True):
            one.normal_(generator=generator)
        return noise.to(x)

    return draw


def turned(x: Image, view: int) -> Float[Tensor, "b c rows columns"]:
    """One of the 8 views of a square: bits 1 and 2 mirror, bit 4 transposes before."""
    return _mirrored(x.mT if view & 4 else x, view)


def turned_back(x: Image, view: int) -> Float[Tensor, "b c rows columns"]:
    """The inverse of `turned`."""
    x = _mirrored(x, view)
    return x.mT if view & 4 else x


def _mirrored(x: Image, view: int) -> Image:
    dims = [dim for bit, dim in ((1, -1), (2, -2)) if view & bit]
    return x.flip(dims) if dims else x  # flip copies in any case


def with_colors_of(x_lq: Image, x_hq: Image) -> Image:
    """x_hq in [-1, 1] whose colour, as far as it varies slowly, is that of x_lq."""
    h, w = x_lq.shape[-2:]
    grid = (math.ceil(h / COLOR_SCALE), math.ceil(w / COLOR_SCALE))
    drift = F.adaptive_avg_pool2d(x_lq, grid) - F.adaptive_avg_pool2d(x_hq, grid)
    return (x_hq + F.interpolate(drift, (h, w), mode="bilinear")).clamp(-1, 1)


def _bytes(height: int, width: int, batch: int = 1) -> int:
    """Of images in float32."""
    return 4 * 3 * batch * height * width


def _too_little(size: str, device: str, free: float, least: float, memory_gb: float | None) -> str:
    if memory_gb is None:
        return f"an image of {size} needs {least / 1e9:.2f} GB of {device}, but {free / 1e9:.2f} GB are free: free some"
    needed = math.ceil(10 * (memory_gb + (least - free) / 1e9)) / 10
    return f"memory_gb={memory_gb}: an image of {size} needs {needed}, all that the process holds included: give that"


def _complete(diffusion: Diffusion, x_hq: Image, x_t: Image, x_lq: Image, t: Timestep) -> Estimate:
    """Diffusion.complete without temporaries of the image's size."""
    noise = in_bands(lambda x_hq, x_t, x_lq: diffusion.complete(x_hq, x_t, x_lq, t).noise, x_hq, x_t, x_lq)
    return Estimate(x_hq, x_lq - x_hq, noise)


def _check(x_lq: Image, names: Sequence[str], strength: float, ensemble: int) -> None:
    if len(names) != len(x_lq):
        raise ValueError(f"{len(names)} names for {len(x_lq)} images: give one name for each")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength={strength}: choose 0, which changes nothing, to 1")
    if ensemble not in ENSEMBLES:
        raise ValueError(f"ensemble={ensemble}: choose one of {list(ENSEMBLES)}")


def _edge(tile: int | str | None) -> int | None:
    if isinstance(tile, str):
        raise ValueError(f"tile={tile}: give a number of pixels, auto, or null for the whole image at once")
    return tile


def _or_out_of_memory(walk: Callable[[int | None], Image], tile: int | None) -> Image:
    """walk(tile), or what to do where memory does not suffice."""
    try:
        return walk(tile)
    except (RuntimeError, MemoryError) as error:
        if not devices.is_out_of_memory(error):
            raise
    what = "the whole image" if tile is None else f"tile={tile}"
    raise ValueError(f"out of memory with {what}: give tile=auto or a smaller tile")


def _padded(length: int) -> int:
    """As the network pads it, about."""
    return -(-length // 16) * 16


def _multiple(length: int) -> int:
    """Rounded down to what no network has to pad."""
    return length // SMALLEST_TILE * SMALLEST_TILE


def _no_larger_than_needed(edge: int, overlap: int | None, *lengths: int) -> int:
    """The smallest tile that needs no more tiles than this one: less that is seen twice."""

    def counts(tile: int) -> list[int]:
        return [count(length, tile, checked_overlap(tile, overlap)) for length in lengths]

    least = SMALLEST_TILE if overlap is None else max(SMALLEST_TILE, 2 * overlap)
    return next(tile for tile in range(least, edge + 1, SMALLEST_TILE) if counts(tile) == counts(edge) or tile == edge)


def _steps(sampler: Sampler) -> int:
    found = inspect.signature(sampler).parameters.get("sample_steps")
    return found.default if found and isinstance(found.default, int) else 1


def _centre(x: Image, edge: int) -> Float[Tensor, "b c rows columns"]:
    top, left = (max(0, (length - edge) // 2) for length in x.shape[-2:])
    return x[..., top : top + edge, left : left + edge]


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
