"""`bdg calibrate`: makes the explainer of some weights from known photographs, and measures it on held-out ones."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from bdg.commands.compose import build, written_config
from bdg.commands.explain import explainer_file
from bdg.commands.request import Request
from bdg.commands.restore import check_free, weights_file
from bdg.explain import CLEAN, Description, Explainer, Known, Scores, encoder_of, fit
from bdg.weights import load_weights
from datamodules.restoration import RestorationData
from datamodules.shards import digest
from jobs.run import write_text

ENCODER = "discriminator.encoder."
SIDE = 128
EVERY = 4
"""Of so many squares of a picture the head learns from one."""


@dataclass(frozen=True)
class Shards:
    """Patterns of the shards whose pictures become known, and of those that are held out."""

    known: list[str]
    held_out: list[str]


def run(config: DictConfig, request: Request) -> None:
    weights = weights_file(config.weights)
    output = Path(config.output) if config.output else explainer_file(weights)
    check_free([output], config.overwrite)
    tensors, about = load_weights(weights)
    own = run_config(weights)
    description = describing(tensors, about, config, own)
    shards = shards_of(config.source, own)
    known, held_out = pictures(shards, config, own, description)
    facts = {
        "identity": about.get("identity"),
        "severities": plain(config.severities),
        "known_digest": digest(shards.known),
        "held_out_digest": digest(shards.held_out),
    }
    explainer, scores = fit(description, known, held_out, config.width, config.decay, config.k, facts)
    explainer.save(output)
    console = Console(markup=False, highlight=False, soft_wrap=True)
    console.print(table(scores), *sentences(explainer, scores), f"{output}: for bdg restore explain=true", sep="\n")
    if config.json:
        said = {"weights": str(weights), "output": str(output), "seen_by": description.seen_by, **asdict(scores)}
        write_text(Path(config.json), json.dumps(said | facts, indent=1) + "\n")


def run_config(weights: Path) -> DictConfig | None:
    """The config of the run that the weights are of; None for weights that lie elsewhere."""
    path = weights.parent.parent / "config.yaml"
    if weights.name != "ema.safetensors" or not path.is_file():
        return None
    return written_config(path)


def describing(
    tensors: Mapping[str, Any], about: Mapping[str, Any], config: DictConfig, own: DictConfig | None
) -> Description:
    """MAS-GLCM of the config, and the encoder of the weights with its own, if they have one."""
    trained = any(name.startswith(ENCODER) for name in tensors)
    side = config.side or (own.data.crop if own else SIDE)
    return Description(
        plain(config.mas_glcm),
        encoder_of(tensors, ENCODER) if trained else None,
        about["glcm"] if trained else None,
        plain(config.statistics),
        side,
        config.grid,
    )


def pictures(
    shards: Shards, config: DictConfig, own: DictConfig | None, description: Description
) -> tuple[Known, Known]:
    """Known and held-out pictures, described."""
    degradation = config.get("degradation") or (own.degradation if own else None)
    if degradation is None:
        raise ValueError("degradation=null, but these are no weights of a run: add degradation=five, or others")
    made = {str(name): node and build(node, trust=config.trust) for name, node in degradation.items()}
    if CLEAN in made:
        raise ValueError(f"degradation.{CLEAN}: that is what undegraded pictures are called: rename it")
    data = RestorationData.to_measure(
        made, crop=None, severities=plain(config.severities), num_workers=config.num_workers
    )
    known, held_out = (described(data, each, description, config.images) for each in (shards.known, shards.held_out))
    return known, held_out


def shards_of(source: Any, own: DictConfig | None) -> Shards:
    """Raises ValueError where nothing would be known, or nothing held out."""
    if source is None and own is None:
        raise ValueError(
            "source=null, but these are no weights of a run: name a folder of shards, such as that of bdg pack "
            "pkg://datamodules/photographs runs/photographs parts=photographs"
        )
    if source is None and own is not None:
        held_out = [pattern for name in ("val_shards", "test_shards") for pattern in listed(own.data[name])]
        shards = Shards(listed(own.data.shards), held_out)
    else:
        paths = [path for folder in listed(plain(source)) for path in sorted(Path(folder).glob("*.tar"))]
        known = [f"{path}" for path in paths if path.name.startswith("train-")]
        shards = Shards(known, [f"{path}" for path in paths if f"{path}" not in known])
    if not shards.known or not shards.held_out:
        raise ValueError(
            f"source={plain(source)}: {len(shards.known)} shards train-* and {len(shards.held_out)} others: some photographs "
            "must be held out to calibrate on: pack them with bdg pack FOLDER SHARDS 'parts={train:rest,test:0.3}'"
        )
    return shards


def listed(patterns: Any) -> list[str]:
    return [] if patterns is None else [patterns] if isinstance(patterns, str) else list(patterns)


def described(data: RestorationData, patterns: list[str], description: Description, images: int) -> Known:
    """Pictures of at most `images` photographs: each as it is, and degraded in every way; pairs as they are."""
    features: list[Tensor] = []
    parts: list[Tensor] = []
    names: list[str] = []
    degradations: list[str] = []
    severities: list[float | None] = []

    def add(picture: Tensor, name: str, degradation: str, severity: float | None) -> None:
        squares = description.squares(picture.permute(0, 3, 1, 2))[:, 0]
        features.append(squares.mean(0))
        parts.append(squares[::EVERY])
        names.append(name)
        degradations.append(degradation)
        severities.append(severity)

    batches = data.measured(patterns)
    for batch in track(batches, "describing", len(batches), console=Console(stderr=True), transient=True):
        (name,) = batch["key"]
        if not names or name != names[-1]:
            if len({*names, name}) > images:
                break
            add(batch["x_hq"], name, CLEAN, None)
        severity = float(batch["severity"])
        kind = list(data.degradations)[int(batch["label"])]
        add(batch["x_lq"], name, kind, None if math.isnan(severity) else severity)
    whole = torch.arange(len(parts)).repeat_interleave(torch.tensor([len(part) for part in parts]))
    return Known(torch.stack(features), names, degradations, severities, torch.cat(parts), whole)


def table(scores: Scores) -> Table:
    made = Table("held out", "recognised")
    made.columns[1].justify = "right"
    for name, recall in scores.recall.items():
        made.add_row(name, f"{100 * recall:.1f} %", end_section=name == list(scores.recall)[-1])
    made.add_row("mean", f"{100 * scores.accuracy:.1f} %")
    return made


def sentences(explainer: Explainer, scores: Scores) -> Iterable[str]:
    part = explainer.description
    yield (
        f"{scores.num_pictures} pictures of {scores.num_photographs} held-out photographs; seen by {part.seen_by} of at most "
        f"{part.grid} x {part.grid} squares of {part.side} pixels; {len(explainer.known)} known pictures"
    )
    yield (
        f"expected calibration error {100 * scores.ece:.1f} %, before the temperature {explainer.temperature:.2f} "
        f"{100 * scores.ece_before:.1f} %; nearest picture of the same kind {100 * scores.nearest:.1f} %; "
        f"called unusual {100 * scores.unusual:.1f} %"
    )


def plain(value: Any) -> Any:
    return OmegaConf.to_object(value) if OmegaConf.is_config(value) else value
