"""`bdg restore`: an image or a folder of images, restored."""

import json
import math
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.progress import Progress

import bdg
from bdg.commands.batches import (
    Done,
    Finding,
    Look,
    Pair,
    Size,
    area,
    batches,
    by_size,
    read_pair,
    restore_batch,
    size_of,
    write_pair,
)
from bdg.commands.compose import build
from bdg.commands.explain import explainer_of, explanations, is_color_degradation, lines, plain
from bdg.commands.journal import Journal
from bdg.commands.request import Request
from bdg.commands.sheet import Row, check_crop, check_sheet, read_row, write_sheet
from bdg.files import digest
from bdg.restoration import DEFAULT_SAMPLER, PACKAGED, Restorer
from bdg.types import Image
from datamodules.images import SUFFIXES
from jobs.run import weights_in, write_text

UNUSUAL = {"memory_gb": None, "precision": "float32", "strength": 1, "ensemble": 1, "keep_color": False}
"""Settings that a report names only where they are not these."""
SHOWN = 3
"""How many files a message lists."""

WORTH_SAYING_S = 10
"""Work that takes less is not announced."""
WORTH_MEASURING = 250_000
"""Pixels in all from which on it is asked how long they take."""

FORMATS = {
    "same": (),
    "png": (".png",),
    "jpg": (".jpg", ".jpeg"),
    "webp": (".webp",),
    "tiff": (".tif", ".tiff"),
}
"""Format of results -> the ends of their names."""


@dataclass(frozen=True)
class Work:
    """What is to be read and where the result goes; other files of the folder, and folders in it that are closed."""

    pairs: list[Pair]
    others: list[Path]
    folder: bool
    closed: Sequence[Path] = ()


def run(config: DictConfig, request: Request) -> None:
    check_options(config)
    source, output = Path(config.input), Path(config.output)
    work = plan(source, output, f"{config.output}".endswith("/"), FORMATS[config.format])
    check_apart(work.pairs, source, output)
    sheet = Path(config.sheet) if config.sheet else None
    if sheet:
        check_sheet(sheet)
        if sheet.resolve() in {path.resolve() for pair in work.pairs for path in pair}:
            raise ValueError(f"sheet={sheet} is one of the pictures themselves: choose another name")
        for path, _ in work.pairs[: config.sheet_images] if config.crop else ():
            check_crop(tuple(config.crop), path, *(size_of(path) or (0, 0)))
    check_free([*([sheet] if sheet else []), *([] if work.folder else [work.pairs[0][1]])], config.overwrite)
    restorer = load_restorer(config)
    restore, settings = restoring(restorer, config)
    about = f"weights {restorer}; {describe(settings)}"
    journal = Journal.open(output, lasting(restorer, config, settings)) if work.folder else None
    kept = done_before(work.pairs, journal, config.overwrite) if journal else set()
    console = Console(markup=False, highlight=False, soft_wrap=True)
    console.print(about)
    done = Done([pair for pair in work.pairs if pair in kept])
    done.skipped.extend(f"{folder}: this folder may not be read: chmod +rx it" for folder in work.closed)
    todo = [pair for pair in work.pairs if pair not in kept]
    restore_all(todo, restorer, restore, journal, config, done)
    print_report(done, work, config, console)
    if sheet:
        rows = sheet_rows(work, done, config)
        total = len(done.pictures) + len(done.kept)
        notes = (
            [f"{total - len(rows)} of {total} are not shown (sheet_images={len(rows)})"] if total > len(rows) else []
        )
        write_sheet(sheet, rows, f"{_count(rows, 'image')} of {source}", about, notes)
        console.print(f"{sheet}: {_count(rows, 'image')} before and after")
    if config.json:
        written = {"weights": str(restorer), **settings, **outcome(work, done)}
        write_text(Path(config.json), json.dumps(written, indent=1) + "\n")
    if done.skipped:
        raise ValueError(f"{_count(done.skipped, 'image')} of {len(work.pairs)} could not be restored (named above)")


