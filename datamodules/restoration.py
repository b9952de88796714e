"""RestorationData: shards become batches of clean and degraded images; here ranks and workers are known.

A training batch is a function of (seed, number of the batch) alone: neither ranks nor workers nor the batches before it
matter. So the state of the stream is one number, and the trainer keeps it already: a resumed run goes on with the batch of
its step. (Of shards that can only be read forwards, ranks and workers matter too.)
"""

import ctypes
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any, Self

import cv2
import lightning as L
import torch
import webdataset
from numpy.random import Generator

from bdg.signals import SIGNALS
from datamodules import shards
from datamodules.cases import Case, Degrade, TrainingCases, ValidationCases, left_out
from datamodules.pipeline import (
    Batch,
    Cut,
    Dealt,
    DealtForward,
    Images,
    Kept,
    Listed,
    ListedForward,
    Plan,
    Room,
    Share,
    Skipped,
    Source,
    batched,
    centre_cut,
    decoded,
    degraded,
    errors_as_values,
    images,
    random_cut,
    read_forward,
    received,
    to_float,
)
from datamodules.remote import Cache, is_url, shown
from datamodules.shards import ON_ERROR, Sample, Samples

log = logging.getLogger("bdg")

Patterns = str | Sequence[str]
READERS = ("indexed", "stream")
KEPT_BYTES = 64_000_000
"""Of decoded images that each worker keeps, if all of them fit."""
SHOWN_SKIPPED = 10
"""So many samples that cannot be read are named one by one."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


class RestorationData(L.LightningDataModule):
    """Batches {x_hq, x_lq, label, severity, index, key, recipe} from shards of clean images or of pairs.

    x_hq, x_lq: float32 b 3 h w in [-1, 1], x_lq rounded to 8 bits. label: int64 b, position in `degradations`. severity:
    float32 b, NaN where a pair does not tell. index: int64 b. key, recipe: lists. The loaders hand images over as uint8
    b h w 3; they become floats on the device (`to_float`).

    degradations: name -> callable, drawn equally often; None for a name that only pairs have.
    shards, val_shards, test_shards: files or URLs as in `x/train-{000000..000099}.tar`, one pattern or several.
    root: the folder that the patterns in conf refer to; not read here.
    crop: side of the training crops in pixels. flip: mirror half of them. batch_size: images in a step over all ranks.
    micro_batch: images that a device takes at once, at most; None for its whole part of the step.
    val_crop: side of the centred crop that is validated, or None for the whole image, one per batch.
    val_severities: a photograph is validated with each degradation at each of these, or with None once, at a severity
        drawn as in training. Nothing of it depends on `seed`, so that runs can be compared.
    quotas: name -> samples in a round, or None: all samples equally often.
    reader: "indexed" takes samples from any place; "stream" reads each shard from its begin to its end.
    window: shards that are shuffled together, in an order of their own; None for all of them.
    on_error: "stop", or "skip" samples that cannot be read; in training another takes the place.
    cache: folder for copies of remote shards, and for indexes that cannot lie beside theirs; cache_gb: its bound.
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
        micro_batch: int | None = None,
        quotas: Mapping[str, int] | None = None,
        reader: str = "indexed",
        window: int | None = None,
        on_error: str = "stop",
        cache: str | None = None,
        cache_gb: float = Cache.gigabytes,
    ) -> None:
        super().__init__()
        for name, value in (
            ("crop", crop),
            ("batch_size", batch_size),
            ("val_crop", val_crop or 1),
            ("micro_batch", 1 if micro_batch is None else micro_batch),
            ("window", 1 if window is None else window),
        ):
            if value < 1:
                raise ValueError(f"data.{name}={value}: give 1 or more")
        for name, choice, choices in (("reader", reader, READERS), ("on_error", on_error, ON_ERROR)):
            if choice not in choices:
                raise ValueError(f"data.{name}={choice}: choose one of {', '.join(choices)}")
        if not degradations:
            raise ValueError(
                "there is no degradation, but their names are the labels: choose degradation=five or others"
            )
        self.degradations = dict(degradations)
        self.shards, self.val_shards, self.test_shards, self.root = shards, val_shards, test_shards, root
        self.crop, self.flip, self.batch_size, self.num_workers = crop, flip, batch_size, num_workers
        self.val_crop, self.val_severities, self.seed = val_crop, val_severities, seed
        self.micro_batch, self.quotas, self.reader, self.window = micro_batch, quotas, reader, window
        self.on_error, self.cache = on_error, Cache(Path(cache).expanduser() if cache else Cache.folder, cache_gb)
        self.skipped: dict[str, int] = {}
        """Samples that could not be read, and how often they were met."""
        self._index: dict[tuple[str, ...], Samples] = {}

    @classmethod
    def to_measure(
        cls,
        degradations: Mapping[str, Degrade | None],
        *,
        crop: int | None,
        severities: Sequence[float] | None,
        num_workers: int,
    ) -> Self:
        """For `measured` only, one image per batch; crop and severities are `val_crop` and `val_severities`."""
        return cls(
            degradations,
            crop=1,
            flip=False,
            batch_size=1,
            num_workers=num_workers,
            val_crop=crop,
            val_severities=severities,
            seed=0,
        )

    @property
    def digest(self) -> str:
        """The identity of the training shards."""
        return shards.digest(self.shards)

    def setup(self, stage: str) -> None:
        """Looks into the shards that will be needed, so that what is wrong with them stops the run at its start."""
        if stage == "fit" and self.trainer and not self.val_shards:
            self.trainer.limit_val_batches = 0  # Lightning's word for no validation
        wanted = {"fit": ("shards", "val_shards"), "validate": ("val_shards",), "test": ("test_shards",)}
        for name in wanted.get(stage, ()):
            if patterns := getattr(self, name):
                self._samples(patterns, self.crop if name == "shards" else self.val_crop)

    def teardown(self, stage: str) -> None:
        if self.skipped:
            log.warning(
                "%d samples could not be read and were skipped, %d times in all, such as %s",
                len(self.skipped),
                sum(self.skipped.values()),
                next(iter(self.skipped)),
            )
            self.skipped = {}

    def train_dataloader(self) -> Iterable[Batch]:
        # invoked anew at each iteration, so that an epoch of Lightning's also begins where the trainer is
        return webdataset.DataPipeline(self._from_here)

    def val_dataloader(self) -> Iterable[Batch]:
        return self.measured(self.val_shards, *self._place())

    def test_dataloader(self) -> Iterable[Batch]:
        return self.measured(self.test_shards, *self._place())

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Tensors only: Lightning's own would look at every number of every recipe."""
        moved = {
            name: value.to(device, non_blocking=True)
            for name, value in batch.items()
            if isinstance(value, torch.Tensor)
        }
        return batch | moved

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        return to_float(batch)

    def _from_here(self) -> Iterator[Batch]:
        trainer = self.trainer
        step, accumulated = (trainer.global_step, trainer.accumulate_grad_batches) if trainer else (0, 1)
        return iter(self.stream(step, *self._place(), accumulated))

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def accumulation(self, world_size: int) -> int:
        """How many batches of `micro_batch` images on each device make a step."""
        share, micro = self.batch_size // world_size, self.micro_batch
        if micro is None or micro >= share:
            return 1
        if share % micro:
            fitting = ", ".join(str(n) for n in range(1, share + 1) if share % n == 0)
            raise ValueError(
                f"data.micro_batch={micro}: of data.batch_size={self.batch_size} each of {world_size} devices has {share}, "
                f"which is no multiple of it: take one of {fitting}"
            )
        return share // micro

    def stream(self, step: int = 0, rank: int = 0, world_size: int = 1, accumulated: int = 1) -> webdataset.WebLoader:
        """The endless training batches from a given step on, or of each the part that is this rank's.

        accumulated: how many batches a step takes.
        """
        plan = self.plan(step, rank, world_size, accumulated)
        cut = partial(random_cut, side=self.crop, flip=self.flip)
        return self._loader(plan, plan.cases.samples, cut, plan.share.size, plan.cases.instead)

    def plan(self, step: int, rank: int, world_size: int, accumulated: int) -> Dealt | DealtForward:
        """Which samples `stream` takes, in which order."""
        at_once = world_size * accumulated
        if self.batch_size % at_once:
            parts = f", in {accumulated} parts each" if accumulated > 1 else ""
            raise ValueError(
                f"data.batch_size={self.batch_size} is the batch over all ranks, which are {world_size}{parts}: "
                f"take a multiple, such as {ceil(self.batch_size / at_once) * at_once}"
            )
        samples = self._samples(self.shards, self.crop)
        cases = TrainingCases(samples, self.degradations, self.seed, self.quotas, self.window)
        share = Share(self.batch_size // at_once, step * accumulated, rank, world_size)
        if self.reader == "indexed":
            self._check_cache(samples)
            return Dealt(cases, share)
        lanes, num_shards = world_size * max(1, self.num_workers), len(samples.counts)
        if num_shards < lanes:
            raise ValueError(
                f"data.reader=stream gives each worker shards of its own, but there are {num_shards} shards for {world_size} "
                f"ranks with {max(1, self.num_workers)} workers: take fewer workers, or data.reader=indexed"
            )
        if self.quotas and any(kind.pair for kind in samples.kinds):
            raise ValueError(
                f"data.quotas={self.quotas}: data.reader=stream takes pairs as they come: "
                "take data.reader=indexed, or data.quotas=null"
            )
        return DealtForward(cases, share)

    def measured(self, patterns: Patterns | None, rank: int = 0, world_size: int = 1) -> webdataset.WebLoader:
        """Each photograph with each degradation at each severity, once and always the same; pairs as they are."""
        samples = self._samples(patterns, self.val_crop)
        cases = ValidationCases(samples, self.degradations, self.val_severities)
        size = max(1, self.batch_size // world_size) if self.val_crop else 1
        plan = (Listed if self.reader == "indexed" else ListedForward)(cases, size, rank, world_size)
        cut = partial(centre_cut, side=self.val_crop) if self.val_crop else None
        loader = self._loader(plan, samples, cut, size, left_out)
        return loader.with_length(plan.num_batches(max(1, self.num_workers)), silent=True)

    def _loader(
        self,
        plan: Plan,
        samples: Samples,
        choose: Callable[[int, int, Generator], Cut] | None,
        size: int,
        instead: Callable[[Case, int], Case | None],
    ) -> webdataset.WebLoader:
        fetch: Callable[[Case, Cut | None], Images] = partial(images, cache=self.cache)
        if samples.decoded_bytes <= KEPT_BYTES:
            fetch = Kept(fetch)
        pipeline = webdataset.DataPipeline(
            Source(plan),
            partial(read_forward, cache=self.cache) if self.reader == "stream" else None,
            partial(decoded, images=fetch, choose=choose, instead=instead if self.on_error == "skip" else None),
            degraded,
            partial(batched, size=size, room=Room()),
            errors_as_values,
        )
        return webdataset.WebLoader(
            pipeline,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=self.num_workers,
            worker_init_fn=_begin_worker,
            pin_memory=torch.cuda.is_available(),
        ).compose(partial(received, report=self._report))

    def _report(self, skipped: Skipped) -> None:
        self.skipped[skipped.sample] = self.skipped.get(skipped.sample, 0) + 1
        if self.skipped[skipped.sample] == 1 and len(self.skipped) <= SHOWN_SKIPPED:
            log.warning("%s; skipped", skipped.reason)

    def _samples(self, patterns: Patterns | None, crop: int | None) -> Samples:
        """The samples of these shards, looked up once; refuses those of which an image is known to be too small."""
        paths = tuple(shards.expand(patterns))
        if not paths:
            raise ValueError("no shards are named: give data.shards, data.val_shards or data.test_shards a pattern")
        if paths not in self._index:
            self._index[paths] = shards.index(paths, self.cache, self.on_error)
        samples = self._index[paths]
        if not samples:
            raise ValueError(
                f"{shown(paths[0])} and {len(paths) - 1} more shards hold no sample: pack a folder with images"
            )
        if crop and samples.smallest and samples.smallest < crop and len(small := samples.smaller_than(crop)):
            first: Sample = samples[int(small[0])]
            height, width = first.size or (0, 0)
            raise ValueError(
                f"{len(small)} of {len(samples)} images are smaller than the crop of {crop} pixels, such as {first} "
                f"({width}x{height}): take a smaller crop, or leave them out when packing"
            )
        return samples

    def _check_cache(self, samples: Samples) -> None:
        """Refuses a shuffle over more remote shards than the cache can hold, which would fetch a shard for every sample."""
        sizes = [size for path, size in samples.shard_bytes.items() if is_url(path)]
        room = int(self.cache.gigabytes * 1e9 // max(sizes, default=1))
        at_once = len(sizes)
        if self.window:  # one window ends while the next begins, for each order
            at_once = min(at_once, 2 * self.window * len(self.quotas or [None]))
        if room < at_once:
            raise ValueError(
                f"data.cache_gb={self.cache.gigabytes:g} holds {room} of {len(sizes)} remote shards, but "
                f"data.window={self.window} reads from {at_once} at a time: "
                "take a smaller window, a larger cache, or data.reader=stream"
            )


def _as_it_is(batch: Any) -> Any:
    """Torch's own would look at every number of every recipe for something to make a tensor of."""
    return batch


def _begin_worker(worker: int) -> None:
    """One thread per worker (OpenCV's do not survive a fork), and signals are the main process's to answer."""
    cv2.setNumThreads(0)
    ignore_signals()
    keep_freed_memory()


def ignore_signals() -> None:
    """What is sent to a process group ends none of its workers; SIGTERM of its parent ends one, as torch means it."""
    if not hasattr(signal, "sigwaitinfo"):  # macOS does not tell who sent a signal
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def wait() -> None:
        while True:
            sent = signal.sigwaitinfo(SIGNALS)
            if sent.si_signo == signal.SIGTERM and sent.si_pid == os.getppid():
                os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def keep_freed_memory() -> None:
    """Lets glibc keep what images leave free: given back to the system, it returns page by page, a third of decoding's time."""
    with suppress(AttributeError):  # other systems do as they do
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 32 * 2**20)  # the largest it takes
        mallopt(M_TRIM_THRESHOLD, 512 * 2**20)
