"""What is wrong with the config of a stage, found without training it: no memory, no GPU. Knows no sweep and no cluster.

Models are built on torch's meta device, where tensors have shapes and no values, and take a step there. Every check names the
keys that it reads, so that configs which agree in them are checked once.
"""

import inspect
import json
import logging
import math
import re
import tempfile
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bdg.commands.compose import build, get, literal
from bdg.commands.errors import message
from bdg.commands.train import build_stage
from bdg.stages import Stage
from bdg.types import Estimate
from callbacks.inherit import check_fit, read_parent
from datamodules.shards import expand
from jobs.geometry import Geometry

Config = Mapping[str, Any]
"""The config of one stage as plain containers, resolved."""

ERROR, WARNING, NOTE = "error", "warning", "note"
PARTS = ("network", "diffusion", "glcm", "sampler", "protocol")
MANY_PARTS = ("stage.terms", "degradation", "callbacks", "logger", "trainer.plugins")
SHARDS = ("shards", "val_shards", "test_shards")
MODEL = ("stage", "network", "diffusion", "glcm", "sampler", "degradation", "protocol", "trust")
"""What a model is built of."""
STATES = 4  # copies of the weights in a checkpoint: trained, averaged, and two moments of Adam
CHECKPOINTS = 3  # last, previous, best


class Fault(NamedTuple):
    """What is wrong with the value of a key, and the way out."""

    key: str
    message: str
    level: str = ERROR

    def __str__(self) -> str:
        return self.message if self.message.startswith(self.key) else f"{self.key}: {self.message}"


class Model(NamedTuple):
    """A stage on the meta device, and its tensors by name."""

    stage: Stage
    tensors: Mapping[str, Tensor]


@dataclass
class Checks:
    """The checks of configs, each distinct part of them once.

    known: what was found, by the check and by the values of the keys that it reads. num_built: models that were built.
    """

    known: dict[tuple[str, str], Any] = field(default_factory=dict)
    num_built: int = 0

    def faults(self, config: Config) -> list[Fault]:
        """All that is wrong with a stage but what it inherits."""
        found = self._once(missing, config, tuple(config))
        for check, keys in CHECKS:
            found += self._once(check, config, keys)
        for key in (*PARTS, *(f"{many}.{name}" for many in MANY_PARTS for name in _names(get(config, many)))):
            found += self._once(partial(part_faults, key=key), config, (key, "trust"), key)
        if not any(
            fault.level == ERROR and fault.key.startswith(MODEL) for fault in found
        ):  # or it would be said twice
            found += self.model(config)[1]
        return [*dict.fromkeys(found)]

    def model(self, config: Config) -> tuple[Model | None, list[Fault]]:
        """The stage on the meta device, and what is wrong with it; None if a part of it cannot be built.

        How much a loss weighs, and where MAS-GLCM looks, changes no shape: such configs share a model.
        """
        on = {name: bool(weight) for name, weight in config["stage"]["weights"].items()}
        texture, faults = self._remembered("texture", texture_shape, config, config, ("glcm", "data.crop", "trust"))
        alike = {**config, "stage": {**config["stage"], "weights": on, "lambda": None, "anchor": None}}
        alike |= {"glcm": texture or config["glcm"], "images": images_at_once(config), "crop": get(config, "data.crop")}
        model, found = self._remembered("model", self._build, config, alike, (*MODEL, "images", "crop"))
        return model, [*(faults if model and model.stage.glcm else ()), *found]

    def _build(self, config: Config) -> tuple[Model | None, list[Fault]]:
        self.num_built += 1
        return built(config)

    def fit(self, config: Config, parent: Path | Config) -> list[Fault]:
        """Whether the tensors of a parent, a file or a stage that will be trained, are those that this stage takes over."""
        own, _ = self.model(config)
        if own is None:
            return []
        if isinstance(parent, Path):
            origin, tensors = f"{parent}", self._header(parent)
            if isinstance(tensors, Fault):
                return [tensors]
        else:
            model, _ = self.model(parent)
            if model is None:
                return []
            origin, tensors = f"stage '{parent['stage']['name']}'", model.tensors
        fresh, dropped = (
            (*getattr(own.stage, name, ()), *(get(config, f"inherit.{name}") or ())) for name in ("fresh", "dropped")
        )
        what = "fit", f"{id(own)} {id(tensors)} {fresh} {dropped}"  # both are kept here, so that no other has their id
        if what not in self.known:
            self.known[what] = misfits(own.tensors, tensors, origin, fresh, dropped)
        return [*self.known[what]]

    def _header(self, weights: Path) -> Mapping[str, Tensor] | Fault:
        what = "header", f"{weights}"
        if what not in self.known:
            self.known[what] = header(weights)
        return self.known[what]

    def _once(
        self, check: Callable[[Config], Iterator[Fault]], config: Config, keys: Sequence[str], name: str = ""
    ) -> list[Fault]:
        name = name or getattr(check, "__name__", "")
        return list(self._remembered(name, lambda config: [*check(config)], config, config, keys))

    def _remembered(
        self, name: str, find: Callable[[Config], Any], config: Config, alike: Config, keys: Sequence[str]
    ) -> Any:
        values = name, json.dumps([get(alike, key) for key in keys], default=str)
        if values not in self.known:
            self.known[values] = find(config)
        return self.known[values]