def check_options(config: DictConfig) -> None:
    """Raises ValueError for what can be known to be wrong before anything is read."""
    if config.format not in FORMATS:
        raise ValueError(f"format={config.format}: choose one of {', '.join(FORMATS)}")
    if not 1 <= config.quality <= 100:
        raise ValueError(f"quality={config.quality}: give 1 to 100, for JPEG")
    if config.keep_color == "auto" and not config.explain:
        raise ValueError("keep_color=auto asks what degraded a picture: add explain=true, or give true or false")
    if config.bits not in (None, 8):
        raise ValueError(f"bits={config.bits}: give 8 to reduce pictures of 16 bits, or null to keep them")
    for name in ("batch_size", "sheet_images"):
        if config[name] < 1:
            raise ValueError(f"{name}={config[name]}: give 1 or more")
    if config.crop is not None and (not config.sheet or len(config.crop) != 4):
        raise ValueError(f"crop={config.crop}: give [top,left,height,width] in pixels, with sheet=PATH")


def check_apart(pairs: Sequence[Pair], source: Path, output: Path) -> None:
    """Raises ValueError if a result would replace what it is made of, or another result."""
    if output.is_dir() and source.is_dir() and output.samefile(source):
        raise ValueError(f"output={output} is the input itself: choose another folder, such as {output}_restored")
    for one, target in pairs:
        if target.exists() and target.samefile(one):
            raise ValueError(f"output={target} is the input itself: choose another name, so that the original stays")
    if twice := [target for target, times in Counter(target for _, target in pairs).items() if times > 1]:
        raise ValueError(f"images that differ in their extension only would both become {twice[0]}: give format=same")


