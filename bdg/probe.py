"""What a degradation leaves in an image, as vectors, and how far nearest neighbours get with them; no files, no training.

A descriptor is any callable from 8-bit RGB images `b 3 h w` to one vector, or one array, per image: the functions below,
`bdg.glcm.MasGlcm`, or your own. None of them is trained, so what it separates is what it sees. Luma is BT.601, rounded to
grey levels 0..255, the same that MAS-GLCM counts.
"""

import math
from collections.abc import Hashable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from bdg.glcm import to_gray

COLUMN = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]]) / 8  # of unit gain: 1 on a slope of 1
CROSS = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])
RING = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))  # the 8 neighbours, clockwise
_BITS = torch.arange(256)[:, None] >> torch.arange(8) & 1
RIU2 = torch.where((_BITS.roll(1, 1) != _BITS).sum(1) <= 2, _BITS.sum(1), 9)  # binary pattern of the ring -> 0..9


# --- images as vectors, as in the paper ---


def lq_pixels(images: UInt8[Tensor, "b 3 h w"], size: int = 32) -> Float[Tensor, "b d"]:
    """The image itself in [0, 1], averaged over areas down to `size` x `size` x RGB."""
    return _thumbnail(images / 255, size)


def sobel(images: UInt8[Tensor, "b 3 h w"], size: int = 32) -> Float[Tensor, "b d"]:
    """Magnitude of the luma's Sobel gradient (grey levels per pixel), averaged over areas down to `size` x `size`."""
    return _thumbnail(_gradient(_luma(images)), size)


def laplace(images: UInt8[Tensor, "b 3 h w"], size: int = 32) -> Float[Tensor, "b d"]:
    """Magnitude of the luma's 4-neighbour Laplacian (grey levels), averaged over areas down to `size` x `size`."""
    return _thumbnail(_filter(_luma(images), CROSS).abs(), size)


def fourier(images: UInt8[Tensor, "b 3 h w"], size: int = 32) -> Float[Tensor, "b d"]:
    """Log amplitude ln(1 + |FFT| / sqrt(h w)) of the luma, zero frequency in the middle, averaged to `size` x `size`."""
    amplitude = torch.fft.fft2(_luma(images), norm="ortho").abs()
    return _thumbnail(torch.fft.fftshift(amplitude, dim=(-2, -1)).log1p(), size)


# --- statistics: where in the image is forgotten ---


def sobel_histogram(images: UInt8[Tensor, "b 3 h w"], bins: int = 32, power: float = 0.5) -> Float[Tensor, "b d"]:
    """(Frequencies of the Sobel magnitude in `bins` bins of equal width in ln(1 + x), x up to 255) ** `power`."""
    return _log_histogram(_gradient(_luma(images)), 255, bins) ** power


def laplace_histogram(images: UInt8[Tensor, "b 3 h w"], bins: int = 32, power: float = 0.5) -> Float[Tensor, "b d"]:
    """(Frequencies of |Laplacian| in `bins` bins of equal width in ln(1 + x), x up to 1020) ** `power`."""
    return _log_histogram(_filter(_luma(images), CROSS).abs(), 4 * 255, bins) ** power


def fourier_profile(images: UInt8[Tensor, "b 3 h w"], rings: int = 32) -> Float[Tensor, "b d"]:
    """Mean of ln(1 + amplitude) of the luma's spectrum in `rings` rings of equal width up to 0.5 cycles per pixel.

    The mean is removed first, so brightness does not count; nor does a cyclic shift or a flip. Frequencies beyond 0.5
    (the corners of the spectrum) belong to the last ring; a ring without frequencies (small images) is 0.
    """
    gray = _luma(images)
    amplitude = torch.fft.fft2(gray - gray.mean((-2, -1), keepdim=True), norm="ortho").abs().log1p()
    rows, columns = (torch.fft.fftfreq(n, device=images.device) for n in gray.shape[-2:])
    ring = (torch.hypot(rows[:, None], columns) * 2 * rings).long().clamp(max=rings - 1).flatten()
    total = amplitude.new_zeros(len(images), rings).index_add_(1, ring, amplitude.flatten(1))
    return total / ring.bincount(minlength=rings).clamp(min=1)