def _names(many: Any) -> list[str]:
    return [*map(str, many)] if isinstance(many, Mapping) else [*map(str, range(len(many or ())))]


def fault_of(error: Exception, key: str, config: Config) -> Fault:
    """An exception as the fault of a key: one that its text names, first of all at its begin, or else `key`."""
    text = message(error)
    if not isinstance(error, ValueError | OSError) and type(error).__module__ == "builtins":
        text = f"{type(error).__name__}: {text}"
    begins = re.match(r"\w+(\.\w+)*=?", text)
    begin = begins[0] if begins else ""
    words = [begin.rstrip("=")] if "." in begin or "=" in begin else []
    words += [f"{key}.{begin.rstrip('=')}"]
    words += [f"{key}.{word}" for word in re.findall(r"\w+_\w+", text)]  # as others name what they were given
    words += re.findall(r"(\w+(?:\.\w+)+)=", text)
    return Fault(next((word for word in words if has(config, word)), key), text)


def has(config: Config, dotted: str) -> bool:
    above, _, name = dotted.rpartition(".")
    place = get(config, above) if above else config
    return isinstance(place, Mapping) and name in place


# --- parts ---


def missing(config: Config) -> Iterator[Fault]:
    """Values that only the user knows."""

    def walk(value: Any, key: str) -> Iterator[str]:
        if isinstance(value, Mapping):
            for name, inner in value.items():
                yield from walk(inner, f"{key}.{name}" if key else str(name))
        elif value == "???":
            yield key

    for key in walk(config, ""):
        if key != "run_folder" and not key.startswith("cluster."):  # a cluster says more of its own
            yield Fault(key, f"has no value: add {key}=VALUE to the command")


def part_faults(config: Config, key: str) -> Iterator[Fault]:
    """One part, built alone: first what its arguments are, then itself."""
    node = get(config, key)
    if not isinstance(node, Mapping) or not node.get("_target_"):
        return
    try:
        with torch.device("meta"):
            part = made(config, key, _partial_=True)
            if faults := [*argument_faults(part, key)]:
                yield from faults
            elif not node.get("_partial_"):
                part()
    except Exception as error:
        yield fault_of(error, key, config)


def made(config: Config, key: str, **changed: Any) -> Any:
    """What the node at a key describes, with some of its values replaced, in the place where errors will name it."""
    root = OmegaConf.create({"trust": config.get("trust")})
    *path, last = key.split(".")
    place: DictConfig = root
    for name in path:
        place[name] = {}
        place = place[name]
    place[last] = literal({**get(config, key), **changed})
    return build(place[last])


