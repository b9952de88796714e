"""Checkpoint files are whole or not there, whatever happens; a training resumes from the newest good one."""

import errno
import logging
import os
import random
import sys
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from callbacks import checkpoint as module
from callbacks.checkpoint import (
    AtomicCheckpointIO,
    Checkpoint,
    digest,
    keep_best,
    newest_good,
    read_sums,
    write_checkpoint,
)
from callbacks.ema import Ema
from callbacks.generators import Generators

pytestmark = pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")

SCORES = {3: 20.0, 6: 22.0, 9: 21.0}
STATE = {"global_step": 3, "state_dict": {"w": torch.arange(5.0)}}


class Noisy(L.LightningModule):
    """Draws from every global generator in training and in validation."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.drawn: list[float] = []
        self.seen: list[int] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.drawn.append(random.random() + float(np.random.rand()) + float(torch.rand(())))
        return ((self.weight - self.drawn[-1]) ** 2).sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        torch.rand(())
        self.log("val/mean/psnr", SCORES[self.global_step])
        self.seen.append(self.global_step)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)


def loader(count: int) -> DataLoader:
    return DataLoader([torch.zeros(1)] * count, batch_size=None)  # type: ignore[arg-type]


def fit(folder: Path, *extra: L.Callback, steps: int = 9, resume: Path | None = None, **options: Any) -> Noisy:
    model = Noisy()
    callbacks = [Ema(every_n_steps=1), Generators(), *extra, Checkpoint(str(folder), **options)]
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        val_check_interval=3,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    L.seed_everything(0, verbose=False)
    trainer.fit(model, loader(1000), loader(1), ckpt_path=resume, weights_only=True)
    return model


class Die(L.Callback):
    """Ends the training at a hook, as a kill would; what is on the disk then stays."""

    def __init__(self, hook: str, step: int) -> None:
        self.step = step
        setattr(self, hook, self._die)

    def _die(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


# --- files ---


def test_what_is_written_is_read_back_and_known_by_its_digest(tmp_path: Path) -> None:
    write_checkpoint(STATE, tmp_path / "last.ckpt")

    assert torch.equal(torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]["w"], torch.arange(5.0))
    assert read_sums(tmp_path) == {"last.ckpt": digest(tmp_path / "last.ckpt")}
    assert newest_good(tmp_path) == tmp_path / "last.ckpt"


def test_the_one_before_is_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write_checkpoint(STATE | {"global_step": step}, tmp_path / "last.ckpt")

    kept = {p.name: torch.load(p, weights_only=True)["global_step"] for p in tmp_path.glob("*.ckpt")}
    assert kept == {"last.ckpt": 3, "previous.ckpt": 2}


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"!" + data[1:], lambda _: b""])
def test_a_damaged_last_falls_back_to_the_one_before_and_says_so(
    damage: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        write_checkpoint(STATE | {"global_step": step}, tmp_path / "last.ckpt")
    last = tmp_path / "last.ckpt"
    last.write_bytes(damage(last.read_bytes()))

    with caplog.at_level(logging.ERROR, "bdg"):
        assert newest_good(tmp_path) == tmp_path / "previous.ckpt"
    assert "last.ckpt is DAMAGED" in caplog.text


def test_a_damaged_last_does_not_take_the_place_of_the_one_before(tmp_path: Path) -> None:
    for step in (1, 2):
        write_checkpoint(STATE | {"global_step": step}, tmp_path / "last.ckpt")
    (tmp_path / "last.ckpt").write_bytes(b"cut")
    write_checkpoint(STATE, tmp_path / "last.ckpt")

    assert torch.load(tmp_path / "previous.ckpt", weights_only=True)["global_step"] == 1
    (tmp_path / "last.ckpt").unlink()  # as a kill between two renames leaves it
    assert newest_good(tmp_path) == tmp_path / "previous.ckpt"


def test_one_whose_place_was_never_taken_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed when the sum of the next one was written, and not yet the next one."""
    for step in (1, 2):
        write_checkpoint(STATE | {"global_step": step}, tmp_path / "last.ckpt")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed_after_the_sums(os.replace))
        with pytest.raises(KeyboardInterrupt):
            write_checkpoint(STATE | {"global_step": 3}, tmp_path / "last.ckpt")
    assert newest_good(tmp_path) == tmp_path / "last.ckpt"
    write_checkpoint(STATE | {"global_step": 3}, tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "previous.ckpt", weights_only=True)["global_step"] == 2
    (tmp_path / "last.ckpt").unlink()
    assert newest_good(tmp_path) == tmp_path / "previous.ckpt"


def killed_after_the_sums(replace: Any) -> Any:
    def kill(source: Any, target: Any) -> None:
        if Path(target).suffix == ".ckpt":
            raise KeyboardInterrupt
        replace(source, target)

    return kill


def test_the_last_step_is_saved(tmp_path: Path) -> None:
    fit(tmp_path, steps=4, every_n_steps=100)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 4


def test_only_damaged_ones_are_an_error_and_none_is_not(tmp_path: Path) -> None:
    assert newest_good(tmp_path) is None
    write_checkpoint(STATE, tmp_path / "last.ckpt")
    (tmp_path / "last.ckpt").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"holds no whole checkpoint: .*remove the folder to train from the beginning"):
        newest_good(tmp_path)


