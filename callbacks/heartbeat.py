"""Heartbeats: every rank says where it is, and a rank that waits for one that stands still names it and ends.

Ages are counted in the time that the watching process itself sees pass, by what changes, never by the clocks of two hosts: a
job that was suspended, or a machine that slept, has not hung.
"""

import faulthandler
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

import lightning as L
import torch

from jobs.run import write_text

log = logging.getLogger("bdg")

PHASES = ("begin", "data", "forward", "backward", "update", "validate", "validated", "save", "failed")
"""What a rank does, in the order of a step. begin: its first step; data: it waits for a batch."""
LONG = ("begin", "validate", "validated", "save")
"""Within them nothing can beat, and they may take long."""
HUNG = 75
"""The exit status of a rank that gave up waiting: EX_TEMPFAIL, the same command may do better."""
GRACE_S = 30.0
"""So long a rank that waits for one that failed may hear of it in another way."""


@dataclass(frozen=True)
class Beat:
    """Where a rank is. batch: of training, or of validation in its phase. time: seconds since 1970 by its host's clock."""

    rank: int
    step: int
    phase: str
    batch: int
    time: float
    host: str
    pid: int
    error: str = ""  # what it failed of

    @property
    def place(self) -> tuple[int, int, int]:
        """How far it has come, to be compared with other ranks."""
        phase = PHASES.index(self.phase)
        return (self.step, phase, self.batch) if self.phase.startswith("validat") else (self.step, self.batch, phase)

    def __str__(self) -> str:
        state = f", {self.error}" if self.error else process_state(self.host, self.pid)
        return (
            f"rank {self.rank} (host {self.host}, process {self.pid}{state}), at step {self.step}, phase {self.phase}"
        )


@dataclass(frozen=True)
class Seen:
    """A rank as another one sees it: its last beat, and for how many seconds there was no other."""

    beat: Beat | None = None
    still_s: float = 0.0

    def after(self, seconds: float, beat: Beat | None) -> "Seen":
        return Seen(beat, self.still_s + seconds if beat == self.beat else 0.0)


def stuck(own: int, seen: Mapping[int, Seen], timeout_s: float, long_timeout_s: float) -> list[int] | None:
    """The ranks that rank `own` waits for in vain, or None while there is hope.

    There is none when another rank has failed, or when nobody came further for as long as his phase may take. Of those
    that stand still, the ones that came least far are to blame: the others wait for them.
    """

    def allowed(beat: Beat | None) -> float:
        return long_timeout_s if beat and beat.phase in LONG else timeout_s

    grace = min(timeout_s, GRACE_S)
    mine = seen[own]
    failed = [r for r, s in seen.items() if s.beat and s.beat.phase == "failed" and s.still_s >= grace]
    if failed and mine.still_s >= grace and mine.beat and mine.beat.phase != "save":
        return failed
    if any(s.still_s < allowed(s.beat) for s in seen.values()):
        return None
    silent = [rank for rank, s in seen.items() if s.beat is None]
    least = min((s.beat.place for s in seen.values() if s.beat), default=None)
    return silent or [rank for rank, s in seen.items() if s.beat and s.beat.place == least]


