"""`bdg logs`: what the processes of a run printed last."""

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from omegaconf import DictConfig

from bdg.commands.request import Request
from bdg.commands.runs import Place, place, word
from jobs.output import Output, outputs, readable, tail
from jobs.states import attempts, read_facts

POLL_S = 0.5


def run(config: DictConfig, request: Request) -> None:
    if config.lines < 0:
        raise ValueError(f"lines={config.lines}: give 0 or more")
    here = place(config)
    folder = here.need_run(word(config, "run"))
    output = choose(here, folder, config.restart)
    read = sizes(folder)  # before the lines, of which none may be missed
    print(f"{folder}, job {output.job}, restart {output.restart}")
    for path in output.files:
        for line in (f"--- {path.name}", *tail(path, config.lines)):
            print(line)
    if config.follow:
        with suppress(KeyboardInterrupt):
            for line in follow(folder, read):
                print(line, flush=True)


def choose(here: Place, folder: Path, restart: int | None) -> Output:
    """The newest output, or that of a restart of the newest job; before the ranks print anything, that of the job's script."""
    found = outputs(folder)
    if not found:
        return _of_script(here, folder)
    newest = found[-1]
    if restart is None:
        return newest
    of_job = {output.restart: output for output in found if output.job == newest.job}
    if restart not in of_job:
        raise ValueError(f"restart={restart}: job {newest.job} has {', '.join(map(str, of_job))}")
    return of_job[restart]


def _of_script(here: Place, folder: Path) -> Output:
    tried = [attempt.job for attempt in attempts(here.submissions).get(folder.name, [])]
    for job in reversed(tried):
        names = (job, job.removesuffix("_0"))
        paths = [
            p
            for sweep in here.sweeps
            for name in names
            if (p := sweep.folder / "jobs" / "logs" / f"{name}.out").exists()
        ]
        if paths:
            return Output(job, 0, tuple(paths[:1]))
    if tried:
        raise FileNotFoundError(f"{folder}: its job {tried[-1]} has printed nothing yet: see bdg status")
    story = folder / "README.md"
    raise FileNotFoundError(
        f"{folder}: nothing was kept of what it printed, as it was not started by a sweep: "
        + (f"its story is in {story}" if story.exists() else "it was not begun either")
    )


def sizes(folder: Path) -> dict[Path, int]:
    """How many bytes each file of output has."""
    return {path: path.stat().st_size for output in outputs(folder) for path in output.files}


def follow(folder: Path, read: dict[Path, int]) -> Iterator[str]:
    """Lines as they come, of restarts too, until the run is not running. `read` is brought forward."""
    while True:
        ended = read_facts(folder).status != "running"  # asked first, so that the last lines are not missed
        for output in outputs(folder):
            yield from _new_lines(output, read)
        if ended:
            return
        time.sleep(POLL_S)


def _new_lines(output: Output, read: dict[Path, int]) -> Iterator[str]:
    for path in output.files:
        with suppress(OSError), path.open("rb") as file:
            file.seek(read.get(path, 0))
            whole, newline, _ = file.read().rpartition(b"\n")
            read[path] = read.get(path, 0) + len(whole) + len(newline)
            yield from (readable(line) for line in whole.decode(errors="replace").split("\n") if newline)