def argument_faults(part: Any, key: str) -> Iterator[Fault]:
    """Arguments that the class does not take, and values of another type than it says."""
    if not isinstance(part, partial):
        return
    taken = inspect.signature(part.func).parameters
    try:
        hints = typing.get_type_hints(part.func.__init__ if inspect.isclass(part.func) else part.func)  # type: ignore[misc]
    except (NameError, TypeError, AttributeError):  # of a class that does not tell
        hints = {}
    anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in taken.values())
    for name, value in part.keywords.items():
        if name not in taken and not anything:
            yield Fault(
                f"{key}.{name}",
                f"{part.func.__name__} takes no '{name}': give one of {', '.join(taken)}, or leave it out",
            )
        elif not fits(value, hints.get(name, Any)):
            yield Fault(f"{key}.{name}", f"{value!r} is no value of it: give {in_words(hints[name])}")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value from YAML is of a type; True wherever the type is none that YAML has."""
    kind, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind in (typing.Union, UnionType):
        return any(fits(value, one) for one in inner)
    if kind is typing.Literal:
        return value in inner
    if kind in (None, type(None)):
        return value is None
    if kind in (int, float, bool, str):
        right = int | float if kind is float else kind
        return isinstance(value, right) and (kind is bool or not isinstance(value, bool))
    if kind in (Sequence, list, tuple):
        return isinstance(value, list | tuple) and all(fits(one, inner[0]) for one in value if inner)
    if kind in (Mapping, dict):
        return isinstance(value, Mapping) and all(fits(one, inner[1]) for one in value.values() if inner)
    return True


def in_words(hint: Any) -> str:
    kind, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind in (typing.Union, UnionType):
        return " or ".join(dict.fromkeys(map(in_words, inner)))
    if kind is typing.Literal:
        return ", ".join(map(str, inner))
    words: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
    words |= {type(None): "null", Sequence: "a list", list: "a list", tuple: "a list"}
    words |= dict.fromkeys((Mapping, dict), "values by name")
    return words.get(kind, getattr(kind, "__name__", str(kind)))


def texture_shape(config: Config) -> tuple[list[int] | None, list[Fault]]:
    """The shape of what MAS-GLCM makes of a crop, and whether the crop is large enough; None where there is none."""
    crop = get(config, "data.crop")
    if not get(config, "glcm._target_") or not fits(crop, int):
        return None, []
    try:
        with torch.device("meta"):
            return list(made(config, "glcm")(torch.empty(1, 3, crop, crop)).shape), []
    except Exception as error:
        fault = [Fault("glcm.scales", f"data.crop={crop}: {error}")] if "largest scale" in str(error) else []
        return None, fault  # others are said of the part


def built(config: Config) -> tuple[Model | None, list[Fault]]:
    """The model of a stage, which on the meta device takes a step of training and samples once."""
    try:
        with torch.device("meta"):
            made_of = literal(config)
            assert isinstance(made_of, DictConfig)
            stage = build_stage(made_of)
    except Exception as error:
        return None, [fault_of(error, "stage", config)]
    return Model(stage, stage.state_dict()), [*trial(stage, config)]


def trial(stage: Stage, config: Config) -> Iterator[Fault]:
    crop, num = get(config, "data.crop"), images_at_once(config)
    try:
        optimizer = stage.optimizer(stage.parameters())
    except Exception as error:
        yield _of_optimizer(error, "stage.optimizer", config)
    else:
        if stage.scheduler:
            try:
                stage.scheduler(optimizer)
            except ZeroDivisionError:
                steps = get(config, "trainer.max_steps")
                yield Fault("stage.scheduler", f"divides by zero at trainer.max_steps={steps}: take a step more")
            except Exception as error:
                yield _of_optimizer(error, "stage.scheduler", config)
    if not all(isinstance(number, int) and number > 0 for number in (crop, num)):
        return  # said of these
    try:
        with torch.device("meta"), torch.no_grad():
            image, label = torch.empty(num, 3, crop, crop), torch.empty(num, dtype=torch.long)
            step = stage.compute({"x_hq": image, "x_lq": image, "label": label}, label, image)
            for _, term in stage.losses.values():
                term(step)
    except Exception as error:
        if "largest scale" not in str(error):  # said of the texture
            yield _tried(error, "stage.terms", config)
    try:
        if stage.restores:
            small = torch.empty(1, 3, 1, 1, device="meta")
            known = Estimate(small, small, small)
            stage.sampler(lambda *_: known, stage.diffusion, small, small)
    except Exception as error:
        yield _tried(error, "sampler", config)


def _of_optimizer(error: Exception, key: str, config: Config) -> Fault:
    if unknown := re.search(r"unexpected keyword argument '(\w+)'", str(error)):
        return Fault(f"{key}.{unknown[1]}", f"{get(config, key)['_target_']} takes no '{unknown[1]}': leave it out")
    return fault_of(error, key, config)


def _tried(error: Exception, key: str, config: Config) -> Fault:
    if isinstance(error, NotImplementedError) or "meta tensor" in str(error):
        return Fault(key, f"could not be tried without values ({error})".splitlines()[0], NOTE)
    fault = fault_of(error, key, config)
    return Fault(f"{key}.sample_steps" if "sample_steps" in fault.message else fault.key, fault.message)


def images_at_once(config: Config) -> Any:
    """So many images a loss sees together: those of a step, or of a part of it where it accumulates."""
    whole, micro = get(config, "data.batch_size"), get(config, "data.micro_batch")
    return min(whole, micro * world_size(config)) if isinstance(whole, int) and isinstance(micro, int) else whole


def world_size(config: Config) -> int:
    """Processes of a run; 1 where the cluster's numbers are none."""
    numbers = [get(config, key) for key in ("cluster.nodes", "cluster.devices")]
    return math.prod(n for n in numbers if isinstance(n, int)) or 1


