"""A data set's copy on a node's own disk, made once for all processes of the node."""

import fcntl
import hashlib
import os
import shutil
from pathlib import Path


def stage_in(source: Path, scratch: Path) -> Path:
    """Copies the folder into `scratch`, or finds the copy there, and returns it. Other processes wait until it is whole.

    A folder whose files have changed is another one. Raises OSError for a disk that is full or cannot be written.
    """
    target = scratch / f"bdg-{_digest(source)}"
    coming = scratch / f".{target.name}"
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        with (scratch / f".{target.name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.exists():
                shutil.rmtree(coming, ignore_errors=True)  # of a process that was killed
                shutil.copytree(source, coming)  # with its times, by which indexes know their shards
                coming.rename(target)
    except OSError as error:
        shutil.rmtree(coming, ignore_errors=True)
        raise OSError(
            f"cluster.scratch={scratch}: {source} cannot be copied there ({error}): name another folder, or train from where "
            "the data lies with cluster.scratch=null"
        ) from None
    return target


def _digest(source: Path) -> str:
    files = [(f"{path.relative_to(source)}", path.stat()) for path in sorted(source.rglob("*"))]
    listed = [os.path.abspath(source), *(f"{name} {found.st_size} {found.st_mtime_ns}" for name, found in files)]
    return hashlib.sha256("\n".join(listed).encode()).hexdigest()[:12]
