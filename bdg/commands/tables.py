"""What was measured of weights, each table with its protocol: for the folder that is handed on and for its card."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from bdg.commands.chain import resolved
from bdg.commands.compose import build, get, written_config
from bdg.restoration import Restorer
from jobs.evaluation import Evaluation, evaluations, read_evaluation
from jobs.states import read_object

MEAN = "mean"
FACTS = ("key", "name", "degradation", "severity", "index", "label")
"""What a row of an evaluation says of its image beside what was measured."""


@dataclass(frozen=True)
class Table:
    """Scores by degradation, "mean" last: {degradation: {metric: value, "num_images": n}}.

    name: where they come from; protocol, data: in words; settings: of the sampler.
    """

    name: str
    protocol: str
    data: str
    settings: str
    scores: Mapping[str, Mapping[str, float]]


def tables(run: Path | None, restorer: Restorer, files: Sequence[Path], trust: Sequence[str]) -> list[Table]:
    """Of the evaluations beside a run and of those in `files`; where a run has none, its validation.

    Raises FileNotFoundError and ValueError for a file that is no measurement, or one of other weights.
    """
    found = [of_evaluation(each) for each in evaluations(run)] if run else []
    found += [of_evaluation(read(path, restorer)) for path in files]
    return found or list(validation(run, trust) if run else ())


def read(path: Path, restorer: Restorer) -> Evaluation:
    if not path.is_file():
        raise FileNotFoundError(f"scores={path}: no such file: name one that bdg evaluate json=FILE wrote")
    found = read_evaluation(path.stem, path)
    if found is None:
        raise ValueError(f"scores={path} holds no measurement: name a file that bdg evaluate json=FILE wrote")
    identity = f"{restorer.about.get('identity', 'unknown')}"
    if f"identity {identity}" not in f"{found.about.get('weights', '')}":
        raise ValueError(
            f"scores={path} was measured with {found.about.get('weights', 'unknown weights')}, and this is identity "
            f"{identity}: measure these weights, or leave it out"
        )
    return found


def of_evaluation(found: Evaluation) -> Table:
    """Means over the images of each degradation, and the mean of these, in which each counts the same."""
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in found.images:
        groups[row["degradation"]].append(row)
    columns = [name for name, value in found.images[0].items() if name not in FACTS and isinstance(value, int | float)]
    scores = {
        name: {column: fmean(row[column] for row in rows) for column in columns} | {"num_images": len(rows)}
        for name, rows in groups.items()
    }
    mean = {column: fmean(row[column] for row in scores.values()) for column in columns}
    scores[MEAN] = mean | {"num_images": len(found.images)}
    settings = {name: found.about.get(name) for name in ("sampler", "sample_steps", "seed", "crop", "severities")}
    told = ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)
    return Table(found.name, found.protocol, short(found.about.get("data")), told, scores)


def validation(run: Path, trust: Sequence[str]) -> Iterator[Table]:
    """The scores that the stage itself ended with."""
    scores: dict[str, dict[str, float]] = defaultdict(dict)
    for name, value in read_object(run / "metrics.json").items():
        _, _, rest = name.partition("val/")
        degradation, _, metric = rest.rpartition("/")
        if degradation and metric != "gain" and isinstance(value, int | float):
            scores[degradation][metric] = value
    if not scores:
        return
    config = written_config(run / "config.yaml")
    protocol = f"{build(config.protocol, trust=trust)}" if config.get("protocol") else "unknown"
    shards = get(resolved(config), "data.val_shards")
    yield Table("validation", protocol, short(shards), "as the stage was validated", dict(scores))


def short(data: Any) -> str:
    """Which data, without the folders of this machine: the last two parts of a path."""
    names = data if isinstance(data, list) else [data]
    return ", ".join("/".join(Path(f"{name}").parts[-2:]) for name in names if name) or "unknown"
