"""`bdg probe`: how well nearest neighbours tell a degradation's type and severity from each descriptor; trains nothing."""

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy.typing import NDArray
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table
from torch import Tensor

import datamodules
from bdg.commands.compose import build
from bdg.commands.request import Request
from bdg.probe import accuracy, fold_of, numbered, predict
from datamodules.images import SUFFIXES, decode
from jobs.run import write_text

Descriptor = Callable[[Tensor], Tensor]  # uint8 b 3 h w -> one array per image
Degrade = Callable[[NDArray[np.float32], np.random.Generator], tuple[NDArray[np.float32], dict[str, Any]]]

PACKAGED = Path(datamodules.__path__[0]) / "photographs"
BATCH = 25  # images in memory at once


@dataclass(frozen=True)
class Sample:
    """One image: what it shows, what was done to it (level "": the folders do not say), and how to make it."""

    photograph: str
    type: str
    level: str
    path: Path
    degrade: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None

    def image(self, size: int) -> UInt8[Tensor, "3 {size} {size}"]:
        """The central square of the file, degraded after it was cut out."""
        square = _central_square(self.path, size)
        return torch.from_numpy(self.degrade(square) if self.degrade else square).permute(2, 0, 1)


def run(config: DictConfig, request: Request) -> None:
    degradations = ways(config)
    descriptors = {name: build(node) for name, node in config.descriptor.items()}
    samples = find_samples(Path(config.source or PACKAGED), degradations, config.seed)
    photographs = [sample.photograph for sample in samples]
    groups: dict[str, Sequence[str | int]] = {"photograph": photographs, "random": range(len(samples))}
    if config.split not in groups:
        raise ValueError(f"split={config.split}: type split={' or split='.join(groups)}")
    fold = fold_of(groups[config.split], config.folds, config.seed)
    truth = labels(samples)

    protocol = {key: config[key] for key in ("size", "split", "folds", "k", "seed")} | {
        "distance": "euclidean",
        "images": len(samples),
        "photographs": len(set(photographs)),
        "types": list(dict.fromkeys(sample.type for sample in samples)),
        "levels": list(dict.fromkeys(sample.level for sample in samples if sample.level)),
        "guessing": {name: int(label.bincount().max()) / len(label) for name, label in truth.items()},
    }
    features = describe(samples, descriptors, config.size)
    scores = {name: score(feature, truth, samples, fold, config.k) for name, feature in features.items()}
    show(protocol, scores)
    if config.json:
        write_text(Path(config.json), json.dumps({"protocol": protocol, "descriptors": scores}, indent=1) + "\n")


def ways(config: DictConfig) -> dict[tuple[str, str], Degrade]:
    """(type, level) -> degradation: one for each severity, or a single one of level "" where it has none."""
    found: dict[tuple[str, str], Degrade] = {}
    for name, node in config.degradation.items():
        make = partial(build, node)
        if hasattr(degrade := make(), "severity"):
            found |= {(str(name), f"{severity:g}"): make(severity=severity) for severity in config.severities}
        else:
            found[str(name), ""] = degrade
    return found


def find_samples(source: Path, degradations: Mapping[tuple[str, str], Degrade], seed: int) -> list[Sample]:
    """What a folder offers: photographs in it are degraded in every way; images in its TYPE/ or TYPE/LEVEL/ are as they are.

    `degradations` are named by (type, level). In TYPE/ and TYPE/LEVEL/, files of one stem show the same photograph.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it.
        ValueError: images lie at several depths, or come from one photograph only.
    """
    if not source.is_dir():
        raise FileNotFoundError(f"source={source} is not a folder: name one that holds photographs")
    clean, typed, graded = (_images(source, depth) for depth in ("*", "*/*", "*/*/*"))
    found = [paths[0] for paths in (clean, typed, graded) if paths]
    if not found:
        raise FileNotFoundError(
            f"source={source} has no images ({' '.join(SUFFIXES)}), nor has its TYPE/ or TYPE/LEVEL/: "
            "name a folder that holds photographs"
        )
    if len(found) > 1:
        raise ValueError(
            f"source={source} has images at several depths ({', '.join(str(path.relative_to(source)) for path in found)}): "
            "clean photographs, TYPE/IMAGE and TYPE/LEVEL/IMAGE each need a folder of their own"
        )
    samples = [
        *(Sample(path.stem, path.parent.name, "", path) for path in typed),
        *(Sample(path.stem, path.parent.parent.name, path.parent.name, path) for path in graded),
        *(
            Sample(path.name, name, level, path, partial(_degraded, degrade, f"{path.name} {name} {level}", seed))
            for path in clean
            for (name, level), degrade in degradations.items()
        ),
    ]
    if len({sample.photograph for sample in samples}) < 2:
        raise ValueError(f"source={source} has one photograph, which has no neighbours: give at least two")
    return samples


