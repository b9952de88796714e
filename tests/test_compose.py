"""Composition over the search path, and building behind the allow-list."""

import functools
import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import InstantiationException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from torch import nn

from bdg.commands.compose import build, compose


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder far from the package."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BDG_CONFIG_DIR", raising=False)
    return tmp_path


# --- compose ---


def test_packaged_configs_are_found_from_any_folder(elsewhere: Path) -> None:
    assert compose("train", []).stage.name == "generation"


def test_places_precede_one_another_in_the_documented_order(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def who(config_dir: str | None = None) -> str:
        return compose("who", [], config_dir).name

    write(elsewhere, {f"{place}/who.yaml": f"name: {place}" for place in ("option", "conf", "environment")})
    monkeypatch.setenv("BDG_CONFIG_DIR", "environment")
    assert (who("option"), who()) == ("option", "conf")
    (elsewhere / "conf" / "who.yaml").unlink()
    assert who() == "environment"
    (elsewhere / "environment" / "who.yaml").unlink()
    with pytest.raises(MissingConfigException, match="pkg://conf"):
        who()


def test_a_local_file_joins_the_packaged_ones_of_its_group(elsewhere: Path) -> None:
    write(elsewhere / "conf", {"stage/mine.yaml": "defaults: [generation]\nlambda: 7\n"})
    config = compose("train", ["stage=mine"])
    assert (config.stage["lambda"], config.stage.name) == (7, "generation")


def test_a_local_file_replaces_the_packaged_one_of_its_name(elsewhere: Path) -> None:
    write(elsewhere / "conf", {"stage/generation.yaml": "name: theirs\n"})
    assert compose("train", []).stage == {"name": "theirs"}


@pytest.mark.parametrize("place", ["option", "variable"])
def test_a_place_that_is_no_folder_is_named(place: str, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if place == "variable":
        monkeypatch.setenv("BDG_CONFIG_DIR", "nowhere")
    with pytest.raises(FileNotFoundError, match="'nowhere', which is not a folder"):
        compose("train", [], "nowhere" if place == "option" else None)


def test_composing_again_leaves_earlier_configs_alone(elsewhere: Path) -> None:
    first = compose("train", ["stage=generation", "seed=1"])
    second = compose("train", ["stage=restoration", "seed=2"])
    assert (first.stage.name, first.seed) == ("generation", 1)
    assert (second.stage.name, second.seed) == ("restoration", 2)


def test_composing_works_inside_a_hydra_application(elsewhere: Path) -> None:
    import hydra

    write(elsewhere / "app", {"app.yaml": "a: 1\n"})
    with hydra.initialize_config_dir(str(elsewhere / "app"), version_base=None):
        assert compose("train", []).seed == 0
        assert hydra.compose("app") == {"a": 1}


def test_values_nobody_gave_stay_open(elsewhere: Path) -> None:
    write(elsewhere / "conf", {"needs.yaml": "what: ???\n"})
    assert OmegaConf.is_missing(compose("needs", []), "what")


# --- build ---


OUTSIDE = """
import dataclasses

@dataclasses.dataclass
class Setting:
    value: object

called = []

def touch(**_):
    called.append(None)

def fail(error):
    raise {"value": ValueError, "type": TypeError}[error](f"levels=1: {error} is wrong")
"""


@pytest.fixture(scope="module", autouse=True)
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[types.ModuleType]:
    """Code of a package that nobody has allowed."""
    folder = write(tmp_path_factory.mktemp("site"), {"outside.py": OUTSIDE})
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield importlib.import_module("outside")
        del sys.modules["outside"]


def node(target: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": target, **arguments}


def test_build_calls_the_target_with_what_the_node_and_the_caller_give() -> None:
    layer = build(node("torch.nn.Linear", in_features=2), out_features=3)
    assert (layer.in_features, layer.out_features) == (2, 3)


def test_containers_arrive_as_plain_ones() -> None:
    config = OmegaConf.create({"seed": 5, "part": node("outside.Setting", value={"a": [1, {"b": "${seed}"}]})})
    value = build(config.part, trust=["outside"]).value
    assert value == {"a": [1, {"b": 5}]}
    assert (type(value), type(value["a"])) == (dict, list)


def test_what_the_caller_gives_arrives_as_it_is(outside: types.ModuleType) -> None:
    for value in (nn.Linear(1, 1), [nn.Linear(1, 1)], {"a": 1}, outside.Setting(1)):
        assert build(node("outside.Setting"), trust=["outside"], value=value).value is value


def test_a_partial_node_takes_the_callers_part_and_waits_for_the_rest() -> None:
    part = build(node("torch.nn.Linear", _partial_=True, in_features=2), bias=False)
    assert isinstance(part, functools.partial)
    assert part(out_features=1).bias is None


def test_a_dictionary_of_nodes_becomes_a_dictionary_of_parts() -> None:
    parts = build({"a": node("torch.nn.Identity"), "b": {"c": node("torch.nn.ReLU")}})
    assert isinstance(parts["a"], nn.Identity)
    assert isinstance(parts["b"]["c"], nn.ReLU)


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.run",
        "builtins.eval",
        "torch.load",
        "bdgx.Thing",
        "bdg.cli.sys.exit",  # reachable through an allowed module, but not its code
        "bdg.commands.compose.os.system",
        "torch.optim.adam.torch.load",
        "torch.nn.Linear.__init__.__globals__",
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_code_of_other_packages_is_refused_before_anything_is_called(
    target: str, nested: bool, outside: types.ModuleType
) -> None:
    tree = node("outside.touch", deep=[{"x": node(target)}]) if nested else node(target)
    config = OmegaConf.create({"part": tree, "trust": ["outside"]})
    key = r"part\.deep\[0\]\.x" if nested else "part"
    with pytest.raises(ValueError, match=rf"^{key}\._target_ is '{target}'"):
        build(config.part)
    assert not outside.called


def test_refusal_says_how_to_allow() -> None:
    with pytest.raises(ValueError, match=r"add trust=\[outside\] to the command or set BDG_TRUST=outside"):
        build(node("outside.Setting", value=1))


@pytest.mark.parametrize("way", ["argument", "config", "word", "variable"])
def test_a_package_can_be_allowed(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = OmegaConf.create({"part": node("outside.Setting", value=1)})
    if way == "variable":
        monkeypatch.setenv("BDG_TRUST", "other,outside")
    elif way != "argument":
        config.trust = ["outside"] if way == "config" else "outside"
    assert build(config.part, trust=["outside"] if way == "argument" else None).value == 1


def test_an_interpolated_target_is_checked_too() -> None:
    config = OmegaConf.create({"evil": "os.getcwd", "part": node("${evil}")})
    with pytest.raises(ValueError, match=r"part\._target_ is 'os\.getcwd'"):
        build(config.part)


@pytest.mark.parametrize("target", ["bdg.nothing.Here", "torch.nn.Linnear"])
def test_a_target_that_does_not_exist_is_named(target: str) -> None:
    with pytest.raises(ValueError, match=rf"'{target}', which does not exist"):
        build({"net": node(target)})


@pytest.mark.parametrize("target", ["???", 3, None])
def test_a_target_that_is_no_name_is_refused(target: Any) -> None:
    with pytest.raises(ValueError, match="must be the dotted name"):
        build({"net": node(target)})


@pytest.mark.parametrize(("kind", "error"), [("value", ValueError), ("type", TypeError)])
@pytest.mark.parametrize("by_caller", [False, True])
def test_an_error_inside_a_part_is_raised_as_it_is(kind: str, error: type[Exception], by_caller: bool) -> None:
    part, extra = (node("outside.fail"), {"error": kind}) if by_caller else (node("outside.fail", error=kind), {})
    with pytest.raises(error, match=f"^levels=1: {kind} is wrong$"):
        build(part, trust=["outside"], **extra)


@pytest.mark.parametrize("by_caller", [False, True])
def test_an_argument_that_a_part_does_not_take_is_named_with_the_part(by_caller: bool) -> None:
    part, extra = (node("outside.Setting"), {"valeu": 1}) if by_caller else (node("outside.Setting", valeu=1), {})
    with pytest.raises(InstantiationException, match=r"(?s)Setting.*valeu"):
        build(part, trust=["outside"], **extra)


def test_a_missing_value_inside_a_node_is_named() -> None:
    config: DictConfig = OmegaConf.create({"part": node("torch.nn.Linear", in_features=1, out_features="???")})
    with pytest.raises(Exception, match=r"part\.out_features"):
        build(config.part)
