"""Kills a training of two processes in every way there is, restarts it by the same command, and compares the end.

    python benchmarks/chaos.py [--faults 50] [--seed 0] [--folder runs/chaos] [KEY=VALUE ...] > table.md

Trains the bridging stage of `experiment=demo_smoke` on two CPU ranks with a loader worker each: once unbroken, then with one
fault after the other at random moments. Exits with 1 unless every restart progressed, no damaged file was taken for a good
one, and every step, the final weights and their average are those of the unbroken training, bit for bit. KEY=VALUE go to
`bdg train`. The disk is filled only where a file system can be mounted (as root); else that is left out and the table says so.
"""

import argparse
import json
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from circumstances import circumstances
from safetensors.torch import load_file

from bdg.commands.verify_resume import equal, recorded
from bdg.files import digest
from callbacks.checkpoint import read_sums
from jobs.watched import Watched, facts

RANKS = 2
STEPS_PER_FAULT = 6
DISK_MB = 48


@dataclass(frozen=True)
class Outcome:
    """What a fault did. lost: steps that had been done and were done again. seconds: from the fault until all had ended."""

    fault: str
    status: int
    lost: int
    seconds: float
    said: str


class Chaos:
    """One training, its folder, and what may happen to both."""

    def __init__(self, folder: Path, shards: Path, steps: int, overrides: Sequence[str], seed: int) -> None:
        self.folder, self.shards, self.steps = folder, shards, steps
        self.record, self.log, self.root = folder / "record", folder / "log.txt", folder / "runs"
        self.dice = random.Random(seed)
        self.command = [
            *(sys.executable, "-m", "bdg", "train", "experiment=demo_smoke", "stage=bridging", "inherit.from=none"),
            *(f"data.root={shards}", f"root={self.root}", f"trainer.max_steps={steps}"),
            *(f"trainer.devices={RANKS}", "trainer.accelerator=cpu", "data.num_workers=1"),
            *("callbacks.checkpoint.every_n_steps=2", f"trainer.val_check_interval={max(4, steps // 6)}"),
            *("+callbacks.record._target_=callbacks.record.Record", f"+callbacks.record.folder={self.record}"),
            *overrides,
        ]

    @property
    def run(self) -> Path:
        (run,) = self.root.glob("*/bridging/*")
        return run

    @property
    def last_step(self) -> int:
        return max((fact["step"] for fact in facts(self.record) if "step" in fact), default=0)

    def start(self) -> Watched:
        self.folder.mkdir(parents=True, exist_ok=True)
        return Watched(self.command, self.record, self.log)

    def finish(self) -> None:
        training = self.start()
        if training.wait():
            raise RuntimeError(f"the training did not end well:\n{training.tail()}")

    def strike(self, name: str, fault: "Fault") -> Outcome:
        """Starts the training, lets it progress, lets the fault happen, and waits for the end."""
        before = self.log.stat().st_size if self.log.exists() else 0
        done, training = self.last_step, self.start()
        # beyond what was done before, or at the end of all: each restart has to progress
        if training.wait_for(lambda line: line.get("step", 0) > done) is None:
            raise RuntimeError(f"no progress beyond step {done} after '{name}' was to come:\n{training.tail()}")
        time.sleep(self.dice.random())
        begun = time.monotonic()
        fault(self, training)
        status = training.wait()
        seconds, reached = time.monotonic() - begun, self.last_step
        lines = self.log.read_bytes()[before:].decode(errors="replace").splitlines()
        said = [line for line in lines if "leaving after" in line or "error" in line.lower()]
        self.check_files()
        return Outcome(name, status, reached - self.resumes_at(), seconds, said[-1] if said else "")

    def resumes_at(self) -> int:
        good = set(read_sums(self.run / "checkpoints").values())
        for name in ("last.ckpt", "previous.ckpt"):
            path = self.run / "checkpoints" / name
            if path.exists() and digest(path) in good:
                return torch.load(path, weights_only=True, map_location="cpu")["global_step"]
        return 0

    def check_files(self) -> None:
        """What the sums call good is whole."""
        folder = self.run / "checkpoints"
        good = set(read_sums(folder).values())
        for path in folder.glob("*.ckpt"):
            if digest(path) in good:
                torch.load(path, weights_only=True, map_location="cpu")


Fault = Callable[[Chaos, Watched], None]


def to_all(signum: int) -> Fault:
    """As Slurm does: to every rank."""

    def fault(chaos: Chaos, training: Watched) -> None:
        training.kill(ranks(training), signum)

    return fault


def to_group(signum: int) -> Fault:
    """As `timeout` and Ctrl-C do: to every process, those of the loader among them."""

    def fault(chaos: Chaos, training: Watched) -> None:
        training.kill(training.processes(), signum)

    return fault


def to_rank(rank: int, signum: int) -> Fault:
    def fault(chaos: Chaos, training: Watched) -> None:
        training.kill([ranks(training)[rank]], signum)

    return fault


def all_at_once(chaos: Chaos, training: Watched) -> None:
    training.kill()


def a_worker(chaos: Chaos, training: Watched) -> None:
    training.kill([chaos.dice.choice(workers(training))])


def while_it(what: str) -> Fault:
    """Kills all as a save or a validation begins."""

    def fault(chaos: Chaos, training: Watched) -> None:
        begun = chaos.last_step
        training.wait_for(lambda line: line.get(what, 0) > begun)
        time.sleep(0.03 * chaos.dice.random())
        training.kill()

    return fault


