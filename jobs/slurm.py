"""The seam to Slurm: what it is asked, and its answers as values. Knows no sweeps; versions 20.11 and later."""

import os
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from jobs.geometry import Geometry

PATIENCE_S = 120
FOREIGN = re.compile(r"(SBATCH|SQUEUE|SACCT|SINFO|SRUN|SLURM)_(?!CONF$|CLUSTERS$|JWT$)")
"""Variables that would change the formats of answers, or hand a job that we are in on to those we submit."""
SILENT = re.compile("configuration source|Unable to contact slurm|Connection refused|timed out", re.IGNORECASE)
WAY_OUT = "go to a login node of the cluster, or train here with cluster=local"
AT_ONCE = 500  # job ids in a command, which has a greatest length


class SlurmMissing(OSError):  # noqa: N818
    """This machine cannot reach a Slurm."""


class SlurmRefused(OSError):  # noqa: N818
    """Slurm said no; the text is its own."""


@dataclass(frozen=True)
class Queued:
    """A job in the queue, or a task of an array. node: the first one it runs on, "" before. reason: why it waits."""

    job: str
    index: str | None
    state: str
    reason: str
    node: str
    name: str
    comment: str = ""

    @property
    def id(self) -> str:
        return job_id(self.job, self.index)


@dataclass(frozen=True)
class Accounted:
    """A run of a job or of a task of an array, as sacct knows it; one that was requeued has several, the last one last.

    exit: "status:signal". node: the first one, "" if it never ran.
    """

    job: str
    index: str | None
    state: str
    exit: str
    elapsed_s: int
    node: str

    @property
    def id(self) -> str:
        return job_id(self.job, self.index)


@dataclass(frozen=True)
class Nodes:
    """Alike nodes of a partition. cpus, mem_gb, gpus: of one node. time_min: the partition's limit, None without one."""

    partition: str
    default: bool
    up: bool
    time_min: int | None
    nodes: int
    cpus: int
    mem_gb: float
    gpus: int
    features: tuple[str, ...]


def job_id(job: str, index: str | None) -> str:
    """ "12_3" of an array's task, or "12" without an index (None or "")."""
    return f"{job}_{index}" if index else job


Run = Callable[[Sequence[str], str], str]
"""A command and what it reads -> what it printed; raises SlurmMissing and SlurmRefused."""


def run(command: Sequence[str], text: str = "") -> str:
    environment = {name: value for name, value in os.environ.items() if not FOREIGN.match(name)}
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, check=False, timeout=PATIENCE_S, env=environment
        )
    except FileNotFoundError:
        raise SlurmMissing(f"there is no Slurm on this machine (no command {command[0]}): {WAY_OUT}") from None
    except subprocess.TimeoutExpired:
        raise SlurmMissing(f"Slurm does not answer ({command[0]}, {PATIENCE_S} s): try again later") from None
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}"
        if SILENT.search(said):
            raise SlurmMissing(f"Slurm does not answer on this machine: {said.splitlines()[-1]}: {WAY_OUT}")
        raise SlurmRefused(f"{command[0]}: {said}")
    return done.stdout


class Slurm:
    """The cluster that this machine submits to. `run`: what a test puts in place of the commands."""

    def __init__(self, run: Run = run) -> None:
        self.run = run

    def sbatch(self, text: str, dependency: str | None = None) -> str:
        """Submits a script and returns the job's id."""
        answer = self.run(["sbatch", "--parsable", *_after(dependency)], text)
        return answer.split()[-1].partition(";")[0]  # JOB;CLUSTER, after what a plugin may have printed

    def test_only(self, text: str) -> None:
        """Raises SlurmRefused if a job like this could never run."""
        self.run(["sbatch", "--test-only"], text)

    def queue(self) -> list[Queued]:
        """This user's jobs, each task of an array by itself."""
        # %F, %K: of the array; %B: the node of the script; comments, at the end, may hold anything but line breaks
        columns = "%F|%K|%T|%B|%r|%j|%k"
        lines = self.run(["squeue", "--noheader", "--array", f"--user={os.getuid()}", f"--format={columns}"], "")
        return [_queued(line) for line in lines.splitlines() if line]

    def accounting(self, jobs: Iterable[str]) -> list[Accounted]:
        """What became of these; without accounting on the cluster: nothing."""
        asked, found = sorted(set(jobs)), []
        for start in range(0, len(asked), AT_ONCE):
            names = ",".join(asked[start : start + AT_ONCE])
            columns = "JobID,State,ExitCode,ElapsedRaw,NodeList"
            command = ["sacct", "--allocations", "--duplicates", "--noheader", "--parsable2", f"--jobs={names}"]
            try:
                lines = self.run([*command, f"--format={columns}"], "")
            except SlurmRefused as error:
                if "accounting" in str(error).lower():  # "Slurm accounting storage is disabled"
                    return []
                raise
            found += [row for line in lines.splitlines() if line for row in _accounted(line)]
        return found

    def cancel(self, jobs: Iterable[str]) -> None:
        """Jobs, arrays ("12") and tasks ("12_3"); those that have ended are passed over."""
        asked = sorted(set(jobs))
        for start in range(0, len(asked), AT_ONCE):
            self.run(["scancel", "--quiet", *asked[start : start + AT_ONCE]], "")

    def partitions(self) -> list[Nodes]:
        """What there is, a line for each kind of nodes of each partition."""
        columns = "%P|%a|%l|%D|%c|%m|%G|%f"
        lines = self.run(["sinfo", "--noheader", "--exact", f"--format={columns}"], "")
        return [_nodes(line) for line in lines.splitlines() if line]

    def max_array_size(self) -> int:
        """Tasks an array may have; an index is less. 0 or 1: the cluster refuses arrays."""
        found = re.search(r"^MaxArraySize\s*=\s*(\d+)", self.run(["scontrol", "show", "config"], ""), re.MULTILINE)
        return int(found[1]) if found else 1001


