"""What a recipe that somebody else wrote may say, so that to repeat it takes no more time and memory than to draw one."""

from collections.abc import Mapping
from typing import Any

LIMITS: dict[str, tuple[float, float]] = {
    "density": (0, 5000),  # in 100 x 100 pixels
    "length_px": (0, 500),
    "motion": (0, 20),
    "defocus": (0, 20),
    "size": (1, 301),  # pixels, of a kernel
    "factor": (0.25, 256),  # times smaller
    "resize.factor": (1 / 256, 4),  # times as large
    "seed": (0, 2**64 - 1),
}
"""Lowest and highest value of the numbers that decide over time and memory; with the operation in front, where steps have one.
All others are within `REST`."""
REST = (-1e6, 1e6)
LONGEST, DEEPEST = 256, 16
"""Of lists, and of things in things."""


def check(recipe: Any) -> None:
    """Raises ValueError for what is no recipe, or holds numbers, lists or depths beyond these limits."""
    if not isinstance(recipe, Mapping):
        raise ValueError(f"a recipe is {type(recipe).__name__}: give the object that bdg degrade wrote")
    parts = recipe.get("parts", [])
    if not isinstance(parts, list):
        raise ValueError(f"the parts of a recipe are {type(parts).__name__}: give a list of recipes")
    for part in parts:
        check(part)
    _check("recipe", recipe, 1)


def _check(key: str, value: Any, depth: int) -> None:
    if depth > DEEPEST or (isinstance(value, list | Mapping) and len(value) > LONGEST):
        raise ValueError(f"'{key}' of a recipe is nested deeper than {DEEPEST} or longer than {LONGEST}: it is none")
    if isinstance(value, Mapping):
        for name, inner in value.items():
            known = f"{value.get('op')}.{name}"
            _check(known if known in LIMITS else str(name), inner, depth + 1)
    elif isinstance(value, list):
        if any(isinstance(inner, list) and any(isinstance(x, list) for x in inner) for inner in value):
            raise ValueError(f"'{key}' of a recipe has lists in lists in lists: it is none")
        for inner in value:
            _check(key, inner, depth + 1)
    elif isinstance(value, int | float):
        low, high = LIMITS.get(key, REST)
        if not low <= value <= high:  # nor NaN
            raise ValueError(f"{key}={value} of a recipe: from {low:g} to {high:g} can be repeated")
