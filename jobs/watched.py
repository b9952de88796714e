"""A training in a process of its own, followed through the record that it writes, to be stopped at a chosen moment."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

Fact = dict[str, Any]
"""A line of `callbacks.record.Record`: {"step": ...}, {"saving": ...} or {"validating": ...}."""


class Watched:
    """Runs `command` in a session of its own, its output going to `log`; `record` is the folder that its ranks write to.

    Nothing of it outlives a `with` that an error ends, or Ctrl-C.
    """

    def __init__(self, command: Sequence[str], record: Path, log: Path) -> None:
        self.record, self.log = record, log
        self._seen = sum(1 for _ in facts(record))
        self.begun = time.time()
        with log.open("a") as file:
            self.process = subprocess.Popen(
                command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None:
            return
        while left := living(self.process.pid):
            self.kill(left)
            time.sleep(0.05)
        self.process.wait()

    def wait_for(self, wanted: Callable[[Fact], bool], timeout_s: float = 3600) -> Fact | None:
        """The first line of rank 0 since the start that is wanted; None if the process ended before."""
        end = time.monotonic() + timeout_s
        while True:
            ended = self.process.poll() is not None
            for fact in list(facts(self.record))[self._seen :]:
                if wanted(fact):
                    return fact
            if ended:
                return None
            if time.monotonic() > end:
                raise TimeoutError(f"nothing that was waited for happened in {timeout_s:.0f} s: see {self.log}")
            time.sleep(0.005)

    def processes(self) -> list[int]:
        """The process and all that it started, itself first, in the order of their numbers."""
        parents = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        found = [self.process.pid]
        for pid in found:
            found += sorted(child for child, parent in parents.items() if parent == pid)
        return found

    def kill(self, pids: Sequence[int] | None = None, signum: int = signal.SIGKILL) -> None:
        """Sends a signal to some of the processes; without `pids` to all."""
        for pid in self.processes() if pids is None else pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signum)

    def wait(self, timeout_s: float = 3600) -> int:
        """The exit status, when all processes of the session have gone."""
        try:
            status = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise TimeoutError(f"still running after {timeout_s:.0f} s: see {self.log}") from None
        end = time.monotonic() + timeout_s
        while living(self.process.pid):
            if time.monotonic() > end:
                raise TimeoutError(f"processes of {self.process.pid} are still there after {timeout_s:.0f} s")
            time.sleep(0.05)
        return status

    def tail(self, lines: int = 20) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def facts(record: Path, rank: int = 0) -> Iterator[Fact]:
    """The lines that a rank has written; the last one may be cut off, and so may one in between, where a process was killed."""
    path = record / f"rank_{rank}.jsonl"
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(json.JSONDecodeError):
                yield json.loads(line)


def living(session: int) -> list[int]:
    """The processes of a session that live."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                state, _, _, own = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(own) == session and state != "Z":
                    found.append(int(entry.name))
    return found
