"""A run's identity and its folder: what defines a stage, and where its files lie. Knows no torch and starts no training.

Address = identity: the same definition always leads to the same folder, so a repeated command goes on where it stopped or
finds the work done, and two experiments that share a stage share its run.
"""

import errno
import fcntl
import hashlib
import json
import os
import platform
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from jobs.secrets import masked

DEFINES_EVERY_STAGE = (  # beside them the digest of the training data, wherever its files lie
    "seed",
    "network",
    "diffusion.schedule",
    "diffusion.time",
    "diffusion._target_",
    "diffusion.curves",
    "stage.condition",
    "data._target_",
    "data.crop",
    "data.flip",
    "data.batch_size",
    "data.quotas",
    "data.reader",
    "data.window",
    "data.seed",
    "trainer.max_steps",
    "trainer.precision",
    "trainer.gradient_clip_val",
    "trainer.gradient_clip_algorithm",
    "callbacks.ema",
)
DEFINES_STAGES_THAT_READ = {
    "degradation": ("diffusion.estimate", "inherit.fresh", "inherit.dropped"),
    "glcm": ("glcm",),
}
"""`stage.reads` says which of these a stage looks at; the loss terms that are on count by their own rule."""
DEFINES_STREAMS = ("data.num_workers", "data.micro_batch", "trainer.devices", "trainer.num_nodes")
"""Who reads which shards, where these are read forwards: only `data.reader=indexed` sees the same samples whatever they are."""

LOCK_PATIENCE_S = 30.0


def definition(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a resolved config that decides what is learned; loggers, workers, machines and validation do not count.

    A loss term counts when its weight is not 0, so lambda counts through the weights it sets and nowhere else.
    """
    keys = [*DEFINES_EVERY_STAGE]
    for what in config["stage"]["reads"]:
        keys += DEFINES_STAGES_THAT_READ[what]
    if _get(config, "data.reader") == "stream":
        keys += DEFINES_STREAMS
    found = {key: _get(config, key) for key in keys}
    weights, terms = config["stage"]["weights"], config["stage"]["terms"]
    if "degradation" in config["stage"]["reads"]:
        found["degradation"] = [*config["degradation"].items()]  # a list, since their order fixes the labels
    spoken_for = ("name", "reads", "curves", "estimate", "condition", "lambda", "anchor", "weights", "terms")
    found["stage"] = {key: value for key, value in config["stage"].items() if key not in spoken_for}
    found["losses"] = {name: [weight, terms.get(name)] for name, weight in weights.items() if weight}
    return found


def identity(definition: Mapping[str, Any], parent: str | None, data: str) -> str:
    """12 hexadecimal digits of what defines a run: its definition, its parent's identity, the digest of its data."""
    text = json.dumps([definition, parent, data], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _get(config: Mapping[str, Any], dotted: str) -> Any:
    value: Any = config
    for key in dotted.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


@dataclass(frozen=True)
class Run:
    """The folder `root/project/stage/identity/` and the names of what is in it."""

    root: Path
    project: str
    stage: str
    identity: str

    @property
    def folder(self) -> Path:
        return self.root / self.project / self.stage / self.identity

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def weights(self) -> Path:
        return self.folder / "weights" / "ema.safetensors"

    @property
    def metrics(self) -> Path:
        """Validation scores of the finished run."""
        return self.folder / "metrics.json"

    @property
    def status(self) -> str:
        """ "new", "running", "preempted" (has saved and left), "interrupted", "failed" or "done"; a killed run is "running"."""
        path = self.folder / "STATUS"
        return path.read_text().strip() if path.exists() else "new"

    def set_status(self, status: str) -> None:
        write_text(self.folder / "STATUS", status + "\n")

    @property
    def done(self) -> bool:
        return self.status == "done" and self.weights.exists()

    def tell(self, line: str) -> None:
        """Adds a line to README.md, the run's story."""
        path = self.folder / "README.md"
        before = path.read_text(encoding="utf-8") if path.exists() else f"# {self.stage} {self.identity}\n\n"
        now = datetime.now(UTC).isoformat(timespec="seconds")
        write_text(path, f"{before}- {now}, {socket.gethostname()}: {line}\n")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes out of the folder; the lock goes with the process that holds it, however that ends.

        Raises BlockingIOError if another one holds it for longer than LOCK_PATIENCE_S (a killed run's workers live on for
        some seconds).
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("a+") as file:
            end = time.monotonic() + LOCK_PATIENCE_S
            while not _lock(file):
                if time.monotonic() > end:
                    file.seek(0)
                    raise BlockingIOError(
                        f"{self.folder} is being trained by {file.read().strip() or 'another process'}: "
                        "wait for it, or stop it"
                    )
                time.sleep(0.2)
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            yield


def manifest(run: Run, parent: str | None, data: str) -> dict[str, Any]:
    """What one wants to know of a run in a year: parents, data, code, versions, machine."""
    return {
        "stage": run.stage,
        "identity": run.identity,
        "parents": [parent] if parent else [],
        "data_digest": data,
        "code": _code(),
        "versions": {name: metadata.version(name) for name in ("torch", "lightning", "hydra-core", "webdataset")},
        "host": {"name": socket.gethostname(), "python": platform.python_version(), "cpus": os.cpu_count()},
        "begun": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The dotted keys whose values differ, each with both: "data.crop: 96 and 64"."""
    flat, flat_other = dict(_flat(one)), dict(_flat(other))
    keys = sorted(flat.keys() | flat_other.keys())
    return [
        f"{k}: {flat.get(k, 'missing')} and {flat_other.get(k, 'missing')}"
        for k in keys
        if flat.get(k) != flat_other.get(k)
    ]


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and (value or not key):
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def _lock(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # a file system that has no locks
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
    return True


def write_text(path: Path, text: str) -> None:
    """Writes the whole file or nothing, without secrets: beside the target, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(masked(text), encoding="utf-8")
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None  # a full disk does not say of which file


def _code() -> dict[str, str]:
    """Commit of the checkout this file lies in and a digest of what was changed since; empty outside a checkout."""

    def git(*words: str) -> bytes:
        return subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, check=True).stdout

    try:
        diff = git("diff", "HEAD")
        return {
            "commit": git("rev-parse", "HEAD").decode().strip(),
            "diff": hashlib.sha256(diff).hexdigest()[:12] if diff else "",
        }
    except (OSError, subprocess.CalledProcessError):
        return {}