# --- values that no constructor looks at ---


def value_faults(config: Config) -> Iterator[Fault]:
    stage, weights = get(config, "stage.name"), get(config, "stage.weights") or {}
    for key in ("stage.lambda", "stage.anchor", *(f"stage.weights.{name}" for name in weights)):
        value = get(config, key)
        if not fits(value, float) or not 0 <= value < math.inf:
            yield Fault(key, f"{key}={value!r} is no weight: give a number from 0 on, such as 0.1")
    for name in weights.keys() - (get(config, "stage.terms") or {}).keys():
        known = ", ".join(get(config, "stage.terms") or {})
        yield Fault(f"stage.weights.{name}", f"there is no loss term '{name}': the terms are {known}")
    for key, least in (("seed", 0), ("data.num_workers", 0), (f"max_steps.{stage}", 1), ("trainer.max_steps", 1)):
        value = get(config, key)
        if not fits(value, int) or value < least:
            yield Fault(key, f"{key}={value!r}: give a whole number from {least} on")


def place_faults(config: Config) -> Iterator[Fault]:
    """Where runs are written."""
    project, root = f"{config['project']}", Path(f"{config['root']}")
    if project in ("", ".", "..") or re.search(r"[/\\\0\n]", project):
        yield Fault("project", f"project={project!r} is the name of a folder in root: give a word without separators")
    try:
        with tempfile.TemporaryFile(dir=existing(root)):
            pass
    except OSError as error:
        yield Fault("root", f"root={root}: nothing can be written there ({error.strerror}): give another folder")


def existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


# --- data, trainer, callbacks ---


def data_faults(config: Config) -> Iterator[Fault]:
    """Shards, samples, quotas and the parts of a batch, as training would look at them."""
    world = world_size(config)
    absent = {key: found for key in SHARDS if (found := [*_absent(config, f"data.{key}")])}
    for found in absent.values():
        yield from found
    try:
        part = made(config, "data", _partial_=True)
        if faults := [*argument_faults(part, "data")]:
            yield from faults
            return
        data = part()
    except Exception as error:
        yield from _own(error, "data", config)
        return
    try:
        accumulation = data.accumulation(world)
        if "shards" not in absent:
            plan = data.plan(0, 0, world, accumulation)
            if (num := len(plan.cases.samples)) < data.batch_size:
                text = f"data.batch_size={data.batch_size}, but there are {num} samples: the same image comes twice in a step"
                yield Fault("data.batch_size", f"{text}: take a smaller batch, or more data", WARNING)
    except Exception as error:
        yield from _own(error, _of_plan(error), config)
    for key in SHARDS[1:]:
        try:
            if get(config, f"data.{key}") and key not in absent:
                data.measured(get(config, f"data.{key}"))
        except Exception as error:
            yield from _own(error, f"data.{key}", config)
    if not get(config, "data.val_shards"):
        yield Fault("data.val_shards", "is null: nothing is validated, so there is no best.ckpt", WARNING)


def _absent(config: Config, key: str) -> Iterator[Fault]:
    try:
        expand(get(config, key))
    except (OSError, ValueError, TypeError) as error:
        yield Fault(key, f"{error}")


def _of_plan(error: Exception) -> str:
    return "data.crop" if "smaller than the crop" in str(error) else "data.shards"


def _own(error: Exception, key: str, config: Config) -> Iterator[Fault]:
    """Faults of the data, but not those of a degradation, which was built alone before."""
    fault = fault_of(error, key, config)
    if not fault.message.startswith("data.degradations"):
        yield fault


def trainer_faults(config: Config) -> Iterator[Fault]:
    """Lightning's Trainer with all its values, but on this machine's CPU."""
    if get(config, "trainer.accumulate_grad_batches"):
        yield Fault(
            "trainer.accumulate_grad_batches", "follows from data.batch_size and data.micro_batch: give these instead"
        )
    here = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "plugins": None, "logger": False}
    here |= {"enable_progress_bar": False, "enable_checkpointing": False}
    try:
        with quiet():
            part = made(config, "trainer", _partial_=True, **here)
            if faults := [*argument_faults(part, "trainer")]:
                yield from faults
            else:
                part()
    except ImportError as error:
        yield Fault("trainer", f"needs a package that is not here: {error}", WARNING)
    except Exception as error:
        yield fault_of(error, "trainer", config)


