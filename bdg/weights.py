"""Weights as files: safetensors whose metadata say which network and which process they belong to."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bdg.documents import parse_object
from bdg.files import replacing

METADATA_KEY = "bdg"
"""safetensors metadata are strings; everything is one JSON object under this key."""


def save_weights(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Writes tensors with JSON metadata, whole or not at all; the same values give the same bytes.

    metadata: {"stage", "identity", "network": node, "diffusion": node, "condition", ...}, where a node names its class
    as `_target_` and its arguments, as in a config.
    """
    path = Path(path)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = safetensors.torch.save(plain, {METADATA_KEY: json.dumps(metadata, sort_keys=True)})
    with replacing(path, flush=True) as file:
        file.write(data)


def load_weights(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and metadata of a file that `save_weights` wrote.

    Raises FileNotFoundError, and ValueError for a file that is damaged, of another kind, or without BDG's metadata.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no weights there: give a file with weights=PATH, such as "
            "runs/<project>/restoration/<identity>/weights/ema.safetensors, or train one with bdg pipeline"
        )
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(
            f"{path}: not a safetensors file, or cut off ({error}): give the weights/ema.safetensors of a run, "
            "not its checkpoint"
        ) from None
    if text is None:
        raise ValueError(
            f"{path}: holds tensors but not BDG's metadata, so the network they belong to is unknown: "
            "give a file that bdg train wrote"
        )
    try:
        return tensors, parse_object(text)
    except ValueError as error:
        raise ValueError(f"{path}: its metadata are {error}: give a file that bdg train wrote") from None
