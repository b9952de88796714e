"""From cases to batches in steps that a webdataset.DataPipeline chains: a source, then decode and cut, degrade, batch."""

import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count, pairwise
from math import ceil, prod
from typing import Any

import cv2
import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info
from webdataset.handlers import ignore_and_continue
from webdataset.tariterators import group_by_keys, tar_file_expander

from bdg.documents import parse_object
from datamodules import scale, shards
from datamodules.cases import Case, TrainingCases, ValidationCases
from datamodules.images import Box, decode
from datamodules.index import choose, cut_off
from datamodules.order import forward
from datamodules.remote import Cache, shown
from datamodules.shards import Encoded, Sample

Batch = dict[str, Any]
Images = tuple[NDArray[np.uint8], NDArray[np.uint8] | None, Mapping[str, Any]]
Plan = Callable[[int, int], Iterator[Case]]
"""(worker, num_workers) -> the cases of this worker, in its order; a function of numbers alone, which reads no image."""


@dataclass(frozen=True)
class Example:
    """An element of a batch on its way: images uint8 h w 3, where x_lq comes with the pair or is made by `degraded`."""

    case: Case
    rng: Generator
    x_hq: NDArray[np.uint8]
    x_lq: NDArray[np.uint8] | None
    recipe: Mapping[str, Any]


@dataclass(frozen=True)
class Skipped:
    """Goes with the examples in place of one whose images cannot be read, to be counted in the main process."""

    sample: str
    reason: str


# --- sources ---


@dataclass(frozen=True)
class Share:
    """What a rank has of the training stream: of every batch over all ranks so many images, from some batch on.

    A worker takes every so many-th batch, whole. The loader asks its workers in turn, so that the batches come out in
    order, however many workers there are.
    """

    size: int  # images in a rank's part of a batch
    first_batch: int
    rank: int
    world_size: int

    def batches(self, worker: int, num_workers: int) -> Iterator[tuple[int, range]]:
        """Number of each batch of a worker, and the places of its images in the stream."""
        for batch in count(self.first_batch + worker, num_workers):
            first = (batch * self.world_size + self.rank) * self.size
            yield batch, range(first, first + self.size)


@dataclass(frozen=True)
class Dealt:
    """The plan of training: sample k of batch n is a function of the seed, n and k."""

    cases: TrainingCases
    share: Share

    def __call__(self, worker: int, num_workers: int) -> Iterator[Case]:
        for _, places in self.share.batches(worker, num_workers):
            yield from [
                self.cases[place] for place in places
            ]  # together: between decodings each would take twice as long


@dataclass(frozen=True)
class DealtForward:
    """The plan of training for shards that are read from begin to end: each worker of each rank has shards of its own.

    So the samples are a function of the seed, the place, and the number of ranks and workers.
    """

    cases: TrainingCases
    share: Share

    def __call__(self, worker: int, num_workers: int) -> Iterator[Case]:
        share, samples = self.share, self.cases.samples
        batch = share.first_batch + worker
        lane = batch % num_workers  # the first worker asked after a resume is not the first of the beginning
        places = forward(
            samples.counts,
            self.cases.seed,
            lane=share.rank + share.world_size * lane,
            num_lanes=share.world_size * num_workers,
            first=batch // num_workers * share.size,
        )
        for _, indices in share.batches(worker, num_workers):
            for index, (epoch, shard, row) in zip(indices, places, strict=False):
                yield self.cases.case(index, epoch, samples.at(shard, row))


@dataclass(frozen=True)
class Listed:
    """The plan of validation: every case once; a rank takes every so many-th, a worker every so many-th batch of these."""

    cases: ValidationCases
    size: int
    rank: int
    world_size: int

    def numbers(self, worker: int, num_workers: int) -> Iterator[int]:
        # a rank without work would not join the others' gathering; what it has twice is counted once
        mine = range(self.rank, len(self.cases), self.world_size) or range(min(1, len(self.cases)))
        for first in range(worker * self.size, len(mine), num_workers * self.size):
            yield from mine[first : first + self.size]

    def num_batches(self, num_workers: int) -> int:
        return sum(ceil(len([*self.numbers(worker, num_workers)]) / self.size) for worker in range(num_workers))

    def __call__(self, worker: int, num_workers: int) -> Iterator[Case]:
        return map(self.cases.__getitem__, self.numbers(worker, num_workers))


