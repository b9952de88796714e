"""What the optimizer and the machine do in a step: norms, learning rate, waiting, memory; looked at when a line is logged."""

import resource
import time
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from callbacks.ema import Ema

GIB = 2**30


class Measures(L.Callback):
    """Every `trainer.log_every_n_steps`, and nothing in the steps between but two looks at the clock.

    optimizer/grad_norm: of all parameters together, before clipping. optimizer/lr: of the first group, in this step.
    ema/distance: |averaged - trained| / |trained|, over all parameters.
    time/data_wait_s: mean wait for a batch since the last line, on rank 0.
    memory/device_gb: the highest that this process has allocated on its device, GiB. memory/host_gb: likewise, of its own
    memory. The device is never waited for: values are tensors until the line is written.
    """

    def __init__(self) -> None:
        self._waited_s, self._waits = 0.0, 0
        self._ended: float | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._waited_s, self._waits, self._ended = 0.0, 0, None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._ended is not None:
            self._waited_s, self._waits = self._waited_s + time.perf_counter() - self._ended, self._waits + 1

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if is_logged(trainer, trainer.global_step + 1):
            pl_module.log("optimizer/grad_norm", grad_norm(pl_module))
            pl_module.log("optimizer/lr", float(optimizer.param_groups[0]["lr"]))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        whole = (batch_idx + 1) % trainer.accumulate_grad_batches == 0  # a step is finished
        if whole and is_logged(trainer, trainer.global_step):
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, Ema) and callback.average is not None:
                    pl_module.log("ema/distance", distance(callback.average, pl_module))
            pl_module.log_dict(memory(pl_module.device))
            if self._waits:
                pl_module.log("time/data_wait_s", self._waited_s / self._waits)
            self._waited_s, self._waits = 0.0, 0
        self._ended = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._ended = None  # what comes now is no wait for data


def is_logged(trainer: L.Trainer, step: int) -> bool:
    """Whether Lightning writes a line after this step, counted from 1."""
    return step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]


def grad_norm(module: nn.Module) -> Tensor:
    """Of the gradient of all parameters together; 0 where a step was skipped."""
    return torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None]).float()


@torch.no_grad()
def distance(averaged: nn.Module, trained: nn.Module) -> Tensor:
    """|averaged - trained| / |trained| over all parameters; one copy of one parameter at a time."""
    pairs = zip(averaged.parameters(), trained.parameters(), strict=True)
    norms = [(torch.linalg.vector_norm(a - b), torch.linalg.vector_norm(b)) for a, b in pairs]
    apart, size = torch.stack([torch.stack(pair) for pair in norms]).norm(dim=0)
    return apart / size


def memory(device: torch.device) -> dict[str, float]:
    found = {"memory/host_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB}  # KiB on Linux
    if device.type == "cuda":
        found["memory/device_gb"] = torch.cuda.max_memory_allocated(device) / GIB
    return found