class Full:
    """A file that no more than a kilobyte goes into."""

    def __init__(self, file: Any, code: int = errno.ENOSPC) -> None:
        self.file, self.room, self.code = file, 1000, code

    def write(self, data: bytes) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(self.code, os.strerror(self.code))
        return self.file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.fixture(params=["ENOSPC", "EDQUOT", "EROFS"])
def full_disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed, code = module._Hashed, getattr(errno, request.param)
    monkeypatch.setattr(module, "_Hashed", lambda file: hashed(Full(file, code)))  # type: ignore[arg-type]


def test_a_full_disk_leaves_the_last_good_file_and_no_half_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(STATE, tmp_path / "last.ckpt")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    hashed = module._Hashed
    monkeypatch.setattr(module, "_Hashed", lambda file: hashed(Full(file)))  # type: ignore[arg-type]

    with pytest.raises(OSError, match=r"last\.ckpt"):
        write_checkpoint(STATE | {"more": torch.zeros(10_000)}, tmp_path / "last.ckpt")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_disk_that_reads_other_than_was_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "digest", lambda path: "other")
    with pytest.raises(OSError, match="reads back other than it was written"):
        write_checkpoint(STATE, tmp_path / "last.ckpt")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    left = tmp_path / ".last.ckpt.4711"
    left.write_bytes(b"half")
    write_checkpoint(STATE, tmp_path / "last.ckpt")
    assert not left.exists()


# --- trainings ---


def test_a_disk_that_is_full_stops_nobody_unless_asked(
    tmp_path: Path, full_disk: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "bdg"):
        assert len(fit(tmp_path / "a").drawn) == 9
    assert "the checkpoint could not be written, the last good one stays" in caplog.text
    with pytest.raises(OSError, match=r"callbacks\.checkpoint\.on_error=stop"):
        fit(tmp_path / "b", on_error="stop")


def test_best_is_the_best_and_last_the_newest(tmp_path: Path) -> None:
    fit(tmp_path, every_n_steps=2)

    steps = {p.name: torch.load(p, weights_only=True)["global_step"] for p in tmp_path.glob("*.ckpt")}
    assert steps == {"last.ckpt": 9, "previous.ckpt": 8, "best.ckpt": 6}
    assert all(digest(p) == read_sums(tmp_path)[p.name] for p in tmp_path.glob("*.ckpt"))


def test_a_validation_after_a_save_that_failed_names_no_older_checkpoint_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FailsOnce(AtomicCheckpointIO):
        def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
            if checkpoint["global_step"] == 6:  # before the best validation
                self.error = "no space"
            else:
                super().save_checkpoint(checkpoint, path, storage_options)

    monkeypatch.setattr(sys.modules[__name__], "AtomicCheckpointIO", FailsOnce)
    fit(tmp_path, every_n_steps=100)

    best = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert best["global_step"] == max((3, 9), key=SCORES.__getitem__)


def test_naming_the_best_twice_leaves_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / ".best.ckpt.4711").write_bytes(b"of a process that was killed")
    write_checkpoint(STATE, tmp_path / "last.ckpt")
    for _ in range(2):
        keep_best(tmp_path / "last.ckpt", tmp_path / "best.ckpt")

    assert sorted(path.name for path in tmp_path.iterdir()) == ["SHA256SUMS", "best.ckpt", "last.ckpt"]


def test_minutes_count_as_well_as_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.time, "monotonic", iter(range(0, 100_000, 30)).__next__)  # half a minute at every look
    fit(tmp_path, every_n_minutes=1, steps=2)

    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 2


@pytest.mark.parametrize(
    ("hook", "step"), [("on_train_batch_start", 7), ("on_validation_start", 6), ("on_validation_batch_end", 3)]
)
def test_a_killed_training_draws_validates_and_ends_as_the_unbroken_one(hook: str, step: int, tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", every_n_steps=2)
    with pytest.raises(SystemExit):  # Lightning's answer to the interrupt
        fit(tmp_path / "killed", Die(hook, step), every_n_steps=2)
    resume = newest_good(tmp_path / "killed")
    assert resume is not None
    begun = torch.load(resume, weights_only=True)["global_step"]
    rest = fit(tmp_path / "killed", resume=resume, every_n_steps=2)

    assert rest.drawn == whole.drawn[begun:]
    assert torch.equal(rest.weight, whole.weight)
    assert rest.seen == [s for s in whole.seen if s >= begun]  # what follows a checkpoint is done again


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_steps": 0}, r"callbacks\.checkpoint\.every_n_steps=0: choose 1 or more"),
        ({"every_n_minutes": 0}, r"callbacks\.checkpoint\.every_n_minutes=0: choose more than 0, or null"),
        ({"mode": "best"}, r"callbacks\.checkpoint\.mode=best: choose one of max, min"),
        ({"on_error": "skip"}, r"callbacks\.checkpoint\.on_error=skip: choose one of continue, stop"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Checkpoint(str(tmp_path), **options)
