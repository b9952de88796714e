"""The code and the configs as they are now, copied so that a job that waits does not change when they are edited."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from jobs.run import FROZEN_CODE, code

PACKAGES = ("bdg", "callbacks", "datamodules", "jobs", "conf")
HOME = Path(__file__).parents[1]
"""The checkout, or where the wheel was installed."""


def freeze(folder: Path, config_folders: Sequence[Path] = ()) -> Path:
    """Copies the packages to folder/DIGEST, whole or not at all, and returns that place; the same files come to the same place.

    config_folders: those that precede the package's configs, first wins. All become one tree, `conf`, of which `--config-dir`
    then makes a job see no other.
    """
    files = _files(config_folders)
    about = json.dumps(code(), sort_keys=True)
    target = folder / _digest(files, about)
    if target.exists():
        return target
    beside = folder / f".{target.name}.{os.getpid()}"
    try:
        for name, source in files.items():
            (beside / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, beside / name)
        (beside / FROZEN_CODE).write_text(about)
        beside.rename(target)
    except OSError:
        if not target.exists():  # else another process was faster
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return target


def environment(frozen: Path) -> dict[str, str]:
    """Variables with which `python -m bdg` runs the frozen code, wherever it is started."""
    others = os.environ.get("PYTHONPATH")
    path = str(frozen.absolute())
    return {"PYTHONPATH": f"{path}{os.pathsep}{others}" if others else path, "PYTHONSAFEPATH": "1"}


def train_words(words: Sequence[str], identity: str, frozen: Path | None) -> list[str]:
    """What follows `python -m bdg` to train a task of a plan, and nothing else. frozen: None for the configs as they are."""
    flags = ["--config-dir", str(frozen.absolute() / "conf")] if frozen else []
    return ["train", *words, f"identity='{identity}'", *flags]  # Hydra would take some twelve digits for a number


def _files(config_folders: Sequence[Path]) -> dict[str, Path]:
    """Name in the copy -> file."""
    found = {f"{package}/{name}": path for package in PACKAGES for name, path in _below(HOME / package)}
    for folder in reversed(config_folders):
        found |= {f"conf/{name}": path for name, path in _below(folder) if path.suffix in (".yaml", ".yml")}
    return found


def _below(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            yield path.relative_to(folder).as_posix(), path


def _digest(files: Mapping[str, Path], about: str) -> str:
    digests = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    return hashlib.sha256(json.dumps([digests, about], sort_keys=True).encode()).hexdigest()[:12]
