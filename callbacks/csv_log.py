"""The log of metrics as a CSV file, which stops no training."""

import logging
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only

log = logging.getLogger("bdg")


class CsvLog(CSVLogger):
    """Lightning's logger; what cannot be written, as on a full disk, is said once and tried again with the next lines."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._failed = False

    @rank_zero_only
    def save(self) -> None:
        try:
            super().save()
        except OSError as error:
            if not self._failed:
                log.error("the log of metrics cannot be written now: %s", error)
            self._failed = True
        else:
            self._failed = False
