"""Ranks say where they are; one that waits in vain names whom it waits for, and nobody is blamed for taking long."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bdg.cli import main
from callbacks import heartbeat
from callbacks.heartbeat import HUNG, Beat, Heartbeat, Seen, farewell, process_state, stuck

pytestmark = pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")


class Slow(L.LightningModule):
    """Sleeps in training step 3, and in every validation batch."""

    def __init__(self, step_s: float = 0, validation_s: float = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.step_s, self.validation_s = step_s, validation_s
        self.seen: list[dict[str, Any]] = []
        self.folder = Path()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if self.global_step == 3:
            time.sleep(self.step_s)
        return (self.weight * batch).sum()

    def on_train_batch_end(self, *_: Any) -> None:
        self.seen.append(json.loads((self.folder / "rank_0.json").read_text()))

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        time.sleep(self.validation_s)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(module: Slow, beats: Heartbeat, *callbacks: L.Callback) -> None:
    module.folder = beats.folder
    data = DataLoader([torch.ones(1)] * 8, batch_size=None)  # type: ignore[arg-type]
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    trainer = L.Trainer(accelerator="cpu", max_epochs=1, callbacks=[beats, *callbacks], num_sanity_val_steps=0, **quiet)  # type: ignore[arg-type]
    trainer.fit(module, data, data)


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the process would have ended with."""
    statuses: list[int] = []
    monkeypatch.setattr(heartbeat, "end", statuses.append)
    return statuses


def test_a_run_says_where_it_is_and_leaves_nothing(tmp_path: Path) -> None:
    module = Slow()

    train(module, Heartbeat(str(tmp_path / "heartbeat"), every_s=1e-9, timeout_s=None))

    assert [beat["step"] for beat in module.seen] == [*range(1, 9)]
    assert module.seen[-1]["phase"] == "data"
    assert module.seen[-1]["pid"] == os.getpid()
    assert module.seen[-1]["time"] == pytest.approx(time.time(), abs=60)
    assert not (tmp_path / "heartbeat").exists()


def test_files_are_written_no_more_often_than_asked(tmp_path: Path) -> None:
    module = Slow()

    train(module, Heartbeat(str(tmp_path), every_s=1000))

    assert {beat["step"] for beat in module.seen} == {0}


def test_a_step_that_stands_still_ends_the_process_with_its_stacks(
    tmp_path: Path, ended: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    train(Slow(step_s=0.5), Heartbeat(str(tmp_path), every_s=0.05, timeout_s=0.2))

    assert set(ended) == {HUNG}
    error = capsys.readouterr().err
    assert "bdg: error: hung: rank 0 (host " in error
    assert "at step 3, phase forward" in error
    assert "The same command goes on from the last checkpoint" in error
    assert "in training_step" in (tmp_path / "stacks_0.txt").read_text()


def test_a_long_validation_of_short_batches_is_no_fault(tmp_path: Path, ended: list[int]) -> None:
    train(Slow(validation_s=0.1), Heartbeat(str(tmp_path), every_s=0.02, timeout_s=0.4, long_timeout_s=0.4))

    assert not ended


def test_without_a_timeout_nobody_watches(tmp_path: Path, ended: list[int]) -> None:
    beats = Heartbeat(str(tmp_path), every_s=0.01, timeout_s=None)

    train(Slow(step_s=0.1), beats)

    assert not ended


def test_a_disk_that_is_full_does_not_end_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any, flush: bool) -> None:
        raise OSError(28, "No space left on device")

    beats = Heartbeat(str(tmp_path), every_s=1e-9, timeout_s=None)
    monkeypatch.setattr(heartbeat, "write_text", full)
    monkeypatch.setattr(Slow, "on_train_batch_end", L.LightningModule.on_train_batch_end)

    train(Slow(), beats)

    assert caplog.text.count("heartbeats cannot be written") == 1


def test_a_rank_that_fails_leaves_its_last_words(tmp_path: Path) -> None:
    class Failing(Slow):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            raise ValueError("shard gone\nin line two")

    with pytest.raises(ValueError, match="shard gone"):
        train(Failing(), Heartbeat(str(tmp_path)))

    words = json.loads((tmp_path / "rank_0.json").read_text())
    assert words["phase"] == "failed"
    assert words["error"] == "which failed: ValueError: shard gone"


# --- who is to blame ---


def beat(rank: int, step: int, phase: str, batch: int = 0) -> Beat:
    return Beat(rank, step, phase, batch, 0.0, "elsewhere", 1)


