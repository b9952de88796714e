"""A cluster for the tests marked `slurm`, started once and stopped at the end."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import missing
from tests.slurm.trial import Handle, running_cluster


def obstacle() -> str | None:
    """Why no cluster can be had here. With CI set, whatever is missing is installed."""
    if os.geteuid() != 0:
        return "a Slurm cluster on this machine needs root"
    if os.environ.get("CI") not in (None, "", "false") or not (packages := missing()):
        return None
    return f"no {', '.join(packages)} here: make slurm-up installs them"


@pytest.fixture(scope="session")
def cluster() -> Iterator[Handle]:
    """Two nodes of 4 CPUs and 2 GPUs, all pretended: bdg1 and bdg2."""
    if reason := obstacle():
        pytest.skip(reason)
    with running_cluster() as handle:
        yield handle


@pytest.fixture
def until() -> Callable[..., None]:
    """Waits for a condition."""

    def wait(condition: Callable[[], object], seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"waited {seconds:.0f} s in vain"
            time.sleep(0.1)

    return wait


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the photographs in the package."""
    folder = tmp_path_factory.mktemp("data") / "photographs"
    words = ["pack", "pkg://datamodules/photographs", str(folder), "parts=photographs"]
    subprocess.run([sys.executable, "-m", "bdg", *words], check=True, capture_output=True)
    return folder
