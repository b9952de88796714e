"""Several degradations, one after another, on the same image; and the replay of any recipe, mixed or not."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
from numpy.random import Generator

from datamodules.degradations.base import Picture, Recipe, Replayable, severity_range, uniform
from datamodules.degradations.recipes import check


@dataclass(frozen=True)
class Composition:
    """A callable (x_hq, rng) -> (x_lq, recipe) that applies its parts in their order; their names do not matter.

    severity: None leaves each part its own; one number or a range is drawn once and holds for all. name: what recipes call
    the mixture; None: the parts' names, joined by "_".
    """

    parts: Mapping[str, Replayable] | Sequence[Replayable]
    severity: float | Sequence[float] | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        parts = list(self.parts.values() if isinstance(self.parts, Mapping) else self.parts)
        if not parts:
            raise ValueError("parts=[] of a composition: name the degradations to apply, in their order")
        for part in parts:
            if not isinstance(part, Replayable):
                raise ValueError(
                    f"parts: {part!r} is no degradation with name and replay: "
                    "in YAML, name the parts under defaults, as conf/degradation/cdd11.yaml does"
                )
        name = self.name or "_".join(part.name for part in parts)
        if self.severity is not None:
            object.__setattr__(self, "severity", severity_range(self.severity, name))
            if without := [part.name for part in parts if not hasattr(part, "severity")]:
                raise ValueError(f"severity={self.severity} of '{name}': {', '.join(without)} has none: leave it out")
            parts = _at(self.severity, parts)
        object.__setattr__(self, "parts", tuple(parts))
        object.__setattr__(self, "name", name)

    def __call__(self, x_hq: Picture, rng: Generator) -> tuple[Picture, Recipe]:
        parts: Sequence[Any] = self.parts  # type: ignore[assignment]  # a tuple since __post_init__
        recipe: Recipe = {"degradation": self.name}
        if self.severity is not None:
            recipe["severity"] = uniform(self.severity, rng)  # type: ignore[arg-type]
            parts = _at(recipe["severity"], parts)
        x, recipe["parts"] = x_hq, []
        for part in parts:
            x, drawn = part(x, rng)
            recipe["parts"].append(drawn)
        return x, recipe

    def replay(self, x_hq: Picture, recipe: Mapping[str, Any]) -> Picture:
        return replay(x_hq, recipe, self.parts)


def replay(x_hq: Picture, recipe: Mapping[str, Any], degradations: Iterable[Any]) -> Picture:
    """The x_lq of a recipe, bit for bit on one kind of CPU with the same versions of numpy, OpenCV and Pillow.

    The degradation that the recipe names is looked for among `degradations` and the parts of compositions in them, by the
    `name` of each; the first counts. A mixture needs no degradation of its name: its parts are replayed one by one.

    Raises ValueError for a recipe that names none, or one that is not there, and for what is no recipe: it may be anybody's.
    """
    check(recipe)
    known: dict[str, Replayable] = {}
    for degradation in _simple(degradations):
        known.setdefault(degradation.name, degradation)
    x = x_hq
    for part in _steps(recipe):
        name = part.get("degradation")
        if not isinstance(name, str) or name not in known:
            raise ValueError(
                f"a recipe names the degradation '{name}', which is not among {', '.join(known)}: "
                "add the choice that has it, as in degradation=[all,cdd11]"
            )
        try:
            x = known[name].replay(x, part)
        except KeyError as error:
            raise ValueError(
                f"a recipe of '{name}' lacks {error}: it was changed, or written by another version"
            ) from error
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, cv2.error) as error:
            raise ValueError(
                f"a recipe of '{name}' cannot be repeated ({error}): it was changed, or written by another version"
            ) from error
        if x.shape != x_hq.shape:
            raise ValueError(f"a recipe of '{name}' makes {x.shape} of {x_hq.shape}: it was changed")
    return x


def _at(severity: Any, parts: Iterable[Any]) -> list[Any]:
    return [replace(part, severity=severity) for part in parts]


def _simple(degradations: Iterable[Any]) -> Iterator[Replayable]:
    """Those that are no compositions, with the parts of those that are."""
    for degradation in degradations:
        if isinstance(degradation, Composition):
            yield from _simple(degradation.parts)
        elif isinstance(degradation, Replayable):
            yield degradation


def _steps(recipe: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for part in recipe.get("parts", [recipe]):
        yield from _steps(part) if "parts" in part else [part]
