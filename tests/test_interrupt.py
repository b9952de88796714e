"""Ctrl-C during a pipeline leaves a state from which the same command goes on, to the weights of an unbroken run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

STEPS = "max_steps={generation: 3, bridging: 30, restoration: 3}"


@pytest.mark.slow
def test_an_interrupted_pipeline_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    bdg = [sys.executable, "-m", "bdg"]
    photographs = tmp_path / "photographs"
    subprocess.run([*bdg, "pack", "pkg://datamodules/photographs", photographs, "parts=photographs"], check=True)
    pipeline = [*bdg, "pipeline", "experiment=demo_smoke", STEPS, f"data.root={photographs}"]
    pipeline += ["callbacks.checkpoint.every_n_steps=2", "data.num_workers=1"]

    broken = subprocess.Popen([*pipeline, f"root={tmp_path}/broken"], env=env)
    deadline = time.monotonic() + 240
    while not list(tmp_path.glob("broken/*/bridging/*/checkpoints/last.ckpt")):
        assert broken.poll() is None, "the pipeline ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    broken.send_signal(signal.SIGINT)
    status = broken.wait(timeout=60)
    (bridging,) = tmp_path.glob("broken/*/bridging/*")
    interrupted = (bridging / "STATUS").read_text().strip()
    for root in ("broken", "unbroken"):
        subprocess.run([*pipeline, f"root={tmp_path}/{root}"], check=True, env=env)

    assert status == 130
    assert interrupted == "preempted"
    broken_weights, unbroken = (
        load_file(tmp_path / root / "demo_smoke" / "weights.safetensors") for root in ("broken", "unbroken")
    )
    assert all(torch.equal(tensor, broken_weights[name]) for name, tensor in unbroken.items())
