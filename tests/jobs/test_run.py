import errno
import json
import os
import subprocess
import sys
from pathlib import Path

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

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr("jobs.run.os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write_text(path, "second")

    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_json_without_its_secrets_is_json(suffix: str, tmp_path: Path) -> None:
    about = {
        "words": ['+hf_token="s3cr3t"', "a.token='s3cr3t", "token="],
        "password": 1234,
        "api_key": ["s3cr3t"],
        "n": 1,
    }
    texts = [json.dumps(about)] * (1 if suffix == "json" else 2)
    write_text(tmp_path / f"x.{suffix}", "\n".join(texts) + "\n")
    hidden = {"words": ["+hf_token=***", "a.token=***", "token="], "password": "***", "api_key": ["***"], "n": 1}
    assert [json.loads(line) for line in (tmp_path / f"x.{suffix}").read_text().splitlines()] == [hidden] * len(texts)


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


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_what_a_full_disk_does_not_take_is_named_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.run.os.fsync", full)

    with pytest.raises(OSError, match=r"No space left on device: '.*STATUS'"):
        write_text(tmp_path / "STATUS", "running")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    """Whoever may write into the folder knows the name of the file beside."""
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / f".STATUS.{os.getpid()}.tmp").symlink_to(tmp_path / "theirs")

    write_text(tmp_path / "STATUS", "running")

    assert (tmp_path / "theirs").read_text() == "theirs"
    assert not (tmp_path / "STATUS").is_symlink()
    assert (tmp_path / "STATUS").read_text() == "running"


def test_a_lock_that_a_full_disk_does_not_take_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.run.os.write", full)
    with (
        pytest.raises(OSError, match=r"No space left on device: '.*abc/lock'"),
        Run(tmp_path, "a", "b", "abc").locked(),
    ):
        pytest.fail("it was not locked")


def test_what_a_killed_writer_left_goes_with_the_next(tmp_path: Path) -> None:
    names = (".STATUS.1.tmp", ".STATUS.2.tmp", ".README.md.1.tmp", ".STATUS.mine")
    for name in names:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / ".STATUS.2.tmp").touch()  # somebody may be at it

    write_text(tmp_path / "STATUS", "running")

    assert {path.name for path in tmp_path.iterdir()} == {"STATUS", *names[1:]}


def test_a_power_cut_leaves_no_empty_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr("jobs.run.os.fsync", lambda handle: flushed.append(os.fstat(handle).st_size))
    write_text(tmp_path / "SHA256SUMS", "1234  a")
    write_text(tmp_path / "rank_0.json", "{}", flush=False)

    assert flushed == [len("1234  a")]
