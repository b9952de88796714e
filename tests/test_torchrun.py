"""`torchrun -m bdg train`: its processes are the ranks, and what is told to leave goes on by the same command."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from jobs.watched import Watched

Fault = Callable[[Watched], None]


def to_a_rank(training: Watched) -> None:
    training.kill([training.processes()[2]], signal.SIGUSR1)


def to_torchrun(training: Watched) -> None:
    training.kill([training.process.pid], signal.SIGTERM)


@pytest.mark.slow
def test_under_torchrun_a_training_that_is_told_to_leave_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    photographs = tmp_path / "photographs"
    pack = [sys.executable, "-m", "bdg", "pack", "pkg://datamodules/photographs", photographs, "parts=photographs"]
    subprocess.run(pack, check=True)
    torchrun = [*(sys.executable, "-m", "torch.distributed.run"), "--nproc-per-node=2", "--standalone"]

    def command(name: str) -> list[str]:
        record = [
            f"+callbacks.record.folder={tmp_path / name}.record",
            "+callbacks.record._target_=callbacks.record.Record",
        ]
        words = ["stage=bridging", "inherit.from=none", "experiment=demo_smoke", f"data.root={photographs}"]
        words += ["cluster.devices=2", "trainer.accelerator=cpu", "max_steps.bridging=24"]
        return [*torchrun, "-m", "bdg", "train", *words, f"root={tmp_path / name}", "data.num_workers=0", *record]

    def start(name: str) -> Watched:
        return Watched(command(name), tmp_path / f"{name}.record", tmp_path / f"{name}.txt")

    stories = []
    for step, fault in ((2, to_a_rank), (8, to_torchrun)):
        training = start("broken")
        assert training.wait_for(lambda line, step=step: line.get("step", 0) >= step, 120), training.tail()
        fault(training)
        training.wait(120)
        (run,) = tmp_path.glob("broken/*/bridging/*")
        stories.append((run / "STATUS").read_text().strip())
    for name in ("broken", "unbroken"):
        training = start(name)
        assert training.wait(240) == 0, training.tail()

    assert stories == ["preempted", "preempted"]
    broken, unbroken = (
        load_file(next(tmp_path.glob(f"{n}/*/bridging/*/weights/ema.safetensors"))) for n in ("broken", "unbroken")
    )
    assert all(torch.equal(tensor, broken[name]) for name, tensor in unbroken.items())
    assert len(list(tmp_path.glob("broken.record/rank_*.jsonl"))) == 2
