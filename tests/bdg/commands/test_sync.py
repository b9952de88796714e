"""What `bdg sync` sends, in which order, and what it leaves alone; the call to W&B is the one seam."""

import fcntl
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from bdg.cli import main
from bdg.commands import sync

A, B = "0123456789ab", "abcdef012345"


def start(run: Path, when: str, offline: bool = True, size: int = 100) -> Path:
    """What W&B leaves of one start of a run."""
    folder = run / "wandb" / f"{'offline-' if offline else ''}run-{when}-{run.name}"
    folder.mkdir(parents=True)
    (folder / f"run-{run.name}.wandb").write_bytes(bytes(size))
    return folder


def mark(folder: Path) -> None:
    (file,) = folder.glob("*.wandb")
    Path(f"{file}.synced").touch()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for identity in (A, B):
        folder = tmp_path / "runs" / "demo" / "bridging" / identity
        folder.mkdir(parents=True)
        (folder / "STATUS").write_text("done\n")
    return tmp_path / "runs" / "demo" / "bridging"


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The folders of each call, all of which arrive."""
    calls: list[list[str]] = []

    def send(paths: Sequence[Path]) -> None:
        calls.append([path.name for path in paths])
        for path in paths:
            mark(path)

    monkeypatch.setattr(sync, "send", send)
    return calls


def test_starts_of_a_run_are_sent_oldest_first_and_once(root: Path, sent: list[list[str]]) -> None:
    names = [start(root / A, when).name for when in ("20260102_000000", "20260101_000000", "20260103_000000")]
    mark(start(root / A, "20251231_000000"))
    start(root / A, "20260104_000000", offline=False)
    start(root / A, "20260105_000000", size=7)  # killed before anything was written

    assert main(["sync"]) == main(["sync"]) == 0
    assert sent == [[names[1], names[0], names[2]]]


def test_one_run_is_sent_and_the_others_wait(root: Path, sent: list[list[str]]) -> None:
    start(root / A, "20260101_000000")
    other = start(root / B, "20260101_000000")

    assert main(["sync", B[:4], "json=sync.json"]) == 0
    assert sent == [[other.name]]
    (told,) = json.loads(Path("sync.json").read_text())
    assert (told["sent"], told["waiting"], told["open"]) == (1, [], 0)


@pytest.mark.parametrize("locked", [True, False])
def test_a_start_that_is_being_written_is_left_alone(root: Path, sent: list[list[str]], locked: bool) -> None:
    """By the lock of the run, or where there are no locks by the time of its file."""
    before, now = start(root / A, "20260101_000000"), start(root / A, "20260102_000000")
    (root / A / "STATUS").write_text("running\n")
    (file,) = now.glob("*.wandb")
    if locked:
        os.utime(file, (0, 0))
    with (root / A / "lock").open("w") as lock:
        if locked:
            fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["sync"]) == 0

    assert sent == [[before.name]]
    os.utime(file, (0, 0))
    assert main(["sync"]) == 0  # it was killed
    assert sent[1:] == [[now.name]]


def test_watching_ends_with_the_last_run(root: Path, sent: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    now = start(root / A, "20260101_000000")
    (root / A / "STATUS").write_text("running\n")
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        (root / A / "STATUS").write_text("done\n")

    monkeypatch.setattr(time, "sleep", sleep)
    assert main(["sync", "watch=true", "every_s=7"]) == 0
    assert (slept, sent) == ([7], [[now.name]])


def test_what_does_not_arrive_is_said_and_tried_again(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[int] = []
    start(root / A, "20260101_000000")
    monkeypatch.setattr(sync, "send", lambda paths: calls.append(len(paths)))

    assert main(["sync"]) == main(["sync"]) == 1
    assert "1 starts were not sent" in capsys.readouterr().err
    assert calls == [1, 1]


def test_dry_sends_nothing(root: Path, sent: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    start(root / A, "20260101_000000")

    assert main(["sync", "dry=true"]) == 0
    assert "dry=true: nothing was sent" in capsys.readouterr().out
    assert sent == []


def test_without_offline_runs_there_is_nothing_to_send(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sync"]) == 0
    assert "nothing was logged offline" in capsys.readouterr().out


def test_without_wandb_it_says_what_is_missing(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sync, "find_spec", lambda name: None)

    assert main(["sync"]) == 1
    assert "pip install wandb" in capsys.readouterr().err


def test_the_call_itself_is_online_whatever_the_environment_says(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, object] = {}
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr("subprocess.run", lambda command, env, check: seen.update(command=command, env=env))
    sync.send([root / A])

    assert seen["command"][1:] == ["-m", "wandb", "sync", str(root / A)]  # type: ignore[index]
    assert "WANDB_MODE" not in seen["env"]  # type: ignore[operator]
