"""Every choice of data composes; what it deals and what it can label fit together."""

from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf

import conf
from bdg.commands.compose import build, compose
from datamodules.images import write_image
from datamodules.layouts.known import CDD11_MIXTURES
from datamodules.pack import pack
from datamodules.restoration import RestorationData

DATA = sorted(path.stem for path in (Path(conf.__file__).parent / "data").glob("*.yaml"))
FROM_THE_USER = {"shards": ["data.shards=x/train-*.tar"], "realsr": ["data.test_shards=y/test-*.tar"]}


@cache
def composed(name: str) -> DictConfig:
    root = [] if name == "shards" else ["data.root=x"]
    config = compose("train", [f"data={name}", *root, *FROM_THE_USER.get(name, [])])
    config.run_folder = ""
    OmegaConf.resolve(config)
    return config


@pytest.mark.parametrize("name", DATA)
def test_every_choice_of_data_can_be_built(name: str) -> None:
    assert isinstance(build(composed(name).data), RestorationData)


@pytest.mark.parametrize("name", DATA)
def test_quotas_are_for_exactly_the_labels(name: str) -> None:
    config = composed(name)
    quotas = config.data.get("quotas")
    assert not quotas or set(quotas) == set(config.degradation)


@pytest.mark.parametrize("name", [name for name in DATA if name not in ("shards", "packed", "photographs", "demo")])
def test_a_data_set_opens_with_the_commands_that_pack_it(name: str) -> None:
    assert "after: bdg pack " in (Path(conf.__file__).parent / "data" / f"{name}.yaml").read_text()


def test_diffuirs_quotas_are_those_of_its_paper() -> None:
    assert composed("diffuir5d").data.quotas == {"haze": 4, "rain": 2, "snow": 2, "low_light": 1, "blur": 1}


def test_airnets_photographs_are_degraded_by_noise_alone() -> None:
    made = {name for name, degradation in composed("airnet5d").degradation.items() if degradation}
    assert made == {"noise"}


def test_cdd11_knows_all_its_mixtures() -> None:
    assert list(composed("cdd11").degradation) == list(CDD11_MIXTURES)


def test_a_packed_tree_is_dealt_by_the_quotas_of_its_mixture(tmp_path: Path) -> None:
    """DiffUIR's tree with three images per degradation, as `data=diffuir5d` takes them."""
    folders = {
        "haze": ("RESIDE/OTS_ALPHA", "haze/OTS", "clear/clear_images"),
        "rain": ("syn_rain/train", "input", "target"),
        "snow": ("Snow100K/all", "synthetic", "gt"),
        "low_light": ("LOL/our485", "low", "high"),
        "blur": ("Deblur/train", "input", "target"),
    }
    rng = np.random.default_rng(0)
    for folder, *sides in folders.values():
        for i, side in ((i, side) for i in range(3) for side in sides):
            write_image(tmp_path / "in" / folder / side / f"{i}.png", rng.integers(0, 256, (20, 20, 3), np.uint8))
    pack(tmp_path / "in", tmp_path / "out", {"train": "rest"})
    config = compose("train", ["data=diffuir5d", f"data.root={tmp_path}/out", "data.crop=16", "data.num_workers=0"])

    batch = next(iter(build(config.data).stream()))

    dealt = Counter(list(config.degradation)[label] for label in batch["label"].tolist())
    assert dealt == {"haze": 8, "rain": 4, "snow": 4, "low_light": 2, "blur": 2}