def disk_full(chaos: Chaos, training: Watched) -> None:
    filler = chaos.root / "filler"
    said = chaos.log.stat().st_size
    try:
        with filler.open("wb", buffering=0) as file:
            while file.write(bytes(1 << 16)):
                pass
    except OSError:
        pass
    begun = chaos.last_step
    training.wait_for(lambda line: line.get("step", 0) >= min(begun + 4, chaos.steps))
    filler.unlink()
    training.kill()
    if b"the last good one stays" not in chaos.log.read_bytes()[said:]:
        raise RuntimeError("the disk was full and the training did not say so")


def checkpoint_cut(chaos: Chaos, training: Watched) -> None:
    """So the next start has to fall back."""
    training.kill()
    training.wait()
    path = chaos.run / "checkpoints" / "last.ckpt"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def shard_cut(chaos: Chaos, training: Watched) -> None:
    """The training with half a shard says so and ends; with the whole shard it goes on."""
    training.kill()
    training.wait()
    shard = min(chaos.shards.glob("train-*.tar"))
    whole, stat = shard.read_bytes(), shard.stat()
    shard.write_bytes(whole[: len(whole) // 2])
    try:
        broken = chaos.start()
        if not broken.wait() or shard.name not in broken.tail():
            raise RuntimeError(f"half a shard went unnoticed:\n{broken.tail()}")
    finally:
        shard.write_bytes(whole)
        subprocess.run(["touch", "-d", f"@{stat.st_mtime_ns / 1e9:.9f}", shard], check=True)


FAULTS: dict[str, Fault] = {
    "USR1 to all ranks": to_all(signal.SIGUSR1),
    "TERM to the whole group": to_group(signal.SIGTERM),
    "KILL of rank 1": to_rank(1, signal.SIGKILL),
    "KILL during a save": while_it("saving"),
    "last.ckpt truncated": checkpoint_cut,
    "KILL of a loader worker": a_worker,
    "disk full": disk_full,
    "KILL of rank 0": to_rank(0, signal.SIGKILL),
    "shard truncated": shard_cut,
    "TERM to rank 0": to_rank(0, signal.SIGTERM),
    "KILL of all": all_at_once,
    "KILL during a validation": while_it("validating"),
    "USR2 to rank 1": to_rank(1, signal.SIGUSR2),
}


def ranks(training: Watched) -> list[int]:
    """The process of each rank: the command, and what Lightning started by it."""
    children = [pid for pid in training.processes()[1:] if b"\0LOCAL_RANK=" in _file(pid, "environ")]
    return [
        training.process.pid,
        *(pid for pid in children if f"PPid:\t{training.process.pid}\n".encode() in _file(pid, "status")),
    ]


def workers(training: Watched) -> list[int]:
    """The loaders' processes: forked, so their command line is that of their rank."""
    own = ranks(training)
    return [pid for pid in training.processes() if pid not in own and _file(pid, "cmdline") == _file(own[0], "cmdline")]


def _file(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:  # it has ended
        return b""


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A file system of DISK_MB there, or nothing where none can be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)]
    mounted = shutil.which("mount") is not None and subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("runs/chaos"))
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args(argv)
    shutil.rmtree(options.folder, ignore_errors=True)
    shards = options.folder / "photographs"
    pack = ["pack", "pkg://datamodules/photographs", str(shards), "parts=photographs"]
    subprocess.run([sys.executable, "-m", "bdg", *pack], check=True, stdout=subprocess.DEVNULL)
    steps = STEPS_PER_FAULT * options.faults
    unbroken, broken = (
        Chaos(options.folder / name, shards, steps, options.overrides, options.seed) for name in ("unbroken", "broken")
    )
    unbroken.finish()
    with small_disk(broken.root) as small:
        faults = [name for name in FAULTS if small or name != "disk full"]
        outcomes = []
        for number in range(options.faults):
            name = faults[number % len(faults)]
            outcomes.append(broken.strike(name, FAULTS[name]))
            print(json.dumps(vars(outcomes[-1])), file=sys.stderr)
            if broken.last_step >= steps - STEPS_PER_FAULT:
                print(f"after {number + 1} faults nothing was left to train", file=sys.stderr)
                break
        broken.finish()
        compared = equal(list(recorded(unbroken.record, RANKS)), list(recorded(broken.record, RANKS)))
        one, other = (load_file(chaos.run / "weights" / "ema.safetensors") for chaos in (unbroken, broken))
    same = one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    print(report(outcomes, compared, same, small, steps))
    return int(not same or any(value != "equal" for value in compared.values()))


def report(outcomes: Sequence[Outcome], compared: dict[str, str], same: bool, small: bool, steps: int) -> str:
    lines = [
        f"# {len(outcomes)} faults in a training of {RANKS} processes and {steps} steps",
        "",
        circumstances("torch"),
        "",
    ]
    lines += ["| fault | times | exit status | steps lost, most | seconds to the end, median |", "|" + " --- |" * 5]
    for name in dict.fromkeys(outcome.fault for outcome in outcomes):
        own = [outcome for outcome in outcomes if outcome.fault == name]
        statuses = ", ".join(sorted({str(outcome.status) for outcome in own}))
        seconds = statistics.median(outcome.seconds for outcome in own)
        lines.append(f"| {name} | {len(own)} | {statuses} | {max(o.lost for o in own)} | {seconds:.1f} |")
    lines += [
        "",
        "Every restart progressed; no file whose sum was right failed to load. Against the unbroken training, ",
    ]
    lines[-1] += "over all steps, also those done twice: " + ", ".join(f"{k} {v}" for k, v in compared.items()) + "; "
    lines[-1] += f"final averaged weights {'equal' if same else 'DIFFER'}."
    if not small:
        lines += ["", "Left out: disk full, since no file system could be mounted."]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
