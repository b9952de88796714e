"""`bdg import`: published checkpoints of others as weights that bdg restores with, and that a stage can begin from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from bdg.commands.request import Request
from bdg.commands.restore import check_free
from bdg.files import digest
from bdg.networks.diffuir import Published, built, read_diffuir, size_of, size_text
from bdg.weights import save_weights
from jobs.run import write_text

KINDS = ("diffuir",)
SHOWN = 3
"""Names that a line shows."""


def run(config: DictConfig, request: Request) -> None:
    if config.kind not in KINDS:
        raise ValueError(f"kind={config.kind}: choose one of {', '.join(KINDS)}, as in bdg import diffuir FILE OUTPUT")
    source, target = Path(f"{config.file}"), Path(f"{config.output}")
    if target.suffix != ".safetensors":
        raise ValueError(f"output={target}: weights are NAME.safetensors: give such a name")
    if config.sample_steps < 1:
        raise ValueError(f"sample_steps={config.sample_steps}: give at least 1; DiffUIR takes 3")
    check_free([target], config.overwrite)
    published = read_diffuir(source)
    try:
        network = built(published.tensors)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    tensors = {f"network.{name}": w for name, w in network.state_dict().items()}
    size = size_of(published.tensors)
    save_weights(target, tensors, about(size, published, source, config.sample_steps))
    told = {
        "output": str(target),
        "size": size_text(**size),
        "parameters": sum(w.numel() for w in tensors.values()),
        "taken": {"entry": published.entry, "tensors": len(published.tensors), "step": published.step},
        "ignored": list(published.ignored),
    }
    print(text(told))
    if config.json:
        write_text(Path(config.json), json.dumps(told, indent=1) + "\n")


def about(size: Mapping[str, Any], published: Published, source: Path, sample_steps: int) -> dict[str, Any]:
    """The metadata with which `bdg restore` walks DiffUIR's own way: its time, its schedule, its sampler, nothing clamped."""
    sha256 = digest(source)
    return {
        "stage": "restoration",
        "identity": sha256[:12],
        "network": {"_target_": "bdg.networks.unet.UNet", **size},
        "diffusion": {
            "_target_": "bdg.diffusion.Diffusion",
            "estimate": "residual",
            "time": "alpha",
            "schedule": {"_target_": "bdg.schedule.Schedule", "num_steps": 1000},
        },
        "sampler": {"_target_": "bdg.samplers.diffuir", "_partial_": True, "sample_steps": sample_steps},
        "condition": "x_lq",
        "clamp": False,
        "imported": {
            "kind": "diffuir",
            "file": source.name,
            "sha256": sha256,
            "entry": published.entry,
            "step": published.step,
        },
    }


def text(told: dict[str, Any]) -> str:
    """What was taken and what was not, in three lines."""
    taken, ignored = told["taken"], told["ignored"]
    trained = f", trained for {taken['step']} steps" if taken["step"] is not None else ""
    some = ", ".join(ignored[:SHOWN]) + (", .." if len(ignored) > SHOWN else "")
    return "\n".join(
        [
            f"{told['output']}: {told['size']}, {told['parameters']:,} parameters",
            f"taken: {taken['tensors']} tensors of {taken['entry']}{trained}",
            f"ignored: {len(ignored)}" + (f" ({some})" if ignored else ""),
        ]
    )
