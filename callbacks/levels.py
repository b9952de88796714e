"""Scores of a validation by degradation and level, with the protocol in their names."""

from collections import defaultdict
from math import isnan
from statistics import fmean
from typing import Any

import lightning as L

from bdg.stages import Stage
from callbacks.ranks import gathered


class Levels(L.Callback):
    """val/rain/psnr_rgb and val/rain/level_4/psnr_rgb, likewise ssim: means over images, as `bdg.metrics` takes them.

    A level is a severity of the data's list; a pair that does not tell its severity counts for its degradation alone, and
    where severities are drawn (data.val_severities=null) there are no levels. Takes no image anew.
    """

    def __init__(self) -> None:
        self._levels: dict[int, float] = {}  # index of an image -> severity

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._levels = {}

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._levels |= dict(zip(batch["index"].tolist(), batch["severity"].tolist(), strict=True))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Stage)
        levels = {index: level for part in gathered(self._levels, trainer) for index, level in part.items()}
        scores = by_level(pl_module.metrics.per_image(), levels, list(pl_module.metrics.measures))
        suffix = pl_module.metrics.protocol.short
        pl_module.log_dict(
            {f"val/{name}_{suffix}": value for name, value in scores.items()},
            rank_zero_only=True,
        )


def by_level(rows: list[dict[str, Any]], levels: dict[int, float], measures: list[str]) -> dict[str, float]:
    """{"rain/psnr": .., "rain/level_4/psnr": ..}. rows: as `RestorationMetrics.per_image` gives them. levels: by index."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["degradation"]].append(row)
        level = levels.get(row["index"], float("nan"))
        if not isnan(level):
            groups[f"{row['degradation']}/level_{level:g}"].append(row)
    if len(groups) > len(rows) / 2:  # severities that were drawn: hardly two images have one
        groups = {name: group for name, group in groups.items() if "/" not in name}
    return {
        f"{name}/{measure}": fmean(row[measure] for row in groups[name])
        for name in sorted(groups)
        for measure in measures
    }
