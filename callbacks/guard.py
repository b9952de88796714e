"""Guard: a step whose loss or gradient is not finite, or explodes, changes no weight and is written down to be repeated."""

import json
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from math import isfinite
from pathlib import Path
from statistics import fmean, median
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch import distributed as dist

from bdg.files import replacing

log = logging.getLogger("bdg")

FORMAT = "bdg replay 1"
"""What a replay file says it is. The files are plain tensors and containers, read with weights_only=True."""
ON_FAULT = ("stop", "skip")
QUIET_STEPS = 100
"""Between two lines about spikes."""
COSINE_EVERY, COSINE_TIMES = 50, 3
"""mas/cosine is looked at every so many steps; so many values in a row above the limit are a collapse."""
SHOWN_SAMPLES = 8


class Fault(ValueError):  # noqa: N818  # the word of the option, callbacks.guard.on_fault
    """Of a training step. The weights are those before it."""


@dataclass(frozen=True)
class Found:
    """What is wrong with a step, and the rank whose samples are to be looked at."""

    what: str
    rank: int


def fault(losses: Sequence[float], norms: Sequence[float], usual: float | None, explode: float) -> Found | None:
    """losses, norms: of each rank, the norms of the gradient that all share. usual: the running median, once there is one."""
    highest = max(range(len(losses)), key=losses.__getitem__)
    for rank, loss in enumerate(losses):
        if not isfinite(loss):
            return Found(f"the loss is {loss}", rank)
    if wrong := [norm for norm in norms if not isfinite(norm)]:
        return Found(f"the loss is {fmean(losses):.4g}, but the norm of its gradient is {wrong[0]}", highest)
    if usual is not None and fmean(losses) > explode * usual:
        return Found(f"the loss is {fmean(losses):.4g} beside {usual:.4g}, its running median", highest)
    return None


