"""The log of a run in W&B: one run and one curve, however often the training is stopped, killed or rolled back.

A run's files are the truth and W&B mirrors them: what fails here is said once, in a line, and the training goes on.
"""

import csv
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from callbacks.about import config_of, describe, facts_of
from callbacks.wandb_file import STEP, Logged, fragments, logged
from jobs.secrets import masked, without_secrets

log = logging.getLogger("bdg")

MODES = ("auto", "online", "offline")
GOALS = ("max", "min")
MISSING = "W&B is not installed: the training goes on without it, pip install wandb"
FINISH_S = 30.0
"""So long the end of a run, which may have to leave its node, waits for what is still to be sent."""


class WandbLog(Logger):
    """A run of W&B with the identity as its id: project, group (the sweep), job type (the stage), name, config, lineage.

    Rank 0 logs. A step that an earlier start has logged is not logged again, since exact resume gives the same numbers: so
    every curve grows with `trainer/global_step`, over requeues, kills and rollbacks, offline and online.

    folder: of the run; the starts lie in its `wandb/`.
    mode: "online", "offline" (`bdg sync` sends it later) or "auto"; $WANDB_MODE wins. "auto" is online if there is a login,
        the server answers and no earlier start waits to be sent, which would come too late.
    monitor, goal: the score whose best validation stands in the summary, as best/...
    """

    def __init__(
        self,
        folder: str,
        project: str,
        stage: str,
        entity: str | None = None,
        mode: str = "auto",
        monitor: str = "val/mean/psnr",
        goal: str = "max",
    ) -> None:
        super().__init__()
        for option, value, choices in (("mode", mode, MODES), ("goal", goal, GOALS)):
            if value not in choices:
                raise ValueError(f"logger.wandb.{option}={value}: choose one of {', '.join(choices)}")
        self.folder, self.project, self.stage, self.entity = Path(folder), project, stage, entity
        self.mode, self.monitor, self.goal = mode, monitor, goal
        self._run: Any = None
        self._begun = self._told = False
        self._before = Logged()
        self._row: int | None = None  # W&B's own count; None: the server goes on counting
        self._best: float | None = None

    @property
    def name(self) -> str:
        return self.project

    @property
    def version(self) -> str:
        return self.folder.name

    @property
    @rank_zero_only
    def experiment(self) -> Any:
        """The run of W&B, begun when Lightning first asks; None on other ranks and without W&B."""
        if not self._begun:
            self._begun = True
            self._attempt(self._begin)
        return self._run

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the config is in the run's folder."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._log({name: float(value) for name, value in metrics.items()}, step)

    @rank_zero_only
    def log_image(self, key: str, images: Sequence[Any], step: int | None = None) -> None:
        """images: files, or arrays h w 3 of uint8."""
        if self.experiment is not None:
            self._attempt(lambda: self._log({key: _picture(images)}, step))

    @rank_zero_only
    def publish(self, weights: Path) -> None:
        """The run's last word: its averaged weights, by reference, as what its children begin with."""
        if self._run is not None:
            self._attempt(lambda: self._run.log_artifact(weights_artifact(self.stage, self.version, weights)))
            self._finish(0)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if status != "success":  # else the weights are to come
            self._finish(1)

    def _finish(self, status: int) -> None:
        if self._run is not None:
            self._attempt(lambda: self._run.finish(exit_code=status))
            self._run = None

    def _log(self, row: dict[str, Any], step: int | None) -> None:
        if self.experiment is None:
            return
        if step is not None:
            row = self._before.new(step, row)
            if not row:
                return
            row |= {STEP: step}
        self._attempt(lambda: self._run.log(row, step=self._row))
        if self._row is not None:
            self._row += 1
        score = row.get(self.monitor)
        if score is not None and (self._best is None or (score > self._best) == (self.goal == "max")):
            self._best = score
            best = {f"best/{name.removeprefix('val/')}": row[name] for name in row if name.startswith("val/")}
            self._attempt(lambda: self._run.summary.update(best | {"best/step": step}))

    def _begin(self) -> None:
        try:
            import wandb
        except ImportError:
            log.warning(MISSING)
            return
        before = logged(self.folder)
        waits = any(fragment.waits for fragment in fragments(self.folder))
        mode, why = choose_mode(self.mode, os.environ, waits, lambda: unreachable(wandb.setup().settings.base_url))
        about = without_secrets(describe(self.folder, self.stage))
        with _masked_words():
            run = wandb.init(
                **about,
                project=self.project,
                entity=self.entity,
                job_type=self.stage,
                id=self.version,
                resume="allow",
                mode=mode,  # type: ignore[arg-type]  # $WANDB_MODE may say anything
                dir=self.folder,
                allow_val_change=True,
                reinit="create_new",
                settings=wandb.Settings(
                    console="off",  # what is printed is kept by the cluster, and is not for a server
                    silent=True,
                    disable_code=True,
                    disable_git=True,  # the folder where the command was given may be anybody's repository
                    save_code=False,
                    finish_timeout=FINISH_S,
                ),
            )
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP)
        if mode == "offline":
            self._row = before.rows
            run.summary.update(before.best)  # a start without a validation must not lose it
        else:
            known = dict(run.summary)
            before.best |= {name: value for name, value in known.items() if name.startswith("best/")}
            before.add(int(known.get(STEP, -1)), ())
        self._before, self._run = before, run
        self._best = before.best.get(f"best/{self.monitor.removeprefix('val/')}")
        log.info("W&B: %s (%s)%s", mode, why, f", {run.url}" if mode == "online" else "")
        for artifact in inputs(self.folder):
            # use_artifact refuses to work offline, and waits for the server online
            run._log_artifact(artifact, is_user_created=True, use_after_commit=True)
        for step, row in missed(self.folder, before.step):
            self._log(row, step)
            before.add(step, row)

    def _attempt(self, do: Callable[[], Any]) -> None:
        """What W&B cannot do is said once."""
        try:
            do()
        except Exception as error:
            if not self._told:
                said = str(error).strip().splitlines() or [type(error).__name__]
                log.warning("W&B: %s; the training goes on, its own files have all", masked(said[0]))
            self._told = True


