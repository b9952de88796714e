"""Files by path or by URL, and a bounded folder with copies of those that lie elsewhere; knows nothing of what is in them."""

import fcntl
import glob
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from datamodules.draws import hash64

log = logging.getLogger("bdg")

RETRIES_S = (1.0, 5.0)
"""Pauses before a download that broke off is tried again; after the last one it is given up."""
PATIENCE_S = 30.0
"""How long a download waits for copies in use to become free to go."""


PROTOCOLS = ("http", "https", "s3", "gs", "gcs", "az", "abfs", "abfss", "hf", "sftp", "ssh", "ftp", "memory", "file")
"""Those that hand out bytes. Others of fsspec's run programs, or read files of which they are told by a file."""
_VERSION = ("Last-Modified", "LastModified", "updated", "created", "ETag")
"""What file systems call that which changes with a file; the times first, since mirrors of one file differ in tags."""
_SECRET = re.compile(r"(://)[^/?#@\s]*@|[?#]\S+")


class Stat(NamedTuple):
    """Size in bytes, and what tells versions of one size apart: the time of the last change, or a hash of what a server
    says of it; 0 where it says nothing."""

    size: int
    mtime_ns: int


# --- addresses ---


def is_url(path: str) -> bool:
    return "://" in path


def parted(path: str) -> tuple[str, str, str]:
    """Folder with its slash, name, and of a URL what stands behind them, such as `?token=...`."""
    address = re.split("[?#]", path, maxsplit=1)[0] if is_url(path) else path
    folder, slash, name = address.rpartition("/")
    return folder + slash, name, path[len(address) :]


def file_name(path: str) -> str:
    return parted(path)[1]


def beside(path: str, name: str) -> str:
    """The address of another file in the same folder, behind the same token."""
    folder, _, query = parted(path)
    return folder + name + query


def shown(path: str) -> str:
    """A path or URL for people to see: without a token or password."""
    if not is_url(path):
        return path
    folder, name, query = parted(path)
    return _SECRET.sub(r"\1", folder + name) + ("?***" if query else "")


def find(pattern: str) -> list[str]:
    """The files that a pattern without stars names, whether they exist or not, or those that one with stars fits."""
    if not is_url(pattern):
        return sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]
    folder, name, query = parted(pattern)
    if not glob.has_magic(folder + name):
        return [pattern]
    if query:
        raise ValueError(
            f"shards '{shown(pattern)}': stars do not go with a token: number them, as in {{000000..000099}}"
        )
    with _reaching(pattern) as (filesystem, inside):
        return sorted(filesystem.unstrip_protocol(found) for found in filesystem.glob(inside))


# --- files ---


def stat(path: str) -> Stat | None:
    """None for what is no file."""
    if not is_url(path):
        try:
            found = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Stat(found.st_size, found.st_mtime_ns) if os.path.isfile(path) else None
    try:
        with _reaching(path) as (filesystem, inside):
            info = filesystem.info(inside)
    except FileNotFoundError:
        return None
    if info["size"] is None:
        raise OSError(
            f"{shown(path)}: the server does not say how long it is: copy the shards to a disk and name them there"
        )
    version = next((f"{info[name]}" for name in _VERSION if info.get(name)), "")
    return Stat(info["size"], hash64(version) if version else 0)


def load(path: str) -> bytes | None:
    """A small file whole; None if there is none, or a server that does not hand it out."""
    try:
        if not is_url(path):
            return Path(path).read_bytes()
        with _reaching(path) as (filesystem, inside):
            return filesystem.cat_file(inside)
    except (FileNotFoundError, NotADirectoryError, _RefusedError):
        return None


class _RefusedError(PermissionError):
    """A server's answer; many give it also for what there is not."""


@contextmanager
def _reaching(url: str) -> Iterator[tuple[Any, str]]:
    """The file system of a URL and the path in it; whatever goes wrong inside becomes one clear OSError."""
    if "::" in url or url.partition("://")[0] not in PROTOCOLS:
        raise ValueError(f"{shown(url)}: not an address of {', '.join(PROTOCOLS)}: name tar files behind one of these")
    try:
        import fsspec

        yield fsspec.core.url_to_fs(url)
    except Exception as error:  # every protocol has its own
        raise _said_clearly(url, error) from None


def _said_clearly(url: str, error: Exception) -> OSError:
    cause = error
    while isinstance(cause, FileNotFoundError) and isinstance(cause.__cause__, Exception):
        cause = cause.__cause__  # what fsspec takes for no such file, whatever the reason
    if isinstance(error, ImportError):
        return OSError(f"{shown(url)}: {error}, with pip install")
    status = getattr(cause, "status", 0)
    if isinstance(cause, PermissionError) or status in (401, 403):
        return _RefusedError(
            f"{shown(url)}: the server does not hand it out: check the address, the rights and the token"
        )
    if isinstance(cause, FileNotFoundError) or status == 404:
        return FileNotFoundError(f"{shown(url)}: there is no such file: check the address")
    reason = ": ".join(filter(None, (type(cause).__name__, _SECRET.sub(r"\1***", f"{cause}".replace(url, shown(url))))))
    return OSError(f"{shown(url)}: cannot be read ({reason}): check the address, the rights and the network")


