"""`bdg train`: one stage, from its config to averaged weights in the folder that its identity names."""

import hashlib
import json
import logging
import shlex
import warnings
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from bdg.commands.compose import build
from bdg.commands.request import Request
from bdg.metrics import RestorationMetrics
from bdg.stages import Stage
from bdg.weights import save_weights
from callbacks.checkpoint import LAST, PREVIOUS, newest_good, read_checkpoint
from callbacks.preempt import Preempted
from datamodules.restoration import RestorationData
from datamodules.shards import digest
from jobs.run import Run, definition, differences, identity, manifest, write_text

log = logging.getLogger("bdg")

DESCRIBES = ("name", "reads", "curves", "estimate", "lambda", "anchor")
"""Keys of `stage` that speak to the rest of the config; the others are arguments of the stage's class."""


@dataclass(frozen=True)
class Parent:
    """Where a stage's first weights come from, and what makes them."""

    identity: str
    weights: Path
    made_by: str


@dataclass(frozen=True)
class Plan:
    """One stage, ready to be trained: its config with the run's folder filled in, and what it is made of."""

    config: DictConfig
    run: Run
    data: str
    parent: Parent | None


def run(config: DictConfig, request: Request) -> None:
    plan = plan_stage(request, config.stage.name)
    metrics = train(plan)
    if config.json:
        found = {"run": str(plan.run.folder), "metrics": metrics}
        rank_zero_only(write_text)(Path(config.json), json.dumps(found, indent=1))


def plan_stage(request: Request, stage: str, first: bool = True) -> Plan:
    """Finds out which run this is; with `inherit.from=auto` that asks the same of the stage before.

    first: whether `inherit.from` and `ckpt_path` of the request speak of this stage, or of another one.
    """
    others = {} if first else {"inherit.from": "auto", "ckpt_path": "null"}
    config = request.compose({"stage": stage, **others})
    parent = _parent(config, request)
    data = digest(config.data.shards)
    config.run_folder = ""  # does not define anything, but must have a value for the config to resolve
    defined = definition(resolved(config))
    if config.ckpt_path:
        defined["ckpt_path"] = hashlib.sha256(_existing(config.ckpt_path).read_bytes()).hexdigest()[:12]
    name = identity(defined, parent.identity if parent else None, data)
    run = Run(Path(config.root), config.project, config.stage.name, name)
    config.run_folder = str(run.folder)
    config.inherit.parent = str(parent.weights) if parent else None
    return Plan(config, run, data, parent)


def resolved(config: DictConfig) -> dict[str, Any]:
    """The config as plain containers, every interpolation replaced by its value."""
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _parent(config: DictConfig, request: Request) -> Parent | None:
    chain, stage, source = list(config.stages), config.stage.name, config.inherit["from"]
    if source in (None, "none"):
        return None
    if source != "auto":
        weights = Path(source) / "weights" / "ema.safetensors" if Path(source).is_dir() else Path(source)
        if not weights.exists():
            raise FileNotFoundError(
                f"inherit.from={source}: there are no weights at {weights}: "
                "name the folder of a finished run or a weights file, or start from scratch with inherit.from=none"
            )
        return Parent(hashlib.sha256(weights.read_bytes()).hexdigest()[:12], weights, made_by="")
    if stage not in chain:
        raise ValueError(
            f"stage={stage} is not in stages={chain}: add it there, or say what it inherits from with inherit.from="
        )
    if chain[0] == stage:
        return None
    before = plan_stage(request, chain[chain.index(stage) - 1], first=False)
    words = request.without("stage", "inherit.from").overrides
    flags = ["--config-dir", request.config_dir] if request.config_dir else []
    command = shlex.join(["bdg", "train", f"stage={before.config.stage.name}", *words, *flags])
    return Parent(before.run.identity, before.run.weights, command)