def expand(indices: str) -> list[str]:
    """The tasks of "[3-5,9%2]", or of one index; "1-7:2" has steps."""
    found: list[str] = []
    for part in indices.strip("[]").partition("%")[0].split(","):
        first, _, last = part.partition("-")
        last, _, step = last.partition(":")
        found += map(str, range(int(first), int(last or first) + 1, int(step or 1)))
    return found


def minutes(limit: str) -> int | None:
    """Of Slurm's "1-02:03:04", "02:03:04", "03:04"; None without a limit."""
    if not (parts := re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)):
        return None
    days, hours, mins, seconds = (int(part or 0) for part in parts.groups())
    return days * 1440 + hours * 60 + mins + (seconds > 0)


def check_fits(geometry: Geometry, nodes: Sequence[Nodes]) -> None:
    """Raises ValueError if the partition does not exist or has too little for a job, and says what it has."""
    if not nodes:
        raise ValueError("cluster=slurm, but sinfo knows no partitions: ask those who run this cluster")
    name = geometry.partition
    there = sorted({n.partition for n in nodes})
    if name is None:
        if not any(n.default for n in nodes):
            raise ValueError(f"cluster.partition=null, and this cluster has no default: use one of {', '.join(there)}")
        found = [n for n in nodes if n.default]
    else:  # "a,b": the one that is free first
        if missing := sorted(set(name.split(",")) - set(there)):
            raise ValueError(f"cluster.partition={missing[0]} does not exist: use one of {', '.join(there)}")
        found = [n for n in nodes if n.partition in name.split(",")]
    if not any(n.up for n in found):
        raise ValueError(f"cluster.partition={found[0].partition} is down: use one of {', '.join(there)}, or wait")
    where = f"partition {found[0].partition if name is None else name}"
    for key, asked, most, what in _bounds(geometry, found):
        if asked > most:
            raise ValueError(
                f"cluster.{key}={getattr(geometry, key):g}: {where} has {what.format(most)}: "
                f"lower cluster.{key}, or choose another cluster.partition ({', '.join(there)})"
            )


def _bounds(geometry: Geometry, found: Sequence[Nodes]) -> Iterator[tuple[str, float, float, str]]:
    """Key, what is asked, what there is, in words."""
    if geometry.gpus:
        yield "devices", geometry.devices, max(n.gpus for n in found), "{} GPUs a node"
    cpus = max(n.cpus for n in found)
    yield "cpus_per_device", geometry.cpus_per_device * geometry.devices, cpus, "{} CPUs a node for all devices"
    yield "mem_gb", geometry.mem_gb or 0, max(n.mem_gb for n in found), "{:.0f} GiB a node"
    fitting = [n for n in found if n.gpus >= geometry.devices or not geometry.gpus]
    yield "nodes", geometry.nodes, sum(n.nodes for n in fitting), "{} such nodes"
    limits = [n.time_min for n in found if n.time_min is not None]
    if len(limits) == len(found):
        yield "time_min", geometry.time_min or 0, max(limits), "a limit of {} minutes"


def _after(dependency: str | None) -> list[str]:
    # a child whose parent failed leaves the queue, so that the same command submits both again
    return [f"--dependency={dependency}", "--kill-on-invalid-dep=yes"] if dependency else []


def _queued(line: str) -> Queued:
    job, index, state, node, reason, rest = line.split("|", 5)
    name, _, comment = rest.partition("|")
    return Queued(
        job=job,
        index=index if index.isdecimal() else None,  # else N/A
        state=state,
        reason=reason,
        node="" if node in ("n/a", "N/A", "(null)") else node,
        name=name,
        comment="" if comment in ("(null)", "N/A") else comment,
    )


def _accounted(line: str) -> Iterator[Accounted]:
    name, state, status, elapsed, nodes = line.split("|")
    job, _, indices = name.partition("_")
    for index in expand(indices) if indices else [None]:
        yield Accounted(
            job=job,
            index=index,
            state=state.split()[0],  # "CANCELLED by 1000"
            exit=status,
            elapsed_s=int(elapsed or 0),
            node="" if nodes.startswith("None") else re.sub(r"\[(\w+).*", r"\1", nodes).partition(",")[0],
        )


def _nodes(line: str) -> Nodes:
    partition, up, limit, nodes, cpus, memory, gres, features = line.split("|")
    return Nodes(
        partition=partition.removesuffix("*"),
        default=partition.endswith("*"),
        up=up == "up",
        time_min=minutes(limit),
        nodes=int(nodes),
        cpus=int(cpus.rstrip("+")),
        mem_gb=int(memory.rstrip("+")) / 1024,
        gpus=sum(int(n) for n in re.findall(r"\bgpu:(?:[^,:()]+:)?(\d+)", gres)),
        features=tuple(f for f in features.split(",") if f != "(null)"),
    )
