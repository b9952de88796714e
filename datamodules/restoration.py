"""RestorationData: shards become batches of clean and degraded images; here ranks and workers are known.

A training batch is a function of (seed, number of the batch) alone: neither ranks nor workers nor the batches before it
matter. So the state of the stream is one number, and the trainer keeps it already: a resumed run goes on with batch
`global_step * accumulate_grad_batches`.
"""

import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from math import ceil, inf

import cv2
import lightning as L
import torch
import webdataset

from datamodules import shards
from datamodules.cases import Degrade, Labelled, TrainingCases, validation_cases
from datamodules.pipeline import (
    Batch,
    Dealt,
    Kept,
    Listed,
    batched,
    centre_crop,
    collated,
    decoded,
    degraded,
    errors_as_values,
    images,
    random_crop,
    values_as_errors,
)
from datamodules.shards import Sample

Patterns = str | Sequence[str]
KEPT_BYTES = 64_000_000
"""Of decoded images that each worker keeps, if all of them fit."""


class RestorationData(L.LightningDataModule):
    """Batches {x_hq, x_lq, label, severity, index, key, recipe} from shards of clean images or of pairs.

    x_hq, x_lq: float32 b 3 h w in [-1, 1], x_lq rounded to 8 bits. label: int64 b, position in `degradations`. severity:
    float32 b, NaN where a pair does not tell. index: int64 b. key, recipe: lists.

    degradations: name -> callable, drawn equally often; None for a name that only pairs have.
    shards, val_shards, test_shards: files as in `x/train-{000000..000099}.tar`, one pattern or several.
    root: the folder that the patterns in conf refer to; not read here.
    crop: side of the training crops in pixels. flip: mirror half of them. batch_size: images in a batch over all ranks.
    val_crop: side of the centred crop that is validated, or None for the whole image, one per batch.
    val_severities: a photograph is validated with each degradation at each of these, or with None once, at a severity
        drawn as in training. Nothing of it depends on `seed`, so that runs can be compared.
    """

    allow_zero_length_dataloader_with_multiple_devices = True  # fewer validation images than ranks

    def __init__(
        self,
        degradations: Mapping[str, Degrade | None],
        shards: Patterns | None = None,
        val_shards: Patterns | None = None,
        test_shards: Patterns | None = None,
        root: str | None = None,
        *,
        crop: int,
        flip: bool,
        batch_size: int,
        num_workers: int,
        val_crop: int | None,
        val_severities: Sequence[float] | None,
        seed: int,
    ) -> None:
        super().__init__()
        for name, value in (("crop", crop), ("batch_size", batch_size), ("val_crop", val_crop or 1)):
            if value < 1:
                raise ValueError(f"data.{name}={value}: give 1 or more")
        if not degradations:
            raise ValueError(
                "there is no degradation, but their names are the labels: choose degradation=five or others"
            )
        self.degradations = dict(degradations)
        self.shards, self.val_shards, self.test_shards, self.root = shards, val_shards, test_shards, root
        self.crop, self.flip, self.batch_size, self.num_workers = crop, flip, batch_size, num_workers
        self.val_crop, self.val_severities, self.seed = val_crop, val_severities, seed
        self._index: dict[tuple[str, ...], list[Sample]] = {}

    @property
    def digest(self) -> str:
        """The identity of the training shards."""
        return shards.digest(self.shards)

    def setup(self, stage: str) -> None:
        """Looks into the shards that will be needed, so that what is wrong with them stops the run at its start."""
        wanted = {"fit": ("shards", "val_shards"), "validate": ("val_shards",), "test": ("test_shards",)}
        for name in wanted.get(stage, ()):
            if patterns := getattr(self, name):
                self._samples(patterns, self.crop if name == "shards" else self.val_crop)

    def train_dataloader(self) -> Iterable[Batch]:
        # invoked anew at each iteration, so that an epoch of Lightning's also begins where the trainer is
        return webdataset.DataPipeline(self._from_here)

    def val_dataloader(self) -> Iterable[Batch]:
        return self.measured(self.val_shards, *self._place()) if self.val_shards else []

    def test_dataloader(self) -> Iterable[Batch]:
        return self.measured(self.test_shards, *self._place())

    def _from_here(self) -> Iterator[Batch]:
        trainer = self.trainer
        first = trainer.global_step * trainer.accumulate_grad_batches if trainer else 0
        return iter(self.stream(first, *self._place()))

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def stream(self, first_batch: int = 0, rank: int = 0, world_size: int = 1) -> webdataset.WebLoader:
        """The endless training batches from a given one on, or of each the part that is this rank's."""
        if self.batch_size % world_size:
            raise ValueError(
                f"data.batch_size={self.batch_size} is the batch over all ranks, which are {world_size}: "
                f"take a multiple, such as {ceil(self.batch_size / world_size) * world_size}"
            )
        samples = self._samples(self.shards, self.crop)
        cases = TrainingCases(samples, [labelled for _, labelled in self._callables(samples)], self.seed)
        source = Dealt(cases, self.batch_size, first_batch, rank, world_size)
        crop = partial(random_crop, size=self.crop, flip=self.flip)
        return self._loader(samples, source, crop, self.batch_size // world_size)

    def measured(self, patterns: Patterns | None, rank: int = 0, world_size: int = 1) -> webdataset.WebLoader:
        """Each photograph with each degradation at each severity, once and always the same; pairs as they are."""
        samples = self._samples(patterns, self.val_crop)
        every = validation_cases(samples, self._callables(samples), self.val_severities)
        cases = (
            every[rank::world_size] or every[:1]
        )  # a rank without work would not join the others' gathering; counted once
        size = max(1, self.batch_size // world_size) if self.val_crop else 1
        crop = partial(centre_crop, size=self.val_crop) if self.val_crop else None
        return self._loader(samples, Listed(cases, size), crop, size).with_length(ceil(len(cases) / size), silent=True)

    def _loader(
        self, samples: Sequence[Sample], source: Dealt | Listed, crop: partial | None, batch_size: int
    ) -> webdataset.WebLoader:
        fetch = Kept() if _decoded_bytes(samples) <= KEPT_BYTES else images
        steps = [partial(decoded, images=fetch, names=list(self.degradations)), crop, degraded]
        pipeline = webdataset.DataPipeline(
            source,
            *(webdataset.map(step) for step in steps if step),
            partial(batched, size=batch_size, collate=collated),
            errors_as_values,
        )
        return webdataset.WebLoader(
            pipeline,
            batch_size=None,
            num_workers=self.num_workers,
            worker_init_fn=_begin_worker,
            pin_memory=torch.cuda.is_available(),
        ).compose(values_as_errors)

    def _samples(self, patterns: Patterns | None, crop: int | None) -> list[Sample]:
        """The samples of these shards, looked up once; refuses those whose manifest says that no crop fits into them."""
        paths = tuple(shards.expand(patterns))
        if not paths:
            raise ValueError("no shards are named: give data.shards, data.val_shards or data.test_shards a pattern")
        if paths not in self._index:
            self._index[paths] = shards.index(paths)
        samples = self._index[paths]
        if not samples:
            raise ValueError(f"{paths[0]} and {len(paths) - 1} more shards hold no sample: pack a folder with images")
        small = [(sample, sample.size) for sample in samples if crop and sample.size and min(sample.size) < crop]
        if small:
            first, (height, width) = small[0]
            raise ValueError(
                f"{len(small)} of {len(samples)} images are smaller than the crop of {crop} pixels, such as {first} "
                f"({width}x{height}): take a smaller crop, or leave them out when packing"
            )
        return samples

    def _callables(self, samples: Sequence[Sample]) -> list[tuple[str, Labelled]]:
        """The degradations that can be made, with their labels."""
        named = [(name, (label, d)) for label, (name, d) in enumerate(self.degradations.items()) if d]
        clean = next((sample for sample in samples if sample.lq is None), None)
        if clean and not named:
            raise ValueError(
                f"{clean} is not a pair, and no degradation can be made: choose degradation=five or others"
            )
        return named


def _decoded_bytes(samples: Sequence[Sample]) -> float:
    """The memory that all samples take when decoded; infinite if their sizes are unknown."""
    return sum(
        3 * sample.size[0] * sample.size[1] * (2 if sample.lq else 1) if sample.size else inf for sample in samples
    )


def _begin_worker(worker: int) -> None:
    """One thread per worker (OpenCV's do not survive a fork), and Ctrl-C is the main process's to answer."""
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
