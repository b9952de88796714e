"""Stage 3, restoration: the whole process with delta, and a loss on the restored image."""

from bdg.stages.base import Batch, Stage
from bdg.types import Image


class RestorationStage(Stage):
    """Takes network, encoder, projections and temperature from bridging; what it does not build it leaves behind."""

    dropped = ("discriminator.",)

    def validated(self, batch: Batch) -> Image:
        return self.sampled(batch)
