"""The log of a run for TensorBoard: one folder for all starts, pictures included."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image as Canvas


class TensorBoardLog(TensorBoardLogger):
    """Lightning's, in save_dir/tensorboard: `tensorboard --logdir runs` shows a curve for each run, not for each start."""

    def __init__(self, save_dir: str) -> None:
        try:
            super().__init__(save_dir, name="tensorboard", version="", default_hp_metric=False)
        except ModuleNotFoundError:
            raise ValueError(
                "logger=tensorboard needs a package that is not installed: pip install tensorboard"
            ) from None

    @rank_zero_only
    def log_image(self, key: str, images: Sequence[str], step: int | None = None) -> None:
        """images: files."""
        for place, image in enumerate(images):
            pixels: Any = np.asarray(Canvas.open(image).convert("RGB"))
            self.experiment.add_image(key if len(images) == 1 else f"{key}/{place}", pixels, step, dataformats="HWC")
