"""`bdg export`: averaged weights and all that one must know to use and to judge them, as one folder to hand on."""

import dataclasses
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from rich.console import Console

from bdg import __version__
from bdg.commands.card import card, trained_on
from bdg.commands.compose import build
from bdg.commands.explain import explainer_file
from bdg.commands.lineage import lineage
from bdg.commands.measure import measured
from bdg.commands.pack import folder as source_folder
from bdg.commands.request import Request
from bdg.commands.restore import restoring
from bdg.commands.runs import IDENTITY, Place, word
from bdg.commands.tables import tables
from bdg.documents import parse_yaml
from bdg.files import digest, replacing_folder
from bdg.onnx import export_onnx, need_onnx
from bdg.panel import panel, to_uint8
from bdg.restoration import Restorer
from bdg.weights import load_weights, save_weights
from datamodules.images import SUFFIXES, read_image, write_image
from datamodules.restored import Restore
from jobs.run import write_text
from jobs.states import read_facts

MODEL, CONFIG, LINEAGE, METRICS, CARD = "model.safetensors", "config.json", "lineage.json", "metrics.json", "README.md"
EXPLAIN, SAMPLES, ONNX = "explain.safetensors", "samples", "onnx"
PARTS = (MODEL, CONFIG, LINEAGE, METRICS, CARD, EXPLAIN, SAMPLES, ONNX)
"""All that an export may hold."""
WIDTH = 256
"""Of a sample in the panel, in pixels."""
LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")


@dataclass(frozen=True)
class Source:
    """What is exported. run: its folder, None for a weights file on its own; config, lineage: what is known of it."""

    weights: Path
    run: Path | None
    config: Mapping[str, Any]
    lineage: Mapping[str, Any]


def run(config: DictConfig, request: Request) -> None:
    target = Path(f"{config.output}")
    check_target(target, config.overwrite)
    if config.license is not None and not LICENSE.fullmatch(f"{config.license}"):
        raise ValueError(f"license={config.license}: give it as the Hub spells it, such as apache-2.0 or cc-by-nc-4.0")
    if config.side < 1:
        raise ValueError(f"side={config.side}: give the side of the samples in pixels, such as 256")
    if config.onnx:
        need_onnx()
    source = find(config)
    restorer = Restorer.load(source.weights, config.device, tuple(config.trust), config.precision)
    check_restores(restorer, source.weights)
    if config.measure:
        measure(source, config)
    found = tables(source.run, restorer, [Path(f"{path}") for path in config.scores], config.trust)
    restore, settings = restoring(restorer, config)
    with replacing_folder(target) as folder:
        sha256 = write_model(source.weights, folder)
        write_json(folder / CONFIG, source.config)
        write_json(folder / LINEAGE, {**source.lineage, "model_sha256": sha256, "exported_by": f"bdg {__version__}"})
        write_json(folder / METRICS, [dataclasses.asdict(table) for table in found])
        write_samples(folder / SAMPLES, restore, restorer, config)
        parity = None
        if config.onnx:
            on_cpu = Restorer.load(folder / MODEL, "cpu", tuple(config.trust))
            parity = export_onnx(on_cpu.denoise, folder / ONNX, settings)
        facts = {"name": target.name, "about": restorer.about, "settings": settings, "license": config.license}
        facts |= {"config": source.config if source.run else {}, "lineage": source.lineage, "digest": sha256}
        facts |= {"explain": (folder / EXPLAIN).exists(), "onnx": parity, "parameters": parameters(restorer)}
        facts |= {"own_photographs": is_own(config.photographs)}
        write_text(folder / CARD, card(facts, found))
        sizes = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
    console = Console(markup=False, highlight=False, soft_wrap=True)
    console.print(f"exported {restorer} to {target}:")
    console.print(*(f"  {name}  {size / 1e3:,.0f} kB" for name, size in sizes.items()), sep="\n")
    if parity is not None:
        console.print(f"onnx: differs from torch by {parity:.1e} at most")
    if not found:
        console.print("no scores: the card says so; measure=true measures a run, scores=[FILE] takes a measurement")
    if config.json:
        told = {"output": str(target), "files": sizes, "metrics": [dataclasses.asdict(table) for table in found]}
        write_json(Path(config.json), told | {"onnx_difference": parity})


def check_target(target: Path, overwrite: bool) -> None:
    """Raises FileExistsError for what is there, unless it is an export, which may be replaced."""
    if not target.exists():
        return
    if not (target / LINEAGE).is_file() or {path.name for path in target.iterdir()} - set(PARTS):
        raise FileExistsError(f"output={target} exists and is no export: name another folder")
    if not overwrite:
        raise FileExistsError(f"output={target} exists already: name another folder, or replace it with overwrite=true")


