"""The random generators of python, numpy and torch, of every rank: they go on after a resume as if nothing had happened.

Nothing in `bdg` draws from them: samples, times and noise are functions of (seed, step, index). A module of yours may.
"""

import logging
import random
from typing import Any

import lightning as L
import numpy as np
import torch

from callbacks.checkpoint import validation_follows

log = logging.getLogger("bdg")

States = dict[str, Any]


class Generators(L.Callback):
    """Puts their states into the checkpoint. Validation leaves them as they were, so how often it is done changes nothing."""

    def __init__(self) -> None:
        self._to_restore: States | None = None
        self._outside: States = {}

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        own = states()
        if trainer.world_size > 1:
            ranks: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(ranks, own)
        checkpoint["generators"] = ranks if trainer.world_size > 1 else [own]

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        found = checkpoint.get("generators", [])
        if len(found) == trainer.world_size:
            self._to_restore = found[trainer.global_rank]
        elif trainer.is_global_zero:
            log.warning(
                "the generators of %d ranks do not fit %d: what draws from python's, numpy's or torch's own begins anew",
                len(found),
                trainer.world_size,
            )

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._to_restore:  # here, since making a loader also draws
            restore(self._to_restore)
            self._to_restore = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if validation_follows(trainer, trainer.global_step):  # whose loader draws before its first hook
            self._outside = states()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._outside:
            restore(self._outside)
            self._outside = {}


def states() -> States:
    """Of this process, as tensors and plain containers."""
    numpy: Any = np.random.get_state()
    kind, key, *rest = numpy
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(key.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def restore(found: States) -> None:
    random.setstate(found["python"])
    kind, key, *rest = found["numpy"]
    np.random.set_state((kind, key.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(found["torch"].cpu())
    if found["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(found["cuda"].cpu())
