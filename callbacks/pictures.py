"""Pictures of a validation: always the same images, as one panel, and one of them on its way back."""

import logging
from io import BytesIO
from pathlib import Path
from typing import Any

import lightning as L
from PIL import Image as Canvas

from bdg.files import replacing
from bdg.metrics import Protocol, psnr
from bdg.panel import Pixels, panel, to_uint8
from bdg.stages import Stage
from bdg.stages.base import Batch
from bdg.types import Estimate, Image, Timestep
from callbacks.guard import brief

log = logging.getLogger("bdg")

QUALITY = 85  # of the JPEG
ERROR_GAIN = 4
"""By which |restored - clean| is enlarged, so that it can be seen."""


class Pictures(L.Callback):
    """`folder`/panel/step_N.jpg: degraded, restored, clean, error; a row for the first image of each degradation on rank 0.
    `folder`/path/step_N.jpg: x_t above the believed clean image, at each step of the reverse path of the first of them.

    They go to every logger that takes images, as val/panel and val/path. Which images they are depends on the data and the
    number of ranks alone. Each is restored once more, which rank 0 does and the others wait for.

    images: rows at most. width: of an image in the panel, pixels.
    """

    def __init__(self, folder: str, images: int = 6, width: int = 192) -> None:
        for name, value in (("images", images), ("width", width)):
            if value < 1:
                raise ValueError(f"callbacks.pictures.{name}={value}: give 1 or more, or callbacks.pictures=null")
        self.folder, self.images, self.width = Path(folder), images, width
        self._rows: dict[int, tuple[list[Pixels], list[str]]] = {}  # by label
        self._path: Pixels | None = None
        self._told = False

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._rows, self._path = {}, None

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
        if not trainer.is_global_zero:
            return
        for place, label in enumerate(batch["label"].tolist()):
            if label in self._rows or len(self._rows) == self.images:
                continue
            one = {name: batch[name][place : place + 1] for name in ("x_hq", "x_lq", "label", "index", "recipe")}
            seen: list[tuple[int, Image, Image]] = []
            restored = restore(pl_module, one, seen)
            self._rows[label] = row(one, restored, pl_module.metrics.protocol)
            if seen and self._path is None:
                self._path = path_picture(seen, self.width)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Stage)
        if not self._rows or trainer.sanity_checking:
            return
        rows = [self._rows[label] for label in sorted(self._rows)]
        titles = ("degraded", "restored" if pl_module.restores else "denoised", "clean", f"error x {ERROR_GAIN}")
        made = {"panel": panel([images for images, _ in rows], [words for _, words in rows], titles, self.width)}
        if self._path is not None:
            made["path"] = self._path
        step = trainer.fit_loop.epoch_loop._batches_that_stepped  # as Lightning's loggers count
        for name, picture in made.items():
            file = self.folder / name / f"step_{step + 1:08}.jpg"
            if not self._saved(picture, file):
                return
            for logger in trainer.loggers:
                if hasattr(logger, "log_image"):
                    logger.log_image(f"val/{name}", [str(file)], step)

    def _saved(self, picture: Pixels, file: Path) -> bool:
        """Whether it could be written: a full disk must not end the training."""
        try:
            with replacing(file) as out:
                out.write(jpeg(picture))
        except OSError as error:
            if not self._told:
                log.warning("the pictures of a validation cannot be written: %s", error)
            self._told = True
            return False
        return True


def jpeg(picture: Pixels) -> bytes:
    data = BytesIO()  # PIL does not see that a file took less than it wrote
    Canvas.fromarray(picture).save(data, "JPEG", quality=QUALITY)
    return data.getvalue()


def restore(stage: Stage, batch: Batch, seen: list[tuple[int, Image, Image]]) -> Image:
    """What the stage is scored by, of one image. seen: filled with t, x_t and the believed x_hq, if there is a path."""
    if not stage.restores:
        return stage.validated(batch)

    def denoise(x_t: Image, x_lq: Image, t: Timestep) -> Estimate:
        estimate = stage.denoise(x_t, x_lq, t)
        seen.append((int(t[0]), x_t, estimate.x_hq))
        return estimate

    return stage.sampled(batch, denoise)


def row(batch: Batch, restored: Image, protocol: Protocol) -> tuple[list[Pixels], list[str]]:
    """The four images of a panel's row, and what stands below them, PSNR in the words of the protocol."""
    error = ERROR_GAIN * (restored - batch["x_hq"]).abs() - 1
    images = [to_uint8(image[0]) for image in (batch["x_lq"], restored, batch["x_hq"], error)]
    before, after = (
        f"{float(psnr(protocol(image), protocol(batch['x_hq']))):.2f} dB" for image in (batch["x_lq"], restored)
    )
    return images, [f"{brief(batch['recipe'][0])}: {before}", after, f"{protocol.short}", ""]


def path_picture(seen: list[tuple[int, Image, Image]], width: int) -> Pixels:
    noisy = [to_uint8(x_t[0]) for _, x_t, _ in seen]
    believed = [to_uint8(x_hq[0]) for _, _, x_hq in seen]
    captions = [[f"x_{t}" for t, _, _ in seen], [f"x_hq believed at {t}" for t, _, _ in seen]]
    return panel([noisy, believed], captions, width=width)
