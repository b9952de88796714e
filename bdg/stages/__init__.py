"""The three training stages, one LightningModule each, on a shared step."""

from bdg.stages.base import Stage
from bdg.stages.bridging import BridgingStage
from bdg.stages.generation import GenerationStage
from bdg.stages.restoration import RestorationStage

__all__ = ["BridgingStage", "GenerationStage", "RestorationStage", "Stage"]
