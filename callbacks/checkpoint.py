"""Checkpoints: when a run's state is written, and files that are whole and known to be, or not there at all."""

import hashlib
import logging
import os
import pickle
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import callbacks

from bdg.files import check_stored, digest, naming
from jobs.run import write_text

log = logging.getLogger("bdg")

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
SUMS = "SHA256SUMS"
"""Beside the checkpoints, for `sha256sum -c`: a file whose digest is in no line of it was not finished, or changed since."""
ON_ERROR = ("continue", "stop")


class Checkpoint(callbacks.Checkpoint):
    """Keeps in `folder` the newest state as last.ckpt, the one before as previous.ckpt, and the best as best.ckpt.

    Saves after an optimizer step: every `every_n_steps`, when `every_n_minutes` have passed since the last time, before each
    validation, so that a run that is killed while it validates begins by validating, and after the last step. Never saves
    inside a validation.
    best.ckpt is the state of the validation with the highest `monitor` (the lowest with mode="min").
    on_error: when a file cannot be written, the run says so and goes on with the last good one ("continue") or ends ("stop").

    What it cost is logged as checkpoint/seconds and checkpoint/megabytes.
    """

    def __init__(
        self,
        folder: str,
        every_n_steps: int = 1000,
        every_n_minutes: float | None = 15,
        monitor: str = "val/mean/psnr",
        mode: str = "max",
        on_error: str = "continue",
    ) -> None:
        if every_n_steps < 1:
            raise ValueError(f"callbacks.checkpoint.every_n_steps={every_n_steps}: choose 1 or more")
        if every_n_minutes is not None and every_n_minutes <= 0:
            raise ValueError(f"callbacks.checkpoint.every_n_minutes={every_n_minutes}: choose more than 0, or null")
        for name, value, choices in (("mode", mode, ("max", "min")), ("on_error", on_error, ON_ERROR)):
            if value not in choices:
                raise ValueError(f"callbacks.checkpoint.{name}={value}: choose one of {', '.join(choices)}")
        self.folder = Path(folder)
        self.every_n_steps, self.every_n_minutes = every_n_steps, every_n_minutes
        self.monitor, self.mode, self.on_error = monitor, mode, on_error
        self.best: float | None = None
        self.seconds = 0.0
        """How long the last save took."""
        self._saved_at: int | None = None  # step
        self._saved_when = time.monotonic()
        self._newest = self.folder / LAST

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved_at, self._saved_when = trainer.global_step, time.monotonic()
        self._newest = Path(trainer.ckpt_path or self.folder / LAST)
        begun = torch.tensor(trainer.global_step, device=pl_module.device)
        if len(steps := {*trainer.strategy.all_gather(begun).flatten().tolist()}) > 1:
            raise ValueError(
                f"the ranks would go on from different steps, {min(steps)} and {max(steps)}, as another process trained this "
                "run until now: give the same command again"
            )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step > (self._saved_at or 0) and (
            step % self.every_n_steps == 0
            or step == trainer.max_steps
            or validation_follows(trainer, step)
            or self._time_is_up(trainer)
        ):
            self.save(trainer)

    def take_up(self, trainer: L.Trainer, checkpoint: Mapping[str, Any], path: Path) -> None:
        """What was trained to its end is validated now: this is its state, and where it lies."""
        self.load_state_dict(checkpoint["callbacks"].get(self.state_key, self.state_dict()))
        self._saved_at, self._newest = trainer.global_step, path

    def _time_is_up(self, trainer: L.Trainer) -> bool:
        """By the clock of rank 0, since all ranks save together."""
        if self.every_n_minutes is None:
            return False
        return trainer.strategy.broadcast(time.monotonic() - self._saved_when >= 60 * self.every_n_minutes)

    def save(self, trainer: L.Trainer) -> bool:
        """Writes last.ckpt; to be called by all ranks, between two steps. False: it could not be written."""
        begun = time.monotonic()
        trainer.save_checkpoint(self.folder / LAST, weights_only=False)
        error = trainer.strategy.broadcast(getattr(trainer.strategy.checkpoint_io, "error", None))
        self._saved_when = time.monotonic()
        self.seconds = self._saved_when - begun
        if error and self.on_error == "stop":
            raise OSError(f"{error} (callbacks.checkpoint.on_error=stop)")
        if error:
            return False
        self._saved_at, self._newest = trainer.global_step, self.folder / LAST
        if trainer.is_global_zero:
            cost = {"checkpoint/seconds": self.seconds}
            cost["checkpoint/megabytes"] = (self.folder / LAST).stat().st_size / 1e6
            for logger in trainer.loggers:
                logger.log_metrics(cost, trainer.global_step - 1)  # Lightning's loggers count from 0
        return True

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What was saved before this validation becomes the best, if it is."""
        found = trainer.callback_metrics.get(self.monitor)
        if found is None or trainer.sanity_checking or self._saved_at != trainer.global_step:
            return
        if self.best is None or (found > self.best if self.mode == "max" else found < self.best):
            self.best = float(found)
            if trainer.is_global_zero:
                _reporting(lambda: keep_best(self._newest, self.folder / BEST))

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["ranks"], checkpoint["accumulated"] = trainer.world_size, trainer.accumulate_grad_batches

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Counts the batches so far as this trainer accumulates them, who may have other devices than the one before.

        They begin with a whole step, as the data do: of a step that was not finished nothing was kept.
        """
        step = checkpoint["global_step"]
        batches = step * trainer.accumulate_grad_batches
        loop = checkpoint["loops"]["fit_loop"]
        for counts in (loop["epoch_loop.batch_progress"]["total"], loop["epoch_loop.batch_progress"]["current"]):
            counts |= dict.fromkeys(("ready", "started", "processed"), batches)
            counts["completed"] = batches - 1  # the hook that saves belongs to the last of them
        if validation_follows(trainer, step):  # as if it had begun: Lightning then validates before it trains
            counts = loop["epoch_loop.val_loop.batch_progress"]
            counts["total"] |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            counts["current"] |= dict.fromkeys(("ready", "started", "processed", "completed"), 0)
            loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1  # which it counts once more


