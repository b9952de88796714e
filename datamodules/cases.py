"""Which sample, with which degradation and which random numbers, stands at which place; knows no rank and no worker."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from datamodules import shards
from datamodules.draws import Stream, generator
from datamodules.shards import Sample

Degrade = Callable[[NDArray[np.float32], Generator], tuple[NDArray[np.float32], dict[str, Any]]]
"""(x_hq, rng) -> (x_lq, recipe); images h w 3 in [0, 1]. See `datamodules.degradations.base`."""
Labelled = tuple[int, Degrade]
"""A degradation with its position in the data's list of names."""


@dataclass(frozen=True)
class Case:
    """What becomes one element of a batch. `drawn` is None for a pair, which is degraded already and knows its label."""

    index: int  # position in the endless training stream, or in the validation list
    sample: Sample
    drawn: Labelled | None
    entropy: tuple[Stream, *tuple[int | str, ...]]

    @property
    def rng(self) -> Generator:
        return generator(*self.entropy)


@dataclass(frozen=True)
class TrainingCases:
    """The endless stream: case n is a function of n and the seed, and no case before it is needed.

    An epoch is a permutation of the samples; degradations are dealt like cards, each once before any comes again.
    """

    samples: Sequence[Sample]
    degradations: Sequence[Labelled]
    seed: int

    def __getitem__(self, index: int) -> Case:
        epoch, place = shards.at(index, len(self.samples), self.seed)
        sample = self.samples[place]
        drawn = None if sample.lq else self._deal(index)
        return Case(index, sample, drawn, (Stream.SAMPLE, self.seed, epoch, sample.key))

    def _deal(self, index: int) -> Labelled:
        round_, card = divmod(index, len(self.degradations))
        order = generator(Stream.LABEL, self.seed, round_).permutation(len(self.degradations))
        return self.degradations[order[card]]


def validation_cases(
    samples: Sequence[Sample], degradations: Sequence[tuple[str, Labelled]], severities: Sequence[float] | None
) -> list[Case]:
    """Every clean sample with every degradation (by name) at every severity, then the next; pairs as they are."""
    variants = [
        (label, name, severity, _fixed(name, degrade, severity))
        for name, (label, degrade) in degradations
        for severity in ([None] if severities is None else severities)
    ]
    cases: list[Case] = []
    for sample in samples:
        if sample.lq:
            cases.append(Case(len(cases), sample, None, (Stream.VALIDATION, sample.key)))
            continue
        for label, name, severity, degrade in variants:
            entropy = (Stream.VALIDATION, sample.key, name, f"{severity}")
            cases.append(Case(len(cases), sample, (label, degrade), entropy))
    return cases


def _fixed(name: str, degrade: Degrade, severity: float | None) -> Degrade:
    """The degradation at one severity; None leaves it its own range."""
    if severity is None:
        return degrade
    if not dataclasses.is_dataclass(degrade) or "severity" not in {f.name for f in dataclasses.fields(degrade)}:
        raise ValueError(
            f"degradation.{name}: {type(degrade).__name__} is no dataclass with a field 'severity', so it cannot be set to "
            f"{severity}: subclass datamodules.degradations.base.Degradation, or validate with data.val_severities=null"
        )
    return dataclasses.replace(degrade, severity=severity)  # type: ignore[type-var]
