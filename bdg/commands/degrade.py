"""`bdg degrade`: images made worse on purpose, with recipes that repeat it; and a picture of all the ways."""

import dataclasses
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import track

import datamodules
from bdg.commands.compose import build
from bdg.commands.request import Request
from bdg.commands.restore import SHOWN, check_free, plan
from bdg.documents import parse
from bdg.panel import panel
from datamodules.degradations.base import Recipe, to_bytes
from datamodules.degradations.composition import Composition, replay
from datamodules.draws import hash64
from datamodules.images import Picture, read_image, write_image
from jobs.run import write_text

PREVIEW = "preview"
PREVIEW_FILE = "degradations.png"
PHOTOGRAPH = Path(datamodules.__path__[0]) / "photographs" / "cat.jpg"
RECIPES = "recipes.jsonl"
VERSIONS = {"numpy": np.__version__, "opencv": cv2.__version__, "pillow": PIL.__version__}
"""What may change the last bits of an image, beside the kind of CPU."""

Colour = NDArray[np.float32]  # h w 3 in [0, 1]
Make = Callable[[Colour], tuple[Colour, Recipe]]


@dataclass(frozen=True)
class Way:
    """How one image is degraded: `image` is its name, `entry` that of the degradation in the config."""

    image: str
    entry: str
    make: Make
    recorded: Mapping[str, Any]  # of the run that this one repeats; empty if there is none

    def places(self, output: Path) -> tuple[Path, Path, Path]:
        """Where the degraded image, the clean one and the record belong in a folder of pairs."""
        folder = output / self.entry
        return folder / "lq" / Path(self.image).with_suffix(".png"), folder / "gt" / self.image, folder / RECIPES


def run(config: DictConfig, request: Request) -> None:
    if config.input == PREVIEW:
        preview(config)
        return
    source, output = Path(config.input), Path(config.output)
    work = plan(source, output, into_folder=str(config.output).endswith("/"))
    images = {path.relative_to(source).as_posix() if work.folder else path.name: path for path, _ in work.pairs}
    ways = repeated(config, images, work.folder) if config.recipe else drawn(config, images)
    if work.folder:
        records, skipped = degrade_folder(ways, images, output, config.overwrite)
        skipped += [f"{path}: not an image" for path in work.others]
    else:
        if len(ways) != 1:
            raise ValueError(
                f"{source} can be degraded in {len(ways)} ways ({', '.join(way.entry for way in ways)}): "
                "choose one with entry=NAME, or do all, one after another, with compose=true"
            )
        _, target = work.pairs[0]
        check_free([target], config.overwrite)
        records, skipped = [degrade(ways[0], source, target)], []
    if config.json:
        write_text(Path(config.json), json.dumps(records if work.folder else records[0], indent=1) + "\n")
    report(records, skipped, config.output)
    compare(records, ways)


def degrade_folder(
    ways: Sequence[Way], images: Mapping[str, Path], output: Path, overwrite: bool
) -> tuple[list[dict[str, Any]], list[str]]:
    """Writes pairs and records of every way; returns the records, and why other images were left out."""
    places = [way.places(output) for way in ways]
    if twice := [lq for lq, times in Counter(lq for lq, _, _ in places).items() if times > 1]:
        raise ValueError(f"images that differ in their extension only would both become {twice[0]}: rename one of them")
    check_free(list(dict.fromkeys(path for place in places for path in place)), overwrite)
    records: dict[Path, list[dict[str, Any]]] = {}
    skipped = []
    for way, (lq, gt, recipes) in track(
        list(zip(ways, places, strict=True)), "degrading", console=Console(stderr=True), transient=True
    ):
        try:
            record = degrade(way, images[way.image], lq)
        except ValueError as error:
            skipped.append(str(error))
            continue
        records.setdefault(recipes, []).append(record)
        gt.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(images[way.image], gt)
    for recipes, lines in records.items():
        write_text(recipes, "".join(json.dumps(line) + "\n" for line in lines))
    return [line for lines in records.values() for line in lines], skipped