def choose_mode(
    wanted: str, environ: Mapping[str, str], waits: bool, problem: Callable[[], str | None]
) -> tuple[str, str]:
    """online or offline, or what $WANDB_MODE says, and why. problem: why the server cannot be used, asked if it matters."""
    if given := environ.get("WANDB_MODE"):
        return given, f"WANDB_MODE={given}"
    if wanted != "auto":
        return wanted, f"logger.wandb.mode={wanted}"
    if waits:
        return "offline", "earlier starts of this run wait for bdg sync"
    if why := problem():
        return "offline", f"{why}; bdg sync sends it"
    return "online", "logged in, and the server answers"


def unreachable(server: str, timeout_s: float = 3.0) -> str | None:
    """Why nothing can be sent to a server now: nobody is logged in, or it does not answer; None if it can."""
    address = urlsplit(server)
    if not os.environ.get("WANDB_API_KEY") and not _in_netrc(server):
        return "nobody is logged in, see wandb login"
    try:
        socket.create_connection((address.hostname or "", address.port or 443), timeout_s).close()
    except OSError:
        return f"{address.hostname} does not answer"
    return None


def _in_netrc(server: str) -> bool:
    """Whether `wandb login` has left a key for this server."""
    from wandb.sdk.lib.urls import forge_upstream_url  # a server may have a name before this one

    hosts = {urlsplit(url).netloc for url in (server, forge_upstream_url(server))}
    with suppress(OSError, NetrcParseError):
        return bool(hosts & netrc(os.environ.get("NETRC")).hosts.keys())
    return False


def missed(folder: Path, step: int) -> list[tuple[int, dict[str, Any]]]:
    """What the run's own files have from this step on, in order: W&B loses what it had not written when a run was killed."""
    found: list[tuple[int, dict[str, Any]]] = []
    for path in sorted((folder / "logs").glob("version_*/metrics.csv"), key=lambda path: (len(path.parent.name), path)):
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            found += [
                (int(line.pop("step", "")), line) for line in csv.DictReader(file) if line.get("step", "").isdigit()
            ]
    rows = [(at, _numbers(line)) for at, line in found if at >= step]
    for picture in (folder / "media").glob("*/step_*.jpg"):
        at = int(picture.stem.removeprefix("step_")) - 1
        rows += [(at, {f"val/{picture.parent.name}": _picture([picture])})] if at >= step else []
    once: dict[int, dict[str, Any]] = {}
    for at, row in rows:  # of a step that was done again the last
        once.setdefault(at, {}).update(row)
    return sorted(once.items())


def _numbers(line: Mapping[str, str | None]) -> dict[str, float]:
    """The values of a line of metrics.csv, which may be cut off."""
    found = {}
    for name, text in line.items():
        with suppress(ValueError, TypeError):
            found[name] = float(text or "")
    return found


def _picture(images: Sequence[Any]) -> Any:
    import wandb

    made = [wandb.Image(str(image) if isinstance(image, Path) else image, file_type="jpg") for image in images]
    return made[0] if len(made) == 1 else made


# --- lineage as a graph ---


def weights_artifact(stage: str, identity: str, weights: Path) -> Any:
    """A run's averaged weights: the same artifact for the run that makes them and for those that begin with them."""
    import wandb

    artifact = wandb.Artifact(f"{stage}-{identity}", type="weights", metadata={"stage": stage, "identity": identity})
    if weights.is_file():
        artifact.add_reference(weights.resolve().as_uri(), name=weights.name)
    return artifact


def inputs(folder: Path) -> Iterator[Any]:
    """The artifacts that a run begins with: its data, by their manifest, and its parent's weights."""
    import wandb

    config = config_of(folder)
    facts = facts_of(folder)
    if digest := facts.get("data_digest"):
        data = wandb.Artifact(f"data-{digest[:12]}", type="dataset", metadata={"digest": digest})
        shards = (config.get("data") or {}).get("shards") or []
        for path in (
            Path(shard).parent / "manifest.json" for shard in ([shards] if isinstance(shards, str) else shards)[:1]
        ):
            if path.is_file():  # none beside shards of other makers, or behind URLs
                data.add_reference(path.resolve().as_uri(), name=path.name)
        yield data
    if parent := (config.get("inherit") or {}).get("parent"):
        home = Path(parent).parent.parent  # RUN/weights/ema.safetensors
        for identity in facts.get("parents", []):
            stage = home.parent.name if home.name == identity else "weights"
            yield weights_artifact(stage, identity, Path(parent))


@contextmanager
def _masked_words() -> Iterator[None]:
    """W&B keeps the command as it was typed."""
    typed = sys.argv
    sys.argv = without_secrets(typed)
    try:
        yield
    finally:
        sys.argv = typed