def find(config: DictConfig) -> Source:
    """The run or the weights file that `run` names.

    Raises FileNotFoundError if there is none, and ValueError for a run that is not done.
    """
    given = word(config, "run")
    path = Path(given)
    if path.is_file() or path.suffix == ".safetensors":
        _, about = load_weights(path)
        return Source(path, None, about, told_by(about))
    own = path.resolve()
    is_run = own.is_dir() and IDENTITY.fullmatch(own.name)
    here = Place(
        own.parents[2] if is_run else Path(config.root), own.parents[1].name if is_run else f"{config.project}"
    )
    folder = here.need_run(given)
    facts = read_facts(folder)
    if not facts.done:
        raise ValueError(
            f"{folder} is not done ({facts.status}): finish it with bdg resume {folder.name}, then export it"
        )
    text = (folder / "config.yaml").read_text(encoding="utf-8") if (folder / "config.yaml").is_file() else "{}"
    return Source(
        folder / "weights" / "ema.safetensors", folder, portable(parse_yaml(text)), here_less(lineage(here, folder))
    )


def told_by(about: Mapping[str, Any]) -> dict[str, Any]:
    """The lineage of a weights file: what its metadata say."""
    known = {name: about[name] for name in ("stage", "identity", "data_digest", "imported") if name in about}
    return {
        **known,
        "code": {},
        "parents": None,
        "unknown": "a weights file on its own: neither parents nor code are known",
    }


def here_less(found: Mapping[str, Any]) -> dict[str, Any]:
    """A lineage without the folders of this machine."""
    kept = {name: value for name, value in found.items() if name != "folder"}
    return kept | {"parents": [here_less(parent) for parent in found["parents"]]}


def portable(value: Any) -> Any:
    """A config in which paths of this machine end in their last two parts: /a/b/shards/x.tar becomes .../shards/x.tar."""
    if isinstance(value, Mapping):
        return {name: portable(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [portable(inner) for inner in value]
    if isinstance(value, str) and value.removeprefix("file://").startswith(("/", "~")):
        return "/".join(["...", *Path(value).parts[1:][-2:]])
    return value


def check_restores(restorer: Restorer, path: Path) -> None:
    if "alpha" not in restorer.denoise.diffusion.curves:
        raise ValueError(
            f"{path}: its process does not end at the degraded image, so it restores nothing: "
            "export a run of bridging or restoration"
        )


def measure(source: Source, config: DictConfig) -> None:
    if source.run is None:
        raise ValueError(
            f"measure=true takes a run, which knows its test images, and {source.weights} is a weights file: measure it "
            f"with bdg evaluate SOURCE {source.weights} json=scores.json, and add scores=[scores.json] here"
        )
    measured(source.run, config)


def write_model(weights: Path, folder: Path) -> str:
    """The network alone, with the metadata; what explains it beside. Returns the file's sha256."""
    tensors, about = load_weights(weights)
    network = {name: tensor for name, tensor in tensors.items() if name.startswith("network.")}
    save_weights(folder / MODEL, network, about)
    if (explain := explainer_file(weights)).is_file():
        load_weights(explain)  # says what is wrong with it
        shutil.copyfile(explain, folder / EXPLAIN)
    return digest(folder / MODEL)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_samples(folder: Path, restore: Restore, restorer: Restorer, config: DictConfig) -> None:
    """panel.jpg, a row for each degradation: degraded, restored, clean; and the degraded images, for whoever wants to try."""
    trained = trained_on(restorer.about)
    nodes = {name: node for name, node in config.degradation.items() if name in trained} or config.degradation
    rows, captions = [], []
    for i, ((name, node), photograph) in enumerate(zip(nodes.items(), photographs(config, len(nodes)), strict=True)):
        degrade = build(node, trust=config.trust)
        if hasattr(degrade, "severity"):
            degrade = dataclasses.replace(degrade, severity=config.severity)
        whole = read_image(photograph).to_rgb()
        top, left = (max(0, (length - config.side) // 2) for length in whole.shape[:2])
        x_hq = np.ascontiguousarray(whole[top : top + config.side, left : left + config.side])
        x_lq, _ = degrade(x_hq.copy(), np.random.default_rng([config.seed, i]))
        clean, degraded = (torch.from_numpy(x).permute(2, 0, 1)[None] * 2 - 1 for x in (x_hq, x_lq))
        restored = restore(degraded, [f"{name}.png"])
        rows.append([to_uint8(x[0]) for x in (degraded, restored, clean)])
        captions.append([f"{name}", "", photograph.stem])
        write_image(folder / f"{name}.png", rows[-1][0])
    write_image(folder / "panel.jpg", panel(rows, captions, ["degraded", "restored", "clean"], WIDTH))


def photographs(config: DictConfig, count: int) -> Sequence[Path]:
    """As many as degradations: those of the package that are never trained on, or all of a folder, from the front again."""
    folder = source_folder(f"{config.photographs}")
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    if not is_own(config.photographs):
        files = [path for path in files if path.stem in config.parts.test]
    if not files:
        raise FileNotFoundError(f"photographs={config.photographs}: no image there: name a folder of photographs")
    return [files[i % len(files)] for i in range(count)]


def is_own(name: str) -> bool:
    """Whether photographs are the user's, and not those of the package."""
    return "://" not in f"{name}"


def parameters(restorer: Restorer) -> int:
    return sum(parameter.numel() for parameter in restorer.denoise.network.parameters())
