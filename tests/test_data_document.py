"""docs/data.md, taken at its word: its commands run on small trees that are laid out as the downloads are.

Packing, the doctor and measuring run whole; of training what depends on the data: batches to train, validate and test on.
"""

import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from bdg.cli import main
from bdg.commands.compose import build, compose
from bdg.commands.invocation import name_words
from bdg.commands.verbs import VERBS
from datamodules.images import write_image
from datamodules.layouts import LAYOUTS
from datamodules.layouts.known import CDD11_MIXTURES

DOCUMENT = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
SECTIONS = {
    title: [line for block in re.findall(r"```sh\n(.*?)```", text, re.S) for line in block.splitlines()]
    for title, text in re.findall(r"^##? (.+?)\n(.*?)(?=^## |\Z)", DOCUMENT, re.M | re.S)
}
"""Title -> its commands."""


def pairs(folder: str, lq: str, hq: str, *names: str) -> list[str]:
    """Files of a data set whose partners have the same name."""
    return [f"{folder}/{side}/{name}.png" for name in names for side in (lq, hq)]


def within(folder: str, files: Iterable[str]) -> list[str]:
    return [f"{folder}/{file}" for file in files]


LOL = [*pairs("our485", "low", "high", "2", "5", "7"), *pairs("eval15", "low", "high", "1", "22")]
RESIDE = [
    *(f"OTS_ALPHA/haze/OTS/{i:04}_{a}_0.04.jpg" for i in (25, 26, 27) for a in (0.8, 1)),
    *(f"OTS_ALPHA/clear/clear_images/{i:04}.jpg" for i in (25, 26, 27)),
    *("SOTS/outdoor/hazy/0001_0.8_0.2.jpg", "SOTS/outdoor/gt/0001.png"),
]
SNOW = [
    *pairs("all", "synthetic", "gt", "a", "b", "c"),
    *(
        f"media/jdway/GameSSD/overlapping/test/Snow100K-{s}/{d}/1.jpg"
        for s in "SML"
        for d in ("synthetic", "gt", "mask")
    ),
]
RAIN = [
    *pairs("train", "input", "target", "1", "2", "3"),
    *pairs("test/Rain100L", "input", "target", "1"),
    *pairs("test/Test100", "input", "target", "1"),
]
REALSR = [
    f"{camera}/{part}/{scale}/{camera}_{i:03}_{which}.png"
    for camera in ("Canon", "Nikon")
    for part in ("Train", "Test")
    for scale in (2, 4)
    for i in (1, 2)
    for which in ("HR", f"LR{scale}")
]
AIRNET = [
    *("Train/Denoise/00001.bmp", "Train/Denoise/00002.bmp", "Train/Denoise/a5096.bmp"),
    *(f"Train/Derain/{name}-{i}.png" for i in range(1, 5) for name in ("rainy/rain", "gt/norain")),
    *("Train/Dehaze/synthetic/part1/0025_0.8_0.04.jpg", "Train/Dehaze/original/0025.jpg"),
    *pairs("Train/Deblur", "blur", "sharp", *"1234"),
    *pairs("Train/Enhance", "low", "gt", *"2345"),
    *pairs("test/derain/Rain100L", "input", "target", "1"),
]
PHOTOGRAPHS = [f"DF2K/{i:04}.png" for i in range(4)]
TREES = {
    "The data sets of the field, from download to training": within("LOLdataset", LOL),
    "LOL": within("LOLdataset", LOL),
    "GoPro": [
        f"GOPRO_Large/{part}/GOPR0372_07_00/{side}/00004{i}.png"
        for part in ("train", "test")
        for side in ("blur", "blur_gamma", "sharp")
        for i in range(3)
    ],
    "Snow100K": within("Snow100K", SNOW),
    "RESIDE": within("RESIDE", RESIDE),
    "Rain13K and its test sets": within("syn_rain", RAIN),
    "CDD-11": [
        f"CDD-11/CDD-11_{part}/{folder}/{i:05}.png"
        for part in ("train", "test")
        for folder in ("clear", *CDD11_MIXTURES)
        for i in range(3)
    ],
    "RealSR and DRealSR": [
        *within("RealSR(V3)", REALSR),
        *(
            f"DRealSR/Train_x4/train_{which}/sony_{i}_x{x}_0.png"
            for i in range(3)
            for which, x in (("HR", 4), ("LR", 1))
        ),
        *("DRealSR/Test_x4/test_HR/sony_160_x4.png", "DRealSR/Test_x4/test_LR/sony_160_x1.png"),
    ],
    "Photographs for real-world degradations": [*PHOTOGRAPHS, *within("RealSR(V3)", REALSR)],
    "DiffUIR's five tasks": within(
        "Restoration",
        [
            *within("syn_rain", RAIN),
            *within("LOL", LOL),
            *within("Snow100K", SNOW),
            *pairs("Deblur/train", "input", "target", "1", "2", "3"),
            *within("RESIDE", RESIDE),
        ],
    ),
    "AirNet's three and five tasks": within("data", AIRNET),
    "Your own": [*(f"photos/{i}.jpg" for i in range(10)), *pairs("pairs", "lq", "gt", "1", "2")],
}
LISTS = {
    "noisy/denoise.txt": ["00001.bmp", "00002.bmp", "a5096.bmp"],
    "rainy/rainTrain.txt": [f"rainy/rain-{i}.png" for i in range(1, 5)],
    "hazy/hazy_outside.txt": ["synthetic/part1/0025_0.8_0.04.jpg"],
}
BEFORE = {"Photographs for real-world degradations": SECTIONS["RealSR and DRealSR"][:1]}
"""What the reader has done in another section."""
RUN = {"pack": [], "doctor": ["workers=1"], "evaluate": ["sample_steps=1"]}
"""Verbs that are run whole, with what makes them faster."""