def lbp(images: UInt8[Tensor, "b 3 h w"], radii: Sequence[int] = (1, 2, 3), power: float = 0.5) -> Float[Tensor, "b d"]:
    """(Frequencies of the uniform, rotation invariant local binary patterns) ** `power`, 10 per radius.

    Each pixel but the outer `radius` rows and columns is compared with its 8 neighbours `radius` rows, columns or both
    away (not interpolated on a circle). Pattern: the number of neighbours not darker than the pixel, if "not darker"
    changes at most twice around the ring, else 9 (riu2 of Ojala et al. 2002). Anything that keeps the order of grey
    levels does not count, nor does a flip or a quarter turn.
    """
    gray = _luma(images)
    return torch.cat([_binary_patterns(gray, radius) for radius in radii], 1) ** power


def wavelet(images: UInt8[Tensor, "b 3 h w"], depth: int = 3) -> Float[Tensor, "b d"]:
    """ln(1 + mean) and ln(1 + root mean square) of |coefficient| in the 3 `depth` + 1 Haar bands of the luma.

    Orthonormal transform of grey levels; of an odd number of rows or columns the last is left out at each depth. The
    last two values are the approximation's: the only ones that know brightness.
    """
    approximation, bands = _luma(images), []
    _require(approximation, 2**depth, f"depth={depth}")
    for _ in range(depth):
        approximation, *details = _haar(approximation)
        bands += details
    sizes = [band.abs().flatten(1) for band in (*bands, approximation)]
    statistics = [s for size in sizes for s in (size.mean(1), size.square().mean(1).sqrt())]
    return torch.stack(statistics, 1).log1p()


