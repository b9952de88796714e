"""Files and folders that are whole or not there: written beside their place, then renamed; and what a file is."""

import functools
import hashlib
import os
import re
import shutil
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

LEFT_S = 3600.0
"""What has not grown for so long was left by a process that was killed, on whatever host."""


def digest(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_stored(path: Path) -> None:
    """Raises ValueError for what is no archive as torch.save writes them, and for one that would take more memory than its
    file has bytes: torch.save compresses nothing.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(each.file_size for each in archive.infolist())
    except zipfile.BadZipFile as error:
        raise ValueError(f"{error}") from None
    if unpacked > (size := path.stat().st_size):
        raise ValueError(f"{unpacked} bytes in a file of {size}")


@contextmanager
def replacing(path: Path, flush: bool = False) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the block ends well; else everything stays as it was.

    flush: also wait for the disk, where a name that survives a power cut must not outlive its content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left(path.parent.absolute())
    beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with naming(path):
            beside.unlink(missing_ok=True)
            with beside.open("xb") as file:  # never through a link that lies there
                yield file
                if flush:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """A full disk does not say of which file."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename is None:
            error.filename = str(path)
        raise


@functools.cache
def _remove_left(folder: Path) -> None:
    """Removes, once in a process, what killed ones left of `replacing` in a folder."""
    for left in folder.glob(".*.tmp"):
        written_by = re.fullmatch(r"\..+\.(\d+)\.\d+\.tmp", left.name)
        with suppress(OSError):  # another process does the same
            if written_by and time.time() - left.lstat().st_mtime > LEFT_S and not _runs(int(written_by[1])):
                left.unlink()


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        return True
    return True


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
