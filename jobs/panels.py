"""What a sweep is shown by: a description of panels that any page can be built from, here HTML and W&B. Draws nothing."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

SEED = "seed"
PREFERRED = (("glcm.angles", "glcm.scales"),)
"""Pairs of keys that a heat map shows before others."""
KINDS = ("table", "curve", "heat", "bars", "parallel", "importance", "lines", "images", "lineage")


@dataclass(frozen=True)
class Panel:
    """One of KINDS. x, y: keys of the config as overrides write them, or "step" or "degradation".

    metrics: names as they are logged, `*` for any part. lines: keys each of whose values is a line of its own. seeds: whether
    runs that differ in the seed alone are one point with its deviation.
    """

    kind: str
    title: str
    x: str | None = None
    y: str | None = None
    metrics: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    seeds: bool = True

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def panels(changes: Sequence[Mapping[str, Any]], metric: str = "psnr") -> tuple[Panel, ...]:
    """Those that fit the keys that the cells of a sweep change. metric: "psnr" or "ssim"."""
    keys = varied(changes)
    score = f"val/mean/{metric}"
    found = [Panel("table", "Runs", metrics=(score,))]
    for key in keys:
        if number(values(changes, key)[0]) is not None:
            rest = tuple(other for other in keys if other != key)
            found.append(Panel("curve", f"{metric} over {key}", x=key, metrics=(score,), lines=rest))
    if pair := heat_keys(keys):
        found.append(Panel("heat", f"{metric} over {' and '.join(pair)}", *pair, metrics=(f"val/*/{metric}",)))
    found.append(
        Panel("bars", f"{metric} by degradation", x="degradation", metrics=(f"val/*/{metric}",), lines=tuple(keys))
    )
    if keys:
        found.append(Panel("parallel", "Keys and score", metrics=(score,), lines=tuple(keys)))
        found.append(Panel("importance", "Which key matters", metrics=(score,), lines=tuple(keys)))
    for title, names in (("Losses", ("loss/*",)), ("Validation", ("val/*/psnr", "val/*/ssim", "val/prior_noise_loss"))):
        found.append(Panel("lines", title, x="step", metrics=names, seeds=False))
    found.append(Panel("images", "degraded, restored, clean, error", metrics=("panel",), seeds=False))
    found.append(Panel("lineage", "Which run comes from which", seeds=False))
    return tuple(found)


def varied(changes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys that have several values, the seed left out."""
    keys = dict.fromkeys(key for each in changes for key in each if key.lstrip("+") != SEED)
    return [key for key in keys if len({written(each.get(key)) for each in changes}) > 1]


def values(changes: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    """Those that a key takes, in their order: numbers by size, lists by length, then by what is in them."""
    found = {written(each.get(key)): each.get(key) for each in changes}
    return sorted(found.values(), key=_rank)


def heat_keys(keys: Sequence[str]) -> tuple[str, str] | None:
    pairs = [pair for pair in PREFERRED if set(pair) <= set(keys)]
    return pairs[0] if pairs else (keys[0], keys[1]) if len(keys) > 1 else None


def number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def label(value: Any) -> str:
    """As an axis writes it: lists short, numbers with four digits."""
    match value:
        case None:
            return "as it is"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:.4g}"
        case list() if len(value) > 4:
            return f"[{label(value[0])}, …, {label(value[-1])}] ({len(value)})"
        case list():
            return f"[{', '.join(map(label, value))}]"
        case dict():
            return written(value)
    return str(value)


def written(value: Any) -> str:
    """A text that is the same for equal values."""
    return json.dumps(value, sort_keys=True, default=str)


def _rank(value: Any) -> tuple[int, float, str]:
    if (size := number(value)) is not None:
        return 0, size, ""
    return 1, len(value) if isinstance(value, list) else 0, written(value)