def side(file: str) -> int:
    """Of the image: a degraded one of super-resolution is smaller."""
    scale = re.search(r"_LR(\d)\.|(?<=_x)(1)(?=[._])", file)
    return 48 // int({"1": "4"}.get(scale[0], scale[1] or "4")) if scale else 48


@pytest.fixture
def reader(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The title of a section, in a folder with what it speaks of."""
    for seed, file in enumerate(TREES[request.param]):
        rng, n = np.random.default_rng(seed), side(file)
        write_image(tmp_path / file, rng.integers(0, 256, (n, n, 3), np.uint8))
    for name, lines in LISTS.items():
        path = tmp_path / "data_dir" / name
        path.parent.mkdir(parents=True)
        path.write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    return request.param


def follow(command: str) -> None:
    _, verb, *words = shlex.split(re.sub(r"workers=\d+", "workers=1", command))  # the shards are the same
    if verb in RUN:
        enough = ["parts.val=0.4"] if "val:" in command else []  # of three photographs
        assert main([verb, *words, *RUN[verb], *enough]) == 0
        return
    small = ["data.crop=8", "data.num_workers=0", "data.val_severities=null"]
    config = compose(verb, [*name_words(VERBS[verb], words), *small])
    data = build(config.data)
    batches = [
        next(iter(data.stream())),
        *(data.measured(each) for each in (data.val_shards, data.test_shards) if each),
    ]
    for batch in (batches[0], *(next(iter(measured)) for measured in batches[1:])):
        assert torch.equal(batch["label"], batch["label"].clamp(0, len(config.degradation) - 1))


@pytest.mark.parametrize("reader", TREES, indirect=True)
def test_commands_of_a_section_run_in_their_order(reader: str) -> None:
    for command in (*BEFORE.get(reader, ()), *SECTIONS[reader]):
        follow(command)


def test_every_section_is_followed_and_every_layout_in_the_table() -> None:
    assert SECTIONS.keys() == TREES.keys()
    table = re.findall(r"^\| (`.+?) \|", DOCUMENT, re.M)
    assert {name for row in table for name in re.findall(r"`(\w+)`", row)} == LAYOUTS.keys()
