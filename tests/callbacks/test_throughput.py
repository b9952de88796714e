"""The file that says how fast a training is: whole at every moment, right at the end, and counting over restarts."""

import json
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from callbacks import throughput
from callbacks.throughput import Throughput

pytestmark = pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")


class Sleeping(L.LightningModule):
    """A step takes 10 ms, its third 100 ms, a validation 60 ms."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        time.sleep(0.1 if self.global_step == 2 else 0.01)
        return (self.weight * batch).sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        time.sleep(0.06)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(callback: Throughput, steps: int = 8, **options: Any) -> L.Trainer:
    data = DataLoader([torch.ones(1)] * 64, batch_size=None)  # type: ignore[arg-type]
    resumed = options.pop("ckpt_path", None)
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=[callback],
        num_sanity_val_steps=0,
        **quiet | {"logger": False} | options,
    )
    trainer.fit(Sleeping(), data, DataLoader([torch.ones(1)], batch_size=None), ckpt_path=resumed, weights_only=True)  # type: ignore[arg-type]
    return trainer


def test_it_says_steps_and_the_median_without_validation(tmp_path: Path) -> None:
    path = tmp_path / "run" / "throughput.json"

    train(Throughput(str(path), images=16), val_check_interval=2)

    found = json.loads(path.read_text())
    assert (found["step"], found["max_steps"], found["devices"]) == (8, 8, 1)
    assert 0.01 <= found["step_s"] < 0.06
    assert found["images_s"] == pytest.approx(16 / found["step_s"])
    assert found["wall_s"] > 4 * 0.06
    assert found["time"] == pytest.approx(time.time(), abs=60)


def test_parts_of_a_step_are_no_steps(tmp_path: Path) -> None:
    train(Throughput(str(tmp_path / "t.json"), images=16), steps=4, accumulate_grad_batches=3)

    found = json.loads((tmp_path / "t.json").read_text())
    assert found["step"] == 4
    assert found["step_s"] > 0.03


def test_time_counts_over_restarts(tmp_path: Path) -> None:
    first = train(Throughput(str(tmp_path / "t.json"), images=16))
    before = json.loads((tmp_path / "t.json").read_text())["wall_s"]
    first.save_checkpoint(tmp_path / "last.ckpt")

    train(Throughput(str(tmp_path / "t.json"), images=16), steps=12, ckpt_path=tmp_path / "last.ckpt")

    after = json.loads((tmp_path / "t.json").read_text())
    assert after["step"] == 12
    assert after["wall_s"] > before + 4 * 0.01


def test_a_checkpoint_never_knows_more_than_the_file(tmp_path: Path) -> None:
    class Saving(Throughput):
        def on_train_batch_end(self, trainer: L.Trainer, *rest: Any) -> None:
            super().on_train_batch_end(trainer, *rest)
            trainer.save_checkpoint(tmp_path / "last.ckpt")
            steps.append(json.loads((tmp_path / "t.json").read_text())["step"])

    steps: list[int] = []
    train(Saving(str(tmp_path / "t.json"), images=16, every_s=1000), steps=3)

    assert steps == [1, 2, 3]


def test_the_speed_is_logged(tmp_path: Path) -> None:
    train(Throughput(str(tmp_path / "t.json"), images=16), logger=L.pytorch.loggers.CSVLogger(tmp_path, "logs"))

    header, *_, last = (tmp_path / "logs" / "version_0" / "metrics.csv").read_text().splitlines()
    assert float(dict(zip(header.split(","), last.split(","), strict=True))["time/step_s"]) > 0


def test_a_disk_that_is_full_does_not_end_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any, flush: bool) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(throughput, "write_text", full)

    trainer = train(Throughput(str(tmp_path / "t.json"), images=16, every_s=1e-9))

    assert trainer.global_step == 8
    assert caplog.text.count("the speed of the training cannot be written") == 1


@pytest.mark.parametrize("option", ["every_s", "window"])
def test_nothing_is_not_often(tmp_path: Path, option: str) -> None:
    with pytest.raises(ValueError, match=f"callbacks.throughput.{option}=0"):
        Throughput(str(tmp_path), images=1, **{option: 0})