def labels(samples: Sequence[Sample]) -> dict[str, Int[Tensor, " n"]]:
    """What is asked of each sample: its type; and, where all have one, its level, which is right only with its type."""
    asked = {"type": numbered([sample.type for sample in samples])}
    if all(sample.level for sample in samples):
        asked["level"] = numbered([(sample.type, sample.level) for sample in samples])
    return asked


def describe(
    samples: Sequence[Sample], descriptors: Mapping[str, Descriptor], size: int
) -> dict[str, Float[Tensor, "n d"]]:
    """One vector per sample from each descriptor; images are made batch by batch and not kept."""
    parts: dict[str, list[Tensor]] = {name: [] for name in descriptors}
    terminal = Console(stderr=True)
    starts = range(0, len(samples), BATCH)
    for start in track(starts, "describing", console=terminal, transient=True, disable=not terminal.is_terminal):
        images = torch.stack([sample.image(size) for sample in samples[start : start + BATCH]])
        for name, descriptor in descriptors.items():
            parts[name].append(descriptor(images).flatten(1).float())
    return {name: torch.cat(part) for name, part in parts.items()}


def score(
    features: Float[Tensor, "n d"],
    truth: Mapping[str, Int[Tensor, " n"]],
    samples: Sequence[Sample],
    fold: Int[Tensor, " n"],
    k: int,
) -> dict[str, Any]:
    """Length of a descriptor's vector and, for each question, share of right answers: overall and of each type."""
    asked = torch.stack(list(truth.values()), 1)
    correct = predict(features, asked, fold, k) == asked
    result: dict[str, Any] = {"length": features.shape[1]}
    for question, right in zip(truth, correct.unbind(1), strict=True):
        share, error = accuracy(right, [sample.photograph for sample in samples])
        of_type: dict[str, list[bool]] = {}
        for sample, is_right in zip(samples, right.tolist(), strict=True):
            of_type.setdefault(sample.type, []).append(is_right)
        per_type = {name: sum(answers) / len(answers) for name, answers in of_type.items()}
        result[question] = {"accuracy": share, "standard_error": error, "per_type": per_type}
    return result


def show(protocol: Mapping[str, Any], scores: Mapping[str, Mapping[str, Any]]) -> None:
    table = Table("descriptor", *(Column(title, justify="right") for title in ("values", *protocol["guessing"])))
    for name, result in scores.items():
        shares = [result[question] for question in protocol["guessing"]]
        cells = (f"{100 * share['accuracy']:.1f} ± {100 * share['standard_error']:.1f}" for share in shares)
        table.add_row(name, str(result["length"]), *cells)
    table.add_row("(guessing)", "", *(f"{100 * share:.1f}      " for share in protocol["guessing"].values()))
    console = Console(markup=False)
    console.print(table)
    console.print(
        "% right ± standard error over photographs; level: type and level together.\n"
        "{images} images of {photographs} photographs, central {size} x {size} pixels; types: {}; levels: {}.\n"
        "k-NN: k={k}, {distance} distance, {folds} folds split by {split}, seed {seed}.".format(
            ", ".join(protocol["types"]), ", ".join(protocol["levels"]) or "none", **protocol
        ),
        highlight=False,
    )


def _images(source: Path, depth: str) -> list[Path]:
    return [path for path in sorted(source.glob(depth)) if path.suffix.lower() in SUFFIXES and path.is_file()]


@lru_cache(maxsize=1)  # samples of one photograph follow each other
def _central_square(path: Path, size: int) -> NDArray[np.uint8]:
    image = decode(path.read_bytes(), str(path))
    h, w = image.shape[:2]
    if min(h, w) < size:
        raise ValueError(f"{path}: {h} x {w} pixels, smaller than size={size}: leave it out, or type size={min(h, w)}")
    top, left = (h - size) // 2, (w - size) // 2
    return image[top : top + size, left : left + size].copy()


def _degraded(degrade: Degrade, key: str, seed: int, square: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """As it would be stored: rounded to 8 bits. The draw depends on seed and key, not on what else is in the folder."""
    x_lq, _ = degrade(
        square.astype(np.float32) / np.float32(255), np.random.default_rng([seed, zlib.crc32(key.encode())])
    )
    return np.rint(x_lq * 255).astype(np.uint8)
