"""A step that goes wrong changes nothing, and leaves a file from which it can be repeated."""

import logging
import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bdg.commands.errors import report
from callbacks.checkpoint import AtomicCheckpointIO
from callbacks.ema import Ema
from callbacks.guard import Fault, Found, Guard, fault, from_bytes, to_bytes
from datamodules.pipeline import to_float

pytestmark = pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")

BAD = 6
"""The step at which the data are poisoned."""


class Small(L.LightningModule):
    """Two weights with momentum and decay; its loss is NaN, its gradient is, or its loss is large, at step BAD."""

    seed = 0

    def __init__(self, poison: str = "nan") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0]))
        self.poison = poison
        self.path: list[Tensor] = []
        self.cosine: float | None = None

    def drawn(self, batch: dict[str, Any], step: int) -> tuple[Tensor, Tensor]:
        return torch.full((len(batch["index"]),), step), torch.zeros_like(batch["x_lq"])

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = ((self.weight - batch["x_hq"].mean()) ** 2).sum()
        if self.cosine is not None:
            self.log("mas/cosine", self.cosine)
        if self.global_step != BAD:
            return loss
        if self.poison == "gradient":  # of sqrt at 0 it is infinite, times 0 not a number
            return loss + (0 * self.weight.sum()).sqrt() * 0
        return loss * {"nan": float("nan"), "large": 1e9, "spike": 50.0, "none": 1.0}[self.poison]

    def on_train_batch_end(self, *_: Any) -> None:
        self.path.append(self.weight.detach().clone())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.1)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def batch(index: int) -> dict[str, Any]:
    x = torch.full((1, 3, 4, 4), index / 100)
    recipe = [{"degradation": "rain", "severity": 4.25}]
    return {"x_hq": x, "x_lq": x, "index": torch.tensor([index]), "label": torch.tensor([0]), "key": [f"p{index}"]} | {
        "recipe": recipe
    }


def train(module: Small, *callbacks: L.Callback, steps: int = 12, **options: Any) -> L.Trainer:
    data = DataLoader([batch(i) for i in range(64)], batch_size=None)  # type: ignore[arg-type]
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=list(callbacks),
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=False,
        **quiet,
        **options,
    )
    trainer.fit(module, data, weights_only=True)
    return trainer


def guard(folder: Path, **options: Any) -> Guard:
    return Guard(str(folder), window=10, **options)


@pytest.mark.parametrize(
    ("poison", "what"),
    [("nan", "the loss is nan"), ("gradient", "the norm of its gradient is nan"), ("large", "its running median")],
)
def test_a_faulty_step_stops_the_run_before_the_weights_change(tmp_path: Path, poison: str, what: str) -> None:
    module = Small(poison)

    with pytest.raises(Fault) as caught:
        train(module, guard(tmp_path), gradient_clip_val=1.0)

    path = tmp_path / "faults" / f"step_{BAD}_rank_0.pt"
    assert torch.equal(module.weight, module.path[-1])
    assert len(module.path) == BAD
    for part in (
        f"step {BAD}, rank 0: ",
        what,
        "p6 (rain 4.25)",
        f"bdg replay {path}",
        "callbacks.guard.on_fault=skip",
    ):
        assert part in str(caught.value)
    assert path.exists()


def test_the_replay_file_holds_the_step_as_plain_data(tmp_path: Path) -> None:
    module = Small("nan")
    (tmp_path / "config.yaml").write_text("stage: {name: small}\n")

    with pytest.raises(Fault):
        train(module, guard(tmp_path))

    file = torch.load(tmp_path / "faults" / f"step_{BAD}_rank_0.pt", weights_only=True)
    assert file["step"] == BAD
    assert file["config"] == "stage: {name: small}\n"
    assert torch.equal(file["weights"]["weight"], module.path[-1])
    ((kept,),) = file["batches"]
    assert torch.equal(kept["x_hq"], batch(BAD)["x_hq"])
    assert kept["recipe"] == [{"degradation": "rain", "severity": 4.25}]
    assert kept["t"].shape == (1,)
    assert not [*tmp_path.glob("faults/.*")]


def test_a_skipped_step_leaves_weights_and_optimizer_and_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module, on_skip = Small("nan"), guard(tmp_path, on_fault="skip")

    trainer = train(module, on_skip, gradient_clip_val=1.0)

    assert torch.equal(module.path[BAD], module.path[BAD - 1])
    assert not torch.equal(module.path[BAD + 1], module.path[BAD])
    assert module.weight.isfinite().all()
    assert trainer.global_step == 12
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 12
    assert trainer.optimizers[0].state[module.weight]["step"] == 11
    assert on_skip.skipped == 1
    assert trainer.callback_metrics["guard/skipped"] == 1
    assert "Skipped, 1 of at most 20" in caplog.text


def test_a_guard_without_a_fault_changes_nothing(tmp_path: Path) -> None:
    guarded, alone = Small("none"), Small("none")

    train(guarded, guard(tmp_path), Ema(every_n_steps=1))
    train(alone, Ema(every_n_steps=1))

    assert all(map(torch.equal, guarded.path, alone.path))
    assert torch.equal(guarded.weight, alone.weight)
    assert not (tmp_path / "faults").exists()


