"""`bdg replay`: one training step that went wrong, repeated from its file: which term, which sample, which module."""

import json
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from itertools import count
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor, nn

from bdg.commands.compose import written_config
from bdg.commands.request import Request
from bdg.commands.train import build_stage
from bdg.devices import device
from bdg.files import check_stored
from bdg.stages import Stage
from bdg.types import Estimate, Step
from callbacks.guard import FORMAT, brief, from_bytes
from jobs.run import write_text

HOLDS = {
    "what": str,
    "step": int,
    "rank": int,
    "world_size": int,
    "device": str,
    "precision": str,
    "config": str,
    "loss": Tensor,
    "batches": list,
    "weights": dict,
}
"""What a replay file holds, by name; see `callbacks.guard`."""
TENSORS, LISTS = ("x_hq", "x_lq", "label", "index", "t", "noise"), ("key", "recipe")
"""And each of its batches."""


@dataclass(frozen=True)
class Term:
    """One loss term of the step, and the norm of the gradient of weight * value; None where nothing depends on it."""

    name: str
    weight: float
    value: float
    gradient: float | None


@dataclass(frozen=True)
class Sample:
    """What one sample has to do with the step. terms: those that look at images alone, of this sample."""

    key: str
    index: int
    t: int
    recipe: Any
    terms: dict[str, float]

    @property
    def badness(self) -> float:
        values = list(self.terms.values())
        return sum(values) if all(map(isfinite, values)) else float("inf")


@dataclass(frozen=True)
class Replayed:
    """A step as it came out this time. The gradient is that of the rank's own images; other ranks' features are given."""

    loss: float
    recorded: float
    same: bool  # bit for bit
    terms: list[Term]
    samples: list[Sample]  # the worst first
    weights: list[str]  # names of those that were not finite before the step
    module: str | None  # the first whose output is not finite
    gradient: str | None  # the first, going backward, with respect to whose output the gradient is not finite


def run(config: DictConfig, request: Request) -> None:
    file = read(Path(config.file))
    rank = file["rank"] if config.rank is None else config.rank
    if not 0 <= rank < file["world_size"]:
        raise ValueError(f"rank={rank}: the step was made by {file['world_size']} ranks, counted from 0")
    where = device(config.device)
    found = replay(file, rank, stage_of(file["config"], list(config.trust)), where)
    show(file, rank, where, found, config.samples)
    if config.json:
        about = {name: file[name] for name in ("what", "step", "world_size", "precision")} | {"rank": rank}
        about |= {"device": str(where), "recorded_on": file["device"], "recorded_rank": file["rank"]}
        write_text(Path(config.json), json.dumps(_plain(about | asdict(found)), indent=1) + "\n")


