from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from callbacks.checkpoint import AtomicCheckpointIO, Checkpoint
from callbacks.ema import Ema


class Walk(L.LightningModule):
    """One weight that an optimizer moves; remembers it after every step, and what validation saw."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0]))
        self.path: list[Tensor] = []
        self.validated: list[Tensor] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return ((self.weight - batch) ** 2).sum()

    def on_train_batch_end(self, *_: Any) -> None:
        self.path.append(self.weight.detach().clone())

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.validated.append(self.weight.detach().clone())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveWhileValidating(L.Callback):
    def __init__(self, path: Path) -> None:
        self.path = path

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        trainer.save_checkpoint(self.path)


def data(count: int = 8, skip: int = 0) -> DataLoader:
    return DataLoader([torch.tensor(float(i)) for i in range(skip, count)], batch_size=None)  # type: ignore[arg-type]


@pytest.fixture
def trainer(tmp_path: Path) -> Any:
    def make(*callbacks: L.Callback, **options: Any) -> L.Trainer:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        return L.Trainer(
            accelerator="cpu",
            max_epochs=1,
            callbacks=list(callbacks),
            plugins=[AtomicCheckpointIO()],
            enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),
            num_sanity_val_steps=0,
            default_root_dir=tmp_path,
            **quiet,
            **options,
        )

    return make


pytestmark = pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")


def average(path: list[Tensor], decay: float) -> Iterator[Tensor]:
    """By the definition: the first update copies, update k + 1 keeps min(decay, (1 + k) / (10 + k)) of the average."""
    mean = path[0]
    yield mean
    for k, weight in enumerate(path[1:], start=1):
        keep = min(decay, (1 + k) / (10 + k))
        mean = keep * mean + (1 - keep) * weight
        yield mean


def test_training_ends_with_the_average_by_its_definition(trainer: Any) -> None:
    walk = Walk()

    trainer(Ema(decay=0.3, every_n_steps=1)).fit(walk, data())

    torch.testing.assert_close(walk.weight.detach(), list(average(walk.path, 0.3))[-1])


def test_validation_sees_the_average_and_training_goes_on_with_its_own(trainer: Any) -> None:
    walk, alone = Walk(), Walk()

    trainer(Ema(decay=0.9, every_n_steps=1), val_check_interval=4).fit(walk, data(), data(1))
    trainer().fit(alone, data())

    torch.testing.assert_close(walk.validated[0], list(average(walk.path, 0.9))[3])
    assert all(map(torch.equal, walk.path, alone.path))


def test_before_the_first_update_validation_sees_what_is_trained(trainer: Any) -> None:
    class Late(Ema):
        def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
            return step_idx is not None and step_idx >= 6

    walk = Walk()

    trainer(Late(), val_check_interval=4).fit(walk, data(), data(1))

    assert torch.equal(walk.validated[0], walk.path[3])


def test_a_checkpoint_written_during_validation_keeps_the_two_apart(trainer: Any, tmp_path: Path) -> None:
    walk = Walk()

    callbacks = Ema(decay=0.9, every_n_steps=1), SaveWhileValidating(tmp_path / "a.ckpt")
    trainer(*callbacks, val_check_interval=4).fit(walk, data(), data(1))
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)

    # the second validation, after step 8
    torch.testing.assert_close(saved["state_dict"]["weight"], list(average(walk.path, 0.9))[7])
    assert torch.equal(saved["current_model_state"]["weight"], walk.path[7])


def test_before_the_first_update_a_checkpoint_holds_what_is_trained(trainer: Any, tmp_path: Path) -> None:
    walk = Walk()

    trainer(Ema(every_n_steps=10), Checkpoint(str(tmp_path)), max_steps=3).fit(walk, data())
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)

    assert torch.equal(saved["state_dict"]["weight"], walk.path[2])
    assert torch.equal(saved["current_model_state"]["weight"], walk.path[2])


def test_average_after_a_resume_is_that_of_an_unbroken_run_bit_for_bit(trainer: Any, tmp_path: Path) -> None:
    unbroken, begun, resumed = Walk(), Walk(), Walk()
    trainer(Ema(every_n_steps=2)).fit(unbroken, data())

    path = str(tmp_path / "previous.ckpt")  # of step 5; the last one is of step 6
    trainer(Ema(every_n_steps=2), Checkpoint(str(tmp_path), every_n_steps=5), max_steps=6).fit(begun, data())
    # Lightning does not fast-forward a loader: give the rest of the data
    trainer(Ema(every_n_steps=2), Checkpoint(str(tmp_path)), max_steps=8).fit(
        resumed, data(skip=5), ckpt_path=path, weights_only=True
    )

    assert torch.equal(resumed.weight, unbroken.weight)


def test_updates_fall_on_multiples_of_every_n_steps(trainer: Any) -> None:
    walk = Walk()

    trainer(Ema(every_n_steps=8)).fit(walk, data())

    assert torch.equal(walk.weight.detach(), walk.path[7])


@pytest.mark.parametrize("wrong", [{"decay": 1.0}, {"every_n_steps": 0}])
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"callbacks\.ema"):
        Ema(**wrong)
