"""What a run is: which keys of its config decide what it learns, and the name that these come to.

Every key is declared here, by the longest of the dotted prefixes under which it stands. One that is not, such as a user's
own `+mykey=1`, counts in every stage: at worst a run is not shared, where a key left out would mix two runs up.
"""

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from jobs.secrets import without_secrets

EVERY_STAGE = (  # beside them the digest of the training data, wherever its files lie
    "seed",
    "network",
    "diffusion",
    "stage",  # what its class is built with: condition, optimizer, scheduler, options of a class of the user's
    "data._target_",
    "data.batch_size",  # over all devices
    "data.crop",
    "data.flip",
    "data.reader",
    "data.seed",
    "data.window",
    "trainer._target_",
    "trainer.gradient_clip_algorithm",
    "trainer.gradient_clip_val",
    "trainer.max_steps",
    "trainer.precision",
    "callbacks.ema",
)
SOME_STAGES = {
    "glcm": ("glcm",),
    "estimate": ("diffusion.estimate",),
}
"""What a stage may look at -> the keys that count if it does; which do is in READ_BY."""
BY_RULE = (  # see `definition`
    "stage.terms",
    "stage.weights",
    "data.degradations",
    "data.micro_batch",
    "data.num_workers",
    "data.quotas",
    "degradation",
    "trainer.devices",
    "trainer.num_nodes",
)
NO_STAGE = (
    "callbacks.checkpoint",
    "callbacks.features",
    "callbacks.generators",
    "callbacks.guard",  # what it skips, it says in the run's story
    "callbacks.heartbeat",
    "callbacks.inherit",
    "callbacks.levels",
    "callbacks.measures",
    "callbacks.pictures",
    "callbacks.preempt",
    "callbacks.progress",
    "callbacks.throughput",
    "ckpt_path",  # its content does
    "cluster",
    "data._convert_",
    "data.cache",
    "data.cache_gb",
    "data.on_error",
    "data.root",
    "data.shards",  # their digest does
    "data.test_shards",
    "data.val_crop",
    "data.val_severities",
    "data.val_shards",
    "identity",
    "inherit",  # the parent's identity does; `fresh` and `dropped` allow, and change no weight
    "json",
    "logger",
    "max_steps",  # trainer.max_steps is the stage's own
    "only",  # what it changes does
    "project",
    "protocol",
    "root",
    "run_folder",
    "sampler",  # for validation
    "stage.anchor",  # the weights that are made of them do
    "stage.curves",  # diffusion.curves
    "stage.estimate",  # diffusion.estimate
    "stage.lambda",
    "stage.name",
    "stages",
    "trainer.accelerator",
    "trainer.benchmark",
    "trainer.check_val_every_n_epoch",
    "trainer.default_root_dir",
    "trainer.detect_anomaly",
    "trainer.deterministic",
    "trainer.enable_checkpointing",
    "trainer.enable_model_summary",
    "trainer.enable_progress_bar",
    "trainer.limit_val_batches",
    "trainer.log_every_n_steps",
    "trainer.num_sanity_val_steps",
    "trainer.plugins",
    "trainer.profiler",
    "trainer.strategy",
    "trainer.use_distributed_sampler",
    "trainer.val_check_interval",
    "trust",
)

READ_BY: dict[str, tuple[str, ...]] = {
    "bdg.stages.GenerationStage": (),
    "bdg.stages.BridgingStage": (),
    "bdg.stages.RestorationStage": (),
    "bdg.diffusion.Diffusion": (),
    "datamodules.restoration.RestorationData": (),
    "bdg.losses.Noise": (),
    "bdg.losses.Residual": ("degradation",),
    "bdg.losses.Joint": ("degradation",),
    "bdg.losses.Restored": ("degradation", "estimate"),
    "bdg.losses.Classify": ("degradation", "glcm"),
    "bdg.losses.Bridge": ("degradation", "glcm", "contrast"),
    "bdg.losses.Negative": ("degradation", "glcm", "contrast"),
}
"""Class -> what it looks at beside clean images, network and schedule. One that is not here may look at everything."""
EVERYTHING = ("degradation", "glcm", "estimate", "contrast")


