"""`bdg restore`: an image or a folder of images, restored."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track

import bdg
from bdg.commands.compose import build
from bdg.commands.request import Request
from bdg.restoration import DEFAULT_SAMPLER, Restorer
from bdg.types import Image
from datamodules.images import SUFFIXES, Picture, check_format, read_image, write_image
from jobs.run import write_text

Restore = Callable[[Image, Sequence[str]], Image]
"""(x_lq, names) -> x_hq: a Restorer with its settings given."""

PACKAGED = Path(bdg.__file__).parent / "pretrained" / "demo.safetensors"
SHOWN = 3
"""How many files a message lists."""


@dataclass(frozen=True)
class Work:
    """What is to be read and where the result goes, and the files of the folder that are no images."""

    pairs: list[tuple[Path, Path]]
    others: list[Path]
    folder: bool


def run(config: DictConfig, request: Request) -> None:
    work = plan(Path(config.input), Path(config.output), into_folder=str(config.output).endswith("/"))
    check_free([target for _, target in work.pairs], config.overwrite)
    restorer = load_restorer(config)
    restore, settings = restoring(restorer, config)
    console = Console(markup=False, highlight=False, soft_wrap=True)
    console.print(f"weights {restorer}; {describe(settings)}")
    skipped = [f"{path}: not an image" for path in work.others]
    done = []
    for source, target in track(work.pairs, "restoring", console=Console(stderr=True), transient=True):
        try:
            picture = read_image(source)
            check_format(target, picture)
        except ValueError as error:
            if not work.folder:
                raise
            skipped.append(str(error))
            continue
        write_image(target, restored_picture(picture, restore, source.name))
        done.append(target)
    console.print(f"restored {_count(done, 'image')} into {config.output}")
    if skipped:
        console.print(f"skipped {_count(skipped, 'file')}:", *(f"  {reason}" for reason in skipped), sep="\n")
    if config.json:
        written = {"weights": str(restorer), **settings, "restored": [str(path) for path in done], "skipped": skipped}
        write_text(Path(config.json), json.dumps(written, indent=1) + "\n")


def plan(source: Path, target: Path, into_folder: bool = False) -> Work:
    """What to read and where to write. A folder is searched with all below and keeps its shape; hidden files stay out."""
    if not source.exists():
        raise FileNotFoundError(f"input={source}: no such file or folder: name an image or a folder of images")
    if source.is_file():
        target = target / source.name if into_folder or target.is_dir() else target
        return Work([(source, target)], [], folder=False)
    if target.is_file():
        raise ValueError(f"output={target} is a file, but input={source} a folder: name a folder to write to")
    files = sorted(path for path in source.rglob("*") if path.is_file())
    own = [path for path in files if not any(part.startswith(".") for part in path.relative_to(source).parts)]
    if target.resolve() != source.resolve():
        own = [path for path in own if not path.resolve().is_relative_to(target.resolve())]  # of an earlier run
    images = [path for path in own if path.suffix.lower() in SUFFIXES]
    if not images:
        raise ValueError(f"input={source}: no image among its {len(own)} files (looked for {', '.join(SUFFIXES)})")
    others = [path for path in own if path not in set(images)]
    return Work([(path, target / path.relative_to(source)) for path in images], others, folder=True)


def check_free(targets: Sequence[Path], overwrite: bool) -> None:
    """Raises FileExistsError for what is there already, unless it may be replaced."""
    there = [str(path) for path in targets if path.exists()]
    if there and not overwrite:
        shown = ", ".join(there[:SHOWN]) + (f" and {len(there) - SHOWN} more" if len(there) > SHOWN else "")
        raise FileExistsError(f"{shown}: exists already: choose another output, or replace with overwrite=true")


def load_restorer(config: DictConfig) -> Restorer:
    """The weights that `conf/inference.yaml` names, on its device."""
    return Restorer.load(weights_file(config.weights), device(config.device), tuple(config.trust))


def weights_file(given: str | None) -> Path:
    """The file meant by a file, the folder of a run, or nothing: then the one in the package."""
    if given is None:
        if not PACKAGED.is_file():
            raise FileNotFoundError(
                f"no weights are packaged with bdg {bdg.__version__} (looked for {PACKAGED}): name yours with "
                "weights=PATH, or train some with: make demo"
            )
        return PACKAGED
    path = Path(given)
    return path / "weights" / "ema.safetensors" if path.is_dir() else path


def device(name: str) -> torch.device:
    """The device meant by a name or by "auto"."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without it
        raise ValueError(f"device={name} cannot be used ({str(error).splitlines()[0]}): give auto or cpu") from None
    return torch.device(name)


def restoring(restorer: Restorer, config: DictConfig) -> tuple[Restore, dict[str, Any]]:
    """The restorer with the settings of `conf/inference.yaml` given, and those settings as one reads them in a report."""
    node = config.get("sampler") or restorer.about.get("sampler", DEFAULT_SAMPLER)
    steps = node.get("sample_steps") if config.sample_steps is None else config.sample_steps
    sampler = build(config.sampler, trust=config.trust) if config.get("sampler") else restorer.sampler
    given = {name: config[name] for name in ("sample_steps", "seed", "tile", "overlap")}
    drawn = {name: value for name, value in node.items() if not name.startswith("_")}
    settings = {"sampler": node["_target_"].rpartition(".")[2], **drawn, **given, "sample_steps": steps}
    return partial(restorer, sampler=sampler, **given), settings | {"device": str(restorer.device)}


def describe(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)


def restored_picture(picture: Picture, restore: Restore, name: str) -> Picture:
    """The picture with its colour restored; depth, gray, alpha, profile and EXIF stay."""
    x_lq = torch.from_numpy(picture.to_rgb()).permute(2, 0, 1)[None] * 2 - 1
    x_hq = restore(x_lq, [name])
    return picture.from_rgb(np.ascontiguousarray((x_hq[0].permute(1, 2, 0).numpy() + 1) / 2))


def _count(things: Iterable[Any], what: str) -> str:
    number = len(list(things))
    return f"{number} {what}{'' if number == 1 else 's'}"
