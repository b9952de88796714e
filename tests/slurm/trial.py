"""A cluster that is there for a while, and a sweep on it that can be disturbed."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from jobs.plan import Plan, Task
from jobs.run import Run
from jobs.slurm import Accounted, Slurm
from jobs.submission import read_submissions

SMALL = (
    *("experiment=demo_smoke", "sweep.name=trial", "trainer.accelerator=cpu", "data.num_workers=0", "logger=none"),
    *("max_steps={generation: 24, bridging: 24, restoration: 24}", "callbacks.checkpoint.every_n_steps=2"),
    *("trust=[pace]", "+callbacks.pace={_target_: pace.Pace, seconds: 0.2}"),
)
"""The demo at its smallest. Its steps take no time, so it waits between them for what may happen."""
SLURM = ("cluster=slurm", "cluster.gpus=false", "cluster.time_min=30", "cluster.cpus_per_device=1", "cluster.mem_gb=1")
LOCAL = ("cluster=local", "cluster.at_once=2")


CLUSTER = Path(__file__).with_name("cluster.py")


@dataclass(frozen=True)
class Handle:
    """A running cluster; SLURM_CONF names it."""

    state: Path

    def crash(self, node: str) -> None:
        manage("crash", node, state=self.state)

    def start(self, node: str) -> None:
        manage("start", node, state=self.state)


@contextmanager
def running_cluster() -> Iterator[Handle]:
    before = os.environ.get("SLURM_CONF")
    state = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # a short path, since sockets lie in it
    try:
        os.environ["SLURM_CONF"] = manage("up", state=state).strip().partition("=")[2]
        yield Handle(state)
    finally:
        manage("down", state=state)
        if before is None:
            os.environ.pop("SLURM_CONF", None)
        else:
            os.environ["SLURM_CONF"] = before


def manage(*words: str, state: Path) -> str:
    return call(sys.executable, str(CLUSTER), *words, "--state", str(state))


def call(*words: str) -> str:
    """What a command prints."""
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Trial:
    """A sweep given in `folder`; words: what it varies, and where it runs."""

    folder: Path
    words: Sequence[str]

    def sweep(self) -> str:
        """Gives the command, once more if need be, and returns what it said."""
        return self.bdg("sweep", *SMALL, *self.words)

    def bdg(self, *words: str) -> str:
        """What a command says that is given where the sweep was."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(
            [sys.executable, "-m", "bdg", *words],
            cwd=self.folder,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @property
    def sweep_folder(self) -> Path:
        return self.folder / "runs" / "demo_smoke" / "sweeps" / "trial"

    @property
    def plan(self) -> Plan:
        return Plan.from_dict(json.loads((self.sweep_folder / "plan.json").read_text()))

    def tasks(self, stage: str) -> list[Task]:
        return [task for task in self.plan.tasks.values() if task.stage == stage]

    def run(self, task: Task) -> Run:
        return Run(self.folder / "runs", "demo_smoke", task.stage, task.identity)

    def jobs(self, task: Task) -> list[str]:
        """Of each time that it was submitted, the array's number and the index in it."""
        lines = read_submissions(self.sweep_folder)
        return [f"{line['job']}_{i}" for line in lines for i, own in line["tasks"].items() if own == task.identity]

    def queue(self) -> list[str]:
        ours = {line["job"] for line in read_submissions(self.sweep_folder)}
        return [queued.id for queued in Slurm().queue() if queued.job in ours]

    def accounts(self) -> list[Accounted]:
        return Slurm().accounting({line["job"] for line in read_submissions(self.sweep_folder)})

    def states(self, task: Task) -> list[str]:
        """As Slurm's accounts name the ends of its jobs, one that was requeued having several."""
        jobs = self.jobs(task)
        return [row.state for job in jobs for row in self.accounts() if row.id == job]

    # --- what may happen to it ---

    def cancel(self, task: Task) -> None:
        Slurm().cancel(self.jobs(task))

    def run_out_of_time(self, task: Task) -> None:
        """The signal that Slurm gives some time before."""
        call("scancel", "--signal=USR1", self.jobs(task)[-1])

    def requeue(self, task: Task) -> None:
        call("scontrol", "requeue", self.jobs(task)[-1])

    def preempt(self, task: Task) -> None:
        """Somebody else's urgent job takes all nodes."""
        call("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")

    def crash(self, task: Task, cluster: Handle) -> None:
        """The node that it runs on goes down, and comes back."""
        node = next(job.node for job in Slurm().queue() if job.id == self.jobs(task)[-1])
        cluster.crash(node)
        cluster.start(node)

    # --- what becomes of it ---

    def wait_for_step(self, task: Task, starts: int = 1, seconds: float = 240) -> None:
        """Until it trains, and has a checkpoint to go on from. starts: how often it must have been started by then."""
        checkpoint = self.run(task).checkpoints / "last.ckpt"

        def trains() -> bool:
            return checkpoint.exists() and len(self.stories(task)) >= starts and self.run(task).status == "running"

        self.wait(trains, f"{task.stage} {task.identity} to train", seconds)

    def wait_for_end(self, seconds: float = 600) -> None:
        """Until no job of it is in the queue."""
        self.wait(lambda: not self.queue(), "the end of all jobs", seconds)

    def wait(self, condition: Callable[[], bool], what: str, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"waited {seconds:.0f} s for {what} in vain:\n{self.report()}"
            time.sleep(0.1)

    def stories(self, task: Task) -> list[str]:
        """What it said at each of its starts: "begins, ..." or "goes on from ..."."""
        path = self.run(task).folder / "README.md"
        told = [line.partition(": ")[2] for line in path.read_text().splitlines()] if path.exists() else []
        return [line for line in told if line.startswith(("begins", "goes on"))]

    def begun_once(self, task: Task) -> bool:
        """Whether it began once, and went on from a checkpoint at its other starts."""
        return sum(story.startswith("begins") for story in self.stories(task)) == 1

    @property
    def done(self) -> bool:
        return all(self.run(task).done for task in self.plan.tasks.values())

    def same_weights(self, other: "Trial") -> dict[str, bool]:
        """Identity -> whether both trials end with the same averaged weights, to the last bit."""
        found = {}
        for identity, task in self.plan.tasks.items():
            own, theirs = (load_file(trial.run(task).weights) for trial in (self, other))
            found[identity] = own.keys() == theirs.keys() and all(torch.equal(own[k], theirs[k]) for k in own)
        return found

    def report(self) -> str:
        """What there is to see, for whoever wonders why a trial came to nothing."""
        lines = [f"{row}" for row in self.accounts()] + [f"in the queue: {' '.join(self.queue())}"]
        for task in self.plan.tasks.values():
            run = self.run(task)
            lines.append(f"{task.stage} {task.identity}: {run.status}, {len(self.stories(task))} starts")
            if not run.done:
                for path in [*(run.folder / "slurm").glob("*"), *(self.sweep_folder / "jobs" / "logs").glob("*")]:
                    lines += [f"  {path.name}: {line}" for line in path.read_text().splitlines()[-5:]]
        return "\n".join(lines)
