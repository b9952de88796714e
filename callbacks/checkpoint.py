"""The checkpoint a run resumes from: always the newest, whole or not there at all."""

import os
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import callbacks


class Checkpoint(callbacks.Checkpoint):
    """Writes `path` every `every_n_steps` optimizer steps. It holds plain tensors and containers only.

    The state after the last step is not kept: a run killed in its last validation must resume into training, whose end
    validates and leaves the averaged weights in the module.
    """

    def __init__(self, path: str, every_n_steps: int = 1000) -> None:
        if every_n_steps < 1:
            raise ValueError(f"callbacks.checkpoint.every_n_steps={every_n_steps}: choose 1 or more")
        self.path = path
        self.every_n_steps = every_n_steps
        self._saved_at = 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step % self.every_n_steps == 0 and step > self._saved_at and step != trainer.max_steps:
            trainer.save_checkpoint(self.path)
            self._saved_at = step

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Counts the batches so far as this trainer accumulates them, who may have other devices than the one before.

        They begin with a whole step, as the data do: of a step that was not finished nothing was kept.
        """
        batches = checkpoint["global_step"] * trainer.accumulate_grad_batches
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            counts |= dict.fromkeys(("ready", "started", "processed"), batches)
            counts["completed"] = batches - 1  # the hook that saves belongs to the last of them


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes to disk, renames; reads tensors and plain containers only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            with beside.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, target)
        finally:
            beside.unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        return torch.load(path, map_location=map_location, weights_only=True)
