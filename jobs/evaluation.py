"""Values of single images that a run was measured by, as files beside it, and which of them may be compared with which.

`RUN/evaluation/NAME/per_image.json` is what `bdg evaluate json=` writes; `images/` beside it has the restored images.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jobs.states import read_object

FOLDER, FILE, IMAGES = "evaluation", "per_image.json", "images"
SAME_DB = 0.01
"""Degraded images whose PSNR differs by more are not the same."""

Place = tuple[str, str, float | None]
"""What an image is found by: degradation, key, severity."""


@dataclass(frozen=True)
class Evaluation:
    """Of one run. folder: where its files lie; about: weights, data and settings; images: a row for each."""

    name: str
    folder: Path
    protocol: str
    about: Mapping[str, Any]
    images: Sequence[Mapping[str, Any]]

    @cached_property
    def rows(self) -> dict[Place, Mapping[str, Any]]:
        return {(row["degradation"], row["key"], row.get("severity")): row for row in self.images}

    @cached_property
    def metrics(self) -> list[str]:
        """Names of the values that images have, such as psnr and ssim."""
        return [name for name in self.images[0] if f"{name}_input" in self.images[0]]

    @property
    def data(self) -> str:
        """What tells its degraded images apart from others, short."""
        facts = sorted((*map(str, place), f"{row['psnr_input']:.1f}") for place, row in self.rows.items())
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]

    def differs(self, other: "Evaluation") -> str:
        """Why the numbers of both must not be compared; "" if they may be."""
        if self.protocol != other.protocol:
            return f"the protocols differ: '{self.protocol}' and '{other.protocol}'"
        if missing := self.rows.keys() ^ other.rows.keys():
            degradation, key, _ = min(missing, key=str)
            return f"{len(missing)} images were measured in one of them only, such as {key} with {degradation}"
        for place, row in self.rows.items():
            if abs(row["psnr_input"] - other.rows[place]["psnr_input"]) > SAME_DB:
                return (
                    f"the degraded images differ: {place[1]} with {place[0]} had {row['psnr_input']:.2f} dB and "
                    f"{other.rows[place]['psnr_input']:.2f} dB before it was restored"
                )
        return ""


def evaluations(run: Path) -> list[Evaluation]:
    """Of a run: those in its evaluation folder, and that of the pipeline that made it; what is damaged is left out."""
    files = sorted((run / FOLDER).glob(f"*/{FILE}"), key=lambda path: path.parent.name)
    named = [(path.parent.name, path) for path in files] + [("pipeline", run / "summary.json")]
    return [found for name, path in named if (found := read_evaluation(name, path))]


def read_evaluation(name: str, path: Path) -> Evaluation | None:
    """What a file has; None if it is not there or not whole."""
    written = read_object(path)
    protocol, images = written.get("protocol"), written.get("images")
    if not isinstance(protocol, Mapping) or not isinstance(images, list) or not images:
        return None
    if not all(_is_row(row, images[0]) for row in images):
        return None
    about = {key: value for key, value in written.items() if key not in ("protocol", "images", "scores", "stages")}
    return Evaluation(name, path.parent, f"{protocol.get('text', 'unknown')}", about, images)


def _is_row(row: Any, first: Any) -> bool:
    return (
        isinstance(row, Mapping)
        and row.keys() == first.keys()
        and isinstance(row.get("key"), str)
        and isinstance(row.get("degradation"), str)
        and isinstance(row.get("severity"), int | float | None)
        and all(isinstance(row.get(name), int | float) for name in ("psnr", "psnr_input"))
        and all(isinstance(value, int | float) for name, value in row.items() if f"{name}_input" in row)
    )


def image_name(degradation: str, key: str, severity: float | None) -> str:
    """The file of an image, below the folder of its kind."""
    return f"{degradation}/{key if severity is None else f'{key}_{severity:g}'}.png"


def pictures(evaluation: Evaluation, place: Place) -> dict[str, Path]:
    """Where the degraded, the clean and the restored image lie, or would."""
    name = image_name(*place)
    common = evaluation.folder.parents[3] / FOLDER / evaluation.name
    return {
        "degraded": common / "degraded" / name,
        "clean": common / "clean" / name,
        "restored": evaluation.folder / IMAGES / name,
    }


@dataclass(frozen=True)
class Basis:
    """Evaluations that may be compared, by identity of the run; `head` stands for all."""

    head: Evaluation
    of: dict[str, Evaluation]

    @property
    def text(self) -> str:
        return f"{len(self.head.images)} images (data {self.head.data}), {self.head.protocol}"


def bases(found: Mapping[str, Sequence[Evaluation]]) -> list[Basis]:
    """Evaluations of runs, grouped so that the numbers of a group may be compared; the one of most runs first."""
    made: list[Basis] = []
    for identity, each in found.items():
        for evaluation in each:
            same = next((basis for basis in made if not basis.head.differs(evaluation)), None)
            if same is None:
                made.append(same := Basis(evaluation, {}))
            same.of.setdefault(identity, evaluation)
    return sorted(made, key=lambda basis: -len(basis.of))
