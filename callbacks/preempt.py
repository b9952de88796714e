"""Leaving in good order when asked to, or when the job's time runs out: after a step, saved, all ranks together."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch import callbacks

from bdg.signals import SIGNALS, answered, note, received
from callbacks.checkpoint import saver
from jobs.run import write_text

log = logging.getLogger("bdg")


class Preempted(SystemExit):
    """Training has saved its state and leaves. The exit status is 0, or 130 after Ctrl-C as shells expect."""


class Preempt(callbacks.Checkpoint):  # which Lightning calls after all others
    """After a signal of SIGNALS, or `margin_s` before the end of the job, saves after the next step and raises Preempted.

    A signal only sets a flag, also before the first step (`bdg.signals`). After each optimizer step the ranks agree by one
    reduction, so none is left waiting in a collective; a validation that has begun is finished first. It leaves before whatever
    comes next, when the step has been logged. A second Ctrl-C stops at once, without saving.

    request: rank 0 writes this file when the run should be started again: the job script's cue to
    requeue. end: when the job is killed, in seconds since 1970; by default $SLURM_JOB_END_TIME. Beside `margin_s`, twice the
    measured time of a save and the longest pause between two steps so far, such as a validation, are kept free.
    """

    def __init__(self, request: str, end: float | None = None, margin_s: float = 60) -> None:
        if margin_s < 0:
            raise ValueError(f"callbacks.preempt.margin_s={margin_s}: give the seconds to keep free, 0 or more")
        self.request, self.margin_s = Path(request), margin_s
        self.end = end or float(os.environ.get("SLURM_JOB_END_TIME") or "inf")
        self._agreed_at = 0  # step
        self._why = self._from = ""  # it is about to leave, and where it will go on
        self._longest_s = 0.0
        self._since = time.monotonic()
        self._process = os.getpid()

    def install(self) -> None:
        """Answers the signals from here on."""
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                signal.signal(signum, self._received)

    def _received(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker that was forked: its parent decides
            return
        if signum == signal.SIGINT and signum in received():
            raise KeyboardInterrupt
        note(signum)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage in ("fit", "validate"):
            self.install()

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.install()  # Lightning put its own in between, which speak to other ranks from inside the handler

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.install()
        self._since = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._agreed_at:  # a step is not finished
            return
        self._agreed_at = trainer.global_step
        now = time.monotonic()
        self._longest_s, self._since = max(self._longest_s, now - self._since), now
        saving = saver(trainer)
        if saving is None:
            raise ValueError(
                "callbacks.preempt saves through callbacks.checkpoint, which is missing: give both or none"
            )
        left_s = self.end - time.time()
        told = received()
        reason = signal.Signals(told[0]).name if told else ""
        if left_s < self.margin_s + 2 * saving.seconds + self._longest_s:
            reason = f"{left_s:.0f} s before the end of the job"
        if trainer.strategy.reduce_boolean_decision(bool(reason), all=False):
            self._why = reason or "as another rank was told to"
            self._from = "here" if saving.save(trainer) else "the last good checkpoint"

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._leave(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "validate":  # of a training that has come to its end, which is finished first
            self.install()
        self._leave(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._leave(trainer)

    def _leave(self, trainer: L.Trainer) -> None:
        if not self._why:
            return
        if trainer.is_global_zero:
            _ask(self.request, f"step {trainer.global_step}: {self._why}")
            step = trainer.global_step
            log.warning("leaving after step %d (%s): the same command goes on from %s", step, self._why, self._from)
        trainer.strategy.barrier("preempted")
        # a child's status other than 0 would make Lightning kill its parent
        status = 130 if received()[:1] == (signal.SIGINT,) and trainer.is_global_zero else 0
        answered()
        raise Preempted(status)


@contextmanager
def leaving_at_once(request: Path) -> Iterator[None]:
    """Where nothing is to be saved: a signal, also one that was not answered before, ends the command, to be started again."""

    def leave(signum: int, frame: FrameType | None = None) -> None:
        answered()
        if signum == signal.SIGINT:
            raise KeyboardInterrupt
        _ask(request, signal.Signals(signum).name)
        raise Preempted(0)

    before = {signum: signal.signal(signum, leave) for signum in SIGNALS}
    try:
        if told := received():
            leave(told[0])
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _ask(request: Path, why: str) -> None:
    """To be started again. Where that cannot be written, as on a full disk, the job script says that it was not asked."""
    try:
        write_text(request, f"{why}\n")
    except OSError as error:
        log.error("the request to be started again could not be written: %s", error)