def train(plan: Plan) -> dict[str, float]:
    """Trains the stage, or goes on where it stopped, or finds it done. Returns its validation scores.

    Raises:
        callbacks.preempt.Preempted: it was told to leave, and has saved its state.
    """
    run, config = plan.run, plan.config
    if run.done:
        log.info("%s %s is done: %s", run.stage, run.identity, run.folder)
        return json.loads(run.metrics.read_text())
    _check_folder(plan)
    resume = newest_good(run.checkpoints) or (_existing(config.ckpt_path) if config.ckpt_path else None)
    if not resume and plan.parent and not plan.parent.weights.exists():
        raise FileNotFoundError(
            f"stage '{run.stage}' inherits from {plan.parent.weights}, which does not exist: "
            f"make it with: {plan.parent.made_by} (or start from scratch with inherit.from=none)"
        )
    _hush()
    L.seed_everything(config.seed, workers=True, verbose=False)
    data = build(config.data)
    stage = build_stage(config)
    trainer = build_trainer(config, data)
    begun = _header(resume) if resume else {"global_step": 0}
    at_end = resume if 0 <= trainer.max_steps <= begun["global_step"] else None
    if at_end and at_end.parent != run.checkpoints:
        raise ValueError(
            f"ckpt_path={resume} is at step {begun['global_step']} of {trainer.max_steps}: "
            "nothing to train, give a larger trainer.max_steps"
        )
    with run.locked() if trainer.is_global_zero else nullcontext():
        if trainer.is_global_zero:
            _open(plan, _story(plan, resume, begun, trainer))
        try:
            if at_end:  # it was killed in the validation after its last step
                stage.load_state_dict(read_checkpoint(at_end)["state_dict"])
                trainer.validate(stage, datamodule=data, verbose=False)
            else:
                trainer.fit(stage, datamodule=data, ckpt_path=resume, weights_only=True)
        except BaseException as error:
            if trainer.is_global_zero:
                _closed_by(error, run)
            if isinstance(error, Preempted) and torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()  # or a rank aborts at its exit now and then
            if type(error) is SystemExit:  # what Lightning makes of Ctrl-C
                raise KeyboardInterrupt from None
            raise
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        if trainer.is_global_zero:
            _close(plan, stage, metrics)
        trainer.strategy.barrier("done")
    return metrics


def _check_folder(plan: Plan) -> None:
    """Refuses to go on in the folder of a run that another config began, as after an edit of its config.yaml."""
    path = plan.run.folder / "config.yaml"
    if not path.exists():
        return
    begun: Any = OmegaConf.to_container(OmegaConf.create(path.read_text(encoding="utf-8")))
    if different := differences(definition(begun), definition(resolved(plan.config))):
        raise ValueError(
            f"{plan.run.folder} was begun with another config, which differs in {'; '.join(different)}: "
            "give these their old values, or remove the folder"
        )


def _story(plan: Plan, resume: Path | None, begun: Mapping[str, Any], trainer: L.Trainer) -> str:
    """What this start of a run found and does, in a sentence or two."""
    if not resume:
        return f"begins, {'from ' + str(plan.parent.weights) if plan.parent else 'from scratch'}"
    text = f"goes on from {resume} after step {begun['global_step']} of {trainer.max_steps}"
    if resume.name == PREVIOUS:
        text += f", since {LAST} is missing or damaged"
    before = begun.get("ranks", trainer.world_size), begun.get("accumulated", trainer.accumulate_grad_batches)
    now = trainer.world_size, trainer.accumulate_grad_batches
    if before != now:
        text += (
            f"; on {now[0]} ranks with {now[1]} parts of a step, {before[0]} with {before[1]} before: the same samples"
        )
        size, (old, new) = plan.config.data.batch_size, (before[1], now[1])
        if old != new and plan.config.stage.weights.get("bridge"):
            text += f", but negatives among {size // new} images, not {size // old}, so other losses"
    return text


def _closed_by(error: BaseException, run: Run) -> None:
    match error:
        case Preempted():
            status = "preempted"
        case KeyboardInterrupt() | SystemExit():
            status = "interrupted"
        case _:
            status = "failed"
    with suppress(OSError):  # the disk may be full; what is raised already says so
        run.set_status(status)
        run.tell(
            f"{status}: {str(error).splitlines()[0] if status == 'failed' and str(error) else type(error).__name__}"
        )


