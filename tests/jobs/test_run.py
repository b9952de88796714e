import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.run import Run, write_text


def test_a_run_is_done_only_with_its_weights(tmp_path: Path) -> None:
    run = Run(tmp_path, "project", "generation", "0123456789ab")
    assert run.status == "new"

    run.set_status("done")
    assert not run.done

    write_text(run.weights, "tensors")
    assert run.done


def test_text_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.json"
    write_text(path, "first")

    def full(self: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space left"):
        write_text(path, "second")

    assert path.read_text() == "first"


def test_jobs_start_without_torch() -> None:
    code = "import json, sys, jobs.run; print(json.dumps([m for m in sys.modules if m in ('torch', 'lightning', 'hydra')]))"

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout

    assert json.loads(loaded) == []


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.run.LOCK_PATIENCE_S", 0.0)
    run = Run(tmp_path, "demo", "bridging", "abc")
    other = f"run.Run(run.Path({str(tmp_path)!r}), 'demo', 'bridging', 'abc').locked().__enter__()"
    command = [sys.executable, "-c", f"from jobs import run; run.LOCK_PATIENCE_S = 0.0; {other}"]

    with run.locked():
        held = subprocess.run(command, capture_output=True, text=True)
    free = subprocess.run(command, capture_output=True, text=True)

    assert f"is being trained by process {os.getpid()} on" in held.stderr
    assert free.returncode == 0


def test_the_readme_of_a_run_grows_by_a_line(tmp_path: Path) -> None:
    run = Run(tmp_path, "demo", "bridging", "abc")
    run.tell("begins")
    run.tell("done")

    title, _, first, second = (run.folder / "README.md").read_text().splitlines()
    assert title == "# bridging abc"
    assert first.endswith("begins")
    assert second.endswith("done")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_what_a_full_disk_does_not_take_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / f".STATUS.{os.getpid()}").symlink_to("/dev/full")

    with pytest.raises(OSError, match=r"No space left on device: '.*STATUS'"):
        write_text(tmp_path / "STATUS", "running")
    assert list(tmp_path.iterdir()) == []
