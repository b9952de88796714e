"""What each step saw and gave, to the last bit: the ground on which two runs are compared."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class Record(L.Callback):
    """Appends to `folder`/rank_N.jsonl a line for each step, and one when a save or a validation begins.

    A step's line has the samples of this rank (index, key, digests of recipe and images), the losses of its parts as
    hexadecimal floats, and the digests of the weights, the averaged weights and the optimizer's state after it.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self._samples: list[str] = []
        self._losses: list[str] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        columns = zip(batch["index"].tolist(), batch["key"], batch["recipe"], batch["x_hq"], batch["x_lq"], strict=True)
        for index, key, recipe, x_hq, x_lq in columns:
            recipe = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]
            self._samples.append(f"{index} {key} {recipe} {_digest({'x_hq': x_hq, 'x_lq': x_lq})}")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._losses.append(float(outputs["loss"]).hex())
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        averaged = [c._average_model for c in trainer.callbacks if isinstance(c, WeightAveraging)]  # type: ignore[attr-defined]
        self._write(
            trainer,
            step=trainer.global_step,
            samples=self._samples,
            losses=self._losses,
            weights=_digest(pl_module.state_dict()),
            averaged=[_digest(model.state_dict()) for model in averaged if model is not None],
            optimizer=[_digest(dict(_tensors(optimizer.state_dict()))) for optimizer in trainer.optimizers],
        )
        self._samples, self._losses = [], []

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._write(trainer, saving=trainer.global_step)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write(trainer, validating=trainer.global_step)

    def _write(self, trainer: L.Trainer, **facts: Any) -> None:
        with (self.folder / f"rank_{trainer.global_rank}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")


def _digest(tensors: Mapping[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:16]


def _tensors(value: Any, name: str = "") -> Iterable[tuple[str, Tensor]]:
    """The tensors in nested containers, with where they lie; numbers as tensors."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _tensors(inner, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for key, inner in enumerate(value):
            yield from _tensors(inner, f"{name}.{key}")
    elif isinstance(value, int | float):
        yield name, torch.tensor(float(value), dtype=torch.float64)