def test_the_step_of_accumulated_batches_is_one_step(tmp_path: Path) -> None:
    module = Small("nan")

    with pytest.raises(Fault):
        train(module, guard(tmp_path), accumulate_grad_batches=2)

    file = torch.load(tmp_path / "faults" / f"step_{BAD}_rank_0.pt", weights_only=True)
    assert [part[0]["index"].item() for part in file["batches"]] == [2 * BAD, 2 * BAD + 1]
    assert file["loss"].shape == (2,)


def test_more_skips_than_allowed_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(Fault, match=r"0 steps were skipped before it, and callbacks\.guard\.max_skips=0"):
        train(Small("nan"), guard(tmp_path, on_fault="skip", max_skips=0))


def test_history_and_count_outlive_a_resume(tmp_path: Path) -> None:
    before, after = guard(tmp_path, on_fault="skip"), guard(tmp_path)

    trainer = train(Small("nan"), before)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)["callbacks"]["Guard"]
    after.load_state_dict(saved)

    assert after.state_dict() == before.state_dict()
    assert after.skipped == 1
    assert len(saved["history"]) == 10


def test_a_spike_is_one_line_and_no_fault(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(Small("spike"), guard(tmp_path))

    assert len(re.findall(f"step {BAD}: the loss spikes", caplog.text)) == 1


def test_spikes_are_reported_once_in_a_while(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    looking = guard(tmp_path)

    for step in range(250):
        looking._report_spike(step, 20.0, 1.0)

    assert len(caplog.records) == 3


def test_a_collapse_is_reported_with_what_to_try(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    looking = guard(tmp_path)

    for step, cosine in ((50, 0.999), (100, 0.5), (150, 0.999), (200, 0.999), (250, 0.999), (300, 0.999)):
        looking._report_collapse(step, torch.tensor(cosine))

    (record,) = caplog.records
    assert record.getMessage().startswith("step 250: F_mas collapses")
    assert "stage.weights.classify" in record.getMessage()


def test_the_cosine_that_a_stage_logs_is_looked_at(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = Small("none")
    module.cosine = 0.9999

    train(module, looking := guard(tmp_path), steps=55)

    assert looking._collapsed == 1


def test_a_healthy_step_is_written_down_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "bdg")
    module = Small("none")

    train(module, guard(tmp_path, record=3))

    assert torch.load(tmp_path / "faults" / "step_3_rank_0.pt", weights_only=True)["step"] == 3
    assert "bdg replay" in caplog.text


@pytest.mark.parametrize("obstacle", ["a full house", "a file in the way"])
def test_training_fails_for_its_own_reason_where_no_file_can_be_written(tmp_path: Path, obstacle: str) -> None:
    if obstacle == "a file in the way":
        (tmp_path / "faults").write_text("")

    with pytest.raises(Fault, match="It could not be written down"):
        train(Small("nan"), guard(tmp_path, max_files=0 if obstacle == "a full house" else 5))


def test_all_ranks_find_the_same_fault() -> None:
    """It is a function of what all of them see."""
    nan, inf = float("nan"), float("inf")

    assert fault([1.0, 2.0], [3.0, 3.0], 1.0, 10) is None
    assert fault([1.0, nan], [nan, nan], 1.0, 10) == Found("the loss is nan", 1)
    assert fault([1.0, 2.0], [inf, inf], None, 10) == Found("the loss is 1.5, but the norm of its gradient is inf", 1)
    assert fault([90.0, 10.0], [1.0, 1.0], 1.0, 10) == Found("the loss is 50 beside 1, its running median", 0)
    assert fault([90.0, 10.0], [1.0, 1.0], None, 10) is None


def test_images_of_eight_bits_are_kept_in_eight_bits() -> None:
    x = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    image = to_float({"x_hq": x, "x_lq": x})["x_hq"]

    assert to_bytes(image).dtype == torch.uint8
    assert torch.equal(from_bytes(to_bytes(image)), image)
    assert to_bytes(image * 0.999).dtype == torch.float32


@pytest.mark.parametrize(
    "wrong",
    [{"on_fault": "ignore"}, {"explode": 1.0}, {"spike": 0.5}, {"window": 4}, {"max_skips": -1}, {"max_files": -1}],
)
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"callbacks\.guard\.(\w+)=.*: (give|choose)"):
        Guard("", **wrong)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (FileNotFoundError(2, "No such file or directory", "train-000000.tar"), "train-000000.tar"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "for want of memory"),
    ],
)
def test_what_ends_a_training_is_one_message_which_says_that_it_can_go_on(
    tmp_path: Path, error: Exception, cause: str, capsys: pytest.CaptureFixture[str]
) -> None:
    class Unlucky(Small):
        def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
            if batch_idx == 2:
                raise error
            return super().training_step(batch, batch_idx)

    with pytest.raises(type(error)) as caught:
        train(Unlucky("none"), guard(tmp_path))
    report("bdg train", caught.value)

    text = capsys.readouterr().err
    assert cause in text
    assert "2 steps are done: once the cause is mended, the same command goes on from the last checkpoint" in text
    assert "Traceback" not in text
