"""`bdg pipeline`: the chain of stages, each from the one before, then a measurement on photographs never trained on.

Leaves beside the runs, in `root/project/`, what the latest pipeline of the project gave: weights.safetensors (the network of
the last stage), summary.json (also in the run's folder), panel.jpg, and the degraded images of the panel for `bdg restore`.
"""

import json
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bdg.commands.chain import Link, stage_link
from bdg.commands.compose import build
from bdg.commands.evaluate import Gallery, evaluate
from bdg.commands.request import Request
from bdg.commands.train import train
from bdg.devices import device
from bdg.restoration import Restorer
from bdg.weights import load_weights, save_weights
from callbacks.preempt import leaving_at_once
from datamodules.images import write_image
from jobs.run import write_text


def run(config: DictConfig, request: Request) -> None:
    build(config.data).measured(config.data.test_shards)  # what the end needs is looked at before the beginning
    scores: dict[str, Mapping[str, float]] = {}
    for stage in config.stages:
        link = stage_link(request, stage, first=stage == config.stages[0])
        scores[stage] = train(link)
    _end(link, scores)


@rank_zero_only
def _end(link: Link, scores: Mapping[str, Mapping[str, float]]) -> None:
    request = OmegaConf.select(link.config, "callbacks.preempt.request")
    with leaving_at_once(Path(request)) if request else nullcontext():
        _measure(link, scores)


def _measure(link: Link, scores: Mapping[str, Mapping[str, float]]) -> None:
    config, run = link.config, link.run
    folder, console = Path(config.root) / config.project, Console(markup=False, highlight=False)
    restorer = Restorer.load(run.weights, device("auto"), tuple(config.trust))
    data, protocol = build(config.data), build(config.protocol)
    data.setup("test")
    batches = data.test_dataloader()
    gallery = Gallery(list(config.degradation), protocol)
    bar = track(batches, "evaluating", len(batches), console=Console(stderr=True), transient=True)
    about = {"weights": str(restorer), "data": str(config.data.test_shards), "seed": config.seed}
    restore = partial(restorer, sampler=build(config.sampler), seed=config.seed)
    report = evaluate(restore, bar, list(config.degradation), protocol, about, [gallery])
    priors = {stage: v["val/prior_noise_loss"] for stage, v in scores.items() if "val/prior_noise_loss" in v}
    console.print(report.table(), prior_table(priors))
    summary = report.to_dict() | {"prior_noise_loss": priors, "stages": dict(scores)}
    written = json.dumps(summary, indent=1) + "\n"
    for place in (run.folder, folder):
        write_text(place / "summary.json", written)
    if config.json:
        write_text(Path(config.json), written)
    tensors, metadata = load_weights(run.weights)
    network = {name: tensor for name, tensor in tensors.items() if name.startswith("network.")}
    save_weights(folder / "weights.safetensors", network, metadata)
    write_image(folder / "panel.jpg", gallery.picture())
    for name, image in gallery.degraded().items():
        write_image(folder / "degraded" / f"{name}.png", image)
    console.print(f"{folder}: weights.safetensors, summary.json, panel.jpg, degraded/", soft_wrap=True)


def prior_table(priors: Mapping[str, float]) -> Table:
    """Is what generation learned still there? The noise loss of its process on clean images, after each stage."""
    table = Table(title="prior: noise loss of the generation process on clean images, at fixed t", title_justify="left")
    table.add_column("after stage")
    table.add_column("val/prior_noise_loss", justify="right")
    for stage, value in priors.items():
        table.add_row(stage, f"{value:.4f}")
    return table