@dataclass(frozen=True)
class ListedForward(Listed):
    """The plan of validation for shards that are read from begin to end: every case once, each shard by one worker."""

    def numbers(self, worker: int, num_workers: int) -> Iterator[int]:
        of_samples = np.concatenate([[0], self.cases.ends])
        ends = of_samples[np.cumsum([0, *self.cases.samples.counts])].tolist()
        of_shards = [range(first, last) for first, last in pairwise(ends)]
        mine = of_shards[self.rank :: self.world_size]
        if not any(mine):
            mine = [range(min(1, len(self.cases)))]  # see Listed
        yield from chain(*mine[worker::num_workers])


@dataclass(frozen=True)
class Source:
    """The cases of the worker that asks."""

    plan: Plan

    def __call__(self) -> Iterator[Case]:
        info = get_worker_info()
        return self.plan(info.id, info.num_workers) if info else self.plan(0, 1)


def read_forward(cases: Iterable[Case], cache: Cache) -> Iterator[Case]:
    """The cases with their bytes, from shards that are read from begin to end; their samples come in that order."""
    shard, reached, encoded = "", -1, None
    ahead: Iterator[dict[str, Any]] = iter(())
    for case in cases:
        sample = case.sample
        place = (sample.shard, sample.hq.offset)
        if place != (shard, reached):  # else the same with another degradation, in validation
            if sample.shard != shard or sample.hq.offset < reached:
                ahead = _in_order(sample.shard, cache)
            shard, reached = place
            found = next((found for found in ahead if found["__key__"].removeprefix("./") == sample.key), {})
            chosen = choose(name for name in found if not name.startswith("__"))
            if chosen.hq is None:
                raise ValueError(f"{sample} is not in it: the shard was replaced since it was indexed: start again")
            lq, info = (found[name] if name else None for name in (chosen.lq, chosen.info))
            encoded = Encoded(found[chosen.hq], lq, parse_object(info or b"{}"))
        yield replace(case, encoded=encoded)


def _in_order(shard: str, cache: Cache) -> Iterator[dict[str, Any]]:
    """The samples of a shard as webdataset reads them, but for its opener, which runs the commands that some URLs are."""
    with cache.open(shard) as file:
        files = tar_file_expander([{"url": shown(shard), "stream": file}])
        try:
            yield from group_by_keys(files, handler=ignore_and_continue)  # nobody asks for what the index does not take
        except tarfile.ReadError as error:
            raise ValueError(cut_off(shown(shard), f"{error.args[0]}", os.fstat(file.fileno()).st_size)) from None


# --- stages ---


class UnreadableError(ValueError):
    """Of the images of one sample; `data.on_error` says what becomes of it."""


