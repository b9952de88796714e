"""What the features of a validation know of its degradations: nearest neighbours, asked for type and level."""

from collections.abc import Sequence
from math import isnan
from typing import Any

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor

from bdg import draws
from bdg.draws import Stream
from bdg.probe import fold_of, numbered, predict
from bdg.stages import Stage
from bdg.stages.base import FEATURES, Batch
from callbacks.ranks import gathered

K, FOLDS = 5, 5


class Features(L.Callback):
    """val/probe/f_mas/type, ../level and likewise f_diff: share of right answers, as `bdg probe` asks (k = 5, folds by
    photograph, a level is right only with its type).

    F_mas: of the encoder, where a loss needs it. F_diff: of the UNet's middle at the first step of the reverse path, where the
    stage sees the degraded image. One more pass of the network for each of the first `images` over all ranks.
    """

    def __init__(self, images: int = 256) -> None:
        if images < 1:
            raise ValueError(f"callbacks.features.images={images}: give 1 or more, or callbacks.features=null")
        self.images = images
        self._rows: list[tuple[str, int, float, dict[str, Tensor]]] = []  # photograph, label, severity, features

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._rows = []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert isinstance(pl_module, Stage)
        if not pl_module.restores or len(self._rows) >= self.images / trainer.world_size:
            return
        found = describe(pl_module, batch)
        rows = [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]
        self._rows += zip(batch["key"], batch["label"].tolist(), batch["severity"].tolist(), rows, strict=True)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        rows = [row for part in gathered(self._rows, trainer) for row in part]
        self._rows = []
        pl_module.log_dict({f"val/probe/{name}": value for name, value in shares(rows).items()}, rank_zero_only=True)


def describe(stage: Stage, batch: Batch) -> dict[str, Float[Tensor, "b d"]]:
    """F_mas, if the stage has an encoder, and F_diff."""
    x_lq = batch["x_lq"]
    generators = draws.each(batch["index"], x_lq.device, stage.seed, Stream.VALIDATE)
    t = torch.full((len(x_lq),), stage.diffusion.num_steps - 1, device=x_lq.device)
    x_t = stage.diffusion.start(x_lq, draws.noise_like(x_lq, generators))
    _, _, features = stage.denoise.heads(x_t, x_lq, t, (FEATURES,))
    found = {"f_diff": features[FEATURES].mean(dim=(2, 3))}
    if stage.discriminator is not None and stage.glcm is not None:
        found["f_mas"] = stage.discriminator.encoder(stage.glcm(x_lq))
    return {name: feature.float().cpu() for name, feature in found.items()}


def shares(rows: Sequence[tuple[str, int, float, dict[str, Tensor]]]) -> dict[str, float]:
    """{"f_diff/type": .., "f_diff/level": ..}; nothing of less than two photographs, no level where severities are not told
    or were drawn."""
    photographs = [photograph for photograph, _, _, _ in rows]
    if len(set(photographs)) < 2:
        return {}
    asked = {"type": numbered([label for _, label, _, _ in rows])}
    level = numbered([(label, severity) for _, label, severity, _ in rows])
    if not any(isnan(severity) for _, _, severity, _ in rows) and int(level.max()) < len(rows) / 2:
        asked["level"] = level
    fold = fold_of(photographs, min(FOLDS, len(set(photographs))), seed=0)
    k = min(K, *(int((fold != held_out).sum()) for held_out in fold.unique()))
    truth = torch.stack(list(asked.values()), 1)
    found: dict[str, float] = {}
    for name in sorted(rows[0][3]):
        right = predict(torch.stack([row[3][name] for row in rows]), truth, fold, k) == truth
        found |= {f"{name}/{q}": float(share) for q, share in zip(asked, right.double().mean(0), strict=True)}
    return found