class Guard(L.Callback):
    """Looks at loss and gradient of every optimizer step before the optimizer does.

    A fault is a loss that is not finite, a gradient whose norm is not finite, or a loss above `explode` times the median of the
    `window` steps before. All ranks see the values of all ranks and so decide alike: one gathering of two numbers and one wait
    for the device in a step. With precision=16-mixed gradients are left to the loss scaler, whose way of finding its scale
    they are.

    A skipped step counts: global_step, schedules, data and averaged weights go on, weights and the optimizer's state stay.
    History and number of skipped steps are in the checkpoint, so that a resumed run decides as an unbroken one.

    The images of a step are held until its end, also of those that are accumulated.

    folder: of the run; replay files go to its `faults/`. They hold the weights once and the step's images of all ranks.
    on_fault: "stop" with a `Fault`, or "skip" the update, `max_skips` times in a run.
    max_files: replay files that a run may have.
    spike: a loss above so many times the median is reported; None: never.
    record: number of a step that is written down though nothing is wrong with it.
    collapse: a mean pairwise cosine of F_mas (`mas/cosine`) above this is reported; None: never.
    """

    def __init__(
        self,
        folder: str,
        on_fault: str = "stop",
        max_skips: int = 20,
        explode: float = 1000.0,
        spike: float | None = 10.0,
        collapse: float | None = 0.99,
        window: int = 100,
        max_files: int = 5,
        record: int | None = None,
    ) -> None:
        if on_fault not in ON_FAULT:
            raise ValueError(f"callbacks.guard.on_fault={on_fault}: choose one of {', '.join(ON_FAULT)}")
        for name, factor in (("explode", explode), ("spike", 2.0 if spike is None else spike)):
            if factor <= 1:
                raise ValueError(f"callbacks.guard.{name}={factor}: give a factor above 1")
        for name, count, least in (("max_skips", max_skips, 0), ("window", window, 5), ("max_files", max_files, 0)):
            if count < least:
                raise ValueError(f"callbacks.guard.{name}={count}: give {least} or more")
        self.folder = Path(folder)
        self.on_fault, self.max_skips, self.max_files = on_fault, max_skips, max_files
        self.explode, self.spike, self.collapse, self.window = explode, spike, collapse, window
        self.record, self.skipped = record, 0
        self._history: deque[float] = deque(maxlen=window)
        self._batches: list[Mapping[str, Any]] = []  # of this step, as it is accumulated
        self._losses: list[Tensor] = []
        self._quiet_until, self._collapsed = 0, 0

    def state_dict(self) -> dict[str, Any]:
        return {"history": list(self._history), "skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._history = deque(state_dict["history"], maxlen=self.window)
        self.skipped = state_dict["skipped"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._batches, self._losses = [], []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._batches.append(batch)

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        scaler = _scaler(trainer)
        self._losses.append(loss.detach() / scaler.get_scale() if scaler else loss.detach())

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        batches, self._batches = self._batches, []
        parts, self._losses = self._losses, []
        loss = torch.stack(parts).sum().float()
        norm = torch.zeros_like(loss) if _scaler(trainer) else _norm(pl_module)
        gathered = trainer.strategy.all_gather(torch.stack([loss, norm]))
        losses, norms = gathered.reshape(-1, 2).T.tolist()

        usual = median(map(abs, self._history)) if len(self._history) >= self.window // 5 else None
        found = fault(losses, norms, usual, self.explode)
        if found is None:
            if trainer.is_global_zero:
                self._report_spike(trainer.global_step, fmean(losses), usual)
            self._history.append(fmean(losses))
            if trainer.global_step == self.record:
                asked = Found(f"nothing is wrong, callbacks.guard.record={self.record}", rank=0)
                self._tell(trainer, logging.INFO, self._written(trainer, pl_module, asked, batches, parts))
            return
        self.skipped += 1
        text = self._written(trainer, pl_module, found, batches, parts)
        if self.on_fault == "stop":
            raise Fault(
                f"{text} The same command comes to this step again: skip such steps with callbacks.guard.on_fault=skip, or "
                "mend the cause (stage.optimizer.lr, trainer.precision, trainer.gradient_clip_val, these samples)"
            )
        if self.skipped > self.max_skips:
            raise Fault(
                f"{text} {self.skipped - 1} steps were skipped before it, and callbacks.guard.max_skips={self.max_skips}: "
                "mend the cause (stage.optimizer.lr, trainer.precision, these samples), or give more"
            )
        optimizer.zero_grad(set_to_none=True)  # what has no gradient is neither updated nor decayed
        self._tell(trainer, logging.WARNING, f"{text} Skipped, {self.skipped} of at most {self.max_skips}")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.skipped:
            pl_module.log("guard/skipped", float(self.skipped), rank_zero_only=True)
        if self.collapse is not None and trainer.is_global_zero and trainer.global_step % COSINE_EVERY == 0:
            self._report_collapse(trainer.global_step, trainer.callback_metrics.get("mas/cosine"))

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, Exception) and not isinstance(exception, Fault):
            exception.add_note(advice(exception, trainer.global_step))

    def _tell(self, trainer: L.Trainer, level: int, text: str) -> None:
        if trainer.is_global_zero:
            log.log(level, "%s", text)

    def _report_spike(self, step: int, loss: float, usual: float | None) -> None:
        if self.spike is None or usual is None or loss <= self.spike * usual or step < self._quiet_until:
            return
        self._quiet_until = step + QUIET_STEPS
        log.warning(
            "step %d: the loss spikes to %.4g, its running median is %.4g (callbacks.guard.spike=%g; further spikes are not "
            "reported before step %d)",
            *(step, loss, usual, self.spike, self._quiet_until),
        )

    def _report_collapse(self, step: int, cosine: Tensor | None) -> None:
        assert self.collapse is not None
        self._collapsed = self._collapsed + 1 if cosine is not None and float(cosine) > self.collapse else 0
        if self._collapsed == COSINE_TIMES:
            log.warning(
                "step %d: F_mas collapses, mas/cosine is %.4f and was above callbacks.guard.collapse=%g for %d steps: all "
                "images have one descriptor. Try stage.weights.classify (bridging) or stage.weights.negative (restoration) "
                "above 0, a smaller stage.optimizer.lr, or a larger data.batch_size",
                *(step, float(cosine or 0), self.collapse, (COSINE_TIMES - 1) * COSINE_EVERY),
            )

    def _written(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        found: Found,
        batches: Sequence[Mapping[str, Any]],
        losses: Sequence[Tensor],
    ) -> str:
        """What happened, to which samples, and how to repeat it; the rank that has the fault writes the replay file."""
        step, rank = trainer.global_step, found.rank
        kept = _to_rank(rank, [_kept(pl_module, batch, step) for batch in batches], trainer)
        text = ""
        if trainer.global_rank == rank:
            path = self.folder / "faults" / f"step_{step}_rank_{rank}.pt"
            parts: list[list[dict[str, Any]]] = [list(ranks) for ranks in zip(*kept, strict=True)]
            content = {
                "format": FORMAT,
                "what": found.what,
                "step": step,
                "rank": rank,
                "world_size": trainer.world_size,
                "seed": pl_module.seed,
                "device": pl_module.device.type,
                "precision": str(trainer.precision),
                "versions": {name: metadata.version(name) for name in ("torch", "lightning")},
                "config": _text(self.folder / "config.yaml"),
                "loss": torch.stack(list(losses)).cpu(),  # of each part of the step
                "batches": parts,  # part, rank
                "weights": {name: value.detach().cpu() for name, value in pl_module.state_dict().items()},
            }
            place = (
                f"Repeat it with: bdg replay {path}." if self._saved(content, path) else "It could not be written down."
            )
            text = (
                f"step {step}, rank {rank}: {found.what}. The weights are as before it. "
                f"Samples: {_named([ranks[rank] for ranks in parts])}. {place}"
            )
        return trainer.strategy.broadcast(text, src=rank)

    def _saved(self, content: Mapping[str, Any], path: Path) -> bool:
        """Whether the file is there now; training must not end for want of it."""
        others = [other for other in path.parent.glob("step_*.pt") if other != path]
        if len(others) >= self.max_files:
            log.warning("%s holds %d files, callbacks.guard.max_files=%d", path.parent, len(others), self.max_files)
            return False
        try:
            save_tensors(content, path)
        except OSError as error:
            log.warning("%s cannot be written: %s", path, error)
            return False
        return True


def advice(error: Exception, step: int) -> str:
    """What can be done about an error that ended a training after so many steps."""
    killed = (
        "A process that loads data was killed, mostly by the kernel for want of memory: give the job more memory, or fewer "
        "data.num_workers. "
    )
    again = f"{step} steps are done: once the cause is mended, the same command goes on from the last checkpoint."
    return killed + again if "DataLoader worker" in str(error) else again


def save_tensors(content: Mapping[str, Any], path: Path) -> None:
    """Writes plain tensors and containers, whole or not at all."""
    with replacing(path, flush=True) as file:
        torch.save(content, file)


def to_bytes(x: Tensor) -> Tensor:
    """An image in [-1, 1] as the uint8 that it was made of, or as it is if it was not made of such."""
    if x.dtype != torch.float32:
        return x
    eight_bits = ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return eight_bits if torch.equal(from_bytes(eight_bits), x) else x


def from_bytes(x: Tensor) -> Tensor:
    """The inverse of `to_bytes`, as `datamodules.pipeline.to_float` computes it."""
    return x.float().div_(127.5).sub_(1) if x.dtype == torch.uint8 else x


def _kept(module: Any, batch: Mapping[str, Any], step: int) -> dict[str, Any]:
    """What a stage made of a batch at this step, with what it drew, since CPU and CUDA draw differently."""
    t, noise = module.drawn(batch, step)
    images = {name: to_bytes(batch[name]) for name in ("x_hq", "x_lq")}
    tensors = {**images, "label": batch["label"], "index": batch["index"], "t": t, "noise": noise}
    unknown: list[Any] = [""] * len(batch["index"])
    return {
        **{name: value.detach().cpu() for name, value in tensors.items()},
        "key": [str(key) for key in batch.get("key", unknown)],
        "recipe": [json.loads(json.dumps(recipe, default=str)) for recipe in batch.get("recipe", unknown)],
    }


def _to_rank(rank: int, value: Any, trainer: L.Trainer) -> list[Any]:
    """The values of all ranks in their order, on this rank; on the others nothing of use."""
    if trainer.world_size == 1:
        return [value]
    values = [None] * trainer.world_size if trainer.global_rank == rank else None
    dist.gather_object(value, values, dst=rank)
    return values or []


def _named(batches: Sequence[Mapping[str, Any]]) -> str:
    """Key and degradation of the first samples; the replay file has all, with their recipes."""
    samples = [
        sample
        for batch in batches
        for sample in zip(batch["index"].tolist(), batch["key"], batch["recipe"], strict=True)
    ]
    shown = [f"{key or index} ({brief(recipe)})" for index, key, recipe in samples[:SHOWN_SAMPLES]]
    more = [f"and {len(samples) - SHOWN_SAMPLES} more"] if len(samples) > SHOWN_SAMPLES else []
    return ", ".join([*shown, *more])


def brief(recipe: Any) -> str:
    """A recipe's degradation and severity."""
    if not isinstance(recipe, Mapping) or not recipe:
        return "no recipe"
    kind, severity = recipe.get("degradation", "pair"), recipe.get("severity")
    return f"{kind} {severity:.2f}" if isinstance(severity, float) else f"{kind}"


def _norm(module: torch.nn.Module) -> Tensor:
    """Of the gradient of all parameters together."""
    return torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None]).float()


def _scaler(trainer: L.Trainer) -> Any:
    return getattr(trainer.precision_plugin, "scaler", None)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""
