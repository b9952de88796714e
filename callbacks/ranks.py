"""Plain values of all ranks, brought together."""

from typing import Any, TypeVar

import lightning as L
from torch import distributed

Value = TypeVar("Value")


def gathered(value: Value, trainer: L.Trainer) -> list[Value]:
    """The values of all ranks in their order, on every rank; to be called by all of them."""
    if trainer.world_size == 1:
        return [value]
    found: list[Any] = [None] * trainer.world_size
    distributed.all_gather_object(found, value)
    return found
