"""The order of samples as pure functions of a seed: which stands at which place, whatever rank or worker asks; reads no file.

Nothing here is as long as the set: a permutation is computed place by place, and of the shards only their counts are kept.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.draws import Stream, generator

ROUNDS = 6  # of two hashes each: few enough to be quick, and the orders of six samples come equally often
_MASK = 2**64 - 1


class Place(NamedTuple):
    """Where the stream is: the epoch, the shard, and which of the shard's samples."""

    epoch: int
    shard: int
    row: int


@dataclass(frozen=True)
class Permutation:
    """A permutation of range(size), drawn by `keys`, of which each place is computed when it is asked for.

    A Feistel network on a rectangle that just holds the size: rows and columns are shifted in turn by a hash of the other;
    what lands outside goes round again (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002, method 3).
    """

    size: int
    keys: tuple[int, ...]

    def __getitem__(self, place: int) -> int:
        width = isqrt(self.size - 1) + 1
        width += width % 2  # an even rectangle also has the odd permutations
        height = -(-self.size // width)
        while True:
            row, column = divmod(place, width)
            for i in range(0, len(self.keys), 2):
                row = (row + _hash(column ^ self.keys[i])) % height
                column = (column + _hash(row ^ self.keys[i + 1])) % width
            place = row * width + column
            if place < self.size:
                return place


def _hash(x: int) -> int:
    """64 bits of which each depends on every bit of x."""
    x = (x ^ x >> 32) * 0xD6E8FEB86659FD93 & _MASK
    x = (x ^ x >> 32) * 0xD6E8FEB86659FD93 & _MASK
    return x ^ x >> 32


@lru_cache(maxsize=64)
def permutation(size: int, *entropy: int | str) -> Permutation:
    keys = generator(Stream.ORDER, *entropy).integers(2**64, size=2 * ROUNDS, dtype=np.uint64)
    return Permutation(size, tuple(int(key) for key in keys))


class Order:
    """The endless stream over the samples of some shards; every epoch has each of them once.

    counts: samples of each shard. window: None shuffles all of them; a number deals the shards into windows of so many, in
    an order drawn for the epoch, and shuffles inside each, so that only its shards are read at a time. name: tells the
    orders of one seed apart.
    """

    def __init__(
        self, counts: Sequence[int] | NDArray[np.int64], window: int | None, seed: int, name: str = ""
    ) -> None:
        self.counts, self.window, self.entropy = np.asarray(counts, np.int64), window, (seed, name)
        self.size = int(self.counts.sum())
        self._laid: tuple[int, NDArray[np.int64], NDArray[np.int64]] = (-1, self.counts, self.counts)

    def __getitem__(self, position: int) -> Place:
        epoch, place = divmod(position, self.size)
        shards, ends = self._epoch(epoch)
        shard = int(np.searchsorted(ends, place, "right"))
        if self.window is None:
            first, last = 0, len(ends)
        else:
            first = shard // self.window * self.window
            last = min(first + self.window, len(ends))
        begin = int(ends[first - 1]) if first else 0
        place = begin + permutation(int(ends[last - 1]) - begin, *self.entropy, epoch, first)[place - begin]
        shard = int(np.searchsorted(ends, place, "right"))
        return Place(epoch, int(shards[shard]), place - (int(ends[shard - 1]) if shard else 0))

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The shards as they follow one another in an epoch, and where each ends; the last epoch asked for is kept."""
        kept, shards, ends = self._laid
        if kept != epoch:
            shards = np.arange(len(self.counts))
            if self.window is not None:
                shards = shuffled(len(shards), *self.entropy, epoch)
            ends = np.cumsum(self.counts[shards])
            self._laid = (epoch, shards, ends)
        return shards, ends


def shuffled(num_shards: int, *entropy: int | str) -> NDArray[np.int64]:
    return generator(Stream.SHARDS, *entropy).permutation(num_shards)


def forward(
    counts: Sequence[int] | NDArray[np.int64], seed: int, lane: int, num_lanes: int, first: int = 0
) -> Iterator[Place]:
    """The endless stream of one lane of several that share the shards and read each from its begin to its end.

    Every epoch shuffles the shards anew and gives a lane every so many-th of them; split first and shuffled then, as
    webdataset does, a lane would see the same shards for ever. What lies before its sample number `first` is counted, not
    visited.
    """
    counts, epoch = np.asarray(counts, np.int64), 0
    while True:
        shards = shuffled(len(counts), seed, epoch)[lane::num_lanes]
        ends = np.cumsum(counts[shards])
        if first < (total := int(ends[-1])):
            reached = int(np.searchsorted(ends, first, "right"))
            first -= int(ends[reached - 1]) if reached else 0
            for shard in shards[reached:].tolist():
                yield from (Place(epoch, shard, row) for row in range(first, int(counts[shard])))
                first = 0
        else:
            first -= total
        epoch += 1


@dataclass(frozen=True)
class Deal:
    """Labels dealt like cards: in every round each as often as its quota, in an order drawn for the round."""

    quotas: tuple[int, ...]
    seed: int

    def __getitem__(self, index: int) -> tuple[int, int]:
        """The label at a place of the stream, and how many of it lie before."""
        round_, place = divmod(index, sum(self.quotas))
        cards = _hand(self.quotas, self.seed, round_)
        return cards[place], round_ * self.quotas[cards[place]] + cards[:place].count(cards[place])


@lru_cache(maxsize=4)
def _hand(quotas: tuple[int, ...], seed: int, round_: int) -> tuple[int, ...]:
    cards = np.repeat(np.arange(len(quotas)), quotas)
    return tuple(cards[generator(Stream.LABEL, seed, round_).permutation(len(cards))].tolist())
