"""The log of metrics as a CSV file, which stops no training and is never cut off."""

import csv
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

from bdg.files import replacing

log = logging.getLogger("bdg")


class CsvLog(CSVLogger):
    """Lightning's logger; what cannot be written, as on a full disk, is said once and tried again with the next lines."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._failed = False

    @property
    @rank_zero_experiment
    def experiment(self) -> "WholeLines":  # type: ignore[override]
        if not isinstance(self._experiment, WholeLines):
            Path(self.root_dir).mkdir(parents=True, exist_ok=True)
            self._experiment = WholeLines(self.log_dir)
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:  # type: ignore[override]
        with self._saying():
            super().log_metrics(dict(metrics), step)

    @rank_zero_only
    def save(self) -> None:
        with self._saying():
            super().save()
            self._failed = False

    @contextmanager
    def _saying(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._failed:
                log.error("the log of metrics cannot be written now: %s", error)
            self._failed = True


class WholeLines(ExperimentWriter):
    """Lightning's writer, which cuts a file off or repeats parts of it where the disk is full."""

    def save(self) -> None:
        """Adds the lines since the last save, all or none. With new columns the file is written anew and replaced."""
        if not self.metrics:
            return
        path = Path(self.metrics_file_path)
        keys = sorted({*self.metrics_keys, *(key for line in self.metrics for key in line)})
        if keys == self.metrics_keys and path.exists():
            append(path, table(keys, self.metrics))
        else:
            with replacing(path) as file:
                file.write((header(keys) + table(keys, [*lines(path), *self.metrics])).encode())
        self.metrics, self.metrics_keys = [], keys


def header(keys: Sequence[str]) -> str:
    return table(keys, [dict(zip(keys, keys, strict=True))])


def table(keys: Sequence[str], lines: Sequence[Mapping[str, Any]]) -> str:
    text = StringIO()
    csv.DictWriter(text, keys).writerows(lines)
    return text.getvalue()


def lines(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append(path: Path, text: str) -> None:
    """Raises OSError where there is no room for all of it; then the file is as it was."""
    before = path.stat().st_size
    try:
        with path.open("ab") as file:
            file.write(text.encode())
    except OSError as error:
        with path.open("r+b") as file:
            file.truncate(before)
        raise OSError(error.errno, error.strerror, str(path)) from None
