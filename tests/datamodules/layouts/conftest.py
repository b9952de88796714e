"""Trees of empty files: layouts are known by names alone."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def touch() -> Callable[..., Path]:
    """Makes empty files with these names below a folder, and gives the folder."""

    def make(folder: Path, *names: str) -> Path:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        return folder

    return make
