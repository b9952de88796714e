"""How fast a training is and how far: a small file for those who look at the run from outside."""

import json
import logging
import time
from collections import deque
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L

from jobs.run import write_text

log = logging.getLogger("bdg")


class Throughput(L.Callback):
    """Writes `file`: step, max_steps, step_s, images_s, wall_s, devices, time. Rank 0 does.

    step_s: median seconds of a step, from the end of one to the end of the next, over the last `window`; the first step of a
    start and validation are left out. wall_s: seconds of training, validation included, over all restarts; what was lost
    with a killed process is not in it. time: seconds since 1970. step_s and images_s are logged too, as time/...

    images: of a step, over all ranks. every_s: the file is written so often at most, with each checkpoint, and at the end.
    """

    def __init__(self, file: str, images: int, every_s: float = 10.0, window: int = 100) -> None:
        for name, value in (("every_s", every_s), ("window", window)):
            if value <= 0:
                raise ValueError(f"callbacks.throughput.{name}={value}: give more than 0")
        self.file, self.images, self.every_s = Path(file), images, every_s
        self._steps: deque[float] = deque(maxlen=window)
        self._at = 0  # step
        self._since: float | None = None  # the end of the step before
        self._begun: float | None = None
        self._before_s = 0.0  # in earlier starts
        self._written_at, self._writable = 0.0, True

    @property
    def wall_s(self) -> float:
        return self._before_s + (0.0 if self._begun is None else time.monotonic() - self._begun)

    def state_dict(self) -> dict[str, Any]:
        return {"wall_s": self.wall_s}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before_s = state_dict["wall_s"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begun = self._written_at = time.monotonic()
        self._at, self._since = trainer.global_step, None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._at:  # a step is not finished
            return
        now = time.monotonic()
        if self._since is not None:
            self._steps.append(now - self._since)
        self._at, self._since = trainer.global_step, now
        if now - self._written_at >= self.every_s:
            self._write(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._since is not None:
            self._since = time.monotonic()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._write(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write(trainer)

    def _write(self, trainer: L.Trainer) -> None:
        if not trainer.is_global_zero:
            return
        self._written_at = time.monotonic()
        step_s = median(self._steps) if self._steps else None
        facts = {
            "step": trainer.global_step,
            "max_steps": trainer.max_steps,
            "step_s": step_s,
            "images_s": step_s and self.images / step_s,
            "wall_s": self.wall_s,
            "devices": trainer.world_size,
            "time": time.time(),
        }
        if step_s:
            speed = {"time/step_s": step_s, "time/images_s": self.images / step_s}
            for logger in trainer.loggers:
                logger.log_metrics(speed, trainer.global_step - 1)  # Lightning's loggers count from 0
        try:
            write_text(self.file, json.dumps(facts), flush=False)
        except OSError as error:  # a full disk must not end the training
            if self._writable:
                log.warning("the speed of the training cannot be written: %s", error)
            self._writable = False