def _luma(images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
    return to_gray(images).float()


def _filter(gray: Float[Tensor, "b 1 h w"], kernel: Float[Tensor, "3 3"]) -> Float[Tensor, "b 1 u v"]:
    _require(gray, 3, "a 3 x 3 filter")
    return F.conv2d(gray, kernel.to(gray)[None, None])


def _gradient(gray: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 u v"]:
    return torch.hypot(_filter(gray, COLUMN), _filter(gray, COLUMN.T))


def _thumbnail(images: Float[Tensor, "b c h w"], size: int) -> Float[Tensor, "b d"]:
    _require(images, size, f"a thumbnail of size={size}")
    return F.adaptive_avg_pool2d(images, size).flatten(1)


def _log_histogram(values: Float[Tensor, "b 1 h w"], top: float, bins: int) -> Float[Tensor, "b {bins}"]:
    return _frequencies((values.log1p() * (bins / math.log1p(top))).long().clamp(max=bins - 1), bins)


def _frequencies(index: Int[Tensor, "b 1 h w"], bins: int) -> Float[Tensor, "b {bins}"]:
    offset = bins * torch.arange(len(index), device=index.device)
    counts = (index.flatten(1) + offset[:, None]).flatten().bincount(minlength=bins * len(index))
    return counts.view(len(index), bins) / index[0].numel()


def _binary_patterns(gray: Float[Tensor, "b 1 h w"], radius: int) -> Float[Tensor, "b 10"]:
    _require(gray, 2 * radius + 1, f"radii={radius}")
    h, w = gray.shape[-2] - 2 * radius, gray.shape[-1] - 2 * radius

    def shifted(row: int, column: int) -> Tensor:
        return gray.narrow(-2, (1 + row) * radius, h).narrow(-1, (1 + column) * radius, w)

    code = torch.zeros_like(shifted(0, 0), dtype=torch.int64)
    for bit, at in enumerate(RING):
        code |= (shifted(*at) >= shifted(0, 0)).long() << bit
    patterns = gray.new_zeros(len(gray), 10)
    return patterns.index_add_(1, RIU2.to(gray.device), _frequencies(code, len(RIU2)))


def _haar(image: Float[Tensor, "b 1 h w"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    h, w = (n // 2 * 2 for n in image.shape[-2:])
    a, b, c, d = (image[..., row:h:2, column:w:2] for row in (0, 1) for column in (0, 1))
    return (a + b + c + d) / 2, (a + b - c - d) / 2, (a - b + c - d) / 2, (a - b - c + d) / 2


def _require(images: Float[Tensor, "b c h w"], least: int, option: str) -> None:
    h, w = images.shape[-2:]
    if min(h, w) < least:
        raise ValueError(f"an image of {h} x {w} pixels is too small for {option}: it takes {least} x {least} or more")


# --- nearest neighbours ---


def fold_of(groups: Sequence[Hashable], folds: int, seed: int) -> Int[Tensor, " n"]:
    """Deals the distinct groups, shuffled, into `folds` folds of equal size (+-1); the fold of each sample.

    Samples of one group never part: give photographs as groups to split by photograph, `range(n)` to split at random.
    """
    group = numbered(groups)
    count = int(group.max()) + 1
    if not 2 <= folds <= count:
        raise ValueError(f"folds={folds} with {count} photographs or images to deal: folds must be 2 to {count}")
    return torch.from_numpy(np.random.default_rng(seed).permutation(count) % folds)[group]


def neighbours(train: Float[Tensor, "n d"], query: Float[Tensor, "m d"], k: int) -> Int[Tensor, "m k"]:
    """Rows of `train` nearest to each query in Euclidean distance, nearest first; of equal ones the earlier row."""
    if not 1 <= k <= len(train):
        raise ValueError(f"k={k} neighbours of {len(train)} training samples: k must be 1 to {len(train)}")
    return torch.cdist(query.double(), train.double()).argsort(dim=1, stable=True)[:, :k]


def vote(labels: Int[Tensor, "m k"]) -> Int[Tensor, " m"]:
    """The most frequent label of each row (nearest first); a tie goes to the label that comes first in the row."""
    k = labels.shape[1]
    # a bonus halves with each rank and all of them together stay below one vote
    weight = 1 + 0.5 ** torch.arange(1, k + 1, dtype=torch.float64)
    votes = torch.zeros(len(labels), int(labels.max()) + 1, dtype=torch.float64)
    return votes.scatter_add_(1, labels, weight.expand(len(labels), k)).argmax(1)


def predict(
    features: Float[Tensor, "n d"], labels: Int[Tensor, "n l"], fold: Int[Tensor, " n"], k: int = 5
) -> Int[Tensor, "n l"]:
    """Each column of `labels` as the `k` nearest neighbours in the other folds vote it, fold by fold.

    One protocol for all descriptors: Euclidean distance on the vector as it comes, neither centred nor scaled.
    """
    predicted = torch.empty_like(labels)
    for held_out in fold.unique():
        train, test = fold != held_out, fold == held_out
        nearest = labels[train][neighbours(features[train], features[test], k)]
        predicted[test] = torch.stack([vote(column) for column in nearest.unbind(2)], 1)
    return predicted


def accuracy(correct: Bool[Tensor, " n"], groups: Sequence[Hashable]) -> tuple[float, float]:
    """Share of right answers and its standard error when groups (photographs), not samples, are independent draws.

    With c right answers among m samples in each of G groups, share p = sum c / sum m:
    error ** 2 = G / (G - 1) sum (c - p m) ** 2 / (sum m) ** 2. That folds share training data is not accounted for.
    """
    share = correct.double().mean()
    surplus = numbered(groups).bincount(weights=correct.double() - share)
    variance = len(surplus) / (len(surplus) - 1) * surplus.square().sum() / len(correct) ** 2
    return float(share), float(variance.sqrt())


def numbered(groups: Sequence[Hashable]) -> Int[Tensor, " n"]:
    """0, 1, 2, .. for each distinct group in order of appearance."""
    number = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    return torch.tensor([number[group] for group in groups])
