"""A folder is whole or not there, and what was there before goes only when the new one is whole."""

import os
from pathlib import Path

import pytest

from bdg.files import replacing_folder


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