# --- copies ---


@dataclass(frozen=True)
class Cache:
    """A folder for copies of remote files, of `gigabytes` at most, shared by all processes of a machine.

    A copy is made beside its place and renamed, once, whoever else waits for it. The copies that were used longest ago go
    first, and none that is open.
    """

    folder: Path = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "bdg"
    gigabytes: float = 50

    def place(self, path: str, suffix: str = "") -> Path:
        """Where something that belongs to a file lies in the folder."""
        full = path if is_url(path) else os.path.abspath(path)
        return self.folder / f"{hash64(full):016x}-{file_name(path)}{suffix}"

    def open(self, path: str) -> BinaryIO:
        """A file of this machine, or the copy of one that is not; a copy stays while it is open."""
        if not is_url(path):
            return open(path, "rb")
        place = self.place(path)
        while True:
            try:
                file = open(place, "rb")  # noqa: SIM115  # it is the caller's
            except FileNotFoundError:
                self._download(path, place)
                continue
            fcntl.flock(file, fcntl.LOCK_SH)
            if os.fstat(file.fileno()).st_nlink:  # else it went between the two lines above
                os.utime(place)
                return file
            file.close()

    def drop_unless(self, path: str, size: int | None) -> None:
        """Forgets the copy of a remote file if it is not so long; whatever its length if that is None."""
        if is_url(path) and (copy := stat(str(self.place(path)))) and copy.size != size:
            self.place(path).unlink(missing_ok=True)

    def _download(self, url: str, place: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(place.with_name(f".{place.name}.lock")):
            if place.exists():
                return
            found = stat(url)
            if found is None:
                raise FileNotFoundError(f"{shown(url)}: there is no such file: check the address")
            coming = place.with_name(f".{place.name}.{found.size}.tmp")
            coming.unlink(missing_ok=True)  # of a process that was killed
            try:
                self._reserve(coming, url, found.size)
                self._copy(url, coming, found.size)
                os.replace(coming, place)
            finally:
                coming.unlink(missing_ok=True)

    def _copy(self, url: str, target: Path, size: int) -> None:
        for pause in (*RETRIES_S, None):
            try:
                with _reaching(url) as (filesystem, inside):
                    filesystem.get_file(inside, str(target))
                if (copied := target.stat().st_size) != size:
                    raise OSError(
                        f"{shown(url)}: {copied} of {size} bytes came: try again, or copy the shards to a disk"
                    )
                return
            except FileNotFoundError:
                raise
            except OSError as error:
                if pause is None:
                    raise
                log.warning("%s; once more in %g s", error, pause)
                time.sleep(pause)

    def _reserve(self, target: Path, url: str, size: int) -> None:
        """Begins a file that is to become so long, after others went if the folder would else hold too much."""
        limit, end = self.gigabytes * 1e9, time.monotonic() + PATIENCE_S
        while True:
            with _locked(self.folder / ".room.lock"):
                copies = sorted(self._copies())
                total = size + sum(taken for _, taken, _ in copies)
                for _, taken, path in copies:
                    if total > limit and _removed(path):
                        total -= taken
                if total <= limit:
                    target.touch()
                    return
            if size > limit or time.monotonic() > end:
                raise OSError(
                    f"data.cache_gb={self.gigabytes:g}: {shown(url)} of {size / 1e9:.2g} GB does not fit beside what is in use "
                    f"({(total - size) / 1e9:.2g} GB in {self.folder}): give more, or a smaller data.window"
                )
            time.sleep(0.1)

    def _copies(self) -> Iterator[tuple[int, int, Path]]:
        """When each copy was used, its bytes, and the copy; those on their way say in their name how long they become."""
        for path in self.folder.iterdir():
            if path.suffix not in (".index", ".lock") and path.is_file() and (found := stat(str(path))):
                yield found.mtime_ns, int(path.suffixes[-2][1:]) if path.suffix == ".tmp" else found.size, path


def _removed(path: Path) -> bool:
    """Whether a copy could go: not if somebody reads or makes it."""
    try:
        if path.suffix == ".tmp":
            with _locked(path.with_suffix("").with_suffix(".lock"), wait=False):  # nobody makes it: it was left behind
                path.unlink()
        else:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
    except BlockingIOError:
        return False
    except FileNotFoundError:
        pass
    return True


@contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
