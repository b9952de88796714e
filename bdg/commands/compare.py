"""`bdg compare`: a page with the same images restored by several runs, and what their differences come to."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from rich.console import Console

import bdg
from bdg.commands.pictures import error_map, read, webp, window
from bdg.commands.request import Request
from bdg.commands.restore import check_free
from bdg.commands.runs import place
from bdg.commands.scores import METHODS, Scores, Setting, differences, too_few
from bdg.commands.stats import check_metric
from bdg.files import replacing
from jobs.evaluation import Basis, Evaluation, Place, evaluations, pictures
from jobs.report import compare_page
from jobs.run import write_text


def run(config: DictConfig, request: Request) -> None:
    words = list(dict.fromkeys(f"{word}" for word in config.runs))
    if len(words) < 2:
        raise ValueError(f"runs={words}: name two runs or more")
    for name, least in (("images", 0), ("side", 16), ("size_mb", 1)):
        if config[name] < least:
            raise ValueError(f"{name}={config[name]}: give {least} or more")
    check_free([Path(config.output)], config.overwrite)
    here = place(config)
    asked = [here.need_run(word) for word in words]
    for one, other in combinations(range(len(asked)), 2):
        if asked[one].samefile(asked[other]):
            raise ValueError(f"runs={words}: {words[one]} and {words[other]} are the same run")
    short = [called(word, folder) for word, folder in zip(words, asked, strict=True)]
    folders = dict(zip(short if len({*short}) == len(short) else words, asked, strict=True))
    found = {name: evaluation_of(folder, config) for name, folder in folders.items()}
    data = collect(found, folders, config)
    with replacing(Path(config.output)) as file:
        file.write(compare_page(data).encode())
    console = Console(markup=False, highlight=False, soft_wrap=True)
    console.print(
        data["source"], *data["sentences"], *data["notes"], f"{config.output}: open it in a browser", sep="\n"
    )
    if config.json:
        write_text(Path(config.json), json.dumps(data["tables"], indent=1) + "\n")


def called(word: str, folder: Path) -> str:
    """The cell of SWEEP/CELL/STAGE, the identity of a folder; what is short stays as it was typed."""
    *before, last = word.rstrip("/").split("/")
    return before[-1] if len(before) > 1 and last == folder.parent.name else last


def evaluation_of(folder: Path, config: DictConfig) -> Evaluation:
    """The one that is named; else that of the run's test images, made now if need be."""
    if config.evaluation is None:
        from bdg.commands.measure import measured  # which needs torch

        return measured(folder, config)
    own = {each.name: each for each in evaluations(folder)}
    if config.evaluation not in own:
        there = f"there are {', '.join(own)}" if own else "there are none"
        raise ValueError(f"evaluation={config.evaluation}: {folder} has none of that name: {there}")
    return own[config.evaluation]


def collect(found: Mapping[str, Evaluation], folders: Mapping[str, Path], config: DictConfig) -> dict[str, Any]:
    """All that the page shows. found, folders: by what the runs are called; the first is what the others are compared with.

    Raises ValueError if their numbers must not be compared.
    """
    first, *others = found
    for name in others:
        if why := found[first].differs(found[name]):
            raise ValueError(f"{first} and {name} cannot be compared: {why}")
    settings = [Setting(name, {}, {"": folders[name]}) for name in found]
    basis = Basis(found[first], {str(folders[name]): each for name, each in found.items()})
    scores = Scores(settings, f"test images: {basis.text}", config.level, basis)
    check_metric(scores, config.metric)
    comparisons = scores.compared(settings[0], settings[1:], config.metric, scores.parts)
    ranked = ranking(found, config.metric)
    images, shown = embedded(found, ranked, config)
    notes = too_few(comparisons, config.level)
    if missing := [shown_place for shown_place in ranked[: config.images] if shown_place not in shown]:
        notes.append(
            f"{len(missing)} images are not shown, as their files are missing or size_mb={config.size_mb} is full"
        )
    return {
        "title": " · ".join(found),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": bdg.__version__,
        "source": scores.source,
        "level": config.level,
        "metric": config.metric,
        "metrics": scores.metrics,
        "parts": scores.parts,
        "runs": [
            {"name": name, "weights": f"{each.about.get('weights', folders[name])}"} for name, each in found.items()
        ],
        "sentences": list(differences(comparisons, config.metric, config.level)),
        "methods": METHODS["differences"],
        "notes": notes,
        "rows": [row(found, place, scores.metrics, shown.get(place)) for place in ranked],
        "images": images,
        "tables": {
            "source": scores.source,
            "level": config.level,
            "comparisons": [each.to_dict() for each in comparisons],
        },
    }


def ranking(found: Mapping[str, Evaluation], metric: str) -> list[Place]:
    """Images, those first in which another run is worse than the first one by most."""
    first, *others = found.values()

    def change(place: Place) -> float:
        return min(each.rows[place][metric] - first.rows[place][metric] for each in others)

    return sorted(first.rows, key=change)


def row(
    found: Mapping[str, Evaluation], place: Place, metrics: Sequence[str], at: Mapping[str, Any] | None
) -> dict[str, Any]:
    """An image with its values. at: where its pictures are; None if it is not shown."""
    first = next(iter(found.values())).rows[place]
    degradation, key, severity = place
    return {
        "degradation": degradation,
        "key": key,
        "severity": severity,
        "input": {metric: first[f"{metric}_input"] for metric in metrics},
        "values": [{metric: each.rows[place][metric] for metric in metrics} for each in found.values()],
        "pictures": at,
    }


def embedded(
    found: Mapping[str, Evaluation], ranked: Sequence[Place], config: DictConfig
) -> tuple[list[str | None], dict[Place, dict[str, Any]]]:
    """Pictures as text, and where those of an image begin: degraded, clean, then each run's restored one and its error."""
    images: list[str | None] = []
    shown: dict[Place, dict[str, Any]] = {}
    room = config.size_mb * 1e6
    for one in ranked[: config.images]:
        made = picture_row(list(found.values()), one, config.side)
        size = sum(len(image or "") for image in made[0]) if made else 0
        if made and size <= room:
            room -= size
            shown[one] = {"first": len(images), "size": made[1], "cut": made[2]}
            images += made[0]
    return images, shown


def picture_row(
    found: Sequence[Evaluation], place: Place, side: int
) -> tuple[list[str | None], tuple[int, int], bool] | None:
    """Texts, width and height, and whether it is a window of a larger image; None without the clean and the degraded one."""
    files = [pictures(each, place) for each in found]
    degraded, clean = (read(files[0][kind]) for kind in ("degraded", "clean"))
    restored = [read(each["restored"]) for each in files]
    if degraded is None or clean is None or degraded.shape != clean.shape:
        return None
    there = [image for image in restored if image is not None and image.shape == clean.shape]
    if not there:
        return None
    stack = np.stack([image.astype(np.float32) for image in (there if len(there) > 1 else [there[0], clean])])
    rows, columns = window((stack.max(0) - stack.min(0)).mean(2), side)
    texts = [webp(degraded[rows, columns]), webp(clean[rows, columns])]
    for image in restored:
        if image is None or image.shape != clean.shape:
            texts += [None, None]
        else:
            texts += [webp(image[rows, columns]), webp(error_map(image, clean)[rows, columns])]
    size = (columns.stop - columns.start, rows.stop - rows.start)
    return texts, size, size != clean.shape[1::-1]
