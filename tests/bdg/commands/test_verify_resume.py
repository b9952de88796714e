"""What counts as the same training; that it is one is shown by the README's command and by tests/test_chaos.py."""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from bdg.cli import main
from bdg.commands.compose import build, compose
from bdg.commands.request import Request, key_of
from bdg.commands.verify_resume import COLUMNS, close, command, equal, killed_as_interrupted, train_and_kill, trials

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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["steps=3"], "steps=3: give 4 or more"),
        (["kills=0"], "kills=0: give 1 or more"),
        (["kills=-1"], "kills=-1: give 1 or more"),
        (["ranks=0"], "ranks=0: give 1 or more"),
        (["trainer.max_steps=8"], "trainer.max_steps=8: the trainings that are compared follow steps="),
        (["trainer.devices=2"], "trainer.devices=2: the trainings that are compared follow ranks="),
    ],
)
def test_what_nothing_could_be_shown_with_is_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify-resume", *words]) == 1
    assert message in capsys.readouterr().err


# --- what is trained ---


def asked(*words: str) -> tuple[DictConfig, Request]:
    overrides = ("experiment=demo_smoke", *words)
    return compose("verify_resume", overrides), Request("verify_resume", overrides)


def of_train(*words: str) -> list[str]:
    config, request = asked(*words)
    planned, _ = trials(config, build(config.data, trust=[]), one_gpu=False)
    return command(config, request, Path("folder"), planned[0].geometries[0])[4:]


@pytest.mark.parametrize(
    "word",
    [
        "data.num_workers=1",
        "data.micro_batch=2",
        "trainer.val_check_interval=3",
        "callbacks.checkpoint.every_n_steps=5",
    ],
)
def test_what_changes_from_start_to_start_may_be_given(word: str) -> None:
    words = of_train(word)

    keys = [key_of(each) for each in words]
    assert word in words
    assert len(keys) == len(set(keys))
    assert compose("train", words).trainer.max_steps == 24


def geometries(*words: str) -> dict[str, Sequence[Any]]:
    config, _ = asked(*words)
    planned, left_out = trials(config, build(config.data, trust=[]), one_gpu=False)
    return {trial.name: [tuple(geometry.values()) for geometry in trial.geometries] for trial in planned} | {
        "left out": left_out
    }


@pytest.mark.parametrize(
    ("words", "here", "there"),
    [
        ([], (1, 2, None), (2, 2, 4)),
        (["data.micro_batch=4"], (1, 2, 4), (2, 2, 2)),
        (["data.micro_batch=8"], (1, 2, 8), (2, 2, 4)),
        (["ranks=2", "data.micro_batch=2"], (2, 2, 2), (1, 2, 4)),
    ],
)
def test_other_ranks_take_a_step_in_as_many_parts(
    words: list[str], here: tuple[int, ...], there: tuple[int, ...]
) -> None:
    found = geometries("data.batch_size=8", "data.num_workers=2", *words)

    assert found["other ranks"] == [here, there]
    assert found["left out"] == []


@pytest.mark.parametrize(
    ("words", "names", "reason"),
    [
        (
            ["data.micro_batch=1"],
            ["unbroken", "killed", "other workers"],
            "2 cannot take data.batch_size=8 in 8 equal parts",
        ),
        (
            ["data.batch_size=5"],
            ["unbroken", "killed", "other workers"],
            "2 cannot take data.batch_size=5 in 1 equal parts",
        ),
        (["data.reader=stream"], ["unbroken", "killed"], "data.reader=stream these decide who sees which sample"),
    ],
)
def test_a_training_that_must_differ_is_left_out_with_the_reason(
    words: list[str], names: list[str], reason: str
) -> None:
    found = geometries("data.batch_size=8", *words)

    (line,) = found.pop("left out")
    assert list(found) == names
    assert reason in line


@pytest.fixture
def heard() -> Iterator[None]:
    """As in a terminal, also where nohup or a shell's & have the tests ignore signals."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    before = {signum: signal.signal(signum, handler) for signum, handler in usual.items()}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_training_ends_with_its_verify_resume(signum: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told to leave while it waits for the moment of a kill."""
    script = (
        f"import os, time; open(r'{tmp_path}/pid', 'w').write(str(os.getpid())); "
        f"os.kill(os.getppid(), {signum:d}); time.sleep(60)"
    )
    monkeypatch.setattr("bdg.commands.verify_resume.command", lambda *_: [sys.executable, "-c", script])
    config, request = asked()
    killed = trials(config, build(config.data, trust=[]), one_gpu=False)[0][1]

    with pytest.raises(KeyboardInterrupt), killed_as_interrupted():
        train_and_kill(killed, config, request, tmp_path / "killed")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.gpu
def test_resuming_is_exact_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["pack", "pkg://datamodules/photographs", "photographs", "parts=photographs"]) == 0
    words = ["experiment=demo_smoke", "data.root=photographs", "trainer.accelerator=gpu", "trainer.deterministic=true"]
    assert main(["verify-resume", *words, "steps=12", "kills=2"]) == 0
