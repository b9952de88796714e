"""The code and the configs as they are now, copied so that a job that waits does not change when they are edited."""

import hashlib
import json
import os
import shutil
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from jobs.run import FROZEN_CODE, code

PACKAGES = ("bdg", "callbacks", "datamodules", "jobs", "conf")
HOME = Path(__file__).parents[1]
"""The checkout, or where the wheel was installed."""
TEXTS = (".py", ".yaml", ".yml", ".json", ".toml", ".txt")
"""What is copied of a trusted package; data stay where they are."""


def freeze(folder: Path, config_folders: Sequence[Path] = (), trusted: Sequence[str] = ()) -> Path:
    """Copies the packages to folder/DIGEST, whole or not at all, and returns that place; the same files come to the same place.

    trusted: further packages or modules; those that are installed, and not in a folder of the user's, are left where they are.
    config_folders: those that precede the package's configs, first wins. All become one tree, `conf`, of which `--config-dir`
    then makes a job see no other.
    """
    files = _files(config_folders) | _trusted(trusted)
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


def _trusted(names: Sequence[str]) -> dict[str, Path]:
    """As `_files`."""
    installed = [Path(sysconfig.get_path(kind)) for kind in ("stdlib", "purelib", "platlib")]
    found = {}
    for name in dict.fromkeys(name.partition(".")[0] for name in names):
        spec = find_spec(name)
        origin = Path(spec.origin) if spec and spec.origin else None
        if name in PACKAGES or origin is None or any(origin.is_relative_to(folder) for folder in installed):
            continue
        if origin.name != "__init__.py":
            found[origin.name] = origin
            continue
        found |= {f"{name}/{below}": path for below, path in _below(origin.parent) if path.suffix in TEXTS}
    return found


def _below(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            yield path.relative_to(folder).as_posix(), path


def _digest(files: Mapping[str, Path], about: str) -> str:
    digests = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    return hashlib.sha256(json.dumps([digests, about], sort_keys=True).encode()).hexdigest()[:12]
