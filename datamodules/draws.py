"""Randomness of the data: a generator of what it is for and of which sample, whatever rank or worker asks."""

import hashlib
from enum import IntEnum

import numpy as np
from numpy.random import Generator


class Stream(IntEnum):
    """What the numbers are for. It leads the entropy: numpy takes [a, b] and [a, b, 0] for the same."""

    ORDER = 1
    LABEL = 2
    SAMPLE = 3
    VALIDATION = 4
    PACK = 5
    SHARDS = 6
    REPLACEMENT = 7


def generator(stream: Stream, *entropy: int | str) -> Generator:
    """A generator that is a function of these non-negative numbers and names."""
    return np.random.default_rng([stream, *(hash64(e) if isinstance(e, str) else e for e in entropy)])


def hash64(name: str) -> int:
    """64 bits of a name, the same in every process (unlike `hash`)."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
