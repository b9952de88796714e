"""Which sample, with which degradation and which random numbers, stands at which place; knows no rank and no worker."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from datamodules.draws import Stream, generator
from datamodules.index import CLEAN, Kind
from datamodules.order import Deal, Order
from datamodules.shards import Encoded, Sample, Samples

Degrade = Callable[[NDArray[np.float32], Generator], tuple[NDArray[np.float32], dict[str, Any]]]
"""(x_hq, rng) -> (x_lq, recipe); images h w 3 in [0, 1]. See `datamodules.degradations.base`."""
ATTEMPTS = 20
"""So many samples are tried in place of one that cannot be read."""


@dataclass(frozen=True)
class Case:
    """What becomes one element of a batch. `degrade` is None for a pair, which is degraded already."""

    index: int  # position in the endless training stream, or in the validation list
    sample: Sample
    label: int  # position in the data's list of names
    degrade: Degrade | None
    entropy: tuple[Stream, *tuple[int | str, ...]]
    encoded: Encoded | None = None  # if the source has read the bytes already

    @property
    def rng(self) -> Generator:
        return generator(*self.entropy)


class TrainingCases:
    """The endless stream: case n is a function of n and the seed, and no case before it is needed.

    Without quotas an epoch is an order of all samples, and degradations are dealt to the clean ones like cards, each once
    before any comes again. With quotas (name -> samples in a round) each label has its own order of its own pool: the pairs
    that have this label and, if the degradation can be made, the clean images.
    """

    def __init__(
        self,
        samples: Samples,
        degradations: Mapping[str, Degrade | None],
        seed: int,
        quotas: Mapping[str, int] | None = None,
        window: int | None = None,
    ) -> None:
        self.samples, self.seed, self.by_quota = samples, seed, quotas is not None
        self.names, self.degrades = list(degradations), list(degradations.values())
        if quotas is None:
            check_labels(samples, degradations)
            quotas = {name: 1 for name, degrade in degradations.items() if degrade}
            pools = {"": samples}
        else:
            quotas = _checked(quotas, self.names)
            pools = {name: self._pool(name, count) for name, count in quotas.items()}
        self._labels = [self.names.index(name) for name in quotas]
        self._deal = Deal(tuple(quotas.values()), seed)
        self._pools = [(pool, Order(pool.counts, window, seed, name)) for name, pool in pools.items()]

    def _pool(self, name: str, quota: int) -> Samples:
        made = self.degrades[self.names.index(name)] is not None
        pool = self.samples.of(Kind(True, name), *([CLEAN] if made else []))
        if not pool:
            raise ValueError(
                f"data.quotas.{name}={quota}: no pair has the degradation '{name}', "
                f"{'and there is no clean image' if made else 'and it cannot be made'}: "
                "take it out of the quotas, or add shards that have it"
            )
        return pool

    def __getitem__(self, index: int) -> Case:
        card, position = self._deal[index] if self.by_quota else (0, index)
        pool, order = self._pools[card]
        epoch, shard, place = order[position]
        return self.case(index, epoch, pool.at(shard, place))

    def case(self, index: int, epoch: int, sample: Sample) -> Case:
        """A sample that stands at a place of the stream, in some epoch."""
        label = self.names.index(str(sample.degradation)) if sample.lq else self._labels[self._deal[index][0]]
        degrade = None if sample.lq else self.degrades[label]
        entropy: list[int | str] = [self.seed, epoch, sample.key]
        if self.by_quota:  # several labels may take the same image in an epoch
            entropy.append(self.names[label])
        return Case(index, sample, label, degrade, (Stream.SAMPLE, *entropy))

    def instead(self, case: Case, attempt: int) -> Case:
        """Another case for the place of one that cannot be read: from the same pool, a function of place and attempt.

        Raises ValueError after `ATTEMPTS`.
        """
        if attempt > ATTEMPTS:
            raise ValueError(
                f"{case.sample} and {attempt - 1} samples in its place cannot be read: check the shards with bdg doctor"
            )
        pool, _ = self._pools[self._deal[case.index][0] if self.by_quota else 0]
        entropy = (Stream.REPLACEMENT, self.seed, case.index, attempt)
        other = self.case(case.index, 0, pool[int(generator(*entropy).integers(len(pool)))])
        return replace(other, entropy=(*entropy, other.sample.key))


def check_labels(samples: Samples, degradations: Mapping[str, Degrade | None]) -> None:
    """Raises ValueError for pairs with a degradation that has no name here, and for clean images that none can be made of."""
    names = list(degradations)
    for kind in samples.kinds:
        if kind.pair and kind.label not in names:
            hint = "pack it with label=NAME" if kind.label is None else f"add +degradation.{kind.label}=null"
            raise ValueError(
                f"{samples.of(kind)[0]} is a pair with degradation '{kind.label}', not one of {', '.join(names)}: {hint}"
            )
    if CLEAN in samples.kinds and not any(degradations.values()):
        raise ValueError(
            f"{samples.of(CLEAN)[0]} is not a pair, and no degradation can be made: choose degradation=five or others"
        )


def _checked(quotas: Mapping[str, Any], names: Sequence[str]) -> dict[str, int]:
    """The quotas that are not 0."""
    unknown = [name for name in quotas if name not in names]
    if unknown:
        raise ValueError(f"data.quotas name {', '.join(unknown)}, but the degradations are {', '.join(names)}")
    for name, quota in quotas.items():
        if not isinstance(quota, int) or quota < 0:
            raise ValueError(f"data.quotas.{name}={quota}: give the samples of it in a round, a whole number from 0 on")
    if not any(quotas.values()):
        raise ValueError(f"data.quotas={dict(quotas)} take no sample: give some name 1 or more, or null for all alike")
    return {name: quota for name, quota in quotas.items() if quota}


class ValidationCases(Sequence[Case]):
    """Every clean sample with every degradation at every severity, then the next; pairs as they are."""

    def __init__(
        self, samples: Samples, degradations: Mapping[str, Degrade | None], severities: Sequence[float] | None
    ) -> None:
        check_labels(samples, degradations)
        self.samples, self.names = samples, list(degradations)
        self._variants = [
            (label, name, severity, _fixed(name, degrade, severity))
            for label, (name, degrade) in enumerate(degradations.items())
            for severity in ([None] if severities is None else severities)
            if degrade
        ]
        self.ends = np.cumsum(np.where(samples.are_pairs(), 1, len(self._variants)))
        """The number of the first case after each sample's."""

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        place = int(np.searchsorted(self.ends, index, "right"))
        sample = self.samples[place]
        if sample.lq:
            label = self.names.index(str(sample.degradation))
            return Case(index, sample, label, None, (Stream.VALIDATION, sample.key))
        label, name, severity, degrade = self._variants[index - int(self.ends[place])]  # counted from the last one
        return Case(index, sample, label, degrade, (Stream.VALIDATION, sample.key, name, f"{severity}"))


def left_out(case: Case, attempt: int) -> None:
    """What `TrainingCases.instead` is for validation: no other image may take the place."""


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
