"""From the cells of a sweep to its plan: which runs they come to, each once. Composes no config for each; needs no torch."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from bdg.commands.cells import Changes, Point, listed, literal, names
from bdg.commands.chain import Parent, contents, existing, of_one_stage, parent_of
from bdg.commands.compose import open_hydra
from bdg.commands.marks import DECIDES, CannotBePutIn, Names, adding, marked
from bdg.commands.request import Request, key_of
from datamodules.shards import digest
from jobs.plan import Cell, Plan, Task
from jobs.run import Run


@dataclass(frozen=True)
class _Stage:
    """A stage of all cells that choose the same files."""

    name: str
    folder: Path
    inherits: bool
    """From the stage before, not from weights outside of the plan."""
    outside: Parent | None
    words: tuple[str, ...]
    flags: tuple[str, ...]
    names: Names

    def task(self, own: str, values: Changes, before: str | None, count: Collection[str]) -> Task:
        """count: the keys whose values can change this stage or one that it comes from."""
        varied = (f"{key}={literal(value)}" for key, value in values.items() if key in count)
        words = (f"stage={self.name}", *self.words, *varied, *self.flags)
        return Task(self.name, own, f"{self.folder}/{own}", before, words, (), self.names.max_steps(values))


@dataclass(frozen=True)
class Planned:
    """A plan, and what its tasks were made of."""

    plan: Plan
    requests: tuple[Request, ...]
    """One for each cell."""
    made_of: dict[str, tuple[_Stage, Changes]]

    def config(self, identity: str) -> dict[str, Any]:
        """The resolved config of a task; what the folder's name is part of has it only in `run_folder` itself."""
        (stage, values), parent = self.made_of[identity], self.plan.tasks[identity].parent
        weights = self.plan.tasks[parent].run.weights if parent else stage.outside.weights if stage.outside else None
        return stage.names.config(values, self.plan.tasks[identity].folder, str(weights) if weights else None)

    def by(self, value_of: Callable[[Mapping[str, Any]], Any]) -> dict[Any, list[str]]:
        """Tasks grouped so that what a function takes from their configs is the same in each group."""
        groups: dict[Any, list[str]] = {}
        keys: dict[int, tuple[str, ...]] = {}
        for own, (stage, values) in self.made_of.items():
            if id(stage) not in keys:
                keys[id(stage)] = stage.names.deciding(value_of)
            groups.setdefault((id(stage), *(literal(values[key]) for key in keys[id(stage)])), []).append(own)
        return groups


def plan_cells(request: Request, asked: Sequence[Point], name: str, one_stage: bool) -> Planned:
    """The runs that the cells come to, each once.

    request: what the cells have in common. one_stage: each cell is a training of one stage, and what that inherits from is
    planned with it; else each is the whole chain.

    Raises:
        ValueError: a key does not exist, or is both given and varied; two cells come to the same runs.
    """
    given = {key_of(word): word for word in request.overrides}
    for key in dict.fromkeys(key for point in asked for key in point.changes if key != "experiment"):
        if key.lstrip("+") in given:
            raise ValueError(f"{given[key.lstrip('+')]} is given, and the sweep varies {key}: leave one of them out")
    composed: frozenset[str] = frozenset()
    while True:
        try:
            return _Planner(request, asked, one_stage, composed).plan(name)
        except CannotBePutIn as error:
            composed |= error.keys


def flags(request: Request) -> tuple[str, ...]:
    """Words of the command line that choose the config and where files are looked for."""
    named = ("--config-name", request.config_name) if request.config_name != "train" else ()
    return (*named, *(("--config-dir", request.config_dir) if request.config_dir else ()))


