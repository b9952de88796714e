"""Stage 1, generation: the network learns clean images, as a denoiser x_t = x_hq + beta_bar noise."""

from bdg.stages.base import Batch, Stage
from bdg.types import Image


class GenerationStage(Stage):
    """Begins the chain: it inherits nothing, needs no degraded image, and its residual head is idle."""

    restores = False

    def validated(self, batch: Batch) -> Image:
        return self.denoised(batch)
