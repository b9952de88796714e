"""A training that is told to leave saves and leaves, never in the middle of anything."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bdg.cli import TRAINS
from bdg.signals import TOLD_TO_LEAVE, answered, received, remember
from callbacks.checkpoint import AtomicCheckpointIO, Checkpoint
from callbacks.preempt import SIGNALS, Preempt, Preempted, leaving_at_once

pytestmark = pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")


class Walk(L.LightningModule):
    """Sends itself a signal at one hook of one step."""

    def __init__(self, hook: str = "", step: int = 0, signum: int = signal.SIGTERM, times: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.told = (hook, step)
        self.signum, self.times = signum, times
        self.validated: list[int] = []

    def _tell(self, hook: str) -> None:
        if self.told == (hook, self.global_step):
            for _ in range(self.times):
                os.kill(os.getpid(), self.signum)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self._tell("training_step")
        return (self.weight**2).sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self._tell("validation_step")
        self.validated.append(self.global_step)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture(autouse=True)
def handlers() -> Any:
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    yield
    answered()
    for signum, handler in before.items():
        signal.signal(signum, handler)


def fit(folder: Path, model: Walk, preempt: Preempt | None = None, **options: Any) -> None:
    L.Trainer(
        accelerator="cpu",
        val_check_interval=4,
        check_val_every_n_epoch=None,
        callbacks=[preempt or Preempt(str(folder / "request")), Checkpoint(str(folder), every_n_steps=100)],
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_steps": 9, "logger": False, **options},
    ).fit(model, loader(100), loader(2))


def loader(count: int) -> DataLoader:
    return DataLoader([torch.zeros(1)] * count, batch_size=None)  # type: ignore[arg-type]


def saved_step(folder: Path) -> int:
    return torch.load(folder / "last.ckpt", weights_only=True)["global_step"]


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_lets_the_step_end_then_saves_asks_for_a_requeue_and_leaves(signum: int, tmp_path: Path) -> None:
    with pytest.raises(Preempted) as left:
        fit(tmp_path, Walk("training_step", 2, signum))

    assert left.value.code == (130 if signum == signal.SIGINT else 0)
    assert saved_step(tmp_path) == 3
    assert (tmp_path / "request").read_text() == f"step 3: {signal.Signals(signum).name}\n"


@pytest.mark.parametrize("last", [2, 3, 8])  # step 4 is followed by a validation, 9 by the end
def test_the_step_after_which_it_leaves_is_logged(last: int, tmp_path: Path) -> None:
    class Logging(Walk):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            self.log("number", float(self.global_step))
            return super().training_step(batch, batch_idx)

    model = Logging("training_step", last)
    with pytest.raises(Preempted):
        fit(tmp_path, model, logger=CSVLogger(tmp_path, name="", version=""), log_every_n_steps=1)

    rows = csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines())
    assert [float(row["number"]) for row in rows if row["number"]] == list(range(last + 1))
    assert saved_step(tmp_path) == last + 1
    assert last + 1 not in model.validated


def test_a_validation_that_has_begun_is_finished_first(tmp_path: Path) -> None:
    model = Walk("validation_step", 4)
    with pytest.raises(Preempted):
        fit(tmp_path, model, num_sanity_val_steps=0)

    assert model.validated == [4, 4]
    assert saved_step(tmp_path) == 5


def test_a_signal_during_the_sanity_check_is_not_lost(tmp_path: Path) -> None:
    with pytest.raises(Preempted):
        fit(tmp_path, Walk("validation_step", 0))
    assert saved_step(tmp_path) == 1


@pytest.mark.parametrize("signum", TOLD_TO_LEAVE)
def test_a_signal_while_torch_is_imported_is_answered_after_the_first_step(signum: int, tmp_path: Path) -> None:
    remember()
    os.kill(os.getpid(), signum)
    with pytest.raises(Preempted):
        fit(tmp_path, Walk())
    assert saved_step(tmp_path) == 1
    assert not received()


@pytest.mark.parametrize("verb", TRAINS)
def test_a_verb_that_trains_does_not_die_of_a_signal_before_it_can_answer(verb: str) -> None:
    code = "import os, signal, sys; from bdg import cli; sys.argv = ['bdg', sys.argv[1], 'stage=none']; cli.main()"
    code += "; os.kill(os.getpid(), signal.SIGUSR1); print('alive')"
    done = subprocess.run([sys.executable, "-c", code, verb], capture_output=True, text=True)
    assert done.stdout == "alive\n"


def test_a_signal_in_the_last_validation_is_answered_by_the_next_training(tmp_path: Path) -> None:
    fit(tmp_path, Walk("validation_step", 8), max_steps=8)  # which comes to its end
    assert saved_step(tmp_path) == 8
    with pytest.raises(Preempted):
        fit(tmp_path / "next", Walk())
    assert saved_step(tmp_path / "next") == 1


def test_a_validation_on_its_own_is_finished(tmp_path: Path) -> None:
    model = Walk("validation_step", 0)
    preempt = Preempt(str(tmp_path / "request"))
    L.Trainer(accelerator="cpu", callbacks=[preempt], logger=False, enable_progress_bar=False).validate(
        model, loader(2), verbose=False
    )
    assert model.validated == [0, 0]
    assert received() == (signal.SIGTERM, signal.SIGTERM)


@pytest.mark.parametrize("when", ["before", "within"])
@pytest.mark.parametrize("signum", SIGNALS)
def test_where_nothing_is_to_be_saved_a_signal_ends_the_command(signum: int, when: str, tmp_path: Path) -> None:
    remember()
    Preempt("unused").install()
    reached = []

    def work() -> None:
        with leaving_at_once(tmp_path / "request"):
            reached.append("begun")
            os.kill(os.getpid(), signum)
            reached.append("ended")

    if when == "before":
        os.kill(os.getpid(), signum)
    with pytest.raises(KeyboardInterrupt if signum == signal.SIGINT else Preempted):
        work()
    assert reached == ([] if when == "before" else ["begun"])
    assert (tmp_path / "request").exists() == (signum != signal.SIGINT)
    assert not received()


def test_a_request_that_cannot_be_written_keeps_nobody_from_leaving(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Preempted):
        fit(tmp_path, Walk("training_step", 2), Preempt(str(tmp_path / "file" / "request")))
    assert saved_step(tmp_path) == 3
    assert "could not be written" in caplog.text


def test_of_a_step_in_parts_all_are_done(tmp_path: Path) -> None:
    with pytest.raises(Preempted):
        fit(tmp_path, Walk("training_step", 1), accumulate_grad_batches=3, num_sanity_val_steps=0)
    assert saved_step(tmp_path) == 2


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:  # what Lightning makes of it
        fit(tmp_path, Walk("training_step", 2, signal.SIGINT, times=2))

    assert not isinstance(stopped.value, Preempted)
    assert not (tmp_path / "last.ckpt").exists()


def test_before_the_job_ends_there_is_time_to_save(tmp_path: Path) -> None:
    with pytest.raises(Preempted):
        fit(tmp_path, Walk(), Preempt(str(tmp_path / "request"), end=time.time() + 59, margin_s=60))

    assert saved_step(tmp_path) == 1
    assert "s before the end of the job" in (tmp_path / "request").read_text()


def test_the_end_of_the_job_is_slurms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time() + 3600)))
    fit(tmp_path, Walk(), Preempt(str(tmp_path / "request")))
    with pytest.raises(Preempted):
        fit(tmp_path, Walk(), Preempt(str(tmp_path / "request"), margin_s=3601))


def test_a_forked_worker_ignores_what_its_parent_answers(tmp_path: Path) -> None:
    preempt = Preempt(str(tmp_path / "request"))
    preempt.install()
    if (child := os.fork()) == 0:
        for signum in SIGNALS:
            os.kill(os.getpid(), signum)
        os._exit(1 if received() else 0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_it_needs_something_that_saves(tmp_path: Path) -> None:
    trainer = L.Trainer(
        accelerator="cpu", max_steps=2, callbacks=[Preempt("request")], logger=False, enable_progress_bar=False
    )
    with pytest.raises(ValueError, match=r"callbacks\.preempt saves through callbacks\.checkpoint"):
        trainer.fit(Walk(), loader(5))
