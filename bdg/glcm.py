"""Grey-level co-occurrence: an image becomes a histogram of its pixel pairs; no network and no gradient."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from itertools import chain, combinations
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor, nn

Offset = tuple[int, int]  # (rows down, columns right), from the first pixel of a pair to the second
Groups = tuple[tuple[Offset, ...], ...]  # the offsets that each output channel averages

# One histogram over k pixels holds k (k - 1) / 2 pair histograms as its marginals. That saves counting as long as it
# fits into a core's cache: 4 pixels up to 13 levels, 3 up to 33, above that 2, which is the plain pair histogram.
MAX_BINS = 40_000
MAX_PIXELS = 4
# The CPU takes some images together, to spread the cost of calling torch, but not more than its cache holds.
CHUNK_IMAGES = 4
CHUNK_PIXELS = 4 * 256**2

PAPER_ANGLES = tuple(k * math.pi / 8 for k in range(9))


class MasGlcm(nn.Module):
    """MAS-GLCM, the texture descriptor by which BDG tells degradations apart (arXiv 2602.00579).

        M_{dx,dy}(i, j) = #{(x, y): I(x, y) = i and I(x + dx, y + dy) = j}        x counts rows, y columns
        M = 1/(n m) sum_{L in scales (n)} sum_{Theta in angles (m)} M_{round(L sin Theta), round(L cos Theta)}

    Each M_{dx,dy} is normalised to sum 1 before the mean, so that M does not depend on the image's size. Offsets, down to
    the rounding of halves, are those of `skimage.feature.graycomatrix(distances=scales, angles=angles)`.

    Counts have no gradient: none flows to the image. The module has no parameters and no buffers; it computes where its
    input lies, and adds nothing to checkpoints.

    The paper gives "9 angles x 6 scales" as its best but not their values, nor the levels: the defaults are our choice,
    and `levels=256, power=1` is the paper's letter. Which are best for other data, `bdg probe` measures.

    Args:
        levels: number of grey levels, 2..256; the grey value g becomes floor(g * levels / 256).
        angles: radians, finite.
        scales: distances L in pixels, at least 1.
        reduce: "mean" averages all offsets into one channel; "scales" keeps a channel per scale; "offsets" a channel per
            offset, in the order scale by scale.
        channels: "luma" counts BT.601 luma; "rgb" averages the matrices of R, G and B.
        symmetric: counts each pair in both directions, as `graycomatrix(symmetric=True)`.
        power: compresses the counts for the encoder, greater than 0.

    Raises:
        ValueError: an option is out of its range; or, in a call, an image is smaller than the largest offset + 1.
    """

    def __init__(
        self,
        levels: int = 64,
        angles: Sequence[float] = PAPER_ANGLES,
        scales: Sequence[float] = (1, 2, 3, 4, 5, 6),
        reduce: str = "mean",
        channels: str = "luma",
        symmetric: bool = False,
        power: float = 0.5,
    ):
        super().__init__()
        _check_levels(levels)
        if not angles or not all(math.isfinite(angle) for angle in angles):
            raise ValueError(
                f"angles={list(angles)} must be finite numbers in radians: e.g. glcm.angles=[0,0.7854,1.5708]"
            )
        if not scales or not all(1 <= scale < math.inf for scale in scales):
            raise ValueError(f"scales={list(scales)} must be distances of at least 1 pixel: e.g. glcm.scales=[1,2,4]")
        if channels not in ("luma", "rgb"):
            raise ValueError(f"channels='{channels}' is unknown: write glcm.channels=luma or glcm.channels=rgb")
        if not 0 < power < math.inf:
            raise ValueError(
                f"power={power} must be greater than 0: e.g. glcm.power=0.5, or 1 for the counts as they are"
            )
        self.levels = levels
        self.groups = _groups(angles, scales, reduce)
        self.channels = channels
        self.symmetric = symmetric
        self.power = power

    @property
    def out_channels(self) -> int:
        return len(self.groups)

    def forward(self, image: Shaped[Tensor, "b rgb h w"]) -> Float[Tensor, "b c n n"]:
        """What the encoder sees, `(levels^2 M)^power`, of order 1 whatever the number of levels; `image` as `matrix`."""
        return (self.levels**2 * self.matrix(image)) ** self.power

    def matrix(self, image: Shaped[Tensor, "b rgb h w"]) -> Float[Tensor, "b c n n"]:
        """M itself, float32; each channel sums to 1. `image`: uint8, or float in [-1, 1], of 1 or 3 channels."""
        planes = to_gray(image) if self.channels == "luma" else to_uint8(image)
        matrix = glcm(quantise(planes, self.levels).flatten(0, 1), self.groups, self.levels, self.symmetric)
        return matrix.unflatten(0, planes.shape[:2]).mean(1)


def glcm(
    gray: UInt8[Tensor, "b h w"], groups: Sequence[Sequence[Offset]], levels: int, symmetric: bool = False
) -> Float[Tensor, "b c n n"]:
    """For each group of offsets the mean of their co-occurrence matrices, each normalised to sum 1.

    `gray` holds values below `levels`. On the CPU a larger one is an error; elsewhere asking would make the program wait
    for the device, so there it is the caller's duty. Nothing else waits for the device.

    Raises:
        ValueError: `levels` is outside 2..256, a group is empty, an offset is (0, 0) or leaves no pair in the image, or,
            on the CPU, a grey value is not below `levels`.
    """
    b, h, w = gray.shape
    _check_levels(levels)
    _check_offsets(groups, h, w)

    base = levels + 1  # outside the image lies a level of its own: borders need no care, and are cut off at the end
    size = max(2, min(MAX_PIXELS, int(math.log(MAX_BINS, base))))
    plan = _plan(tuple(tuple(group) for group in groups), size, h, w)
    matrix = torch.zeros(b, len(groups), base, base, device=gray.device)
    if gray.device.type == "cpu":
        if gray.numel() and (largest := int(gray.max())) >= levels:
            raise ValueError(
                f"gray holds the value {largest}, but levels={levels}: call quantise(gray, {levels}) first"
            )
        step = max(1, min(CHUNK_IMAGES, CHUNK_PIXELS // (h * w)))
        dtype = torch.int16 if step * base**size < 2**15 else torch.int32
        for k in range(0, b, step):
            _add_pairs(matrix[k : k + step], gray[k : k + step].to(dtype), plan, _bincount)
    else:
        _add_pairs(matrix, gray.long(), plan, _scatter_count)
    matrix = matrix[..., :levels, :levels]
    return (matrix + matrix.mT) / 2 if symmetric else matrix


def offset_at(scale: float, angle: float) -> Offset:
    """`(round(L sin Theta), round(L cos Theta))`, halves away from zero by skimage's own arithmetic.

    sin(pi / 6) is 0.49999999999999994 in float64, but 1.0 after 0.5 is added, so it is rounded to 1.
    """
    row, col = scale * math.sin(angle), scale * math.cos(angle)
    return int(row + math.copysign(0.5, row)), int(col + math.copysign(0.5, col))


def to_uint8(image: Shaped[Tensor, "b rgb h w"]) -> UInt8[Tensor, "b rgb h w"]:
    """Float [-1, 1] rounded to 8 bits and clipped; uint8 as it is. Raises ValueError for other types and channels."""
    if image.shape[1] not in (1, 3):
        raise ValueError(f"image of {image.shape[1]} channels: give RGB (b 3 h w) or gray (b 1 h w)")
    if image.dtype == torch.uint8:
        return image
    if not image.is_floating_point():
        raise ValueError(f"image of {image.dtype}: give uint8 in [0, 255] or float in [-1, 1]")
    return ((image.float() + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8)


def to_gray(image: Shaped[Tensor, "b rgb h w"]) -> UInt8[Tensor, "b 1 h w"]:
    """BT.601 luma rounded to 8 bits, in integers so that all devices agree (and Pillow); one channel is gray already."""
    image = to_uint8(image)
    if image.shape[1] == 1:
        return image
    red, green, blue = image.int().split(1, dim=1)
    return ((19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16).to(torch.uint8)  # 0.299, 0.587, 0.114


def quantise(gray: UInt8[Tensor, "*shape"], levels: int) -> UInt8[Tensor, "*shape"]:
    """`floor(gray * levels / 256)`, in 0..levels-1."""
    return ((gray.int() * levels) >> 8).to(torch.uint8)


def _groups(angles: Sequence[float], scales: Sequence[float], reduce: str) -> Groups:
    by_scale = tuple(tuple(offset_at(scale, angle) for angle in angles) for scale in scales)
    match reduce:
        case "mean":
            return (tuple(chain(*by_scale)),)
        case "scales":
            return by_scale
        case "offsets":
            return tuple((offset,) for offset in chain(*by_scale))
        case _:
            raise ValueError(f"reduce='{reduce}' is unknown: write glcm.reduce=mean, scales or offsets")


def _check_levels(levels: int) -> None:
    if levels not in range(2, 257):
        raise ValueError(f"levels={levels} is outside 2..256: e.g. glcm.levels=64")


def _check_offsets(groups: Sequence[Sequence[Offset]], h: int, w: int) -> None:
    if not groups or not all(groups):
        raise ValueError(f"groups={groups} must hold at least one offset each: e.g. [[(0, 1), (1, 0)]]")
    offsets = set(chain(*groups))
    if (0, 0) in offsets:
        raise ValueError("the offset (0, 0) pairs every pixel with itself: remove it")
    min_h = 1 + max(abs(row) for row, _ in offsets)
    min_w = 1 + max(abs(col) for _, col in offsets)
    if h < min_h or w < min_w:
        raise ValueError(
            f"image of {h}x{w} pixels (height x width), but the largest scale needs {min_h}x{min_w}: "
            "give larger images, or smaller scales, e.g. glcm.scales=[1]"
        )


class Use(NamedTuple):
    """Which marginal of a joint histogram goes where."""

    summed: tuple[int, ...]  # the axes to sum over, so that those of a pair remain
    group: int
    weight: float
    opposite: bool  # the offset leads from the second pixel to the first


class Count(NamedTuple):
    """One histogram: several constellations that are used alike, their places in the joined rows, and its uses."""

    starts: list[list[int]]  # constellation, pixel -> where its run of pixels begins
    lengths: list[int]
    uses: tuple[Use, ...]


class Plan(NamedTuple):
    """All about counting in an image of known size that does not depend on its pixels."""

    margin: int  # columns right of the image, and rows above and below it, that hold the level outside
    rows: int
    counts: list[Count]


def _add_pairs(
    matrix: Float[Tensor, "b c base base"],
    gray: Int[Tensor, "b h w"],
    plan: Plan,
    count: Callable[[Tensor, int], Tensor],
) -> None:
    """Add the weighted pair counts of `gray` to `matrix`; `count(codes, bins)` is all that devices differ in."""
    base = matrix.shape[-1]
    b = len(gray)
    channels = matrix.unbind(1)
    line = F.pad(gray, (0, plan.margin, plan.rows, plan.rows), value=base - 1).flatten(1)
    first = line + base * torch.arange(b, dtype=line.dtype, device=line.device)[:, None]  # an image has bins of its own
    for constellations, lengths, uses in plan.counts:
        codes = line.new_empty(len(line), sum(lengths))
        for code, length, starts in zip(codes.split(lengths, 1), lengths, constellations, strict=True):
            number = first.narrow(1, starts[0], length)
            for start in starts[1:]:
                number = torch.add(line.narrow(1, start, length), number, alpha=base, out=code)
        size = len(constellations[0])
        joint = count(codes.flatten(), b * base**size).view(b, *(base,) * size)
        for use in uses:
            pairs = joint
            for axis in use.summed:
                pairs = pairs.sum(axis)
            channels[use.group].add_(pairs.mT if use.opposite else pairs, alpha=use.weight)


def _bincount(codes: Int[Tensor, " n"], bins: int) -> Int[Tensor, " bins"]:
    """For a CPU, where it is the fastest; elsewhere it would wait for the device to know the largest code."""
    return torch.bincount(codes, minlength=bins)


def _scatter_count(codes: Int[Tensor, " n"], bins: int) -> Int[Tensor, " bins"]:
    """For any device, without waiting for it; integers, because their sum does not depend on the order of additions."""
    one = torch.ones((), dtype=torch.int32, device=codes.device)
    return one.new_zeros(bins).scatter_add_(0, codes, one.expand_as(codes))


@lru_cache(maxsize=64)
def _plan(groups: Groups, size: int, h: int, w: int) -> Plan:
    """Rows are joined end to end, between them a margin as wide as the widest offset: so an offset is the same shift
    wherever a pair begins, and a pair that leaves the image meets the level outside."""
    targets = defaultdict(list)
    for group, offsets in enumerate(groups):
        for (row, col), times in Counter(offsets).items():
            forward = max((row, col), (-row, -col))
            weight = times / len(offsets) / ((h - abs(row)) * (w - abs(col)))
            targets[forward].append((group, weight, forward != (row, col)))

    margin = max(abs(col) for _, col in targets)
    stride = w + margin
    together = defaultdict(list)
    for points, pairs in _constellations(frozenset(targets), size):
        uses = tuple(
            Use(tuple(1 + k for k in reversed(range(len(points))) if k not in pair), *target)
            for pair, offset in pairs.items()
            for target in targets[offset]
        )
        together[uses].append([row * stride + col for row, col in points])

    # A constellation counts where at least two of its pixels are in the image.
    bounds = {tuple(shifts): (sorted(shifts)[1], sorted(shifts)[-2]) for shifts in chain(*together.values())}
    rows = max(
        math.ceil(max(last - min(shifts), max(shifts) - first) / stride) for shifts, (first, last) in bounds.items()
    )
    counts = []
    for uses, constellations in together.items():
        ends = [bounds[tuple(shifts)] for shifts in constellations]
        starts = [
            [rows * stride - last + s for s in shifts] for shifts, (_, last) in zip(constellations, ends, strict=True)
        ]
        counts.append(Count(starts, [h * stride + last - first for first, last in ends], uses))
    return Plan(margin, rows, counts)


@cache
def _constellations(offsets: frozenset[Offset], size: int) -> list[tuple[list[Offset], dict[tuple[int, int], Offset]]]:
    """Sets of at most `size` pixels, with the offsets that their pairs stand for: between them, each offset once.

    Each set grows by the pixel that brings the most offsets not yet held (the fewest sets is a hard problem).
    """
    todo = set(offsets)

    def held(points: Sequence[Offset]) -> dict[Offset, tuple[int, int]]:
        """Offset -> pair; points are in order, so that a pair's offset is the one of the two directions in `offsets`."""
        steps = {
            (r2 - r1, c2 - c1): (first, second)
            for (first, (r1, c1)), (second, (r2, c2)) in combinations(enumerate(points), 2)
        }
        return {offset: pair for offset, pair in steps.items() if offset in todo}

    found = []
    while todo:
        points = [(0, 0)]
        while len(points) < size:
            near = {(r + sign * row, c + sign * col) for r, c in points for row, col in todo for sign in (1, -1)}
            grown = max(
                (sorted([*points, point]) for point in sorted(near.difference(points))), key=lambda p: len(held(p))
            )
            if len(held(grown)) == len(held(points)):
                break
            points = grown
        pairs = held(points)
        found.append((points, {pair: offset for offset, pair in pairs.items()}))
        todo -= set(pairs)
    return found
