import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.staging import stage_in


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    (folder / "more").mkdir(parents=True)
    (folder / "train-0.tar").write_text("tar")
    (folder / "more" / "val-0.tar").write_text("tar")
    return folder


def test_the_copy_has_the_files_and_their_times(source: Path, tmp_path: Path) -> None:
    copy = stage_in(source, tmp_path / "scratch" / "deep")

    for name in ("train-0.tar", "more/val-0.tar"):
        assert (copy / name).read_text() == "tar"
        assert (copy / name).stat().st_mtime_ns == (source / name).stat().st_mtime_ns


def test_it_is_made_once_and_anew_when_the_data_changed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = stage_in(source, tmp_path)
    monkeypatch.setattr(shutil, "copytree", lambda *arguments: pytest.fail("copied again"))
    assert stage_in(source, tmp_path) == one
    monkeypatch.undo()
    (source / "train-0.tar").write_text("other")

    assert (stage_in(source, tmp_path) / "train-0.tar").read_text() == "other"


def test_the_processes_of_a_node_share_it(source: Path, tmp_path: Path) -> None:
    stage = "import sys; from pathlib import Path; from jobs.staging import stage_in; print(stage_in(*map(Path, sys.argv[1:])))"
    command = [sys.executable, "-c", stage, source, tmp_path / "scratch"]
    ranks = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) for _ in range(3)
    ]
    places = {rank.communicate()[0].strip() for rank in ranks}

    assert len(places) == 1
    assert sorted(path.name for path in Path(*places).rglob("*.tar")) == ["train-0.tar", "val-0.tar"]


def test_a_disk_that_is_full_is_a_clear_error_and_leaves_nothing_half(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        target.mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(OSError, match=r"cluster.scratch=.*No space left.*cluster.scratch=null"):
        stage_in(source, tmp_path / "scratch")

    assert not [path for path in (tmp_path / "scratch").iterdir() if path.is_dir()]
