"""A stage takes over the averaged weights of the stage before it, name by name, and says what it did."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import lightning as L
import torch
from torch import Tensor

from bdg.weights import load_weights
from callbacks.checkpoint import read_checkpoint
from jobs.run import write_text

log = logging.getLogger("bdg")


@dataclass(frozen=True)
class Report:
    """Which tensors came from the parent, which begin here, which stayed behind, and the norm of each group."""

    parent: str
    inherited: dict[str, float]
    fresh: dict[str, float]
    dropped: dict[str, float]

    def __str__(self) -> str:
        groups = (("inherited", self.inherited), ("fresh by design", self.fresh), ("dropped by design", self.dropped))
        counts = ", ".join(f"{len(norms)} {what} (norm {_total(norms):.4g})" for what, norms in groups)
        return f"inherit from {self.parent}: {counts}"


class Inherit(L.Callback):
    """Loads the parent's weights before training. A run that resumes a checkpoint is trained without it.

    parent: a weights file (safetensors) or a checkpoint, or None to start from scratch.
    fresh, dropped: prefixes of names that may be missing in the parent or left behind, beside those the stage declares.
    report_path: where the report is stored as JSON.
    """

    def __init__(
        self,
        parent: str | None = None,
        fresh: Sequence[str] = (),
        dropped: Sequence[str] = (),
        report_path: str | None = None,
    ) -> None:
        self.parent = parent
        self.fresh = tuple(fresh)
        self.dropped = tuple(dropped)
        self.report_path = report_path

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if self.parent is None:
            if trainer.is_global_zero:
                log.info("inherit from none: all weights begin at random")
            return
        fresh = (*getattr(pl_module, "fresh", ()), *self.fresh)
        dropped = (*getattr(pl_module, "dropped", ()), *self.dropped)
        report = inherit(pl_module, read_parent(self.parent), self.parent, fresh, dropped)
        if trainer.is_global_zero:
            log.info(str(report))
        if self.report_path and trainer.is_global_zero:
            write_text(Path(self.report_path), json.dumps(asdict(report), indent=1))


def read_parent(path: str) -> Mapping[str, Tensor]:
    """The averaged weights in a safetensors file or in a checkpoint (there they are its `state_dict`)."""
    if not Path(path).exists():
        raise FileNotFoundError(
            f"inherit.from={path} does not exist: train that stage first, or start from scratch with inherit.from=none"
        )
    if path.endswith(".safetensors"):
        return load_weights(path)[0]
    try:
        return read_checkpoint(Path(path))["state_dict"]
    except ValueError as error:
        raise ValueError(f"inherit.from={error}; name a run's folder or its weights/ema.safetensors") from None


def inherit(
    module: torch.nn.Module, parent: Mapping[str, Tensor], origin: str, fresh: Sequence[str], dropped: Sequence[str]
) -> Report:
    """Copies every tensor of `parent` into the tensor of the same name and shape.

    Raises ValueError, and copies nothing, where they do not fit: see `check_fit`.
    """
    own = module.state_dict()
    check_fit(own, parent, origin, fresh, dropped)
    shared, missing, surplus = _shared_and_not(own, parent)
    module.load_state_dict({name: parent[name] for name in shared}, strict=False)
    return Report(origin, _norms(parent, shared), _norms(own, missing), _norms(parent, surplus))


def check_fit(
    own: Mapping[str, Tensor], parent: Mapping[str, Tensor], origin: str, fresh: Sequence[str], dropped: Sequence[str]
) -> None:
    """Raises ValueError where a name is missing on one side without standing under a prefix of `fresh` or `dropped`, or where
    shapes differ, naming the tensors. Looks at no value, so that tensors on the meta device will do.
    """
    shared, missing, surplus = _shared_and_not(own, parent)
    faults = [f"{n} is not in the parent" for n in missing if not n.startswith(tuple(fresh))]
    faults += [f"{n} has no place here" for n in surplus if not n.startswith(tuple(dropped))]
    faults += [
        f"{n} is {tuple(parent[n].shape)} in the parent and {tuple(own[n].shape)} here"
        for n in shared
        if parent[n].shape != own[n].shape
    ]
    if faults:
        shown = "; ".join(faults[:5]) + (f"; and {len(faults) - 5} more" if len(faults) > 5 else "")
        raise ValueError(
            f"the weights in {origin} do not fit this stage: {shown}. Give both the same network and glcm, "
            "name what may begin here with inherit.fresh=[PREFIX] or stay "
            "behind with inherit.dropped=[PREFIX], or start from scratch with inherit.from=none"
        )


def _shared_and_not(own: Mapping[str, Tensor], parent: Mapping[str, Tensor]) -> tuple[list[str], list[str], list[str]]:
    """Names that both have, that only this module has, and that only the parent has."""
    return (
        sorted(own.keys() & parent.keys()),
        sorted(own.keys() - parent.keys()),
        sorted(parent.keys() - own.keys()),
    )


def _norms(tensors: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, float]:
    return {name: tensors[name].float().norm().item() for name in names}


def _total(norms: dict[str, float]) -> float:
    return sum(norm**2 for norm in norms.values()) ** 0.5
