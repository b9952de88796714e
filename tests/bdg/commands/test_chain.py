"""Which run each stage of a request is: what is shared, what `only` changes, and what is refused."""

import functools
import shutil
from pathlib import Path

import cv2
import hydra.errors
import numpy as np
import pytest
import torch

from bdg.commands.chain import stage_config, stage_link
from bdg.commands.compose import build
from bdg.commands.errors import report
from bdg.commands.request import Request
from datamodules.pack import pack


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small packed sets: clean photographs, and pairs for three experiments."""
    root = tmp_path_factory.mktemp("sets")
    seeds = iter(range(100))

    def write(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        image = np.random.default_rng(next(seeds)).integers(0, 256, (20, 20, 3), np.uint8)
        assert cv2.imwrite(str(path), image)

    for number in range(5):
        write(root / "images" / "clean" / f"{number}.png")
        write(root / "images" / "df2k" / f"{number}.png")
        for name, degradation in (("five", "rain"), ("cdd11", "haze"), ("realsr", "real_sr")):
            write(root / "images" / name / degradation / "gt" / f"{number}.png")
            write(root / "images" / name / degradation / "lq" / f"{number}.png")
    for name in ("clean", "df2k", "five", "cdd11", "realsr"):
        pack(root / "images" / name, root / name, {"train": "rest"})
    return root


def experiments(sets: Path, *more: str) -> dict[str, Request]:
    """The same clean images for generation, and data of each experiment's own after it."""
    only = f"only.generation=['data=packed','data.root={sets}/clean','data.quotas=null']"
    words = ("data.crop=16", "data.num_workers=0", only, *more)
    return {
        "all_in_one": Request("train", ("experiment=all_in_one", f"data.root={sets}/five", *words)),
        "mixed": Request("train", ("experiment=mixed", f"data.root={sets}/cdd11", *words)),
        "real_sr": Request(
            "train",
            ("experiment=real_sr", f"data.root={sets}/df2k", f"data.test_shards={sets}/realsr/train-*.tar", *words),
        ),
    }


def test_all_in_one_mixed_and_real_world_share_generation(sets: Path) -> None:
    bridging = [stage_link(request, "bridging") for request in experiments(sets).values()]

    assert len({link.parent.identity for link in bridging if link.parent}) == 1
    assert len({link.run.identity for link in bridging}) == 3


def test_generation_sees_the_same_clean_images_whatever_degrades_them(sets: Path) -> None:
    """Why degradations may share it."""
    words = ("data=packed", f"data.root={sets}/clean", "data.crop=16", "data.num_workers=0")
    configs = [Request("train", (*words, f"degradation={name}")).compose() for name in ("five", "cdd11", "real_esrgan")]
    first, *others = [next(iter(build(config.data).stream())) for config in configs]

    assert all(torch.equal(first["x_hq"], other["x_hq"]) for other in others)
    assert not any(torch.equal(first["x_lq"], other["x_lq"]) for other in others)


def test_a_project_of_its_own_puts_what_is_shared_into_one_folder(sets: Path) -> None:
    words = ["data=packed", f"data.root={sets}/clean", "data.quotas=null", "project=clean"]
    only = f"only.generation={words}"
    folders = {
        stage_link(Request("train", (*request.without("only.generation").overrides, only)), "generation").run.folder
        for request in experiments(sets).values()
    }

    assert len(folders) == 1
    assert "clean" in folders.pop().parts


@functools.cache
def chain(sets: Path, *overrides: str) -> dict[str, str]:
    request = Request("train", ("data=packed", f"data.root={sets}/clean", *overrides))
    bridging = stage_link(request, "bridging")
    assert bridging.parent is not None
    return {"generation": bridging.parent.identity, "bridging": bridging.run.identity}


def test_steps_of_a_stage_change_it_and_its_children_only(sets: Path) -> None:
    before = chain(sets)
    generation = chain(sets, "max_steps.generation=7")
    bridging = chain(sets, "max_steps.bridging=7")

    assert generation["generation"] != before["generation"]
    assert generation["bridging"] != before["bridging"]
    assert bridging["generation"] == before["generation"]
    assert bridging["bridging"] != before["bridging"]


