"""A file or folder is whole or not there, and what was there before goes only when the new one is whole."""

import errno
import os
from pathlib import Path

import pytest

from bdg.files import replacing, replacing_folder


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    with replacing_folder(tmp_path / "new" / "a") as folder:
        (folder / "x").write_text("1")
        assert not (tmp_path / "new" / "a").exists()
    assert names(tmp_path) == ["new", "new/a", "new/a/x"]


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").write_text("1")
    with replacing_folder(tmp_path / "a") as folder:
        (folder / "new").write_text("2")
    assert names(tmp_path) == ["a", "a/new"]


def replace(path: Path, fails: bool = False) -> None:
    with replacing_folder(path) as folder:
        (folder / "new").write_text("2")
        if fails:
            raise OSError("no")


@pytest.mark.parametrize("call", [0, 1, 2])
def test_a_failure_leaves_all_as_it_was(call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside of the block (0), or at one of the renames."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").write_text("1")
    rename, calls = os.replace, []

    def failing(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == call:
            raise OSError("no")
        rename(source, target)

    monkeypatch.setattr("bdg.files.os.replace", failing)
    with pytest.raises(OSError, match="no"):
        replace(tmp_path / "a", fails=call == 0)
    assert names(tmp_path) == ["a", "a/old"]


# --- files ---


def write(path: Path, error: OSError | None = None) -> None:
    with replacing(path) as file:
        file.write(b"new")
        if error:
            raise error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "[Errno 28] No space left on device: '{}'"),
        (OSError(errno.EACCES, "Permission denied", "source"), "[Errno 13] Permission denied: 'source'"),
        (OSError("no picture"), "no picture"),
    ],
)
def test_an_error_names_the_file_where_it_names_none(error: OSError, message: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")

    with pytest.raises(OSError) as raised:  # noqa: PT011 (the whole message is compared)
        write(tmp_path / "a", error)
    assert str(raised.value) == message.format(tmp_path / "a")
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_what_killed_writers_left_goes_with_the_next_write_into_the_folder(tmp_path: Path) -> None:
    gone, alive = 2**22 + 1, os.getpid()  # more than Linux counts to
    left = [f".b.jpg.{gone}.140.tmp", f".b.jpg.{alive}.140.tmp", f".c.{gone}.140.tmp", ".mine.tmp", ".mine.7.old"]
    for name in left:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / left[2]).touch()  # on another host, maybe, somebody is at it

    write(tmp_path / "a")

    assert names(tmp_path) == sorted(["a", *left[1:]])