def saver(trainer: L.Trainer) -> Checkpoint | None:
    """The callback that saves this training."""
    return next((each for each in trainer.checkpoint_callbacks if isinstance(each, Checkpoint)), None)


def validation_follows(trainer: L.Trainer, step: int) -> bool:
    interval = trainer.val_check_interval  # in batches
    return isinstance(interval, int) and step * trainer.accumulate_grad_batches % interval == 0


class AtomicCheckpointIO(TorchCheckpointIO):
    """Reads tensors and plain containers only. Writes a whole file that was read back, or leaves all as it was.

    What cannot be written is not raised, as the other ranks would wait for this one: it is said, and kept as `error`.
    """

    error: str | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        self.error = _reporting(lambda: write_checkpoint(checkpoint, Path(path)))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        try:
            check_stored(Path(path))
        except ValueError as error:
            raise ValueError(f"{path} is no checkpoint, or cut off ({error}): remove or replace it") from None
        return torch.load(path, map_location=map_location, weights_only=True)


def _reporting(write: Callable[[], None]) -> str | None:
    """What went wrong, said and returned."""
    try:
        write()
    except OSError as error:
        message = f"the checkpoint could not be written, the last good one stays: {error}"
        log.error(message)
        return message
    return None


def write_checkpoint(checkpoint: dict[str, Any], target: Path) -> None:
    """Writes beside the target, flushes, reads back, renames; what was there becomes previous.ckpt, if it is whole.

    At every moment in between each whole file has its digest in SHA256SUMS. Raises OSError, and then nothing has changed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = _cleared(target)
    hashed = None
    try:
        with naming(target), beside.open("xb") as file:
            hashed = _Hashed(file)
            torch.save(checkpoint, hashed)  # type: ignore[arg-type]  # it only writes
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # or it would be read back from memory
        if digest(beside) != hashed.sha256.hexdigest():
            raise OSError(f"{beside} reads back other than it was written: is the disk sound?")
        sums = read_sums(target.parent)
        old = digest(target) if target.exists() else None
        good = old in sums.values()  # else the previous one is worth more
        before = {PREVIOUS: old} if old and good else {}
        _write_sums(target.parent, sums | before | {target.name: hashed.sha256.hexdigest()})
        if good:
            os.replace(target, target.with_name(PREVIOUS))
        os.replace(beside, target)
        _flush_folder(target.parent)
    except RuntimeError as error:  # what torch makes of a write that failed
        raise OSError(f"{target}: {(hashed and hashed.error) or error}") from error
    finally:
        beside.unlink(missing_ok=True)


def keep_best(source: Path, best: Path) -> None:
    """A checkpoint under a second name, for as long as nothing better comes."""
    beside = _cleared(best)
    try:
        try:
            os.link(source, beside)
        except OSError:  # there are file systems without links
            shutil.copyfile(source, beside)
        _write_sums(best.parent, read_sums(best.parent) | {best.name: digest(beside)})
        os.replace(beside, best)
    finally:
        beside.unlink(missing_ok=True)  # where both were one file already, replacing does nothing


def _cleared(target: Path) -> Path:
    """A name beside the target; what killed processes left there is gone."""
    for left in target.parent.glob(f".{target.name}.*"):
        left.unlink()
    return target.with_name(f".{target.name}.{os.getpid()}")


def newest_good(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None if it never wrote one.

    Raises:
        ValueError: there are some, and all are damaged.
    """
    known = set(read_sums(folder).values())
    found = [folder / name for name in (LAST, PREVIOUS) if (folder / name).exists()]
    for path in found:
        if digest(path) in known:
            return path
        log.error("%s is DAMAGED: its sha256 is not in %s", path, folder / SUMS)
    if found:
        raise ValueError(
            f"{folder} holds no whole checkpoint: put one there and its line into {SUMS}, "
            "or remove the folder to train from the beginning"
        )
    return None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """All that a checkpoint holds, tensors mapped from the file. Raises ValueError for what is none."""
    try:
        check_stored(path)
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return found | {"state_dict": found["state_dict"]}
    except (KeyError, TypeError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = error if isinstance(error, ValueError) else type(error).__name__
        raise ValueError(
            f"{path} is no checkpoint, or cut off ({reason}): remove or replace it. "
            "A pickle of more than tensors and plain values could run code and is not read"
        ) from None


def read_sums(folder: Path) -> dict[str, str]:
    """File name -> sha256; empty if there is no such file."""
    path = folder / SUMS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {name: found for found, _, name in (line.partition("  ") for line in lines)}


def _write_sums(folder: Path, sums: dict[str, str]) -> None:
    write_text(folder / SUMS, "".join(f"{found}  {name}\n" for name, found in sorted(sums.items())))


class _Hashed:
    """A file that is written, the sha256 of all that went into it, and why it could not be written."""

    error: OSError | None = None

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sha256 = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def _flush_folder(folder: Path) -> None:
    """So that the names, too, outlast a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
