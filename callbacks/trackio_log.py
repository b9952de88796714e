"""The log of a run for Trackio: its own page on this machine, without an account."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from callbacks.about import describe


class TrackioLog(Logger):
    """A run of Trackio, called by stage and identity, by which its starts are one run. Rank 0 logs; steps are Lightning's."""

    def __init__(self, folder: str, project: str, stage: str) -> None:
        super().__init__()
        if not find_spec("trackio"):
            raise ValueError("logger=trackio needs a package that is not installed: pip install trackio")
        self.folder, self.project, self.stage = Path(folder), project, stage
        self._begun = False

    @property
    def name(self) -> str:
        return self.project

    @property
    def version(self) -> str:
        return self.folder.name

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the config is in the run's folder."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._log({name: float(value) for name, value in metrics.items()}, step)

    @rank_zero_only
    def log_image(self, key: str, images: Sequence[str], step: int | None = None) -> None:
        """images: files."""
        import trackio

        for place, image in enumerate(images):
            self._log({key if len(images) == 1 else f"{key}/{place}": trackio.Image(image)}, step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._begun:
            import trackio

            trackio.finish()
            self._begun = False

    def _log(self, row: dict[str, Any], step: int | None) -> None:
        import trackio

        if not self._begun:
            about = describe(self.folder, self.stage)
            name = f"{self.stage} {self.version}"
            trackio.init(project=self.project, name=name, group=about["group"], config=about["config"], resume="allow")
            self._begun = True
        trackio.log(row, step=step)
