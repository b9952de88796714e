"""`bdg train`: one stage, from its config to averaged weights in the folder that its identity names."""

import json
import logging
import os
import warnings
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from bdg.commands.chain import Link, existing, resolved, stage_link
from bdg.commands.compose import build, literal, written_config
from bdg.commands.request import Request
from bdg.metrics import RestorationMetrics
from bdg.stages import Stage
from bdg.weights import save_weights
from callbacks.checkpoint import LAST, PREVIOUS, newest_good, read_checkpoint, saver, validation_follows
from callbacks.inherit import Inherit
from callbacks.preempt import Preempted
from datamodules.restoration import RestorationData
from jobs.geometry import check_job
from jobs.identity import definition, differences
from jobs.run import Run, manifest, write_text
from jobs.secrets import masked, without_secrets
from jobs.staging import stage_in

log = logging.getLogger("bdg")

RANKS_THAT_RETURN = "ddp_find_unused_parameters_true"
"""Else DDP packs the gradients anew after a process's first step; over more than two ranks sums then are rounded in another
order, and a resumed training is not that which was never stopped."""
DESCRIBES = ("name", "curves", "estimate", "lambda", "anchor")
"""Keys of `stage` that speak to the rest of the config; the others are arguments of the stage's class."""


def run(config: DictConfig, request: Request) -> None:
    link = stage_link(request, config.stage.name)
    if config.identity and config.identity != link.run.identity:
        raise ValueError(
            f"identity={config.identity} was planned, but this comes to {link.run.stage} {link.run.identity}: data or code "
            "probably changed since then: give the same bdg sweep again, which plans anew, or leave identity out"
        )
    metrics = train(link)
    if config.json:
        found = {"run": str(link.run.folder), "metrics": metrics}
        rank_zero_only(write_text)(Path(config.json), json.dumps(found, indent=1))


def train(link: Link) -> dict[str, float]:
    """Trains the stage, or goes on where it stopped, or finds it done. Returns its validation scores.

    Raises:
        callbacks.preempt.Preempted: it was told to leave, and has saved its state.
    """
    run, config = link.run, link.config
    check_job(config.trainer.get("devices"), config.trainer.get("num_nodes", 1), os.environ)
    if run.done:
        log.info("%s %s is done: %s", run.stage, run.identity, run.folder)
        return json.loads(run.metrics.read_text())
    _check_folder(link)
    before = _files(run)
    if not before and not config.ckpt_path and link.parent and not link.parent.weights.exists():
        raise FileNotFoundError(
            f"stage '{run.stage}' inherits from {link.parent.weights}, which does not exist: "
            f"make it with: {link.parent.made_by} (or start from scratch with inherit.from=none)"
        )
    _hush()
    L.seed_everything(config.seed, workers=True, verbose=False)
    data = build(_near(config).data)
    stage = build_stage(config)
    trainer = build_trainer(config, data)
    given = existing(config.ckpt_path) if config.ckpt_path else None
    if given and not before and 0 <= trainer.max_steps <= (step := _header(given)["global_step"]):
        raise ValueError(
            f"ckpt_path={given} is at step {step} of {trainer.max_steps}: nothing to train, give a larger trainer.max_steps"
        )
    with run.locked() if trainer.is_global_zero else nullcontext():
        if before != _files(run):  # somebody held the lock before
            if _meets_others(trainer):
                raise BlockingIOError(
                    f"{run.folder} was trained by another process until now: give the same command again"
                )
            if run.done:
                return json.loads(run.metrics.read_text())
        resume = newest_good(run.checkpoints) or given
        begun = _header(resume) if resume else {"global_step": 0}
        at_end = resume if 0 <= trainer.max_steps <= begun["global_step"] else None
        if resume:  # which holds what was inherited
            trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, Inherit)]  # type: ignore[attr-defined]
        if trainer.is_global_zero:
            _open(link, _story(link, resume, begun, trainer))
        try:
            if at_end:  # it was killed after its last step
                _load_end(at_end, stage, trainer)
            else:
                trainer.fit(stage, datamodule=data, ckpt_path=resume, weights_only=True)
            steps = begun["global_step"] if at_end else trainer.global_step
            wanted = data.val_shards and trainer.limit_val_batches
            if wanted and (at_end or not validation_follows(trainer, steps)):
                trainer.fit_loop.epoch_loop._batches_that_stepped = steps - 1  # of what is logged
                trainer.validate(stage, datamodule=data, verbose=False)
            metrics = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("val/")}
            if trainer.is_global_zero:
                _close(link, stage, metrics)
        except BaseException as error:
            if trainer.is_global_zero:
                _closed_by(error, run)
            if isinstance(error, Preempted) and torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()  # or a rank aborts at its exit now and then
            if type(error) is SystemExit:  # what Lightning makes of Ctrl-C
                raise KeyboardInterrupt from None
            raise
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                getattr(logger, "publish", lambda weights: None)(run.weights)
        trainer.strategy.barrier("done")
    return metrics


def _files(run: Run) -> dict[str, int]:
    """The checkpoints and weights there are, and when they were written."""
    found = {}
    for path in (run.checkpoints / LAST, run.checkpoints / PREVIOUS, run.weights):
        with suppress(FileNotFoundError):  # another process is just replacing it
            found[path.name] = path.stat().st_mtime_ns
    return found


