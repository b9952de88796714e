"""Damaged files of every kind that we read from others; `benchmarks/fuzz.py` has the readers and runs many more cases."""

from pathlib import Path

import pytest
from fuzz import READERS, cases, holds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CASES = {"shard": 60, "image": 80, "manifest": 60, "index of a shard": 60}  # the others take less time


@pytest.mark.parametrize("name", READERS)
def test_whole_files_are_taken(name: str) -> None:
    reader, files = READERS[name]
    assert [holds(reader, data) for data in files()] == [True] * len(files())


@pytest.mark.parametrize("name", READERS)
def test_any_bytes_give_a_value_or_a_clear_error(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, files = READERS[name]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    @settings(
        max_examples=CASES.get(name, 100), deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
    )
    @given(st.deferred(lambda: cases(files)))
    def run(data: bytes) -> None:
        holds(reader, data)

    run()
