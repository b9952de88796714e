"""Time to disturb a training, which costs no computing, and ranks that are out of step."""

import time
from typing import Any

import lightning as L


class Pace(L.Callback):
    """Waits after each step, so long as `seconds` says, and on rank N for (N + 1) times as long."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        time.sleep(self.seconds * (trainer.global_rank + 1))