def _meets_others(trainer: L.Trainer) -> bool:
    """Whether there are ranks that somebody else has started, and that have already looked what there is to resume."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return trainer.world_size > 1 and environment is not None and environment.creates_processes_externally


def _load_end(path: Path, stage: Stage, trainer: L.Trainer) -> None:
    """The stage as it was after the last step, and what was the best until then."""
    checkpoint = read_checkpoint(path)
    stage.load_state_dict(checkpoint["state_dict"])
    if saving := saver(trainer):
        saving.take_up(trainer, checkpoint, path)


def _near(config: DictConfig) -> DictConfig:
    """The config with data.root on this node's own disk, if cluster.scratch names a folder there."""
    scratch, root = config.cluster.get("scratch"), config.data.get("root")
    if not scratch:
        return config
    if not root or not Path(root).is_dir():
        raise ValueError(
            f"cluster.scratch={scratch} takes a copy of the folder data.root, which is {root}: give data=packed "
            "data.root=FOLDER, or cluster.scratch=null; shards behind URLs are copied to data.cache anyway"
        )
    near = config.copy()
    near.data.root = str(stage_in(Path(root), Path(os.path.expandvars(scratch))))
    return near


def _check_folder(link: Link) -> None:
    """Refuses to go on in the folder of a run that another config began, as after an edit of its config.yaml."""
    path = link.run.folder / "config.yaml"
    if not path.exists():
        return
    now = masked(_text(link.config))  # as it was written
    if different := differences(*(_defined(text) for text in (path, now))):
        raise ValueError(
            f"{link.run.folder} was begun with another config, which differs in {'; '.join(different)}: "
            "give these their old values, or remove the folder"
        )


def _text(config: DictConfig) -> str:
    """YAML of the config with all its values but secrets."""
    return OmegaConf.to_yaml(literal(without_secrets(resolved(config))), resolve=True)


def _defined(config: Path | str) -> dict[str, Any]:
    return definition(resolved(written_config(config)))


def _story(link: Link, resume: Path | None, begun: Mapping[str, Any], trainer: L.Trainer) -> str:
    """What this start of a run found and does, in a sentence or two."""
    if not resume:
        return f"begins, {'from ' + str(link.parent.weights) if link.parent else 'from scratch'}"
    text = f"goes on from {resume} after step {begun['global_step']} of {trainer.max_steps}"
    if resume.name == PREVIOUS:
        text += f", since {LAST} is missing or damaged"
    before = begun.get("ranks", trainer.world_size), begun.get("accumulated", trainer.accumulate_grad_batches)
    now = trainer.world_size, trainer.accumulate_grad_batches
    if before != now:
        text += (
            f"; on {now[0]} ranks with {now[1]} parts of a step, {before[0]} with {before[1]} before: the same samples"
        )
        size, (old, new) = link.config.data.batch_size, (before[1], now[1])
        if old != new and link.config.stage.weights.get("bridge"):
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
    node = literal({k: v for k, v in resolved(config)["stage"].items() if k not in DESCRIBES})
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
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))  # callbacks.preempt leaves without a deadlock
    strategy = {"strategy": RANKS_THAT_RETURN} if _has_ranks(config.trainer) else {}
    trainer = build(config.trainer, callbacks=callbacks, logger=loggers or False, plugins=plugins, **strategy)
    trainer.accumulate_grad_batches = data.accumulation(trainer.world_size)
    if isinstance(trainer.val_check_interval, int):
        trainer.val_check_interval *= trainer.accumulate_grad_batches  # steps in conf, batches for Lightning
    return trainer


def _has_ranks(trainer: DictConfig) -> bool:
    """Whether there are several and nobody chose how they meet."""
    devices = trainer.get("devices")
    return "strategy" not in trainer and isinstance(devices, int) and devices * trainer.get("num_nodes", 1) > 1


def _open(link: Link, story: str) -> None:
    """Writes what the run is before it begins."""
    run, parent = link.run, link.parent
    log.info("%s %s in %s: %s", run.stage, run.identity, run.folder, story)
    run.tell(story)
    write_text(run.folder / "config.yaml", _text(link.config))
    facts = manifest(run, parent.identity if parent else None, link.data)
    facts |= {"words": list(link.words), "cwd": str(Path.cwd())}  # for bdg resume
    path = run.folder / "manifest.json"
    if path.exists():  # how it began stays; what goes on is added
        begun = json.loads(path.read_text())
        facts = begun | {"resumed": [*begun.get("resumed", []), facts]}
    write_text(path, json.dumps(facts, indent=1))
    run.set_status("running")


def _close(link: Link, stage: Stage, metrics: dict[str, float]) -> None:
    """Writes the averaged weights, which training leaves in the module, and the scores; then the run is done."""
    run, plain = link.run, resolved(link.config)
    about = {key: plain[key] for key in ("network", "diffusion", "sampler", "degradation", "glcm")}
    about |= {
        "stage": run.stage,
        "identity": run.identity,
        "condition": plain["stage"]["condition"],
        "data_digest": link.data,
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
        ".*find_unused_parameters=True was specified.*",
        ".*`srun` command is available.*",  # on a login node, say; in a job the geometry is checked
        ".*sync_dist=True.*",  # torchmetrics has gathered over the ranks already
    ):
        warnings.filterwarnings("ignore", message=message)