@dataclass(frozen=True)
class Cut:
    """A square piece of an image, as it is or mirrored left to right."""

    top: int
    left: int
    side: int
    mirror: bool = False

    @property
    def box(self) -> Box:
        return self.top, self.left, self.side, self.side

    def of(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return image[self.top : self.top + self.side, self.left : self.left + self.side]


def random_cut(height: int, width: int, rng: Generator, side: int, flip: bool) -> Cut:
    """At a random place, mirrored half of the time if `flip`."""
    top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
    return Cut(top, left, side, mirror=bool(rng.integers(2)) and flip)


def centre_cut(height: int, width: int, rng: Generator, side: int) -> Cut:
    return Cut((height - side) // 2, (width - side) // 2, side)


def images(case: Case, cut: Cut | None, cache: Cache) -> Images:
    """The clean image of a case and the degraded one of a pair, cut but not mirrored, and what the JSON member says."""
    sample, box = case.sample, cut.box if cut else None
    hq, lq, info = case.encoded or shards.read(sample, cache)
    try:
        x_hq = decode(hq, f"{sample}", box)
        if lq is None or sample.scale == 1:
            return x_hq, None if lq is None else decode(lq, f"{sample}, degraded", box), info
        x_lq = enlarged(decode(lq, f"{sample}, degraded"), sample)
    except ValueError as error:
        raise UnreadableError(str(error)) from None
    return x_hq, cut.of(x_lq) if cut else x_lq, info


def enlarged(x_lq: NDArray[np.uint8], sample: Sample) -> NDArray[np.uint8]:
    """A degraded image that is smaller by the sample's scale in the size of the clean one (bicubic)."""
    assert sample.size is not None  # the clean image has been decoded
    height, width = sample.size
    if not sample.scale:
        raise ValueError(
            f"{sample}: the degraded image is {x_lq.shape[1]}x{x_lq.shape[0]}, the clean one {width}x{height}: "
            "a pair must have one size, or its .json member the scale between them"
        )
    return scale.enlarged(x_lq, sample.size)


@dataclass(frozen=True)
class Kept:
    """Images, each sample decoded once: most of a small crop's time is decoding. (An lru_cache cannot be pickled.)"""

    images: Callable[[Case, None], Images]
    done: dict[Sample, Images] = field(default_factory=dict)

    def __call__(self, case: Case, cut: Cut | None) -> Images:
        if case.sample not in self.done:
            self.done[case.sample] = self.images(case, None)
        x_hq, x_lq, info = self.done[case.sample]
        return (cut.of(x_hq), None if x_lq is None else cut.of(x_lq), info) if cut else (x_hq, x_lq, info)


def decoded(
    cases: Iterable[Case],
    images: Callable[[Case, Cut | None], Images],
    choose: Callable[[int, int, Generator], Cut] | None,
    instead: Callable[[Case, int], Case | None] | None,
) -> Iterator[Example | Skipped]:
    """The images of the cases, or what `choose` cuts out of each: (height, width, rng) -> cut.

    instead: (case, attempt) -> the case that takes the place of one whose images cannot be read, or None to leave the place
    empty; without it such a case is an error.
    """
    for wanted in cases:
        case: Case | None = wanted
        for attempt in count(1):
            if case is None:
                break
            rng, size = case.rng, case.sample.size
            cut = choose(*size, rng) if choose and size else None  # an image without a size cannot be read
            try:
                x_hq, x_lq, info = images(case, cut)
            except UnreadableError as error:
                if instead is None:
                    raise
                yield Skipped(f"{case.sample}", f"{error}")
                case = instead(wanted, attempt)
            else:
                if cut and cut.mirror:
                    x_hq, x_lq = mirrored(x_hq), None if x_lq is None else mirrored(x_lq)
                yield Example(case, rng, x_hq, x_lq, info)
                break


def mirrored(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Left to right; to copy image[:, ::-1] takes ten times as long."""
    return np.asarray(cv2.flip(image, 1), np.uint8)


def degraded(items: Iterable[Example | Skipped]) -> Iterator[Example | Skipped]:
    """With x_lq, made from x_hq and rounded to 8 bits, as if it had been stored."""
    for item in items:
        if isinstance(item, Skipped) or item.case.degrade is None:
            yield item
        else:
            x_lq, recipe = item.case.degrade(item.x_hq.astype(np.float32) / np.float32(255), item.rng)
            yield replace(item, x_lq=np.rint(x_lq * 255).astype(np.uint8), recipe=recipe)


@dataclass
class Room:
    """Memory in which batches go to the main process, shared with it; new memory for each would be a tenth of the work.

    The last byte of a place says whether it is taken: whoever has made a copy of the batch lets go of it (`Sent`).
    """

    places: list[Tensor] = field(default_factory=list)

    def __call__(self, num_bytes: int) -> Tensor:
        """A place for so many bytes, or more."""
        taken = [place for place in self.places if place[-1]]
        fitting = [place for place in self.places if not place[-1] and len(place) > num_bytes]
        if not fitting:
            fitting = [torch.zeros(num_bytes + 1, dtype=torch.uint8)]
            if get_worker_info():
                fitting[0].share_memory_()
        fitting[0][-1] = 1
        self.places = [*taken, *fitting]
        return fitting[0]


@dataclass(frozen=True)
class Sent:
    """A batch on its way to the main process: images uint8 2 b h w 3, clean and degraded, in the place that they take.

    All else is in lists, since every tensor would cost a file.
    """

    place: Tensor
    shape: tuple[int, ...]
    columns: Mapping[str, list[Any]]
    skipped: Sequence[Skipped]

    def pin_memory(self) -> "Sent":
        """What torch calls where there is a device."""
        pinned = self.place.pin_memory()
        self.place[-1] = 0
        return replace(self, place=pinned)

    def batch(self) -> Batch:
        """Images uint8 b h w 3, in memory of their own."""
        images = self.place[: prod(self.shape)].view(self.shape)
        if not self.place.is_pinned():
            images = images.clone()
            self.place[-1] = 0
        tensors = {name: torch.tensor(self.columns[name]) for name in ("label", "severity", "index")}
        return {"x_hq": images[0], "x_lq": images[1], **self.columns, **tensors}


def batched(items: Iterable[Example | Skipped], size: int, room: Room) -> Iterator[Sent]:
    """Batches of `size`, the last with what is left; what was skipped goes with the next, or alone at the end."""
    examples: list[Example] = []
    skipped: list[Skipped] = []
    for item in items:
        (skipped if isinstance(item, Skipped) else examples).append(item)  # type: ignore[arg-type]
        if len(examples) == size:
            yield collated(examples, skipped, room)
            examples, skipped = [], []
    if examples or skipped:
        yield collated(examples, skipped, room)


def collated(examples: Sequence[Example], skipped: Sequence[Skipped], room: Room) -> Sent:
    shape = (2, len(examples), *(examples[0].x_hq.shape if examples else ()))
    place = room(prod(shape))
    images = place[: prod(shape)].view(shape).numpy()
    for i, example in enumerate(examples):
        images[0, i], images[1, i] = example.x_hq, example.x_lq
    columns: dict[str, list[Any]] = {
        "label": [e.case.label for e in examples],
        "severity": [float(e.recipe.get("severity", "nan")) for e in examples],
        "index": [e.case.index for e in examples],
        "key": [e.case.sample.key for e in examples],
        "recipe": [dict(e.recipe) for e in examples],
    }
    return Sent(place, shape, columns, skipped)


def to_float(batch: Mapping[str, Any]) -> Batch:
    """The batch with its images as float32 b 3 h w in [-1, 1], from uint8 b h w 3; those that are floats stay."""

    def converted(x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2).contiguous().float().div_(127.5).sub_(1) if x.dtype == torch.uint8 else x

    return {**batch, **{name: converted(batch[name]) for name in ("x_hq", "x_lq") if name in batch}}


# --- to the main process ---


def errors_as_values(source: Iterable[Sent]) -> Iterator[Sent | Exception]:
    """Hands over what is the user's to mend as it is; raised in a worker it would arrive inside a traceback."""
    try:
        yield from source
    except (ValueError, OSError) as error:
        yield error


def received(source: Iterable[Sent | Exception], report: Callable[[Skipped], None]) -> Iterator[Batch]:
    """The other end, in the main process: raises the errors, reports what was skipped, and hands on the batches."""
    for value in source:
        if isinstance(value, Exception):
            try:
                raise value
            finally:
                del source, value  # else error and loader hold each other, and the workers are not stopped in order
        for skipped in value.skipped:
            report(skipped)
        if value.columns["key"]:
            yield value.batch()
