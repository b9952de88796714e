"""One stage for many values: its config is composed once with marks in their place, and a run's name is filled in by text.

Where the marks come out of the resolved config is where values are put; what is hashed is kept as a text with marks, one for
each kind of values, for as long as the definition hands them on without a look at them.
"""

import copy
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from omegaconf import DictConfig, OmegaConf

from bdg.commands.cells import Changes
from bdg.commands.chain import resolved, stage_config
from bdg.commands.request import Request
from jobs.identity import definition, identity, name_of, written

MARK = "__value_{}_of_the_sweep__"
PARENT = MARK.format("parent")
DECIDES = ("stages", "stage.name", "only", "inherit.from", "ckpt_path", "root", "project", "data.shards")
"""What the chain is, and what is looked up: a value that comes out in one of these must be composed."""
FUNCTION = re.compile(r"\$\{(?!oc\.env:)[\w.]+:")
"""A resolver in a config, which may do anything with a value."""

Slots = dict[str, list[tuple[Any, Any]]]
"""Key -> container and index of each place where its value comes out."""


class CannotBePutIn(Exception):  # noqa: N818
    """Values of these keys do more than come out somewhere: they must be composed."""

    def __init__(self, keys: set[str]) -> None:
        super().__init__(", ".join(sorted(keys)))
        self.keys = keys


def marked(request: Request, stage: str, first: bool, keys: Sequence[str]) -> tuple[DictConfig, dict[str, Any], Slots]:
    """The config of a stage with marks for the values of `keys`, the same resolved, and where the marks come out."""
    marks = {MARK.format(number): key for number, key in enumerate(keys)}
    config = stage_config(adding(request, *(f"{key}={mark}" for mark, key in marks.items())), stage, first)
    if keys and any(FUNCTION.search(text) for *_, text in _texts(OmegaConf.to_container(config))):
        raise CannotBePutIn({*keys})
    config.run_folder = ""  # defines nothing, but must have a value for the config to resolve
    plain = resolved(config)
    slots: Slots = {key: [] for key in keys}
    for path, container, index, text in _texts(plain):
        if text in marks and not any(f"{path}.".startswith(f"{key}.") for key in DECIDES):
            slots[marks[text]].append((container, index))
        elif inside := {key for mark, key in marks.items() if mark in text}:
            raise CannotBePutIn(inside)
    return config, plain, slots


def adding(request: Request, *words: str) -> Request:
    return replace(request, overrides=(*request.overrides, *words))


def _texts(node: Any, path: str = "") -> Iterator[tuple[str, Any, Any, str]]:
    """Every string in plain containers: its dotted path, the container that holds it, its index there, itself."""
    for index, value in [*node.items()] if isinstance(node, dict) else [*enumerate(node)]:
        here = f"{path}.{index}".lstrip(".")
        if isinstance(value, str):
            yield here, node, index, value
        elif isinstance(value, dict | list):
            yield from _texts(value, here)


@dataclass
class Names:
    """The names of a stage's runs, given their values and their parent."""

    plain: dict[str, Any]
    slots: Slots
    data: str
    ckpt_path: str | None
    """Digest of the checkpoint that the runs begin from."""
    counts: tuple[str, ...] = ()
    """The keys whose values can change the name."""
    _steps: Any = None
    _texts: dict[Any, str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._steps = self.plain["trainer"]["max_steps"]
        self.counts = self._counting()

    def name(self, values: Changes, parent: str | None) -> str:
        kind = tuple((type(values[key]), bool(values[key])) for key in self.counts)
        if kind not in self._texts:
            text = self._text({key: bool(value) for key, value in values.items()})
            name = self._defined(values, parent)
            right = text is not None and name_of(self._filled(text, values, parent)) == name
            self._texts[kind] = text if right else None  # shown by the first of each kind
            return name
        text = self._texts[kind]
        return self._defined(values, parent) if text is None else name_of(self._filled(text, values, parent))

    def deciding(self, value_of: Callable[[Mapping[str, Any]], Any]) -> tuple[str, ...]:
        """The keys whose values come out in what a function takes from the config, as it is."""
        self._put({key: MARK.format(number) for number, key in enumerate(self.slots)})
        text = json.dumps(value_of(self.plain))
        return tuple(key for number, key in enumerate(self.slots) if MARK.format(number) in text)

    def config(self, values: Changes, run_folder: str, weights: str | None) -> dict[str, Any]:
        """The resolved config of a run that lies in `run_folder` and begins with `weights`."""
        self._put(values)
        return {
            **copy.deepcopy(self.plain),
            "run_folder": run_folder,
            "inherit": {**self.plain["inherit"], "parent": weights},
        }

    def max_steps(self, values: Changes) -> int:
        number = next((key for number, key in enumerate(self.slots) if self._steps == MARK.format(number)), None)
        return self._steps if number is None else values[number]

    def _defined(self, values: Changes, parent: str | None) -> str:
        return identity(self._definition(values), parent, self.data)

    def _put(self, values: Mapping[str, Any]) -> None:
        for key, places in self.slots.items():
            for container, index in places:
                container[index] = values[key]

    def _definition(self, values: Mapping[str, Any]) -> dict[str, Any]:
        self._put(values)
        defined = definition(self.plain)
        return defined | ({"ckpt_path": self.ckpt_path} if self.ckpt_path else {})

    def _filled(self, text: str, values: Changes, parent: str | None) -> str:
        for number, key in enumerate(self.slots):
            if key in self.counts:
                text = text.replace(f'"{MARK.format(number)}"', written(values[key]))
        return text.replace(f'"{PARENT}"', written(parent))

    def _text(self, truth: Mapping[str, bool]) -> str | None:
        """What is hashed, with marks for values that are true or false as these; None if the definition looks at one."""
        watched = self._watched(truth)
        try:
            text = written([self._definition(watched), PARENT, self.data])
        except Exception:  # it computes with one
            return None
        return None if any(value.looked_at for value in watched.values()) else text

    def _counting(self) -> tuple[str, ...]:
        """The keys that come out in the definition or that it weighs; all of them if it does more than that."""
        found: set[str] = set()
        for truth in (True, False):
            watched = self._watched(dict.fromkeys(self.slots, truth))
            try:
                text = written(self._definition(watched))
            except Exception:
                return tuple(self.slots)
            if any(value.looked_at for value in watched.values()):
                return tuple(self.slots)
            found |= {key for key, value in watched.items() if value.weighed or str.__str__(value) in text}
        return tuple(key for key in self.slots if key in found)

    def _watched(self, truth: Mapping[str, bool]) -> dict[str, "_Watched"]:
        watched = {key: _Watched(MARK.format(number)) for number, key in enumerate(self.slots)}
        for key, value in watched.items():
            value.truth = truth[key]
        return watched


class _Watched(str):
    """A mark that notes whether it was weighed, for being true or not, or looked at in another way than to hand it on."""

    truth = True
    weighed = False
    looked_at = False

    def __bool__(self) -> bool:
        self.weighed = True
        return self.truth

    def __eq__(self, other: object) -> bool:
        self.looked_at = True
        return super().__eq__(other)

    def __hash__(self) -> int:
        self.looked_at = True
        return super().__hash__()

    def __len__(self) -> int:
        self.looked_at = True
        return super().__len__()

    def __iter__(self) -> Iterator[str]:
        self.looked_at = True
        return super().__iter__()