class Heartbeat(L.Callback):
    """Writes `folder`/rank_N.json and watches over the others' while this rank itself stands still.

    A rank beats at each hook of training and validation; a thread of each rank looks on. Where it finds that all stand
    still it says which rank is behind, writes the stacks of its own threads to `folder`/stacks_N.txt and ends the process
    with status `HUNG`. It reads no file while its own rank gets on. (It cannot run while a library keeps Python's lock.)

    every_s: a file is written so often at most; the thread looks as often.
    timeout_s: for a step or the wait for a batch; None: nobody watches.
    long_timeout_s: for the first step, a batch of validation, or a checkpoint.
    """

    def __init__(
        self, folder: str, every_s: float = 10.0, timeout_s: float | None = 600.0, long_timeout_s: float = 3600.0
    ) -> None:
        for name, value in (("every_s", every_s), ("timeout_s", 1 if timeout_s is None else timeout_s)):
            if value <= 0:
                raise ValueError(f"callbacks.heartbeat.{name}={value}: give a number of seconds above 0")
        if long_timeout_s < (timeout_s or 0):
            raise ValueError(
                f"callbacks.heartbeat.long_timeout_s={long_timeout_s} is below timeout_s={timeout_s}: give as much or more"
            )
        self.folder = Path(folder)
        self.every_s, self.timeout_s, self.long_timeout_s = every_s, timeout_s, long_timeout_s
        self._beat: Beat | None = None
        self._written_at, self._writable = 0.0, True
        self._begun = False
        self._ended, self._writing = Event(), Lock()
        self._watch: Thread | None = None

    # --- the training thread ---

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if trainer.is_global_zero:  # before the others begin: all meet after their setup
            for path in self.folder.glob("rank_*.json"):
                path.unlink(missing_ok=True)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begun = False
        self._pulse(trainer, "data")

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._pulse(trainer, "forward", batch_idx)

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: torch.Tensor) -> None:
        self._pulse(trainer, "backward", trainer.fit_loop.batch_idx)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self._pulse(trainer, "update", trainer.fit_loop.batch_idx)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._begun = True
        self._pulse(trainer, "data", batch_idx + 1)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._pulse(trainer, "validate")

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._pulse(trainer, "validate", batch_idx + 1)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._pulse(trainer, "validated")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._pulse(trainer, "validated", 1)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._pulse(trainer, "save")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stop()
        if not isinstance(exception, ValueError | OSError):  # these speak for themselves, a lost connection does not
            for other in set(range(trainer.world_size)) - {trainer.global_rank}:
                beat = self._read(other)
                if beat and (beat.error or process_state(beat.host, beat.pid)):
                    exception.add_note(f"{beat}")
        if isinstance(exception, Exception) and self._beat:  # the others may wait for this rank
            error = (str(exception).splitlines() or [""])[0]
            self._pulse(trainer, "failed", error=f"which failed: {type(exception).__name__}: {error}", watched=False)
            self._write()
        else:
            self._path(trainer.global_rank).unlink(missing_ok=True)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._stop()
        self._path(trainer.global_rank).unlink(missing_ok=True)
        with suppress(OSError):  # it does not exist, or others still have files in it
            self.folder.rmdir()

    def _pulse(self, trainer: L.Trainer, phase: str, batch: int = 0, error: str = "", watched: bool = True) -> None:
        if not self._begun and phase in ("data", "forward", "backward", "update"):
            phase = "begin"
        where = (trainer.global_rank, trainer.global_step, phase, batch)
        self._beat = Beat(*where, time.time(), socket.gethostname(), os.getpid(), error)
        if time.monotonic() - self._written_at >= self.every_s:
            self._write()
        if watched and self._watch is None and self.timeout_s is not None:
            self._ended.clear()
            self._watch = Thread(
                target=self._look_on, args=(trainer.global_rank, trainer.world_size), name="heartbeat", daemon=True
            )
            self._watch.start()

    def _stop(self) -> None:
        self._ended.set()
        if self._watch:
            self._watch.join()
        self._watch = None

    def _path(self, rank: int) -> Path:
        return self.folder / f"rank_{rank}.json"

    def _write(self) -> None:
        assert self._beat
        self._written_at = time.monotonic()
        try:
            with self._writing:  # both threads do
                write_text(self._path(self._beat.rank), json.dumps(vars(self._beat)), flush=False)
        except OSError as error:  # a full disk must not end the training
            if self._writable:
                log.warning("heartbeats cannot be written: %s", error)
            self._writable = False

    # --- the thread that looks on ---

    def _look_on(self, rank: int, world_size: int) -> None:
        assert self.timeout_s is not None
        tick = min(self.every_s, self.timeout_s / 4)
        seen = {rank: Seen(self._beat)}
        while not self._ended.wait(tick):
            own = seen[rank].after(tick, self._beat)
            if own.still_s == 0:
                seen = {rank: own}
                continue
            if own.still_s == tick:  # the file may be older than the beat
                self._write()
            others = (r for r in range(world_size) if r != rank)
            seen = {rank: own} | {r: seen.get(r, Seen()).after(tick, self._read(r)) for r in others}
            blamed = stuck(rank, seen, self.timeout_s, self.long_timeout_s)
            if blamed is not None:
                self._give_up(rank, seen, lost(seen) or blamed)

    def _read(self, rank: int) -> Beat | None:
        try:
            return Beat(**json.loads(self._path(rank).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def _give_up(self, rank: int, seen: Mapping[int, Seen], blamed: Iterable[int]) -> None:
        stacks = self.folder / f"stacks_{rank}.txt"
        text = farewell(rank, seen, blamed, stacks)
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            with stacks.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        sys.stderr.write(text)
        sys.stderr.flush()
        end(HUNG)


def end(status: int) -> None:
    """At once: the training thread waits for something that does not come."""
    os._exit(status)


def farewell(rank: int, seen: Mapping[int, Seen], blamed: Iterable[int], stacks: Path) -> str:
    """Who stands still where, seen from a rank that gives up, and what can be done."""
    named = [f"{seen[r].beat or f'rank {r}, which was never seen,'} for {seen[r].still_s:.0f} s" for r in blamed]
    return (
        f"\nbdg: error: hung: {'; '.join(named)}. This is rank {rank}, which ends; its stacks are in {stacks}. "
        "The same command goes on from the last checkpoint; if nothing hung, give callbacks.heartbeat.timeout_s more, "
        "or null\n"
    )


def lost(seen: Mapping[int, Seen]) -> list[int]:
    """The ranks whose processes are known not to run."""
    return [rank for rank, s in seen.items() if s.beat and process_state(s.beat.host, s.beat.pid)]


def process_state(host: str, pid: int) -> str:
    """ ", which has ended" or ", which is stopped", as far as this host knows it."""
    if host != socket.gethostname() or not Path("/proc/self/stat").exists():
        return ""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ", which has ended"
    return {"T": ", which is stopped", "Z": ", which has ended"}.get(state, "")
