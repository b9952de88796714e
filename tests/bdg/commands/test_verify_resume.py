"""What counts as the same training; that it is one is shown by the README's command and by tests/test_chaos.py."""

from pathlib import Path
from typing import Any

import pytest

from bdg.cli import main
from bdg.commands.verify_resume import COLUMNS, close, equal

Line = dict[str, Any]


def line(step: int, rank: int = 0, loss: float = 1.0, **other: Any) -> Line:
    digests = {"weights": "w", "averaged": ["a"], "optimizer": ["o"]}
    return {"step": step, "rank": rank, "samples": [f"{step} {rank}"], "losses": [loss.hex()], **digests, **other}


UNBROKEN = [line(1), line(2), line(3)]


def test_a_step_that_was_done_again_alike_is_equal() -> None:
    assert equal(UNBROKEN, [line(1), line(2), line(2), line(3)]) == dict.fromkeys(COLUMNS, "equal")


@pytest.mark.parametrize(
    ("other", "column", "step"),
    [
        ({"weights": "v"}, "weights", 2),
        ({"averaged": ["b"]}, "averaged", 2),
        ({"optimizer": ["p"]}, "optimizer", 2),
        ({"loss": 1.0 + 2**-52}, "losses", 2),
        ({"samples": ["2 1"]}, "samples", 2),
    ],
)
def test_one_bit_at_one_step_is_found_also_if_the_step_was_done_twice(other: Line, column: str, step: int) -> None:
    found = equal(UNBROKEN, [line(1), line(2), line(2, **other), line(3)])

    assert found == dict.fromkeys(COLUMNS, "equal") | {column: f"differ at step {step}"}


def test_a_step_that_is_missing_is_found() -> None:
    assert equal(UNBROKEN, [line(1), line(3)])["weights"] == "differ at step 2"


def test_other_ranks_see_the_same_samples_and_about_the_same_loss() -> None:
    one = [line(1, samples=["1 a", "2 b"], loss=0.5)]
    two = [line(1, rank=0, samples=["2 b"], loss=0.75), line(1, rank=1, samples=["1 a"], loss=0.2500001)]

    assert close(one, two, 1e-4)["samples"] == "equal"
    assert close(one, two, 1e-4)["losses"].startswith("within ")
    assert "more than tolerance=1e-09" in close(one, two, 1e-9)["losses"]
    assert close(one, two[:1], 1e-4)["samples"] == "differ at step 1"


def test_too_few_steps_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify-resume", "steps=3"]) == 1
    assert "steps=3: give 4 or more" in capsys.readouterr().err


@pytest.mark.gpu
def test_resuming_is_exact_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["pack", "pkg://datamodules/photographs", "photographs", "parts=photographs"]) == 0
    words = ["experiment=demo_smoke", "data.root=photographs", "trainer.accelerator=gpu", "trainer.deterministic=true"]
    assert main(["verify-resume", *words, "steps=12", "kills=2"]) == 0
