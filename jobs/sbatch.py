"""The text of a batch script, as a pure function of what it trains and where. Submits nothing."""

import math
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby

import jinja2

from jobs.geometry import Geometry

REQUEUE_PATIENCE_S = 600


@dataclass(frozen=True)
class Job:
    """An array of tasks, or one. folder: where the sweep was submitted; `arguments` may be relative to it.

    arguments: the folder of INDEX.args: the words of a task, each with a NUL behind it: its run's folder, then what follows
    `python -m bdg`. indices: of the array, none for a single job, which reads 0.args. logs: the folder for what the script
    prints, absolute. frozen: the code, absolute. lead_s: seconds before the end at which the ranks get USR1.
    """

    name: str
    geometry: Geometry
    folder: str
    arguments: str
    logs: str
    frozen: str
    python: str
    lead_s: int
    indices: tuple[int, ...] = ()
    comment: str = ""


def sbatch_text(job: Job) -> str:
    """The script. Raises ValueError for a path that Slurm could not take."""
    geometry = job.geometry
    for path in (job.folder, job.arguments, job.logs, job.frozen, job.python):
        _check_path(path)
    if ":" in job.frozen:
        raise ValueError(f"'{job.frozen}' has a colon, which PYTHONPATH cannot take: choose another folder with root=")
    return _template().render(
        options=[*_options(job)],
        geometry=geometry,
        folder=job.folder,
        arguments=job.arguments,
        frozen=job.frozen,
        command=[*geometry.launcher, job.python, "-m", "bdg"],
        patience_s=REQUEUE_PATIENCE_S,
        q=lambda *words: shlex.join(words),
    )


def ranges(indices: Sequence[int]) -> str:
    """Increasing indices as an array names them: "0-3,7"."""
    found = []
    for _, run in groupby(enumerate(indices), key=lambda pair: pair[1] - pair[0]):
        first, *rest = (index for _, index in run)
        found.append(f"{first}-{rest[-1]}" if rest else f"{first}")
    return ",".join(found)


def _options(job: Job) -> Iterator[str]:
    geometry = job.geometry
    yield f"--job-name={_word(job.name)}"
    yield f"--comment={_word(job.comment)}"
    if job.indices:
        yield f"--array={ranges(job.indices)}" + (f"%{geometry.at_once}" if geometry.at_once else "")
    yield f"--nodes={geometry.nodes}"
    yield f"--ntasks-per-node={geometry.devices}"
    yield f"--cpus-per-task={geometry.cpus_per_device}"
    if geometry.gpus:
        yield f"--gres=gpu:{geometry.devices}"
    if geometry.mem_gb is not None:
        yield f"--mem={math.ceil(geometry.mem_gb * 1024)}M"
    yield f"--time={geometry.time_min}"
    for key in ("partition", "account", "qos", "constraint", "nice"):
        if (value := getattr(geometry, key)) is not None:
            yield f"--{key}={_quoted(str(value))}"
    if geometry.exclusive:
        yield "--exclusive"
    yield "--requeue"
    yield "--open-mode=append"
    yield f"--signal=USR1@{job.lead_s}"
    yield f"--output={_quoted(job.logs.replace('%', '%%') + ('/%A_%a.out' if job.indices else '/%j.out'))}"
    yield from geometry.options


def _word(text: str) -> str:
    """For names, which decide nothing: other characters become "_"."""
    return re.sub(r"[^\w.,=+-]", "_", text, flags=re.ASCII)


def _quoted(value: str) -> str:
    """As sbatch reads its options: in double quotes, in which it knows no shell."""
    return value if re.fullmatch(r"[\w./%=,:@+-]+", value, re.ASCII) else '"' + value.replace('"', '\\"') + '"'


def _check_path(path: str) -> None:
    if not path.isprintable():
        raise ValueError(f"{path!r} has a line break or a character that cannot be printed: choose another root=")
    if "\\" in path:  # in which Slurm sees its own names for parts of a path
        raise ValueError(f"'{path}' has a backslash, which Slurm does not take: choose another root=")


@cache
def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("jobs", "templates")
    environment = jinja2.Environment(
        loader=loader,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("train.sbatch")