def _existing(path: str) -> Path:
    if not Path(path).is_file():
        raise FileNotFoundError(f"ckpt_path={path}: no such file: name a checkpoint such as RUN/checkpoints/last.ckpt")
    return Path(path)


def _header(checkpoint: Path) -> dict[str, int]:
    """The numbers at the top of a checkpoint. Nothing of the file is held: it will be replaced, and its space is needed."""
    found = {name: value for name, value in read_checkpoint(checkpoint).items() if isinstance(value, int)}
    if "global_step" not in found:
        raise ValueError(
            f"{checkpoint} holds weights only, no training to go on with: take them by inherit.from={checkpoint}"
        )
    return found


def build_stage(config: DictConfig) -> Stage:
    """The LightningModule of `config.stage` with the parts it is made of."""
    node = OmegaConf.create({k: v for k, v in resolved(config)["stage"].items() if k not in DESCRIBES})
    return build(
        node,
        trust=config.trust,
        network=build(config.network),
        diffusion=build(config.diffusion),
        glcm=build(config.glcm) if config.glcm.get("_target_") else None,
        sampler=build(config.sampler),
        metrics=RestorationMetrics(list(config.degradation), build(config.protocol)),
        seed=config.seed,
    )


def build_trainer(config: DictConfig, data: RestorationData) -> L.Trainer:
    if config.trainer.get("accumulate_grad_batches"):
        raise ValueError(
            f"trainer.accumulate_grad_batches={config.trainer.accumulate_grad_batches} follows from data.batch_size, the "
            "images of a step, and data.micro_batch, those that a device takes at once: give these"
        )
    callbacks = [build(node) for node in config.callbacks.values() if node]
    loggers = [build(node) for node in config.logger.values() if node]
    plugins = [build(node) for node in config.trainer.plugins]
    if SLURMEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))  # callbacks.preempt leaves without a deadlock
    trainer = build(config.trainer, callbacks=callbacks, logger=loggers or False, plugins=plugins)
    trainer.accumulate_grad_batches = data.accumulation(trainer.world_size)
    if isinstance(trainer.val_check_interval, int):
        trainer.val_check_interval *= trainer.accumulate_grad_batches  # steps in conf, batches for Lightning
    return trainer


def _open(plan: Plan, story: str) -> None:
    """Writes what the run is before it begins."""
    run, parent = plan.run, plan.parent
    log.info("%s %s in %s: %s", run.stage, run.identity, run.folder, story)
    run.tell(story)
    write_text(run.folder / "config.yaml", OmegaConf.to_yaml(plan.config, resolve=True))
    facts = manifest(run, parent.identity if parent else None, plan.data)
    path = run.folder / "manifest.json"
    if path.exists():  # how it began stays; what goes on is added
        begun = json.loads(path.read_text())
        facts = begun | {"resumed": [*begun.get("resumed", []), facts]}
    write_text(path, json.dumps(facts, indent=1))
    run.set_status("running")


def _close(plan: Plan, stage: Stage, metrics: dict[str, float]) -> None:
    """Writes the averaged weights, which training leaves in the module, and the scores; then the run is done."""
    run, plain = plan.run, resolved(plan.config)
    about = {key: plain[key] for key in ("network", "diffusion", "sampler", "degradation", "glcm")}
    about |= {
        "stage": run.stage,
        "identity": run.identity,
        "condition": plain["stage"]["condition"],
        "data_digest": plan.data,
    }
    save_weights(run.weights, stage.state_dict(), about)
    write_text(run.metrics, json.dumps(metrics, indent=1))
    run.set_status("done")
    run.tell("done")


def _hush() -> None:
    """Silences what Lightning says of every run and nobody can act on; everything else stays loud."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*exists and is not empty.*",
        ".*`IterableDataset`.*",
        ".*LeafSpec.*",
        ".*sync_dist=True.*",  # torchmetrics has gathered over the ranks already
    ):
        warnings.filterwarnings("ignore", message=message)
