"""Stage 2, bridging: the path now leads to x_lq, and the network's middle learns to tell degradations apart."""

from bdg.stages.base import Batch, Stage
from bdg.types import Image


class BridgingStage(Stage):
    """Takes the network from generation; the discriminator begins here."""

    fresh = ("discriminator.",)

    def validated(self, batch: Batch) -> Image:
        return self.sampled(batch)