class _Planner:
    def __init__(self, request: Request, asked: Sequence[Point], one_stage: bool, composed: frozenset[str]) -> None:
        self.request, self.asked, self.one_stage, self.composed = request, asked, one_stage, composed
        hydra = open_hydra(request.config_dir)
        self.groups = set(hydra.list_all_config_groups())
        own = [word for word in request.overrides if key_of(word) == "experiment"]
        parsed = OverridesParser.create(hydra.config_loader).parse_overrides(own)
        self.experiments = [name for override in parsed for name in listed(override.value())]
        self.chains: dict[Any, tuple[list[_Stage], Request]] = {}
        self.digests: dict[str, str] = {}
        self.place: tuple[str, str] | None = None

    def plan(self, name: str) -> Planned:
        cells: list[Cell] = []
        tasks: dict[str, Task] = {}
        users: dict[str, list[int]] = {}
        requests: list[Request] = []
        made_of: dict[str, tuple[_Stage, Changes]] = {}
        same: dict[tuple[str, ...], Cell] = {}
        for position, (point, title) in enumerate(zip(self.asked, names(self.asked), strict=True)):
            changes = point.changes
            values = {key: value for key, value in changes.items() if self._is_put_in(key, value)}
            stages, common = self._stages(changes, values)
            requests.append(adding(common, *(f"{key}={literal(value)}" for key, value in values.items())))
            chain: list[str] = []
            count: set[str] = set()
            for stage in stages:
                before = chain[-1] if chain and stage.inherits else None
                count = {*stage.names.counts, *(count if before else ())}
                own = stage.names.name(values, before or (stage.outside.identity if stage.outside else None))
                if own not in tasks:
                    tasks[own] = stage.task(own, values, before, count)
                    users[own], made_of[own] = [], (stage, values)
                elif not tasks[own].folder.startswith(f"{stage.folder}/"):
                    raise ValueError(
                        f"{tasks[own].folder} and {stage.folder}/{own} would be the same run: sweep within one root and project"
                    )
                users[own].append(position)
                chain.append(own)
            cells.append(Cell(title, changes, tuple(chain)))
            if (other := same.setdefault(cells[-1].tasks, cells[-1])) is not cells[-1]:
                raise ValueError(_same(other, cells[-1]))
        assert self.place, "there is a cell, or points() had raised"
        root, project = self.place
        found = {own: replace(task, cells=tuple(users[own])) for own, task in tasks.items()}
        return Planned(Plan(name, root, project, tuple(cells), found), tuple(requests), made_of)

    def _is_put_in(self, key: str, value: Any) -> bool:
        plain = key.lstrip("+")
        return not (
            plain in self.groups
            or plain in DECIDES
            or key in self.composed
            or isinstance(value, dict)  # which is merged into what is there
            or (isinstance(value, str | list) and "${" in literal(value))
        )

    def _stages(self, changes: Changes, values: Changes) -> tuple[list[_Stage], Request]:
        """The chain of the cells that choose the same files, and what these have in common."""
        words = [
            f"{key}={literal(value)}" for key, value in changes.items() if key not in values and key != "experiment"
        ]
        common = self.request
        if "experiment" in changes:
            common = common.without("experiment")
            words = [f"experiment={literal([*self.experiments, *changes['experiment']])}", *words]
        what = (tuple(words), tuple(values))
        if what not in self.chains:
            request = adding(common, *words)
            self.chains[what] = self._compose(request, values), request
        return self.chains[what]

    def _compose(self, request: Request, values: Changes) -> list[_Stage]:
        real = adding(request, *(f"{key}={literal(value)}" for key, value in values.items()))
        config = real.compose()  # so that what is wrong with the words is said of the user's own, not of marks
        self.place = self.place or (config.root, config.project)
        stages, stage, source = list(config.stages), config.stage.name, config.inherit["from"]
        if not self.one_stage:
            if len(stages) > 1 and (source != "auto" or config.ckpt_path):
                key = f"ckpt_path={config.ckpt_path}" if config.ckpt_path else f"inherit.from={source}"
                raise ValueError(
                    f"{key} is for one stage, and a cell trains {stages}: use bdg train -m stage=... {key}"
                )
            return [self._stage(request, name, values, name == stages[0]) for name in stages]
        if source != "auto":
            return [self._stage(request, stage, values, first=True)]
        if stage not in stages:
            parent_of(config, real)  # raises
        return [self._stage(request, name, values, name == stage) for name in stages[: stages.index(stage) + 1]]

    def _stage(self, request: Request, name: str, values: Changes, first: bool) -> _Stage:
        """first: as in chain.stage_link."""
        try:
            config, plain, slots = marked(request, name, first, [*values])
        except (ValueError, HydraException, OmegaConfBaseException) as error:
            if not values:
                raise
            raise CannotBePutIn(_culprits(request, name, first, values)) from error
        inherits = config.inherit["from"] == "auto"
        outside = None if inherits else parent_of(config, request)
        begins = existing(config.ckpt_path) if config.ckpt_path else None
        return _Stage(
            name=config.stage.name,
            folder=Run(Path(config.root), config.project, config.stage.name, "").folder,
            inherits=inherits and name != config.stages[0],
            outside=outside,
            words=request.without("stage", "json", *of_one_stage(first)).overrides,
            flags=flags(request),
            names=Names(
                plain,
                slots,
                self._digest(plain["data"]["shards"]),
                contents(begins) if begins else None,
            ),
        )

    def _digest(self, shards: Any) -> str:
        if (what := repr(shards)) not in self.digests:
            self.digests[what] = digest(shards)
        return self.digests[what]


def _culprits(request: Request, stage: str, first: bool, values: Changes) -> set[str]:
    """The keys that no config can be composed with a mark for, the others having their values; all if each alone can."""
    found = set()
    for key in values:
        others = (f"{other}={literal(value)}" for other, value in values.items() if other != key)
        try:
            marked(adding(request, *others), stage, first, [key])
        except (ValueError, HydraException, OmegaConfBaseException, CannotBePutIn):
            found.add(key)
    return found or {*values}


def _same(one: Cell, other: Cell) -> str:
    keys = [key for key in {**one.changes, **other.changes} if one.changes.get(key) != other.changes.get(key)]
    why = f"{', '.join(keys)} {'do' if len(keys) > 1 else 'does'} not count there" if keys else "they say the same"
    return f"cells '{one.name}' and '{other.name}' are the same runs, since {why}: leave one of them out"
