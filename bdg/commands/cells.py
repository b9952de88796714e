"""The cells of a sweep as they are asked for: the product of named cells, a grid and seeds. Knows no config and no run."""

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bdg.commands.request import quote

Changes = dict[str, Any]
"""Key, as an override writes it -> value."""

NAME_LENGTH = 100


@dataclass(frozen=True)
class Point:
    """A cell as it is asked for: one of `sweep.cells` with its own changes, or "", at one point of the grid."""

    cell: str
    own: Changes
    grid: Changes

    @property
    def changes(self) -> Changes:
        """All of them; experiments add up."""
        experiments = [name for part in (self.own, self.grid) for name in listed(part.get("experiment"))]
        changes = {**self.own, **self.grid}
        return changes | ({"experiment": experiments} if "experiment" in changes else {})


def points(cells: Mapping[str, Any], grid: Mapping[str, Any], seeds: Any = ()) -> list[Point]:
    """The product of cells, grid and seeds, the last key varying fastest.

    Raises:
        ValueError: nothing varies, a key of the grid has no list of values, or it varies what a cell sets.
    """
    axes = {**grid, **({"seed": seeds} if seeds else {})}
    for key, values in axes.items():
        place = "sweep.seeds" if values is seeds else f"sweep.grid.{key}"
        if not isinstance(values, list):
            raise ValueError(f"{place}={values} is not a list: write its values in brackets, [{literal(values)}]")
        if not values:
            raise ValueError(f"{place}=[] has no values: name some, or leave the key out")
    if not axes and not cells:
        raise ValueError(
            "the sweep is empty: choose one with sweep=NAME (bdg sweep --help lists them) or give a key several values, "
            "such as seed=0,1,2"
        )
    for name, changes in cells.items():
        if not isinstance(changes, dict):
            raise ValueError(
                f"sweep.cells.{name}={changes} is not {{key: value, ...}}: write {{}} where nothing changes"
            )
        if both := [key for key in changes if key in axes and key != "experiment"]:
            raise ValueError(f"{both[0]} is set by the cell '{name}' and varied by the grid: leave one of them out")
    grids = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    return [Point(name, changes, point) for name, changes in (cells or {"": {}}).items() for point in grids]


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def names(asked: Sequence[Point]) -> list[str]:
    """A readable name for each, valid for files, all different: "lambda=0.05,scales=1-2-4"."""
    short = short_keys(dict.fromkeys(key for point in asked for key in point.grid))
    seen: dict[str, int] = {}
    found = []
    for point in asked:
        grid = (f"{short[key]}={_text(value)}" for key, value in point.grid.items())
        text = ",".join(filter(None, [re.sub(r"[^\w.+=-]", "_", point.cell), *grid]))
        if len(text) > NAME_LENGTH:
            text = f"{text[:NAME_LENGTH]}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
        seen[text] = seen.get(text, 0) + 1
        found.append(text if seen[text] == 1 else f"{text}-{seen[text]}")
    return found


def short_keys(keys: Mapping[str, Any]) -> dict[str, str]:
    """The last words of each key that no other key ends with: stage.lambda -> lambda."""
    plain = {key: key.lstrip("+") for key in keys}
    found = {}
    for key, whole in plain.items():
        words = whole.split(".")
        tails = (".".join(words[-n:]) for n in range(1, len(words)))
        others = [f".{other}" for name, other in plain.items() if name != key]
        tail = next((t for t in tails if not any(other.endswith(f".{t}") for other in others)), whole)
        found[key] = re.sub(r"[^\w.+-]", "_", tail)
    return found


def _text(value: Any) -> str:
    text = "-".join(map(_text, value)) if isinstance(value, list) else literal(value).strip("'")
    return re.sub(r"[^\w.+-]", "_", text)


def literal(value: Any) -> str:
    """A plain value in Hydra's grammar: what `key=literal(value)` sets is `value` again."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case list():
            return f"[{','.join(map(literal, value))}]"
        case dict():
            return f"{{{','.join(f'{key}:{literal(inner)}' for key, inner in value.items())}}}"
    plain = re.fullmatch(r"[A-Za-z_][\w./-]*", str(value)) and not re.fullmatch(r"(?i)null|true|false|nan|inf", value)
    if "${" in value:
        return "'" + value.replace("'", r"\'") + "'"  # an interpolation stays one
    return value if plain else quote(str(value))