@pytest.mark.parametrize(
    ("seen", "blamed"),
    [
        ({0: (beat(0, 7, "backward"), 10), 1: (beat(1, 7, "forward"), 10)}, [1]),
        ({0: (beat(0, 7, "backward"), 10), 1: (beat(1, 6, "update"), 10)}, [1]),
        ({0: (beat(0, 7, "backward"), 10), 1: (beat(1, 7, "backward"), 10)}, [0, 1]),
        ({0: (beat(0, 7, "backward"), 10), 1: (beat(1, 7, "forward"), 9)}, None),
        ({0: (beat(0, 7, "backward"), 9), 1: (beat(1, 7, "forward"), 10)}, None),
        ({0: (beat(0, 7, "backward"), 10), 1: (beat(1, 7, "save"), 99)}, None),
        ({0: (beat(0, 7, "backward"), 10), 1: (beat(1, 7, "validate", 4), 99)}, None),
        ({0: (beat(0, 7, "validated"), 100), 1: (beat(1, 7, "validate", 4), 100)}, [1]),
        ({0: (beat(0, 7, "backward"), 100), 1: (beat(1, 7, "begin"), 100)}, [1]),
        ({0: (beat(0, 7, "backward"), 10), 1: (None, 10)}, [1]),
        ({0: (beat(0, 7, "backward"), 10), 1: (beat(1, 7, "failed"), 10)}, [1]),
        ({0: (beat(0, 7, "save"), 10), 1: (beat(1, 7, "failed"), 10)}, None),
    ],
)
def test_the_rank_that_is_behind_is_blamed(
    seen: dict[int, tuple[Beat | None, float]], blamed: list[int] | None
) -> None:
    assert stuck(0, {rank: Seen(*each) for rank, each in seen.items()}, timeout_s=10, long_timeout_s=100) == blamed


def test_age_is_the_time_without_a_change() -> None:
    first, second = beat(0, 1, "data"), beat(0, 2, "data")

    assert Seen(first).after(2, first).after(2, first).still_s == 4
    assert Seen(first).after(2, first).after(2, second).still_s == 0


def test_the_last_words_name_who_where_and_what_to_do(tmp_path: Path) -> None:
    text = farewell(0, {0: Seen(beat(0, 7, "backward"), 10), 1: Seen(beat(1, 7, "forward"), 10.4)}, [1], tmp_path)

    assert "hung: rank 1 (host elsewhere, process 1), at step 7, phase forward for 10 s. This is rank 0" in text


def test_a_process_that_has_ended_is_known_as_such() -> None:
    done = subprocess.Popen(["true"])
    done.wait()
    here = beat(0, 0, "data").host, os.uname().nodename

    assert process_state(here[1], done.pid) == ", which has ended"
    assert process_state(here[1], os.getpid()) == ""
    assert process_state(here[0], done.pid) == ""


@pytest.mark.parametrize("wrong", [{"every_s": 0}, {"timeout_s": 0}, {"timeout_s": 60, "long_timeout_s": 30}])
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"callbacks\.heartbeat\.\w+=.* give"):
        Heartbeat("", **wrong)


# --- real processes ---

SMALL = ("experiment=demo_smoke", "stage=generation", "max_steps.generation=400", "callbacks.heartbeat.every_s=0.2")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    assert main(["pack", "pkg://datamodules/photographs", f"{folder}", "parts=photographs"]) == 0
    return folder


@pytest.fixture
def begin(photographs: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a training that goes on for a while, and returns when it has made some steps."""
    begun: list[subprocess.Popen[str]] = []

    def start(*overrides: str) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-m",
            "bdg",
            "train",
            *SMALL,
            f"data.root={photographs}",
            f"root={tmp_path}",
            *overrides,
        ]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)
        begun.append(process)
        deadline = time.monotonic() + 120
        while not any(beat["pid"] == process.pid and beat["step"] > 3 for beat in beats(tmp_path)):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return process

    yield start
    for process in begun:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stderr
        process.stderr.close()


def beats(root: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in root.glob("*/*/*/heartbeat/rank_*.json")]


@pytest.mark.slow
def test_a_rank_that_stands_still_is_named_by_the_other(
    tmp_path: Path, begin: Callable[..., subprocess.Popen[str]]
) -> None:
    two = ("trainer.devices=2", "+trainer.strategy=ddp", "trainer.accelerator=cpu", "data.num_workers=0")
    process = begin(*two, "callbacks.heartbeat.timeout_s=3", "callbacks.checkpoint.every_n_steps=1000")
    (stopped,) = (beat["pid"] for beat in beats(tmp_path) if beat["rank"] == 1)
    os.kill(stopped, signal.SIGSTOP)
    try:
        status = process.wait(timeout=60)
    finally:
        os.kill(stopped, signal.SIGKILL)

    error = process.communicate()[1]
    assert status == HUNG
    assert f"hung: rank 1 (host {os.uname().nodename}, process {stopped}, which is stopped)" in error
    (stacks,) = tmp_path.glob("*/*/*/heartbeat/stacks_0.txt")
    assert "Thread" in stacks.read_text()


@pytest.mark.slow
def test_a_loader_worker_that_was_killed_is_one_message_and_the_same_command_goes_on(
    tmp_path: Path, begin: Callable[..., subprocess.Popen[str]]
) -> None:
    options = ("data.num_workers=2", "callbacks.checkpoint.every_n_steps=2")
    process = begin(*options)
    workers = [int(w) for p in Path(f"/proc/{process.pid}/task").glob("*/children") for w in p.read_text().split()]
    os.kill(workers[-1], signal.SIGKILL)  # as the kernel does for want of memory
    error = process.communicate(timeout=60)[1]
    again = begin(*options)
    again.send_signal(signal.SIGINT)

    assert process.returncode == 1
    assert re.search(
        rf"bdg train: error: DataLoader worker \(pid(\(s\))? {workers[-1]}", error
    )  # torch has two ways to say so
    assert "for want of memory" in error
    assert "the same command goes on from the last checkpoint" in error
    assert "Traceback" not in error
    assert re.search("goes on from .*last.ckpt after step", again.communicate(timeout=120)[1])