def test_only_counts_by_what_it_changes(sets: Path) -> None:
    said = ("data.crop=64", "only.generation=['data.crop=32']", "only.restoration=['data.crop=16']")

    assert chain(sets, *said[:2]) == chain(sets, *said)
    assert chain(sets, *said[:2])["generation"] == chain(sets, "data.crop=32")["generation"]


def test_the_command_for_the_parent_makes_it(sets: Path) -> None:
    request = experiments(sets)["all_in_one"]
    parent = stage_link(request, "bridging").parent
    assert parent is not None
    words = stage_link(request, "generation", first=False).words

    assert stage_link(Request("train", words[1:]), words[0].removeprefix("stage=")).run.identity == parent.identity


@pytest.mark.parametrize(
    ("overrides", "found"),
    [
        (["data=photographs"], {"data.root": "runs/photographs", "data.quotas": {"rain": 1, "haze": 1}}),
        (["data=photographs", "data.quotas=null"], {"data.root": "runs/photographs", "data.quotas": None}),
        (["network=S", "network.dim=8"], {"network.dim": 8}),
        (["data.crop=32", "+data.mine=1"], {"data.crop": 32, "data.mine": 1}),
        (["degradation=[rain]"], {"degradation": {"rain": {"_target_": "datamodules.degradations.rain.Rain"}}}),
        (["inherit.from=none"], {"inherit.from": "none"}),
        ([], {"data.crop": 64}),
    ],
)
def test_only_ends_the_command_line_of_its_stage(overrides: list[str], found: dict[str, object]) -> None:
    quotas = "data.quotas={rain:1,haze:1}"
    request = Request("train", ("data.crop=64", quotas, "network.dim=16", f"only.bridging={overrides}"))
    config = stage_config(request, "bridging", first=False)

    assert {key: value(config, key) for key in found} == found
    assert stage_config(request, "generation").data.crop == 64


def value(config: object, dotted: str) -> object:
    for key in dotted.split("."):
        config = config[key]  # type: ignore[index]
    return config


def test_only_may_be_written_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ndata: {crop: 64}\nonly:\n  generation: [data=demo, data.crop=32]\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    request = Request("train", ("experiment=mine",), str(tmp_path))

    assert [stage_config(request, stage).data.crop for stage in ("generation", "bridging")] == [32, 64]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "+only.generaton=['data.crop=32']",
            r"only.generaton=\['data.crop=32'\]: there is no such stage, .*generation",
        ),
        ("only.generation=data", r"only.generation=data: give a list of overrides, each in quotes, as in"),
        ("only.generation=[1]", r"only.generation=\[1\]: give a list of overrides"),
        ("only=3", r"only=3: give a list of overrides by stage, as in"),
        (
            "only.generation=['stages=[generation]']",
            r"only.generation: 'stages=\[generation\]' cannot be for one stage",
        ),
        ("only.generation=['stage=bridging']", r"only.generation: 'stage=bridging' cannot be for one stage"),
        ("only.restoration=['experiment=demo']", r"only.restoration: 'experiment=demo' cannot be for one stage"),
        ("only.generation=['data.corp=32']", r"no key 'data.corp' in config 'train': did you mean data.crop"),
        ("only.generation=['data=photos']", r"Could not find 'data/photos'"),
        ("only.generation=['data.crop={']", r"no viable alternative|mismatched|extraneous"),
    ],
)
def test_what_only_cannot_mean_is_refused(override: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((ValueError, hydra.errors.HydraException), match=message) as error:
        stage_config(Request("train", (override,)), "generation")

    report("bdg train", error.value)
    printed = capsys.readouterr().err
    assert "only" in printed
    assert "Traceback" not in printed


def test_only_of_a_stage_outside_of_the_chain_is_left_alone() -> None:
    request = Request("train", ("stages=[restoration]", "only.generation=['data.crop=32']"))

    assert stage_config(request, "restoration").data.crop == 256


def test_a_key_of_the_users_counts_in_every_stage(sets: Path) -> None:
    one, other = chain(sets), chain(sets, "+mykey=1")

    assert not {*one.values()} & {*other.values()}


def test_the_same_data_elsewhere_is_the_same_run(sets: Path, tmp_path: Path) -> None:
    shutil.copytree(sets / "clean", tmp_path / "elsewhere")

    assert chain(sets) == chain(sets, f"data.root={tmp_path}/elsewhere")
