"""What is logged of a step and of a validation is what the words say, and costs the training nothing."""

import resource
from math import nan
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import Logger
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bdg.commands.request import Request
from bdg.commands.train import build_stage
from bdg.metrics import Protocol
from bdg.stages import Stage
from callbacks.ema import Ema
from callbacks.features import describe, shares
from callbacks.levels import by_level
from callbacks.measures import Measures, distance
from callbacks.pictures import Pictures, restore


class Memory(Logger):
    """Keeps what it is told."""

    name, version = "memory", 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[int, dict[str, float]] = {}
        self.images: list[tuple[str, str, int]] = []

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.setdefault(step or 0, {}).update(metrics)

    def log_image(self, key: str, images: list[str], step: int) -> None:
        self.images += [(key, image, step) for image in images]


class Walk(L.LightningModule):
    """One weight that an optimizer moves, and the norms of its gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([3.0, -4.0]))
        self.norms: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self.weight**2).sum() / 2 + 0 * batch.sum()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.norms.append(float(self.weight.grad.norm()))  # type: ignore[union-attr]

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        halved = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": halved, "interval": "step"}}


def walk(tmp_path: Path, **options: Any) -> tuple[Walk, Memory]:
    module, memory = Walk(), Memory()
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[Ema(decay=0.9, every_n_steps=1), Measures()],
        logger=memory,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
        **options,
    )
    data = [torch.tensor(float(k)) for k in range(8)]
    trainer.fit(module, DataLoader(data, batch_size=None))  # type: ignore[arg-type]
    return module, memory


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
@pytest.mark.parametrize("accumulated", [1, 2])
def test_gradient_learning_rate_and_average_are_those_of_the_logged_step(tmp_path: Path, accumulated: int) -> None:
    module, memory = walk(tmp_path, log_every_n_steps=2, accumulate_grad_batches=accumulated)
    steps = [step for step, row in memory.rows.items() if "optimizer/grad_norm" in row]

    assert steps == list(range(1, 8 // accumulated, 2))
    for step in steps:
        row = memory.rows[step]
        assert row["optimizer/grad_norm"] == pytest.approx(module.norms[step])
        assert row["optimizer/lr"] == pytest.approx(0.1 * 0.5**step)
        assert 0 < row["ema/distance"] < 1
        assert row["time/data_wait_s"] >= 0
        assert row["memory/host_gb"] > 0


def test_the_distance_of_an_average_is_relative() -> None:
    averaged, trained = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        averaged.weight.copy_(torch.tensor([[3.0, 4.5]]))
        trained.weight.copy_(torch.tensor([[3.0, 4.0]]))

    assert float(distance(averaged, trained)) == pytest.approx(0.1)


# --- scores by level ---


def rows(*cases: tuple[str, int, float]) -> list[dict[str, Any]]:
    return [{"degradation": name, "index": index, "psnr": value} for name, index, value in cases]


def test_a_score_by_level_is_the_mean_over_its_images() -> None:
    measured = rows(("rain", 0, 20.0), ("rain", 1, 30.0), ("rain", 2, 22.0), ("rain", 3, 32.0), ("haze", 4, 10.0))
    measured += rows(("haze", 5, 12.0))
    levels = {0: 1.0, 1: 5.0, 2: 1.0, 3: 5.0, 4: 1.0, 5: 1.0}

    assert by_level(measured * 2, levels, ["psnr"]) == {
        "rain/psnr": 26.0,
        "rain/level_1/psnr": 21.0,
        "rain/level_5/psnr": 31.0,
        "haze/psnr": 11.0,
        "haze/level_1/psnr": 11.0,
    }


def test_drawn_or_untold_severities_are_no_levels() -> None:
    drawn = {k: 1 + k / 10 for k in range(8)}
    measured = rows(*(("rain", k, 20.0) for k in range(8)))

    assert by_level(measured, drawn, ["psnr"]) == {"rain/psnr": 20.0}
    assert by_level(measured, dict.fromkeys(range(8), nan), ["psnr"]) == {"rain/psnr": 20.0}


@pytest.mark.parametrize(
    ("protocol", "name"),
    [
        (Protocol(), "rgb"),
        (Protocol("y", border=4), "y_border4"),
        (Protocol(round_uint8=False), "rgb_unrounded"),
    ],
)
def test_a_protocol_has_a_name_for_metrics(protocol: Protocol, name: str) -> None:
    assert protocol.short == name


# --- features ---


def features(photographs: int, types: int, levels: int, blind: bool) -> list[Any]:
    """One feature that tells type and level, or nothing."""
    return [
        (f"p{p}", t, float(level), {"f_mas": torch.tensor([float(p) if blind else 10.0 * t + level])})
        for p in range(photographs)
        for t in range(types)
        for level in range(levels)
    ]


def test_features_that_tell_type_and_level_are_right_and_those_that_tell_the_photograph_are_not() -> None:
    assert shares(features(6, 3, 2, blind=False)) == {"f_mas/type": 1.0, "f_mas/level": 1.0}
    assert shares(features(6, 3, 2, blind=True))["f_mas/type"] <= 0.5


def test_features_of_one_photograph_or_of_no_level_are_not_asked() -> None:
    assert shares(features(1, 3, 2, blind=False)) == {}
    untold = [(photograph, label, nan, feature) for photograph, label, _, feature in features(6, 3, 1, blind=False)]
    assert shares(untold) == {"f_mas/type": 1.0}


# --- pictures and features of a stage ---


@pytest.fixture(scope="module")
def bridging() -> Stage:
    return build("bridging")


def build(stage: str) -> Stage:
    torch.manual_seed(0)
    config = Request("train", ("experiment=demo_smoke", "glcm.levels=16", f"stage={stage}")).compose()
    config.run_folder = ""
    return build_stage(config).eval()


def batch(n: int) -> dict[str, Any]:
    g = torch.Generator().manual_seed(1)
    x_hq = torch.rand(n, 3, 32, 32, generator=g) * 2 - 1
    label = torch.arange(n) % 5
    recipe = [{"degradation": f"kind{k}", "severity": 4.0} for k in label.tolist()]
    given = {"x_hq": x_hq, "x_lq": -x_hq, "label": label, "index": torch.arange(n), "recipe": recipe}
    return given | {"severity": torch.full((n,), 4.0), "key": [f"p{k}" for k in range(n)]}


@torch.no_grad()
def test_looking_at_the_path_changes_nothing(bridging: Stage) -> None:
    given, seen = batch(2), []
    restored = restore(bridging, given, seen)

    assert torch.equal(restored, bridging.validated(given))
    assert [t for t, _, _ in seen] == sorted({t for t, _, _ in seen}, reverse=True)
    assert torch.equal(seen[-1][2], restored)  # the last belief is the result


@torch.no_grad()
def test_features_are_one_vector_for_each_image_and_do_not_depend_on_the_others(bridging: Stage) -> None:
    both, one = describe(bridging, batch(2)), describe(bridging, {**batch(2), **first(batch(2))})

    assert set(both) == {"f_mas", "f_diff"}
    for name in both:
        torch.testing.assert_close(both[name][:1], one[name], rtol=1e-4, atol=1e-5)  # sums in another order


def first(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value[:1] for name, value in given.items()}


@torch.no_grad()
@pytest.mark.parametrize("stage", ["generation", "bridging"])
def test_a_validation_leaves_one_panel_and_the_path_of_one_image(stage: str, tmp_path: Path) -> None:
    pictures, made, memory = Pictures(str(tmp_path), images=3, width=32), build(stage), Memory()
    trainer = L.Trainer(logger=memory, accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False)
    before = torch.get_rng_state()
    pictures.on_validation_epoch_start(trainer, made)
    for given in (batch(4), batch(4)):
        pictures.on_validation_batch_end(trainer, made, None, given, 0)
    pictures.on_validation_epoch_end(trainer, made)

    expected = ["val/panel", "val/path"][: 1 + made.restores]
    assert [(key, step) for key, _, step in memory.images] == [(key, 0) for key in expected]
    panel = np.asarray(Image.open(memory.images[0][1]))
    assert panel.shape[1] == 4 * 36 + 4
    assert panel.shape[0] > 3 * 36  # one row for each of three degradations
    assert torch.equal(torch.get_rng_state(), before)


def test_a_full_disk_does_not_end_the_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "media").write_text("no folder")
    pictures = Pictures(str(tmp_path / "media"))
    for _ in range(2):
        assert not pictures._saved(np.zeros((4, 4, 3), np.uint8), tmp_path / "media" / "panel" / "step_1.jpg")

    assert len(caplog.messages) == 1
    assert "the pictures of a validation cannot be written" in caplog.messages[0]


def test_a_picture_that_a_full_disk_takes_half_of_is_not_left_there(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        saved = Pictures(str(tmp_path))._saved(noise, tmp_path / "panel" / "step_1.jpg")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert not saved
    assert list((tmp_path / "panel").iterdir()) == []


def test_each_can_be_switched_off() -> None:
    words = (
        "experiment=demo_smoke",
        *(f"callbacks.{name}=null" for name in ("measures", "levels", "features", "pictures")),
    )
    config = Request("train", words).compose()

    assert [name for name in config.callbacks if config.callbacks[name] is None] == [
        "measures",
        "levels",
        "features",
        "pictures",
    ]
    assert list(config.callbacks).index("ema") < list(config.callbacks).index("measures")
