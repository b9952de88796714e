"""What is thought of a picture before it is restored: the explainer beside the weights, in words and as JSON."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from bdg.explain import CLEAN, Explainer, Explanation
from bdg.glcm import to_uint8
from bdg.restoration import Restorer
from bdg.types import Image

COLOR = ("haze", "low", "light")
"""Words in the names of degradations that change colour as a whole, so that to restore it is the task."""
COLOR_SHARE = 0.2
"""From this probability on a degradation of colour is not ruled out."""
SHOWN = 3
"""Degradations and neighbours that a line of text names."""


def explanations(config: DictConfig, restorer: Restorer, x_lq: Image) -> list[Explanation]:
    """Of each image of a batch in [-1, 1], by the explainer that lies beside the restorer's weights.

    Raises FileNotFoundError where there is none, ValueError where it was made for other weights.
    """
    return explainer_of(restorer)(to_uint8(x_lq.cpu()))


def explainer_of(restorer: Restorer) -> Explainer:
    """The explainer beside the weights."""
    path = explainer_file(restorer.path) if restorer.path else None
    if path is None or not path.is_file():
        raise FileNotFoundError(
            f"explain=true, but beside {restorer.path} there is no explainer ({path.name if path else 'no file'}): "
            "make it with bdg calibrate WEIGHTS source=SHARDS"
        )
    explainer = _loaded(path, path.stat().st_mtime_ns)
    if explainer.about.get("identity") != restorer.about.get("identity"):
        raise ValueError(
            f"{path} was made for the weights {explainer.about.get('identity')}, but {restorer.path} are "
            f"{restorer.about.get('identity')}: make it anew with bdg calibrate {restorer.path}"
        )
    return explainer


def explainer_file(weights: Path) -> Path:
    """Where the explainer of weights lies: explain.safetensors in a run or an export, else NAME.explain.safetensors."""
    own = ("ema.safetensors", "model.safetensors")
    return weights.with_name("explain.safetensors" if weights.name in own else f"{weights.stem}.explain.safetensors")


@lru_cache(maxsize=2)
def _loaded(path: Path, _: int) -> Explainer:
    return Explainer.load(path)


def lines(explanation: Explanation) -> list[str]:
    """An explanation as text."""
    parts = list(explanation.probabilities.items())[:SHOWN]
    text = [f"{', '.join(f'{name} {100 * share:.0f} %' for name, share in parts)} (seen by {explanation.seen_by})"]
    near = [f"{named(*each[:3])} ({each[3]:.2f})" for each in explanation.nearest[:SHOWN]]
    text.append(f"nearest: {', '.join(near)}")
    if explanation.unusual:
        text.append(
            f"unusual: unlike all known pictures (distance {explanation.distance:.2f}, usual up to {explanation.limit:.2f}); "
            "the percentages may mean nothing"
        )
    return text


def named(name: str, degradation: str, severity: float | None) -> str:
    return " ".join([name, degradation, *([] if severity is None else [f"{severity:g}"])])


def plain(explanation: Explanation) -> dict[str, Any]:
    """An explanation as JSON takes it."""
    keys = ("name", "degradation", "severity", "distance")
    return {
        "probabilities": explanation.probabilities,
        "nearest": [dict(zip(keys, each, strict=True)) for each in explanation.nearest],
        "distance": explanation.distance,
        "limit": explanation.limit,
        "unusual": explanation.unusual,
        "seen_by": explanation.seen_by,
    }


def is_color_degradation(explanation: Explanation) -> bool:
    """Whether the degradation may be one of colour (haze, low light, mixtures with them): then colour must be free to change.

    False only where the explainer knows such pictures and the probability of all degradations of colour is below COLOR_SHARE.
    """
    share = sum(
        p for name, p in explanation.probabilities.items() if name != CLEAN and set(name.split("_")) & set(COLOR)
    )
    return explanation.unusual or share >= COLOR_SHARE
