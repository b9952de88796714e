"""The progress bar of training: the stage's name, steps of all steps, speed, loss."""

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar


class Progress(RichProgressBar):
    """Lightning's bar, which would count an endless stream of samples as `Epoch 0/-2`.

    description: what stands before the bar.
    """

    def __init__(self, description: str) -> None:
        super().__init__(leave=True)
        self.description = description

    def _get_train_description(self, current_epoch: int) -> str:
        return self.description

    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}
