"""A sweep of 1 + 8 + 8 runs on a real Slurm, each of 2 nodes x 2 processes, disturbed in six ways and compared with another.

    python benchmarks/slurm.py [--nodes 2] [--devices 2] [--folder runs/slurm] [KEY=VALUE ...] > table.md

Starts a cluster on this machine (as root, on Debian 12: tests/slurm/cluster.py --help), trains the demo at its smallest over 2
lambdas x 2 sets of angles x 2 sets of scales, once undisturbed and once with a crashed node, the end of its time, a requeued
array task, a preemption, a cancelled run and a run that fails, and gives the same command again. Exits with 1 unless all runs
are done, each began once, and their averaged weights are those of the undisturbed sweep, bit for bit.
"""

import argparse
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from circumstances import circumstances

from jobs.plan import Task
from tests.slurm.trial import SLURM, Handle, Trial, running_cluster

GRID = (
    "stage.lambda=0.05,0.1",
    "glcm.angles=[0,1.570796],[0,0.785398,1.570796,2.356194]",
    "glcm.scales=[1,2],[1,2,4,8]",
)


def disturb(trial: Trial, cluster: Handle) -> dict[str, str]:
    """Identity -> what happened to the run. Waits for the end of all jobs."""
    (generation,), bridging = trial.tasks("generation"), trial.tasks("bridging")
    failing, cancelled, late, requeued, preempted = bridging[-5:]
    stranger = trial.run(failing).folder / "config.yaml"
    stranger.parent.mkdir(parents=True)
    stranger.write_text("seed: 5\n")  # with which its training refuses to go on
    trial.wait_for_step(generation)
    trial.crash(generation, cluster)
    for task, happens in (
        (cancelled, trial.cancel),
        (late, trial.run_out_of_time),
        (requeued, trial.requeue),
        (preempted, trial.preempt),
    ):
        trial.wait_for_step(task, seconds=3600)
        happens(task)
    trial.wait_for_end(3600)
    stranger.unlink()
    return {
        generation.identity: "its node crashes",
        cancelled.identity: "scancel",
        late.identity: "USR1, as at the end of its time",
        requeued.identity: "scontrol requeue of the array's task",
        preempted.identity: "an urgent job takes all nodes",
        failing.identity: "fails at its first start",
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--devices", type=int, default=2, help="processes a node")
    parser.add_argument("--folder", type=Path, default=Path("runs/slurm"))
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args(argv)
    folder = options.folder.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    pack = ["pack", "pkg://datamodules/photographs", str(folder / "photographs"), "parts=photographs"]
    subprocess.run([sys.executable, "-m", "bdg", *pack], check=True, stdout=subprocess.DEVNULL)
    words = [*GRID, f"data.root={folder}/photographs", "data.batch_size=8", *SLURM, "cluster.at_once=2"]
    words += [f"cluster.nodes={options.nodes}", f"cluster.devices={options.devices}", *options.overrides]
    unbroken, broken = Trial(folder / "unbroken", words), Trial(folder / "broken", words)
    seconds = {}
    with running_cluster() as cluster:
        begun = time.monotonic()
        unbroken.sweep()
        unbroken.wait_for_end(3600)
        seconds["undisturbed"] = time.monotonic() - begun
        broken.sweep()
        faults = disturb(broken, cluster)
        left = [task for task in broken.plan.tasks.values() if not broken.run(task).done]
        broken.sweep()
        broken.wait_for_end(3600)
        seconds["disturbed"] = time.monotonic() - begun - seconds["undisturbed"]
        states = {task.identity: broken.states(task) for task in broken.plan.tasks.values()}
        again = broken.sweep()
    same = broken.same_weights(unbroken) if broken.done and unbroken.done else {}
    print(report(broken, faults, left, states, same, seconds, options.nodes * options.devices))
    good = same and all(same.values()) and all(broken.begun_once(task) for task in broken.plan.tasks.values())
    return int(not good or "runs are done" not in again)


def report(
    trial: Trial,
    faults: dict[str, str],
    left: Sequence[Task],
    states: dict[str, list[str]],
    same: dict[str, bool],
    seconds: dict[str, float],
    ranks: int,
) -> str:
    tasks = trial.plan.tasks.values()
    stages = Counter(task.stage for task in tasks)
    shape = " + ".join(f"{count} {stage}" for stage, count in stages.items())
    lines = [
        f"# A sweep of {len(trial.plan.cells)} cells on Slurm: {shape} runs of {ranks} processes",
        "",
        circumstances("torch", "lightning"),
        "",
        "| run | cells | what happens | submitted | Slurm's states | starts | began once | weights |",
        "|" + " --- |" * 8,
    ]
    for task in tasks:
        cells = trial.plan.cells[task.cells[0]].name if len(task.cells) == 1 else f"all {len(task.cells)}"
        row = [f"{task.stage} {task.identity}", cells, faults.get(task.identity, ""), len(trial.jobs(task))]
        row += [", ".join(states[task.identity]), len(trial.stories(task)), "yes" if trial.begun_once(task) else "NO"]
        lines.append(f"| {' | '.join(map(str, row))} | {'equal' if same.get(task.identity) else 'DIFFERENT'} |")
    lines += [
        "",
        f"Undisturbed: {seconds['undisturbed']:.0f} s; disturbed: {seconds['disturbed']:.0f} s, the same command being given "
        f"once more for the {len(left)} runs that were cancelled or failed, or had waited for one of these.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
