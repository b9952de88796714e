"""Training on one and on several devices: images per second, efficiency, and where the time of a step goes.

    python benchmarks/scaling.py [--devices 1 2] [--steps 20] [--rounds 3] [KEY=VALUE ...]
    python benchmarks/scaling.py --model [--bandwidth 25] [--latency 10] [--images 8] [--rate 50] [--crops 200]

The first form trains `experiment=small` (or what KEY=VALUE make of it) for some steps with each number of processes, one
thread each on CPU and one device each on GPUs, with the same images per device. Every number of devices is measured with and
without what the ranks say to each other, side by side: the difference is the time in all-reduce and gather that is not hidden
behind computing. The second form measures nothing: it counts the bytes of a step at sizes T, S, B and L and divides them by a
bandwidth per device (GB/s), for 8, 64 and 512 devices; and what these need of the contrastive gather and of the loader, with so
many images a device in a step, images/s a device, and crops/s a core (a JPEG of 512 px decoded, 256 px of it degraded, as
benchmarks/loader.py and degradations.py measure it).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from circumstances import circumstances

from bdg.commands.chain import resolved
from bdg.commands.compose import build
from bdg.commands.request import Request
from bdg.commands.train import build_stage

WARM_UP = 5
"""Steps before the first that counts."""


class Clock(L.Callback):
    """Seconds that each step waited for its batch, and that it took."""

    def __init__(self, silent: bool) -> None:
        self.silent = silent
        self.waits: list[float] = []
        self.steps: list[float] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.silent:
            pl_module._gather = lambda x: x  # type: ignore[method-assign,assignment]
        self._ended = time.perf_counter()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.silent and hasattr(trainer.strategy.model, "require_backward_grad_sync"):
            trainer.strategy.model.require_backward_grad_sync = False
        self._begun = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if batch_idx >= WARM_UP:
            self.waits.append(self._begun - self._ended)
            self.steps.append(now - self._begun)
        self._ended = now


def measure(devices: int, silent: bool, steps: int, words: list[str], out: Path) -> None:
    """Trains in this process and those that Lightning starts beside it; rank 0 writes medians to `out`."""
    words = ["experiment=small", "stage=bridging", "inherit.from=none", "max_steps.bridging=1000", *words]
    config = Request("train", tuple(words)).compose()
    config.run_folder = tempfile.gettempdir()
    per_device = config.data.batch_size
    config.data.batch_size = per_device * devices
    L.seed_everything(0, verbose=False)
    clock = Clock(silent)
    trainer = L.Trainer(
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        precision=config.trainer.precision,
        max_steps=WARM_UP + steps,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
    )
    stage = build_stage(config)
    trainer.fit(stage, datamodule=build(config.data))
    if trainer.is_global_zero:
        found = {
            "step_s": statistics.median(clock.steps),
            "wait_s": statistics.median(clock.waits),
            "images": per_device * devices,
            "parameters": sum(p.numel() for p in stage.parameters() if p.requires_grad),
            "precision": resolved(config)["trainer"]["precision"],
        }
        out.write_text(json.dumps(found))


def measured(devices: int, silent: bool, steps: int, words: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        command = [sys.executable, __file__, "--measure", str(devices), "--steps", str(steps), "--out", str(out)]
        threads = os.environ.get("OMP_NUM_THREADS", "1")
        subprocess.run(
            [*command, *(["--silent"] if silent else []), *words],
            check=True,
            stdout=sys.stderr,
            env=os.environ | {"OMP_NUM_THREADS": threads},
        )
        return json.loads(out.read_text())


def report(counts: list[int], steps: int, rounds: int, words: list[str]) -> None:
    found: dict[tuple[int, bool], list[dict[str, Any]]] = {}
    for _ in range(rounds):
        for devices in counts:
            for silent in (False, True) if devices > 1 else (False,):
                found.setdefault((devices, silent), []).append(measured(devices, silent, steps, words))

    def median(devices: int, key: str, silent: bool = False) -> float:
        return statistics.median(one[key] for one in found[devices, silent])

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU, one thread each, gloo"
    example = found[counts[0], False][0]
    print(f"# Training on several devices\n\n{circumstances('torch', 'lightning')}\n")
    print(
        f"Devices: {device}. {example['parameters']:,} parameters, {example['precision']}; medians over {steps} steps, then "
        f"over {rounds} rounds.\n"
    )
    print(
        "| devices | images a step | images/s | efficiency | step, ms | said to each other, ms | waits for data, ms |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    base = None
    for devices in counts:
        step, wait, images = (median(devices, key) for key in ("step_s", "wait_s", "images"))
        speed = images / (step + wait)
        base = base or speed / devices
        said = step - median(devices, "step_s", silent=True) if devices > 1 else 0.0
        row = (devices, f"{images:.0f}", f"{speed:.1f}", f"{speed / devices / base:.0%}")
        times = (f"{1000 * step:.0f}", f"{1000 * said:.0f}", f"{1000 * wait:.1f}")
        print("|", " | ".join(map(str, row + times)), "|")


GATHERED = 3 * 256 * 4 + 4
"""Bytes of an image in the contrastive gather: F_mas, z_mas and z_diff, 256 floats each, and its label."""
PER_NODE = 8


def model(bandwidth: float, latency_us: float, images: int, rate: float, crops: float) -> None:
    """Bytes and times of a step on paper: a ring of N devices moves 2 (N - 1) / N times the gradients through each link."""
    print(f"{circumstances('torch')}\n")
    print(
        f"Arithmetic, not measured: {bandwidth:g} GB/s and {latency_us:g} us per link and device, float32 gradients.\n"
    )
    print("| network | parameters, M | gradients, MB | 8 devices, ms | 64, ms | 512, ms | 512 in bf16, ms |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for size in "TSBL":
        words = ("stage=bridging", f"network={size}", "data.shards=none", "inherit.from=none", "run_folder=none")
        with torch.device("meta"):
            stage = build_stage(Request("train", words).compose())
        count = sum(p.numel() for p in stage.parameters() if p.requires_grad)

        def ring_ms(devices: int, num_bytes: int, count: int = count) -> float:
            moved = 2 * (devices - 1) / devices * count * num_bytes
            return 1000 * (moved / (bandwidth * 1e9) + 2 * (devices - 1) * latency_us * 1e-6)

        times = (ring_ms(8, 4), ring_ms(64, 4), ring_ms(512, 4), ring_ms(512, 2))
        row = (size, f"{count / 1e6:.1f}", f"{count * 4 / 1e6:.0f}", *(f"{ms:.1f}" for ms in times))
        print("|", " | ".join(map(str, row)), "|")
    print(
        f"\n{images} images a device in a step, {rate:g} images/s a device, {PER_NODE} devices a node, "
        f"{crops:g} crops/s a core.\n"
    )
    print("| devices | images a step | gather and its gradient, MB | ms | crops/s a node | cores a node |")
    print("| --- | --- | --- | --- | --- | --- |")
    for devices in (8, 64, 512):
        moved = 2 * (devices - 1) * images * GATHERED
        ms = 1000 * (moved / (bandwidth * 1e9) + 2 * (devices - 1) * latency_us * 1e-6)
        demand = PER_NODE * rate
        print(
            f"| {devices} | {devices * images} | {moved / 1e6:.2f} | {ms:.1f} | {demand:.0f} | {demand / crops:.1f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, nargs="+")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", action="store_true")
    parser.add_argument("--bandwidth", type=float, default=25)
    parser.add_argument("--latency", type=float, default=10)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rate", type=float, default=50)
    parser.add_argument("--crops", type=float, default=200)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--silent", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments, words = parser.parse_known_args()
    if arguments.model:
        model(arguments.bandwidth, arguments.latency, arguments.images, arguments.rate, arguments.crops)
    elif arguments.measure:
        measure(arguments.measure, arguments.silent, arguments.steps, words, arguments.out)
    else:
        available = torch.cuda.device_count() or 2
        counts = arguments.devices or [n for n in (1, 2, 4, 8) if n <= available]
        report(counts, arguments.steps, arguments.rounds, words)


if __name__ == "__main__":
    main()