def drawn(config: DictConfig, images: Iterable[str]) -> list[Way]:
    """Every image by every chosen entry; what is drawn depends on seed and image alone, not on what else is there."""

    def make(degradation: Any, image: str, x_hq: Colour) -> tuple[Colour, Recipe]:
        return degradation(x_hq, generator(config.seed, image))

    return [
        Way(image, entry, partial(make, degradation, image), {})
        for entry, degradation in chosen(config).items()
        for image in images
    ]


def repeated(config: DictConfig, images: Iterable[str], folder: bool) -> list[Way]:
    """What the records in `recipe` say; for one image the only record will do, whatever image it was made of."""
    known = [*_built(config.degradation, config.trust).values(), *_built(config.known, config.trust).values()]

    def make(recipe: Recipe, x_hq: Colour) -> tuple[Colour, Recipe]:
        return replay(x_hq, recipe, known), recipe

    records = read_records(Path(config.recipe))
    if config.entry is not None:
        entries = [config.entry] if isinstance(config.entry, str) else list(config.entry)
        records = [record for record in records if record["entry"] in entries]
    if not folder:
        (image,) = images
        records = [record | {"image": image} for record in records if len(records) == 1 or record.get("image") == image]
    if absent := [f"{record.get('image')}" for record in records if record.get("image") not in set(images)]:
        raise ValueError(
            f"recipe={config.recipe} is of {_some(absent)}, not in {config.input}: name the folder it was made of"
        )
    if not records:
        raise ValueError(f"recipe={config.recipe} has no line for {config.input}: name an image that it is of")
    return [Way(record["image"], record["entry"], partial(make, record["recipe"]), record) for record in records]


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records in a file: one, a list, or one a line (.jsonl). A bare recipe is a record of no image."""
    if not path.is_file():
        raise FileNotFoundError(f"recipe={path}: no such file: give one that bdg degrade wrote")
    data = path.read_bytes()
    try:
        found = [parse(line) for line in data.splitlines()] if path.suffix == ".jsonl" else parse(data)
    except ValueError as error:
        raise ValueError(f"recipe={path} is {error}: give a file that bdg degrade wrote") from None
    records = []
    for record in found if isinstance(found, list) else [found]:
        recipe = record.get("recipe", record) if isinstance(record, dict) else None
        if not isinstance(recipe, dict) or "degradation" not in recipe:
            raise ValueError(
                f"recipe={path} holds no recipe, which names a degradation: give a file that bdg degrade wrote"
            )
        named = {"entry": recipe["degradation"], **(record if "recipe" in record else {}), "recipe": recipe}
        for key in ("entry", "image"):
            if not isinstance(named.get(key, ""), str):
                raise ValueError(f"recipe={path} has {key}={named[key]!r}, which is no name: correct it")
        if named["entry"] in ("", "..") or Path(named["entry"]).name != named["entry"]:  # it becomes a folder
            raise ValueError(f"recipe={path} has the entry '{named['entry']}', which is no plain name: correct it")
        records.append(named)
    return records


def chosen(config: DictConfig) -> dict[str, Any]:
    """Name -> degradation for the entries to be done, at the severity given; with `compose` a single mixture."""
    nodes = {name: node for name, node in config.degradation.items() if node}
    entries = [config.entry] if isinstance(config.entry, str) else list(config.entry or nodes)
    if unknown := [entry for entry in entries if entry not in nodes]:
        raise ValueError(f"entry={_some(unknown)}: the degradations chosen are {', '.join(nodes)}")
    severity = list(config.severity) if OmegaConf.is_list(config.severity) else config.severity
    degradations = [build(nodes[entry], trust=config.trust) for entry in entries]
    if config.compose:
        return {"_".join(entries): Composition(degradations, severity)}
    if severity is None:
        return dict(zip(entries, degradations, strict=True))
    return {entry: at_severity(entry, each, severity) for entry, each in zip(entries, degradations, strict=True)}


def at_severity(entry: str, degradation: Any, severity: float | Sequence[float]) -> Any:
    if not hasattr(degradation, "severity"):
        raise ValueError(f"severity={severity}: '{entry}' has none: leave severity out, or choose other entries")
    return dataclasses.replace(degradation, severity=severity)


def generator(seed: int, image: str) -> np.random.Generator:
    return np.random.default_rng([seed, hash64(image)])


def degrade(way: Way, source: Path, target: Path) -> dict[str, Any]:
    """Writes the degraded image, whose depth, gray, alpha, profile and EXIF stay; returns the record that `recipe=` reads."""
    picture = read_image(source)
    x_lq, recipe = way.make(picture.to_rgb())
    result = picture.from_rgb(x_lq)
    write_image(target, result)
    return {
        "image": way.image,
        "entry": way.entry,
        "recipe": recipe,
        "hq_sha256": _sha256(picture),
        "lq_sha256": _sha256(result),
        "versions": VERSIONS,
    }


def report(records: Sequence[Mapping[str, Any]], skipped: Sequence[str], output: str) -> None:
    console = Console(markup=False, highlight=False, soft_wrap=True)
    for entry, number in Counter(record["entry"] for record in records).items():
        console.print(f"{entry}: degraded {number} image{'' if number == 1 else 's'} into {output}")
    if skipped:
        console.print("skipped:", *(f"  {reason}" for reason in skipped), sep="\n")


def compare(records: Sequence[Mapping[str, Any]], ways: Sequence[Way]) -> None:
    """Says whether the images repeated are those that were recorded; ValueError if one of them is not."""
    recorded = {(way.image, way.entry): way.recorded for way in ways}
    both = [(new, recorded[new["image"], new["entry"]]) for new in records]
    again = [(new, old) for new, old in both if old.get("hq_sha256") == new["hq_sha256"]]
    other = [(new, old) for new, old in again if old["lq_sha256"] != new["lq_sha256"]]
    if other:
        now, then = (" ".join(f"{k} {v}" for k, v in record["versions"].items()) for record in other[0])
        names = _some([new["image"] for new, _ in other])
        raise ValueError(
            f"{len(other)} of {len(again)} images ({names}) are written, but not bit for bit as recorded with {then}, "
            f"here {now}: install those versions, or take the images as they are"
        )
    if again:
        print(f"{len(again)} of {len(records)}: bit for bit as recorded")


def preview(config: DictConfig) -> None:
    """A picture of one row for each entry: the clean image, then each severity, or as many draws of what has none."""
    path = Path(config.image or PHOTOGRAPH)
    target = Path(PREVIEW_FILE if OmegaConf.is_missing(config, "output") else config.output)
    check_free([target], config.overwrite)
    x_hq = _central(read_image(path).to_rgb(), config.size)
    rows, captions, recipes = [], [], []
    for entry, degradation in chosen(config).items():
        rows.append([to_bytes(x_hq)])
        captions.append(["clean"])
        for column, severity in enumerate(config.severities):
            if hasattr(degradation, "severity"):
                caption, seed, one = f"{entry} {severity:g}", config.seed, at_severity(entry, degradation, severity)
            else:
                caption, seed, one = f"{entry}, draw {column + 1}", config.seed + column, degradation
            x_lq, recipe = one(x_hq, generator(seed, path.name))
            rows[-1].append(to_bytes(x_lq))
            captions[-1].append(caption)
            recipes.append({"image": path.name, "entry": entry, "recipe": recipe})
    write_image(target, panel(rows, captions, width=config.size))
    if config.json:
        write_text(Path(config.json), json.dumps(recipes, indent=1) + "\n")
    print(f"{len(rows)} degradations of {path.name} in {target}")


def _built(nodes: DictConfig, trust: Sequence[str]) -> dict[str, Any]:
    return {str(name): build(node, trust=trust) for name, node in nodes.items() if node}


def _central(x: Colour, size: int) -> Colour:
    height, width = x.shape[:2]
    size = min(size, height, width)
    top, left = (height - size) // 2, (width - size) // 2
    return x[top : top + size, left : left + size].copy()


def _sha256(picture: Picture) -> str:
    """Of the samples, whatever file they are in."""
    array = picture.array
    return hashlib.sha256(f"{array.dtype} {array.shape}".encode() + array.tobytes()).hexdigest()


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
