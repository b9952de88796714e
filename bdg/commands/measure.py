"""Runs measured on their own test images, once: values and restored images stay beside the run, for tables and pages.

    RUN/evaluation/NAME/per_image.json, images/DEGRADATION/KEY_SEVERITY.png
    ROOT/PROJECT/evaluation/NAME/{degraded,clean}/DEGRADATION/KEY_SEVERITY.png

NAME is the part of the data and a digest of how it is measured, so runs that were measured alike have the same.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import track

from bdg.commands.compose import build, written_config
from bdg.commands.evaluate import Batch, evaluate, severities
from bdg.commands.restore import restoring
from bdg.panel import to_uint8
from bdg.restoration import Restorer
from bdg.types import Image
from datamodules.images import write_image
from jobs.evaluation import FILE, FOLDER, IMAGES, Evaluation, image_name, read_evaluation
from jobs.run import write_text


def measured(folder: Path, config: DictConfig) -> Evaluation:
    """The evaluation of a finished run on its test images, made now if it is not there.

    config: as `conf/measuring.yaml`.

    Raises:
        FileNotFoundError: the run has no weights, or no config.
        ValueError: its network cannot restore, or it has no test images.
    """
    weights, path = folder / "weights" / "ema.safetensors", folder / "config.yaml"
    for needed in (weights, path):
        if not needed.exists():
            raise FileNotFoundError(f"{needed} is not there: the run must be done before it is measured (bdg status)")
    own = written_config(path)
    if own.stage.condition == "none":
        raise ValueError(
            f"{folder}: its network does not see the degraded image and restores nothing: name a restoration run"
        )
    part = "test" if own.data.test_shards else "val"
    shards = own.data[f"{part}_shards"]
    if not shards:
        raise ValueError(
            f"{folder}: its data has neither test_shards nor val_shards: see bdg evaluate SOURCE {folder} json="
        )
    protocol = build(config.get("protocol") or own.protocol, trust=config.trust)
    restorer = Restorer.load(weights, config.device, tuple(config.trust), config.precision)
    restore, settings = restoring(restorer, config)
    how = {
        "data": shards if isinstance(shards, str) else list(shards),
        "crop": own.data.val_crop if config.crop == "auto" else config.crop,
        "severities": OmegaConf.to_object(own.data.val_severities) if own.data.val_severities else None,
        "degradation": OmegaConf.to_object(own.degradation),
        **{key: value for key, value in settings.items() if key != "device"},
    }
    asked = json.dumps({**how, "protocol": str(protocol)}, sort_keys=True)
    name = f"{part}-{hashlib.sha256(asked.encode()).hexdigest()[:8]}"
    place = folder / FOLDER / name
    if found := read_evaluation(name, place / FILE):
        return found
    own.data.val_crop = how["crop"]
    batches = build(own.data, trust=config.trust).measured(shards)
    names = list(own.degradation)
    bar = track(batches, f"{folder.name}", len(batches), console=Console(stderr=True), transient=True)
    about = {"weights": str(restorer), **how, "device": settings["device"]}
    pictures = Pictures(place / IMAGES, folder.parents[1] / FOLDER / name, names)
    report = evaluate(restore, bar, names, protocol, about, [pictures])
    write_text(place / FILE, json.dumps(report.to_dict(), indent=1) + "\n")
    made = read_evaluation(name, place / FILE)
    assert made, "it was written just now"
    return made


@dataclass(frozen=True)
class Pictures:
    """Keeps restored images below `restored`, and below `common`, once for all runs, what they were made of."""

    restored: Path
    common: Path
    degradations: Sequence[str]

    def __call__(self, batch: Batch, restored: Image) -> None:
        facts = zip(batch["label"].tolist(), batch["key"], severities(batch), strict=True)
        for i, (label, key, severity) in enumerate(facts):
            name = image_name(self.degradations[label], key, severity)
            write_image(self.restored / name, to_uint8(restored[i]))
            for kind, image in (("degraded", batch["x_lq"]), ("clean", batch["x_hq"])):
                if not (self.common / kind / name).exists():
                    write_image(self.common / kind / name, to_uint8(image[i]))
