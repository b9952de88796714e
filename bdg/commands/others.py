"""Somebody else's restored images: a folder of them, found by the names of the degraded images."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from numpy.typing import NDArray

from bdg.types import Image
from datamodules.images import SUFFIXES, read_image, upright_size
from datamodules.layouts.items import images, name_below


@dataclass(frozen=True)
class Named:
    """What an image of the data goes by. stem: of its degraded file; size: height and width of the clean image, if known."""

    degradation: str
    key: str
    severity: float | None = None
    stem: str | None = None
    set: str | None = None
    size: tuple[int, int] | None = None

    def names(self) -> list[str]:
        """Where its restored image is looked for below a folder, without suffix; the first that is there is taken."""
        if self.severity is not None:
            return [f"{self.degradation}/{self.key}_{self.severity:g}"]
        folders = [folder for folder in (self.set, self.degradation) if folder]
        stems = [stem for stem in (self.key, self.stem) if stem]
        return [*(f"{folder}/{stem}" for folder in folders for stem in stems), *stems]


class Outputs:
    """Restored images below a folder.

    Raises FileNotFoundError and ValueError for a folder that is not there or empty.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(
                f"outputs={folder}: no such folder: name one of restored images (save=FOLDER writes these weights' own)"
            )
        self.folder = folder
        self._found: dict[str, list[Path]] = defaultdict(list)
        for path in images(folder):
            parts = name_below(path, folder).lower().split("/")
            for begin in range(len(parts)):
                self._found["/".join(parts[begin:])].append(path)
        if not self._found:
            raise ValueError(f"outputs={folder}: no image in it (looked for {', '.join(SUFFIXES)})")
        self._taken: dict[Path, Named] = {}

    def check(self, wanted: Iterable[Named]) -> None:
        """Raises ValueError unless there is one image of the right size for each that is wanted."""
        wanted = list(wanted)
        missing = [named for named in wanted if not self._candidates(named)]
        if missing:
            raise ValueError(
                f"outputs={self.folder} lacks {len(missing)} of {len(wanted)} images, such as that of {missing[0].key} "
                f"(looked for {' and '.join(missing[0].names())}): add them, or name the files as the degraded ones"
            )
        for named in wanted:
            with (path := self.path(named)).open("rb") as file:
                if named.size and (size := upright_size(file)):
                    _check_size(path, size, named)

    def path(self, named: Named) -> Path:
        found = self._candidates(named)
        if len(found) != 1:
            what = f"holds {found[0]} and {found[1]}, both" if found else "lacks the image"
            raise ValueError(
                f"outputs={self.folder} {what} of {named.key} (looked for {' and '.join(named.names())}): name the files as "
                "the degraded ones, in folders of their sets or degradations"
            )
        if self._taken.setdefault(found[0], named) != named:
            raise ValueError(
                f"{found[0]} would be the output of {self._taken[found[0]].key} and of {named.key}: put outputs in folders of "
                "their sets or degradations"
            )
        return found[0]

    def read(self, named: Named) -> Image:
        """1 3 h w in [-1, 1]."""
        path = self.path(named)
        rgb: NDArray = read_image(path).to_rgb()
        _check_size(path, rgb.shape[:2], named)
        return torch.from_numpy(rgb).permute(2, 0, 1)[None] * 2 - 1

    def _candidates(self, named: Named) -> list[Path]:
        return next((self._found[name.lower()] for name in named.names() if name.lower() in self._found), [])


def _check_size(path: Path, size: Sequence[int], named: Named) -> None:
    if named.size and tuple(size) != named.size:
        ours = " x ".join(map(str, named.size))
        raise ValueError(
            f"{path} has {' x '.join(map(str, size))} pixels, but the clean image of {named.key} {ours}: restored images "
            "must have the size of the clean ones"
        )