@contextmanager
def quiet() -> Iterator[None]:
    """Without what Lightning says of devices, which are not those of the job."""
    log = logging.getLogger("lightning.pytorch")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


def callback_faults(config: Config) -> Iterator[Fault]:
    """What a run that dies and comes back cannot do without."""
    on = {name for name, node in (config["callbacks"] or {}).items() if node}
    wanted = {"checkpoint": "a run that ends early would begin anew", "ema": "its weights would not be averaged"}
    if get(config, "inherit.from") not in (None, "none"):
        wanted["inherit"] = "the stage would begin at random, whatever it should inherit"
    if get(config, "cluster.kind") == "slurm":
        wanted["preempt"] = "a job that Slurm ends would lose what it has not saved"
        wanted["heartbeat"] = "bdg status would not see the run"
    for name, otherwise in wanted.items():
        if name not in on:
            level = WARNING if name in ("ema", "heartbeat") else ERROR
            yield Fault(
                f"callbacks.{name}", f"is missing: {otherwise}: take it back from conf/callbacks/default", level
            )


def geometry_faults(config: Config) -> Iterator[Fault]:
    """The shape of the job, in itself."""
    try:
        geometry = Geometry.from_config(config["cluster"])
    except ValueError as error:
        yield fault_of(error, "cluster", config)
        return
    for key in ("devices", "num_nodes"):
        asked, given = get(config, f"trainer.{key}"), geometry.nodes if key == "num_nodes" else geometry.devices
        if asked not in (None, given):
            other = key.removeprefix("num_")
            yield Fault(
                f"trainer.{key}", f"trainer.{key}={asked}, but cluster.{other}={given}: give cluster.{other} only"
            )
    workers = get(config, "data.num_workers")
    if geometry.kind == "slurm" and isinstance(workers, int) and workers >= geometry.cpus_per_device > 1:
        text = f"cluster.cpus_per_device={geometry.cpus_per_device} for a process with data.num_workers={workers}"
        yield Fault("cluster.cpus_per_device", f"{text}: give one more than workers", WARNING)


CHECKS: tuple[tuple[Callable[[Config], Iterator[Fault]], tuple[str, ...]], ...] = (
    (value_faults, ("seed", "max_steps", "data.num_workers", "trainer.max_steps", "stage")),
    (place_faults, ("project", "root")),
    (data_faults, ("data", "degradation", "cluster.nodes", "cluster.devices", "trust")),
    (trainer_faults, ("trainer", "trust")),
    (callback_faults, ("callbacks", "inherit.from", "cluster.kind")),
    (geometry_faults, ("cluster", "trainer.devices", "trainer.num_nodes", "data.num_workers")),
)


# --- files of weights ---


def header(weights: Path) -> Mapping[str, Tensor] | Fault:
    """The tensors of a file of weights without their values, or why there are none."""
    if not weights.is_file():
        text = f"there are no weights at {weights}: name a finished run or a weights file, or take inherit.from=none"
        return Fault("inherit.from", text)
    try:
        if weights.suffix != ".safetensors":
            return read_parent(f"{weights}")  # mapped, so that no value is read
        with safe_open(weights, framework="pt") as file:
            return {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in file.keys()}  # noqa: SIM118
    except ValueError as error:
        return Fault("inherit.from", f"{error}")
    except SafetensorError as error:
        return Fault(
            "inherit.from", f"{weights} is not a safetensors file, or cut off ({error}): train that stage again"
        )


def misfits(
    own: Mapping[str, Tensor], parent: Mapping[str, Tensor], origin: str, fresh: Sequence[str], dropped: Sequence[str]
) -> list[Fault]:
    try:
        check_fit(own, parent, origin, fresh, dropped)
    except ValueError as error:
        return [Fault("inherit.from", f"{error}")]
    return []


def checkpoint_bytes(model: Model) -> int:
    """What a run leaves on the disk, about: its checkpoints and its weights."""
    return 4 * sum(tensor.numel() for tensor in model.tensors.values()) * (STATES * CHECKPOINTS + 1)
