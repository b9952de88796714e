"""`bdg verify-order` beside what real loaders hand out."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from bdg.cli import main
from bdg.commands.verify_order import order, order_digest
from datamodules.degradations.noise import GaussianNoise
from datamodules.images import write_image
from datamodules.pack import pack
from datamodules.restoration import RestorationData

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine images in five shards."""
    folder = tmp_path_factory.mktemp("order")
    rng = np.random.default_rng(0)
    for i in range(9):
        write_image(folder / "images" / f"{i}.png", rng.integers(0, 256, (16, 16, 3), np.uint8))
    pack(folder / "images", folder / "packed", {"train": "rest"}, shard_size=2)
    return folder / "packed"


def data(packed: Path, **changes: object) -> RestorationData:
    settings = {
        "crop": 8,
        "flip": True,
        "batch_size": 4,
        "num_workers": 0,
        "val_crop": 8,
        "val_severities": [3],
        "seed": 0,
    }
    return RestorationData({"noise": GaussianNoise()}, f"{packed}/*.tar", **settings | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("reader", ["indexed", "stream"])
def test_order_is_the_one_that_loaders_hand_out(packed: Path, reader: str) -> None:
    expected = [case.sample.key for case in order(data(packed, reader=reader), ranks=2, workers=2, start=3, steps=5)]

    loaders = [data(packed, reader=reader, num_workers=2).stream(3, rank, 2) for rank in range(2)]
    found = [key for parts in islice(zip(*loaders, strict=True), 5) for batch in parts for key in batch["key"]]

    assert found == expected


@pytest.mark.parametrize(("ranks", "workers", "micro_batch"), [(1, 3, None), (2, 0, 1), (4, 2, None), (2, 1, 2)])
@pytest.mark.parametrize("window", [None, 2])
def test_indexed_order_is_that_of_one_process(
    packed: Path, ranks: int, workers: int, micro_batch: int | None, window: int | None
) -> None:
    made = data(packed, micro_batch=micro_batch, window=window)

    assert order_digest(made, ranks, workers, start=2, steps=6) == order_digest(made, 1, 0, start=2, steps=6)


def test_digest_tells_other_orders_apart(packed: Path) -> None:
    others = ({}, {"seed": 1}, {"window": 1}, {"reader": "stream"})

    assert len({order_digest(data(packed, **other), 1, 0, 0, 3) for other in others}) == 4


def verify(packed: Path, *overrides: str) -> int:
    shards = f"data.shards='{packed}/*.tar'"
    return main(["verify-order", "data=shards", shards, "data.crop=8", "data.batch_size=4", "steps=6", *overrides])


@pytest.mark.parametrize(("reader", "same"), [("indexed", True), ("stream", False)])
def test_command_says_whether_the_order_is_that_of_one_process(
    packed: Path, reader: str, same: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(packed, f"data.reader={reader}", "ranks=2", "workers=2", f"json={tmp_path}/order.json") == 0

    report = json.loads((tmp_path / "order.json").read_text())
    assert report["same"] == same
    assert [(row["ranks"], row["workers"]) for row in report["geometries"]] == [(2, 2), (1, 0)]
    shown = capsys.readouterr().out
    assert all(row["digest"] in shown for row in report["geometries"])
    assert f"24 samples from step 0 on: {'the same' if same else 'not the same'}" in shown


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["ranks=0"], "ranks=0: give 1 or more"),
        (["ranks=3"], "data.batch_size=4 is the batch over all ranks, which are 3"),
        (["ranks=2", "workers=3", "data.reader=stream"], "there are 5 shards for 2 ranks with 3 workers"),
    ],
)
def test_what_cannot_be_is_one_clear_error(
    packed: Path, overrides: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(packed, *overrides) == 1
    assert message in capsys.readouterr().err