def lasting(restorer: Restorer, config: DictConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All that a restored file depends on; where and in which batches it was computed is no part of it."""
    kept = {name: value for name, value in settings.items() if name not in ("device", "memory_gb")}
    weights = digest(restorer.path) if restorer.path else str(restorer)
    return {"weights": weights, **kept, "quality": config.quality, "bits": config.bits}


def done_before(pairs: Sequence[Pair], journal: Journal, overwrite: bool) -> set[Pair]:
    """Pairs whose target is there and is what this run would make.

    Raises FileExistsError for other targets that are there, unless they may be replaced.
    """
    there = {pair: journal.why_not(*pair) for pair in pairs if pair[1].exists()}
    if (other := {pair: why for pair, why in there.items() if why}) and not overwrite:
        shown = [f"{target}: {why}" for (_, target), why in list(other.items())[:SHOWN]]
        more = f" and {len(other) - SHOWN} more" if len(other) > SHOWN else ""
        raise FileExistsError(f"{'; '.join(shown)}{more}: choose another output, or replace with overwrite=true")
    return there.keys() - other.keys()


def restore_all(
    pairs: Sequence[Pair],
    restorer: Restorer,
    restore: partial[Image],
    journal: Journal | None,
    config: DictConfig,
    done: Done,
) -> None:
    """Restores pairs in batches under a progress bar and notes in `done` what became of them. journal: None for a file."""
    write = partial(write_pair, quality=config.quality, bits=config.bits, journal=journal)
    sizes = {pair: size_of(pair[0]) for pair in pairs}
    asked = list(batches(sizes, config.batch_size))
    looking = looks(restorer, restore, config)
    shown = Console(stderr=True, highlight=False)
    with Progress(console=shown, transient=True, disable=not shown.is_terminal) as progress:
        if (seconds := expected_seconds(asked, sizes, restorer, restore)) >= WORTH_SAYING_S:
            shown.print(f"{_count(pairs, 'image')} on {restorer.device}: some {duration(seconds)}")
        bar = progress.add_task("restoring", total=sum(map(area, sizes.values())))
        for batch in asked:
            readings = []
            for pair in batch:
                try:
                    readings.append(read_pair(pair, config.bits))
                except (ValueError, OSError) as error:
                    if journal is None:
                        raise
                    done.skipped.append(f"{error}")
            for same in by_size(readings):
                restore_batch(same, restore, looking, write, done, strict=journal is None)
            progress.advance(bar, sum(area(sizes[pair]) for pair in batch))


def expected_seconds(
    asked: Sequence[Sequence[Pair]], sizes: Mapping[Pair, Size | None], restorer: Restorer, restore: partial[Image]
) -> float:
    """About how long the batches take, as far as their size is known."""
    total = 0.0
    if sum(map(area, sizes.values())) < WORTH_MEASURING:
        return total
    for batch in asked:
        if size := sizes[batch[0]]:
            with suppress(ValueError):  # restoring them says why it cannot be
                total += restorer.seconds(*size, len(batch), **restore.keywords)
    return total


def duration(seconds: float) -> str:
    """In the unit that one would say it in."""
    for size, name in ((3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.{int(seconds < 10 * size and name == 'h')}f} {name}"
    return f"{seconds:.0f} s"


def looks(restorer: Restorer, restore: partial[Image], config: DictConfig) -> list[Look]:
    """What is to be found out about each image on the way."""

    def verify(x_lq: Image, names: Sequence[str]) -> list[Finding]:
        images = zip(x_lq, names, strict=True)
        gaps = [restorer.compare_tiled(x[None], [name], **restore.keywords) for x, name in images]
        # JSON knows no infinity, which is the PSNR of what is equal
        plain_gaps = [asdict(gap) | {"psnr": gap.psnr if math.isfinite(gap.psnr) else None} for gap in gaps]
        return [Finding({"verify": facts}, [f"{gap}"]) for gap, facts in zip(gaps, plain_gaps, strict=True)]

    def tile(x_lq: Image, names: Sequence[str]) -> list[Finding]:
        keys = ("overlap", "ensemble", "memory_gb")
        edge = restorer.fitting_tile(*x_lq.shape[-2:], **{key: restore.keywords[key] for key in keys})
        return [Finding({"tile": edge})] * len(names)

    def explain(x_lq: Image, names: Sequence[str]) -> list[Finding]:
        found = explanations(config, restorer, x_lq)
        guards = [
            {"keep_color": not is_color_degradation(each)} if config.keep_color == "auto" else {} for each in found
        ]
        return [
            Finding({"explanation": plain(each)}, lines(each), guard) for each, guard in zip(found, guards, strict=True)
        ]

    if config.explain:
        explainer_of(restorer)  # or says that there is none
    asked = ((tile, config.tile == "auto"), (verify, config.verify), (explain, config.explain))
    return [look for look, wanted in asked if wanted]


def print_report(done: Done, work: Work, config: DictConfig, console: Console) -> None:
    for (source, _), notes in done.notes.items():
        for note in notes:
            console.print(f"{source}: {note}")
    console.print(f"restored {_count(done.pictures, 'image')} into {config.output}")
    if done.kept:
        console.print(f"kept {_count(done.kept, 'image')} that had been restored before")
    if skipped := [*foreign(work), *done.skipped]:
        console.print(f"skipped {_count(skipped, 'file')}:", *(f"  {reason}" for reason in skipped), sep="\n")


def outcome(work: Work, done: Done) -> dict[str, Any]:
    """What became of the pictures, as JSON takes it."""
    return {
        "restored": [f"{target}" for _, target in done.pictures],
        "kept": [f"{target}" for _, target in done.kept],
        "skipped": [*foreign(work), *done.skipped],
        "images": list(done.pictures.values()),
    }


def foreign(work: Work) -> list[str]:
    return [f"{path}: not an image" for path in work.others]


def sheet_rows(work: Work, done: Done, config: DictConfig) -> list[Row]:
    """The first `sheet_images` that are there, in the order of their names."""
    crop = None if config.crop is None else tuple(config.crop)
    there = [pair for pair in work.pairs if pair in done.pictures or pair in done.kept][: config.sheet_images]
    folder = Path(config.input)
    names = {pair: f"{pair[0].relative_to(folder)}" if work.folder else pair[0].name for pair in there}
    return [read_row(names[pair], *pair, crop, done.notes.get(pair, ())) for pair in there]


def plan(source: Path, target: Path, into_folder: bool = False, suffixes: Sequence[str] = ()) -> Work:
    """What to read and where to write. A folder is searched with all below and keeps its shape; hidden files stay out.

    suffixes: of the format that is asked for, the first is the usual one; none: every image keeps its own.
    """
    if not source.exists():
        raise FileNotFoundError(f"input={source}: no such file or folder: name an image or a folder of images")
    if source.is_file():
        if into_folder or target.is_dir():
            target = renamed(target / source.name, suffixes)
        elif suffixes and target.suffix.lower() not in suffixes:
            raise ValueError(f"output={target} does not end in {suffixes[0]}, as format asks: leave format out")
        return Work([(source, target)], [], folder=False)
    if target.is_file():
        raise ValueError(f"output={target} is a file, but input={source} a folder: name a folder to write to")
    found = sorted(source.rglob("*"))
    files = [path for path in found if path.is_file()]
    closed = [path for path in found if path.is_dir() and not os.access(path, os.R_OK | os.X_OK)]
    own = [path for path in files if not any(part.startswith(".") for part in path.relative_to(source).parts)]
    if target.resolve() != source.resolve():
        own = [path for path in own if not path.resolve().is_relative_to(target.resolve())]  # of an earlier run
    images = [path for path in own if path.suffix.lower() in SUFFIXES]
    if not images:
        raise ValueError(f"input={source}: no image among its {len(own)} files (looked for {', '.join(SUFFIXES)})")
    others = [path for path in own if path not in set(images)]
    targets = (renamed(target / path.relative_to(source), suffixes) for path in images)
    return Work(list(zip(images, targets, strict=True)), others, True, closed)


def renamed(path: Path, suffixes: Sequence[str]) -> Path:
    """With the first of the suffixes, unless it has one of them."""
    return path if not suffixes or path.suffix.lower() in suffixes else path.with_suffix(suffixes[0])


def check_free(targets: Sequence[Path], overwrite: bool) -> None:
    """Raises FileExistsError for what is there already, unless it may be replaced."""
    there = [str(path) for path in targets if path.exists()]
    if there and not overwrite:
        shown = ", ".join(there[:SHOWN]) + (f" and {len(there) - SHOWN} more" if len(there) > SHOWN else "")
        raise FileExistsError(f"{shown}: exists already: choose another output, or replace with overwrite=true")


def load_restorer(config: DictConfig) -> Restorer:
    """The weights that `conf/inference.yaml` names, on its device."""
    return Restorer.load(weights_file(config.weights), config.device, tuple(config.trust), config.precision)


def weights_file(given: str | None) -> Path:
    """The file meant by a file, the folder of a run or of an export, or nothing: then the one in the package."""
    if given is None:
        if not PACKAGED.is_file():
            raise FileNotFoundError(
                f"no weights are packaged with bdg {bdg.__version__} (looked for {PACKAGED}): name yours with "
                "weights=PATH, or train some with: make demo"
            )
        return PACKAGED
    path = Path(given)
    return weights_in(path) if path.is_dir() else path


def restoring(restorer: Restorer, config: DictConfig) -> tuple[partial[Image], dict[str, Any]]:
    """The restorer with the settings of `conf/inference.yaml` given, and those settings as one reads them in a report.

    keep_color=auto is off here: who knows the degradation of a picture says so in the call.
    """
    node = config.get("sampler") or restorer.about.get("sampler", DEFAULT_SAMPLER)
    steps = node.get("sample_steps") if config.sample_steps is None else config.sample_steps
    sampler = build(config.sampler, trust=config.trust) if config.get("sampler") else restorer.sampler
    given = {name: config[name] for name in ("sample_steps", "seed", "tile", "overlap")}
    chosen = {name: config.get(name, usual) for name, usual in UNUSUAL.items()}
    unusual = {name: value for name, value in chosen.items() if value != UNUSUAL[name]}
    if chosen["keep_color"] not in (True, False, "auto"):
        raise ValueError(f"keep_color={chosen['keep_color']}: choose true, false or auto")
    if config.seed < 0:
        raise ValueError(f"seed={config.seed}: give 0 or more")
    drawn = {name: value for name, value in node.items() if not name.startswith("_")}
    settings = {"sampler": node["_target_"].rpartition(".")[2], **drawn, **given, "sample_steps": steps, **unusual}
    del chosen["precision"]  # that is the network's
    chosen["keep_color"] = chosen["keep_color"] is True
    return partial(restorer, sampler=sampler, **given, **chosen), settings | {"device": str(restorer.device)}


def describe(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)


def _count(things: Collection[Any], what: str) -> str:
    return f"{len(things)} {what}{'' if len(things) == 1 else 's'}"
