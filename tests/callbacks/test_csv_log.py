"""The log of metrics on a disk that is full for a while: no line is lost, cut off, or there twice."""

import csv
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from callbacks.csv_log import CsvLog


@contextmanager
def room(size: int) -> Iterator[None]:
    """Within it no file takes more bytes: the beginning of a write that is too long, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def rows(file: Path) -> list[dict[str, float]]:
    with file.open(newline="") as lines:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(lines)]


@pytest.mark.parametrize("added", [{"a": 2.0}, {"val/psnr": 3.0}], ids=["a line", "a column"])
def test_a_full_disk_takes_no_line_and_later_all(
    added: dict[str, float], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = CsvLog(str(tmp_path), name="logs", flush_logs_every_n_steps=1)
    file = tmp_path / "logs" / "version_0" / "metrics.csv"
    expected = [{"a": float(step), "b": 0.5, "step": float(step)} for step in range(300)]
    for line in expected:
        logger.log_metrics({"a": line["a"], "b": 0.5}, int(line["step"]))
    full = file.read_bytes()
    with room(len(full) + 2):
        for step in (300, 301):
            logger.log_metrics(added, step)
        during = file.read_bytes()
    logger.log_metrics({"a": 1.0}, 302)

    assert during == full
    assert rows(file) == [*expected, added | {"step": 300.0}, added | {"step": 301.0}, {"a": 1.0, "step": 302.0}]
    assert list(file.parent.iterdir()) == [file]
    assert len(caplog.messages) == 1
    assert "the log of metrics cannot be written now: [Errno" in caplog.messages[0]
    assert "metrics.csv" in caplog.messages[0]


def test_a_folder_that_cannot_be_made_ends_no_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "logs").write_text("no folder")
    logger = CsvLog(str(tmp_path), name="logs", flush_logs_every_n_steps=1)
    for step in range(2):
        logger.log_metrics({"a": 1.0}, step)
    logger.finalize("success")

    assert len(caplog.messages) == 1
