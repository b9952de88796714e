"""From a case to a batch in steps that a webdataset.DataPipeline chains: decode and pair, crop, degrade, batch."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from datamodules import shards
from datamodules.cases import Case, TrainingCases
from datamodules.images import decode
from datamodules.shards import Sample

Batch = dict[str, Any]
Images = tuple[NDArray[np.uint8], NDArray[np.uint8] | None, dict[str, Any]]
T = TypeVar("T")


@dataclass(frozen=True)
class Example:
    """An element of a batch on its way: images uint8 h w 3, where x_lq comes with the pair or is made by `degraded`."""

    case: Case
    rng: Generator
    x_hq: NDArray[np.uint8]
    x_lq: NDArray[np.uint8] | None
    label: int
    recipe: Mapping[str, Any]


@dataclass(frozen=True)
class Dealt:
    """The source in training: of batch n the part of one rank; a worker takes every so many-th batch, whole.

    The loader asks its workers in turn, so that the batches come out in order, however many workers there are.
    """

    cases: TrainingCases
    batch_size: int  # over all ranks
    first_batch: int
    rank: int
    world_size: int

    def __call__(self) -> Iterator[Case]:
        worker, num_workers = _worker()
        size = self.batch_size // self.world_size
        for batch in count(self.first_batch + worker, num_workers):
            first = batch * self.batch_size + self.rank * size
            for index in range(first, first + size):
                yield self.cases[index]


@dataclass(frozen=True)
class Listed:
    """The source in validation: a list of cases, each once; a worker takes every so many-th batch, whole."""

    cases: Sequence[Case]
    batch_size: int

    def __call__(self) -> Iterator[Case]:
        worker, num_workers = _worker()
        for first in range(worker * self.batch_size, len(self.cases), num_workers * self.batch_size):
            yield from self.cases[first : first + self.batch_size]


def _worker() -> tuple[int, int]:
    info = get_worker_info()
    return (info.id, info.num_workers) if info else (0, 1)


def images(sample: Sample) -> Images:
    """A sample read and decoded: the clean image, the degraded one of a pair, and what the JSON member says."""
    hq, lq, info = shards.read(sample)
    x_hq = decode(hq, f"{sample}")
    if lq is None:
        return x_hq, None, info
    x_lq = decode(lq, f"{sample}, degraded")
    if x_lq.shape != x_hq.shape:
        raise ValueError(
            f"{sample}: the degraded image is {_size(x_lq)}, the clean one {_size(x_hq)}: a pair must have one size"
        )
    return x_hq, x_lq, info


@dataclass(frozen=True)
class Kept:
    """`images`, decoding each sample once: most of a small crop's time is decoding. (An lru_cache cannot be pickled.)"""

    done: dict[Sample, Images] = field(default_factory=dict)

    def __call__(self, sample: Sample) -> Images:
        if sample not in self.done:
            self.done[sample] = images(sample)
        return self.done[sample]


def decoded(case: Case, images: Callable[[Sample], Images], names: Sequence[str]) -> Example:
    """The images of a case with its label: the drawn one, or that of the pair."""
    x_hq, x_lq, info = images(case.sample)
    if case.drawn:
        return Example(case, case.rng, x_hq, None, case.drawn[0], {})
    return Example(case, case.rng, x_hq, x_lq, _label(case.sample, info, names), info)


def _label(sample: Sample, info: Mapping[str, Any], names: Sequence[str]) -> int:
    degradation = info.get("degradation")
    if degradation not in names:
        hint = "pack it with label=NAME" if degradation is None else f"add +degradation.{degradation}=null"
        raise ValueError(f"{sample} is a pair with degradation '{degradation}', not one of {', '.join(names)}: {hint}")
    return names.index(degradation)


def random_crop(example: Example, size: int, flip: bool) -> Example:
    """A square piece at a random place, mirrored left to right half of the time if `flip`."""
    height, width = _check_size(example, size)
    y, x = int(example.rng.integers(height - size + 1)), int(example.rng.integers(width - size + 1))
    mirror = bool(example.rng.integers(2)) and flip
    return _cut(example, y, x, size, -1 if mirror else 1)


def centre_crop(example: Example, size: int) -> Example:
    height, width = _check_size(example, size)
    return _cut(example, (height - size) // 2, (width - size) // 2, size, 1)


def _check_size(example: Example, size: int) -> tuple[int, int]:
    if min(example.x_hq.shape[:2]) < size:
        raise ValueError(
            f"{example.case.sample} is {_size(example.x_hq)}, smaller than the crop of {size} pixels: "
            "take a smaller crop, or leave it out when packing"
        )
    return example.x_hq.shape[0], example.x_hq.shape[1]


def _cut(example: Example, y: int, x: int, size: int, step: int) -> Example:
    def piece(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return image[y : y + size, x : x + size][:, ::step]

    x_lq = example.x_lq
    return replace(example, x_hq=piece(example.x_hq), x_lq=None if x_lq is None else piece(x_lq))


def degraded(example: Example) -> Example:
    """With x_lq, made from x_hq and rounded to 8 bits, as if it had been stored."""
    if example.case.drawn is None:
        return example
    _, degrade = example.case.drawn
    x_lq, recipe = degrade(example.x_hq.astype(np.float32) / np.float32(255), example.rng)
    return replace(example, x_lq=np.rint(x_lq * 255).astype(np.uint8), recipe=recipe)


def collated(examples: Sequence[Example]) -> Batch:
    return {
        "x_hq": _to_tensor([e.x_hq for e in examples]),
        "x_lq": _to_tensor([e.x_lq for e in examples]),
        "label": torch.tensor([e.label for e in examples]),
        "severity": torch.tensor([float(e.recipe.get("severity", "nan")) for e in examples]),
        "index": torch.tensor([e.case.index for e in examples]),
        "key": [e.case.sample.key for e in examples],
        "recipe": [dict(e.recipe) for e in examples],
    }


def _to_tensor(images: Sequence[NDArray[np.uint8] | None]) -> Tensor:
    """uint8 h w 3 -> float32 b 3 h w in [-1, 1]"""
    stacked = np.stack([image for image in images if image is not None])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def batched(source: Iterable[T], size: int, collate: Callable[[Sequence[T]], Batch]) -> Iterator[Batch]:
    """Batches of `size`, the last with what is left. (webdataset's own looks at the next sample first.)"""
    examples: list[T] = []
    for example in source:
        examples.append(example)
        if len(examples) == size:
            yield collate(examples)
            examples = []
    if examples:
        yield collate(examples)


def errors_as_values(source: Iterable[Batch]) -> Iterator[Batch | Exception]:
    """Hands over what is the user's to mend as it is; raised in a worker it would arrive inside a traceback."""
    try:
        yield from source
    except (ValueError, OSError) as error:
        yield error


def values_as_errors(source: Iterable[Batch | Exception]) -> Iterator[Batch]:
    """The other end of `errors_as_values`, in the main process."""
    for value in source:
        if isinstance(value, Exception):
            try:
                raise value
            finally:
                del source, value  # else error and loader hold each other, and the workers are not stopped in order
        yield value


def _size(image: NDArray[np.uint8]) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