def read(path: Path) -> dict[str, Any]:
    """The content of a replay file; tensors and plain containers, so that a foreign file runs no code.

    Raises FileNotFoundError, and ValueError for what is no replay file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"file={path}: no such file: name one such as RUN/faults/step_N_rank_R.pt")
    wrong = f"file={path} is no replay file, or cut off"
    try:
        check_stored(path)
        file = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = error if isinstance(error, ValueError) else type(error).__name__
        raise ValueError(f"{wrong} ({reason}): name one such as RUN/faults/step_N_rank_R.pt") from None
    if not isinstance(file, dict) or file.get("format") != FORMAT:
        raise ValueError(f"{wrong}: it does not say '{FORMAT}': name one such as RUN/faults/step_N_rank_R.pt")
    for name, kind in HOLDS.items():
        if not isinstance(file.get(name), kind):
            raise ValueError(
                f"{wrong}: its '{name}' is no {kind.__name__}: name one such as RUN/faults/step_N_rank_R.pt"
            )
    for part in file["batches"]:
        if not isinstance(part, list) or len(part) != file["world_size"] or not all(map(_is_batch, part)):
            raise ValueError(f"{wrong}: its batches are not those of {file['world_size']} ranks")
    if not file["batches"] or file["loss"].shape != (len(file["batches"]),):
        raise ValueError(f"{wrong}: it has {len(file['batches'])} batches and losses {tuple(file['loss'].shape)}")
    return file


def _is_batch(batch: Any) -> bool:
    if not isinstance(batch, dict) or not all(isinstance(batch.get(name), Tensor) for name in TENSORS):
        return False
    return all(isinstance(batch.get(name), list) and len(batch[name]) == len(batch["index"]) for name in LISTS)


def stage_of(text: str, trust: Sequence[str]) -> Stage:
    """The stage that a config describes, which is data: whom it trusts does not count, and nothing in it is looked up.

    Raises ValueError for a config that is damaged, has interpolations in a part, or names code of packages not trusted.
    """
    try:
        config = written_config(text)
    except ValueError as error:
        raise ValueError(f"the file's config describes no stage: {error}") from None
    try:
        config.trust = list(trust)
        return build_stage(config)
    except (AttributeError, KeyError, TypeError, OmegaConfBaseException) as error:
        raise ValueError(f"the file's config describes no stage ({type(error).__name__}): {error}") from None


def replay(file: Mapping[str, Any], rank: int, stage: Stage, where: torch.device) -> Replayed:
    """Repeats the step of one rank. On the machine and device that recorded it the loss is the same, bit for bit."""
    try:
        stage.load_state_dict(file["weights"])
    except RuntimeError as error:
        raise ValueError(f"the file's weights do not fit the stage of its config: {error}") from None
    weights = [name for name, value in file["weights"].items() if not value.isfinite().all()]
    precision = _precision(file["precision"], where)
    precision.convert_module(stage.to(where).train())
    parts = [[_prepared(batch, where, precision) for batch in ranks] for ranks in file["batches"]]

    watch = Watch()
    with precision.forward_context():
        others = [[[] if i == rank else _rows(stage, batch) for i, batch in enumerate(part)] for part in parts]
        with watch.over(stage):
            steps = [_computed(stage, part[rank], rows, rank) for part, rows in zip(parts, others, strict=True)]
        values = [{name: term(step) for name, (_, term) in stage.losses.items()} for step in steps]
        samples = [s for part, step in zip(parts, steps, strict=True) for s in _samples(stage, part[rank], step)]
    losses = torch.stack([_total(stage, value) / len(parts) for value in values])
    terms = [_term(stage, name, weight, [v[name] for v in values]) for name, (weight, _) in stage.losses.items()]
    watch.listening = True
    _gradient_norm(stage, losses.sum())
    recorded = file["loss"]
    same = rank == file["rank"] and torch.allclose(losses.detach().cpu(), recorded, rtol=0, atol=0, equal_nan=True)
    samples.sort(key=lambda sample: sample.badness, reverse=True)
    return Replayed(
        losses.sum().item(), recorded.sum().item(), same, terms, samples, weights, watch.output, watch.gradient
    )


class Watch:
    """Where numbers first stop being finite: the first module by its output, and the first going backward."""

    def __init__(self) -> None:
        self.output: str | None = None
        self.gradient: str | None = None
        self.listening = False  # to gradients

    @contextmanager
    def over(self, stage: Stage) -> Iterator[None]:
        handles = [m.register_forward_hook(self._hook(_called(m, name))) for name, m in stage.named_modules() if name]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Callable[..., None]:
        def look(module: nn.Module, given: Any, output: Any) -> None:
            for x in _tensors(output):
                if self.output is None and not x.isfinite().all():
                    self.output = name
                if x.requires_grad:
                    x.register_hook(listen)

        def listen(gradient: Tensor) -> None:
            if self.listening and self.gradient is None and not gradient.isfinite().all():
                self.gradient = name

        return look


def show(file: Mapping[str, Any], rank: int, where: torch.device, found: Replayed, num_samples: int) -> None:
    console = Console(markup=False, highlight=False)
    console.print(
        f"step {file['step']}, rank {rank} of {file['world_size']}: {file['what']}", soft_wrap=True, markup=False
    )
    table = Table("term", *(Column(title, justify="right") for title in ("weight", "value", "finite", "gradient norm")))
    for term in found.terms:
        norm = "-" if term.gradient is None else f"{term.gradient:.6g}"
        finite = isfinite(term.value) and isfinite(term.gradient or 0)
        table.add_row(term.name, f"{term.weight:g}", f"{term.value:.6g}", "yes" if finite else "no", norm)
    console.print(table)
    beside = "the same, bit for bit" if found.same else f"on {where}; recorded {found.recorded:.9g} on {file['device']}"
    console.print(
        f"loss {found.loss:.9g}: {beside if rank == file['rank'] else 'of another rank than the recorded one'}"
    )
    names = list(found.samples[0].terms) if found.samples else []
    table = Table(
        "worst samples", Column("t", justify="right"), *(Column(name, justify="right") for name in names), "made by"
    )
    for sample in found.samples[:num_samples]:
        values = (f"{value:.6g}" for value in sample.terms.values())
        table.add_row(sample.key or f"{sample.index}", f"{sample.t}", *values, brief(sample.recipe))
    console.print(table)
    lines = {
        "weights that were not finite before": ", ".join(found.weights),
        "first module whose output is not finite": found.module,
        "first going backward at whose output the gradient is not finite": found.gradient,
    }
    for title, text in lines.items():
        console.print(f"{title}: {text or 'none'}", soft_wrap=True, markup=False)


def _prepared(batch: Mapping[str, Any], where: torch.device, precision: Precision) -> dict[str, Any]:
    """As training had it; the noise was drawn in the precision of training."""
    tensors = {name: batch[name].to(where) for name in TENSORS}
    images = {name: from_bytes(tensors[name]) for name in ("x_hq", "x_lq")}
    return {**batch, **tensors, **precision.convert_input(images)}


def _rows(stage: Stage, batch: Mapping[str, Any]) -> list[Tensor]:
    """What a rank hands to the others, in the order in which the stage gathers it."""
    rows: list[Tensor] = []

    def gather(x: Tensor) -> Tensor:
        rows.append(x)
        return x

    with torch.no_grad(), _gathering(stage, gather):
        stage.compute(batch, batch["t"], batch["noise"])
    return rows


def _computed(stage: Stage, batch: Mapping[str, Any], rows: Sequence[Sequence[Tensor]], rank: int) -> Step:
    """The forward pass of a rank among the rows of the others."""
    places = count()

    def gather(x: Tensor) -> Tensor:
        place = next(places)
        return torch.cat([x if i == rank else other[place] for i, other in enumerate(rows)])

    with _gathering(stage, gather):
        return stage.compute(batch, batch["t"], batch["noise"])


@contextmanager
def _gathering(stage: Stage, gather: Callable[[Tensor], Tensor]) -> Iterator[None]:
    stage._gather = gather  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        del stage._gather


def _total(stage: Stage, values: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([weight * values[name] for name, (weight, _) in stage.losses.items()]).sum()


def _term(stage: Stage, name: str, weight: float, values: Sequence[Tensor]) -> Term:
    value = torch.stack(list(values)).mean()
    return Term(name, weight, value.item(), _gradient_norm(stage, weight * value))


def _gradient_norm(stage: Stage, loss: Tensor) -> float | None:
    if not loss.requires_grad:
        return None
    parameters = [p for p in stage.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return torch.nn.utils.get_total_norm([g for g in gradients if g is not None]).item()


def _samples(stage: Stage, batch: Mapping[str, Any], step: Step) -> Iterator[Sample]:
    """The samples of a batch with the terms that look at no other: those that need nothing of the discriminator."""
    own = {name: term for name, (_, term) in stage.losses.items() if not term.needs}
    for i, (key, recipe) in enumerate(zip(batch["key"], batch["recipe"], strict=True)):
        alone = _alone(step, i)
        terms = {name: term(alone).item() for name, term in own.items()}
        yield Sample(key, int(batch["index"][i]), int(batch["t"][i]), recipe, terms)


def _alone(step: Step, i: int) -> Step:
    """The part of a step that sample i has, for terms on images."""

    def of(x: Tensor) -> Tensor:
        return x[i : i + 1].detach()

    def cut(estimate: Estimate) -> Estimate:
        return Estimate(*(of(getattr(estimate, field.name)) for field in fields(estimate)))

    images = {name: of(getattr(step, name)) for name in ("residual_head", "noise_head", "alpha", "noise_removal")}
    return replace(step, truth=cut(step.truth), estimate=cut(step.estimate), **images)


def _precision(name: str, where: torch.device) -> Precision:
    """How training computed: Lightning's own, so that autocast is the same."""
    match name:
        case "32-true":
            return Precision()
        case "64-true":
            return DoublePrecision()
        case "bf16-true" | "16-true":
            return HalfPrecision(name)
        case "bf16-mixed" | "16-mixed":
            return MixedPrecision(name, where.type)
    raise ValueError(
        f"the file's precision is '{name}', which has no replay: there are 32-, 64-, bf16-, 16-true, bf16-, 16-mixed"
    )


def _called(module: nn.Module, name: str) -> str:
    return f"{name} ({type(module).__name__})"


def _tensors(output: Any) -> Iterator[Tensor]:
    """The floating tensors in what a module returns."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, tuple | list):
        for value in output:
            yield from _tensors(value)


def _plain(value: Any) -> Any:
    """For JSON, which has no nan: numbers that are not finite become their names."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, float) and not isfinite(value) else value
