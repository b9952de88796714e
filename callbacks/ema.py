"""Averaged weights: an exponential moving average that survives validation, interruption and resume."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class Ema(WeightAveraging):
    """Averages every `every_n_steps` optimizer steps with the weight min(decay, (1 + k) / (10 + k)) after k updates.

    The warm-up keeps short runs from being an average of random initial weights. Buffers are copied, not averaged.
    In a checkpoint `state_dict` holds averaged weights, or those that are being trained before the first update, and
    `current_model_state` those that are being trained, also when it is written while validation has exchanged the two.
    """

    def __init__(self, decay: float = 0.995, every_n_steps: int = 10) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"callbacks.ema.decay={decay}: choose 0 <= decay < 1; 0.995 is the usual value")
        if every_n_steps < 1:
            raise ValueError(f"callbacks.ema.every_n_steps={every_n_steps}: choose 1 or more")
        super().__init__(use_buffers=False, multi_avg_fn=self._average)
        self.decay = decay
        self.every_n_steps = every_n_steps
        self._swapped = False

    @torch.no_grad()
    def _average(self, averaged: list[Tensor], current: list[Tensor], num_averaged: Tensor | int) -> None:
        k = int(num_averaged)
        decay = min(self.decay, (1 + k) / (10 + k))
        torch._foreach_lerp_(averaged, current, 1 - decay)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return step_idx is not None and (step_idx + 1) % self.every_n_steps == 0  # step_idx counts from 0

    @property
    def _begun(self) -> bool:
        return self._average_model is not None and int(self._average_model.n_averaged) > 0

    @property
    def average(self) -> torch.nn.Module | None:
        """The averaged module outside of validation; None before the first update."""
        return self._average_model.module if self._begun and self._average_model is not None else None

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._begun:  # before the first update there is no average to look at
            self._swap_models(pl_module)
            self._swapped = True

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._swapped:
            self._swap_models(pl_module)
            self._swapped = False

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._begun:
            super().on_train_end(trainer, pl_module)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._swapped:  # the module holds the average now, and the averaged model what is being trained
            averaged = checkpoint["current_model_state"]
            checkpoint["current_model_state"] = checkpoint["state_dict"]
            checkpoint["state_dict"] = averaged
        elif not self._begun and "current_model_state" in checkpoint:
            checkpoint["state_dict"] = checkpoint["current_model_state"]
