"""A run's folder: where its files lie, and what state it is in. Knows no torch and starts no training.

Address = identity: the same definition always leads to the same folder, so a repeated command goes on where it stopped or
finds the work done, and two experiments that share a stage share its run.
"""

import errno
import fcntl
import functools
import hashlib
import json
import os
import platform
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from glob import escape
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from jobs.secrets import masked, masked_lines

LOCK_PATIENCE_S = 30.0
LEFT_S = 3600.0
"""A file that is written beside another one for so long was left by a process that was killed."""
FROZEN_CODE = "code.json"
"""What `code` found when the packages were copied, beside them."""


@dataclass(frozen=True)
class Run:
    """The folder `root/project/stage/identity/` and the names of what is in it."""

    root: Path
    project: str
    stage: str
    identity: str

    @classmethod
    def at(cls, folder: Path) -> "Run":
        """The run whose folder this is."""
        return cls(folder.parents[2], folder.parents[1].name, folder.parent.name, folder.name)

    @property
    def folder(self) -> Path:
        return self.root / self.project / self.stage / self.identity

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def weights(self) -> Path:
        return self.folder / "weights" / "ema.safetensors"

    @property
    def metrics(self) -> Path:
        """Validation scores of the finished run."""
        return self.folder / "metrics.json"

    @property
    def status(self) -> str:
        """ "new", "running", "preempted" (has saved and left), "interrupted", "failed" or "done"; a killed run is "running"."""
        path = self.folder / "STATUS"
        return path.read_text().strip() if path.exists() else "new"

    def set_status(self, status: str) -> None:
        write_text(self.folder / "STATUS", status + "\n")

    @property
    def done(self) -> bool:
        return self.status == "done" and self.weights.exists()

    def tell(self, line: str) -> None:
        """Adds a line to README.md, the run's story."""
        path = self.folder / "README.md"
        before = path.read_text(encoding="utf-8") if path.exists() else f"# {self.stage} {self.identity}\n\n"
        now = datetime.now(UTC).isoformat(timespec="seconds")
        write_text(path, f"{before}- {now}, {socket.gethostname()}: {line}\n")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes out of the folder; the lock goes with the process that holds it, however that ends.

        Raises BlockingIOError if another one holds it for longer than LOCK_PATIENCE_S (a killed run's workers live on for
        some seconds).
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with open_lock(self.folder) as file:
            end = time.monotonic() + LOCK_PATIENCE_S
            while not try_lock(file):
                if time.monotonic() > end:
                    file.seek(0)
                    raise BlockingIOError(
                        f"{self.folder} is being trained by {file.read().strip() or 'another process'}: "
                        "wait for it, or stop it"
                    )
                time.sleep(0.2)
            with _naming(self.folder / "lock"):
                file.truncate(0)
                os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            yield


def weights_in(folder: Path) -> Path:
    """The averaged weights in a run's folder, or in one that bdg export wrote."""
    exported = folder / "model.safetensors"
    return exported if exported.is_file() else folder / "weights" / "ema.safetensors"


def manifest(run: Run, parent: str | None, data: str) -> dict[str, Any]:
    """What one wants to know of a run in a year: parents, data, code, versions, machine."""
    return {
        "stage": run.stage,
        "identity": run.identity,
        "parents": [parent] if parent else [],
        "data_digest": data,
        "code": code(),
        "versions": {name: metadata.version(name) for name in ("torch", "lightning", "hydra-core", "webdataset")},
        "host": {"name": socket.gethostname(), "python": platform.python_version(), "cpus": os.cpu_count()},
        "begun": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def open_lock(folder: Path) -> TextIO:
    """The lock of a folder. Raises OSError where it is a link: somebody else's file would be made, or emptied."""
    flags = os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe would wait for a reader
    return open(folder / "lock", "a+", opener=lambda path, how: os.open(path, how | flags, 0o666))


def try_lock(file: TextIO) -> bool:
    """Whether nobody else holds it; always, on a file system that has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # a file system that has no locks
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
    return True


def write_text(path: Path, text: str, flush: bool = True) -> None:
    """Writes the whole file or nothing, without secrets: beside the target, then renamed.

    flush: wait for the disk, or after a power cut the file may be empty.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left(path.absolute())
    hidden = masked_lines(text) if path.suffix == ".jsonl" else masked(text)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _naming(path):
            beside.unlink(missing_ok=True)
            with beside.open("x", encoding="utf-8") as file:  # never through a link that lies there
                file.write(hidden)
                file.flush()
                if flush:
                    os.fsync(file.fileno())
            os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """A full disk does not say of which file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


@functools.cache
def _remove_left(path: Path) -> None:
    """Removes, once in a process, what killed ones left of `write_text`, an hour ago or longer."""
    for left in path.parent.glob(f".{escape(path.name)}.*.tmp"):
        with suppress(OSError):  # another process does the same
            if time.time() - left.lstat().st_mtime > LEFT_S:
                left.unlink()


def code() -> dict[str, str]:
    """Commit of the checkout this file lies in, or was frozen from, and a digest of what was changed since; empty outside."""
    if (frozen := Path(__file__).parents[1] / FROZEN_CODE).exists():
        return json.loads(frozen.read_text())

    def git(*words: str) -> bytes:
        return subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, check=True).stdout

    try:
        diff = git("diff", "HEAD")
        return {
            "commit": git("rev-parse", "HEAD").decode().strip(),
            "diff": hashlib.sha256(diff).hexdigest()[:12] if diff else "",
        }
    except (OSError, subprocess.CalledProcessError):
        return {}