def definition(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a resolved config that decides what is learned, by dotted key.

    By rule: a loss term counts where its weight is not 0, and so do lambda and anchor, through the weights they set.
    Degradations count with their order, which fixes the labels. Quotas count in every stage, since they choose the clean
    images, with their order and whether pairs alone have a name. Devices and accumulation count as the number of images
    that contrastive losses compare, and where shards are read forwards, since they deal these out.

    Raises:
        ValueError: what counts depends on trainer.devices, and that is no number.
    """
    reads = read(config)
    found = {key: value for key, value in _flat(config) if _kind(key) in ("every stage", *reads)}
    found["losses"] = _losses(config["stage"])
    found["data.quotas"] = _quotas(config)
    if "degradation" in reads:
        found |= {"degradation": _in_order(config["degradation"])}
        found |= {"data.degradations": _in_order(config["data"].get("degradations"))}
    if "contrast" in reads:
        found["contrast_images"] = _images_at_once(config)
    if config["data"].get("reader") == "stream":
        workers = max(1, config["data"].get("num_workers") or 0)
        found["stream"] = {"ranks": _ranks(config), "workers": workers, "images": _images_at_once(config)}
    return found


def undeclared(config: Mapping[str, Any]) -> list[str]:
    """The keys that nobody declared, in the order of the config; each of them counts in every stage."""
    return [key for key, _ in _flat(config) if not _prefix(key)]


def read(config: Mapping[str, Any]) -> frozenset[str]:
    """Which of EVERYTHING a stage looks at: by its classes, its curves, its condition and the loss terms that are on."""
    stage, diffusion = config["stage"], config["diffusion"]
    parts = [stage, diffusion, config["data"], *(term or {} for _, term in _losses(stage).values())]
    found = {what for part in parts for what in _read_by(part.get("_target_"))}
    if not (diffusion.get("curves") == ["beta"] and stage.get("condition") == "none"):
        found.add("degradation")
    return frozenset(found)


def identity(definition: Mapping[str, Any], parent: str | None, data: str) -> str:
    """12 hexadecimal digits of what defines a run: its definition, its parent's identity, the digest of its data."""
    return name_of(written([definition, parent, data]))


def written(value: Any) -> str:
    """Plain containers as the text that is hashed, in which 1.0 is 1."""
    return json.dumps(_plain(value), sort_keys=True, ensure_ascii=False)


def name_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The dotted keys whose values differ, each with both: "data.crop: 96 and 64"; secrets are not compared."""
    flat, flat_other = (dict(_flat(without_secrets(each))) for each in (one, other))
    keys = sorted(flat.keys() | flat_other.keys())
    return [
        f"{k}: {flat.get(k, 'missing')} and {flat_other.get(k, 'missing')}"
        for k in keys
        if flat.get(k) != flat_other.get(k)
    ]


# --- declarations ---

_KINDS = {
    **dict.fromkeys(EVERY_STAGE, "every stage"),
    **{prefix: what for what, prefixes in SOME_STAGES.items() for prefix in prefixes},
    **dict.fromkeys(BY_RULE, "by rule"),
    **dict.fromkeys(NO_STAGE, "no stage"),
}


def _kind(key: str) -> str:
    return _KINDS.get(_prefix(key), "every stage")


@functools.cache
def _prefix(key: str) -> str:
    """The longest declared prefix under which a key stands, or ""."""
    while key and key not in _KINDS:
        key = key.rpartition(".")[0]
    return key


# --- rules ---


def _read_by(target: Any) -> tuple[str, ...]:
    return READ_BY.get(target, EVERYTHING) if isinstance(target, str) else EVERYTHING


def _losses(stage: Mapping[str, Any]) -> dict[str, tuple[float, Any]]:
    """Name -> weight and config of the loss terms that are on."""
    return {name: (weight, stage["terms"].get(name)) for name, weight in stage["weights"].items() if weight}


def _quotas(config: Mapping[str, Any]) -> Any:
    """[name, samples in a round, whether it can be made of clean images], of those that are not 0."""
    quotas, made = config["data"].get("quotas"), config["data"].get("degradations") or {}
    if not isinstance(quotas, Mapping):
        return quotas
    return [[name, quota, made.get(name) is not None] for name, quota in quotas.items() if quota]


def _in_order(value: Any) -> Any:
    """Sets of parts as lists, since their order counts; that of a constructor's arguments does not."""
    if not isinstance(value, Mapping):
        return value
    inner = {name: _in_order(part) for name, part in value.items()}
    return inner if "_target_" in value else [[name, part] for name, part in inner.items()]


def _images_at_once(config: Mapping[str, Any]) -> int:
    """Images that a loss sees together: those of all devices in one of the parts that a step is accumulated of.

    The batch over accumulated parts: batch / (batch / ranks / micro_batch).
    """
    batch, micro = config["data"]["batch_size"], config["data"].get("micro_batch")
    return batch if micro is None or micro >= batch else min(batch, micro * _ranks(config))


def _ranks(config: Mapping[str, Any]) -> int:
    trainer = config["trainer"]
    devices = trainer.get("devices")
    if isinstance(devices, list):
        devices = len(devices)
    if not isinstance(devices, int) or devices < 1:
        raise ValueError(
            f"trainer.devices={devices}: with data.micro_batch={config['data'].get('micro_batch')} and "
            f"data.reader={config['data'].get('reader')} the number of devices decides what stage "
            f"'{config['stage'].get('name')}' learns: give cluster.devices=NUMBER"
        )
    return devices * (trainer.get("num_nodes") or 1)


# --- containers ---


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and (value or not key):
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def _plain(value: Any) -> Any:
    """With 1.0 as 1, which is the same number."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
