"""What a run logged step by step, out of its csv files, also of one that is being written or was cut off."""

import csv
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

LEFT_OUT = ("step", "epoch")
"""Columns that are no curves; nor are what is known of the degraded images, and counts."""


def curves(run: Path) -> dict[str, dict[int, float]]:
    """name -> {step: value}. Where a run went back to a checkpoint, what was logged last counts."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    logs = sorted((run / "logs").rglob("metrics.csv"), key=lambda path: (len(path.parent.name), path))
    for path in logs:
        for step, name, value in _values(path):
            found[name][step] = value
    return dict(found)


def _values(path: Path) -> Iterator[tuple[int, str, float]]:
    try:
        *lines, _ = (
            path.read_text(encoding="utf-8", errors="replace").replace("\0", "").split("\n")
        )  # the last may be cut off
    except OSError:
        return
    rows = csv.reader(lines)
    with suppress(csv.Error):  # a field without end
        names = next(rows, [])
        if "step" not in names:
            return
        place = names.index("step")
        wanted = [(i, name) for i, name in enumerate(names) if _is_curve(name)]
        for row in rows:
            if len(row) != len(names):  # half written
                continue
            with suppress(ValueError):
                step = int(row[place])
                yield from ((step, name, value) for i, name in wanted if (value := _number(row[i])) is not None)


def _is_curve(name: str) -> bool:
    return name not in LEFT_OUT and not name.endswith(("_input", "/num_images"))


def _number(text: str) -> float | None:
    with suppress(ValueError):
        value = float(text)
        return value if math.isfinite(value) else None
    return None


def thinned(points: Mapping[int, float], room: int) -> list[list[float]]:
    """[steps, values] of at most `room` points in the order of steps, each the mean of its neighbours; four digits or so."""
    steps = sorted(points)
    size = math.ceil(len(steps) / room)
    groups = [steps[i : i + size] for i in range(0, len(steps), size)] if size else []
    means = (sum(points[step] for step in group) / len(group) for group in groups)
    return [[group[len(group) // 2] for group in groups], [float(f"{mean:.5g}") for mean in means]]
