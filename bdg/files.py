"""Files and folders that are whole or not there: written beside their place, then renamed; and the digest of a file."""

import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def digest(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replacing(path: Path, flush: bool = False) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the block ends well; else everything stays as it was.

    flush: also wait for the disk, where a name that survives a power cut must not outlive its content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with beside.open("wb") as file:
            yield file
            if flush:
                file.flush()
                os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `path`, whatever is there, when the block ends well; else all stays as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside, before = (path.with_name(f".{path.name}.{os.getpid()}.{which}") for which in ("tmp", "old"))
    beside.mkdir()
    try:
        yield beside
        if path.exists():
            os.replace(path, before)
        os.replace(beside, path)
    finally:
        if before.exists() and not path.exists():
            os.replace(before, path)
        for folder in (beside, before):
            shutil.rmtree(folder, ignore_errors=True)
