"""`bdg probe` on photographs made here: what it reads, what it prints and writes, and what it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from torch import Tensor

from bdg.cli import main
from bdg.commands.compose import compose
from bdg.commands.probe import PACKAGED, find_samples
from datamodules.degradations.noise import GaussianNoise
from datamodules.images import write_image


def fast(**replaced: object) -> list[str]:
    """Overrides of a run that takes a fraction of a second."""
    values = {"size": 64, "folds": 3, "descriptor": "[lq_pixels,wavelet]", "degradation": "[noise,low_light]"}
    return [f"{key}={value}" for key, value in (values | {"severities": "[1,5]"} | replaced).items()]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of soft blobs."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for number in range(6):
        blobs = cv2.GaussianBlur(rng.random((96, 80, 3)), (0, 0), 4)
        write_image(folder / f"{number}.png", cv2.normalize(blobs, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U))
    return folder


@pytest.fixture
def labelled(photographs: Path, tmp_path: Path) -> Path:
    """TYPE/LEVEL folders: the photographs, darkened and brightened, a little and a lot."""
    for kind, sign in (("darker", -1), ("brighter", 1)):
        for level, step in (("weak", 40), ("strong", 110)):
            for path in photographs.iterdir():
                image = cv2.imread(str(path)).astype(int) // 8 + 128 + sign * step
                (tmp_path / kind / level).mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(tmp_path / kind / level / path.name), np.clip(image, 0, 255))
    return tmp_path


@pytest.fixture
def probe(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Runs the command and returns the text of the JSON it wrote."""

    def run(*arguments: str) -> str:
        path = tmp_path_factory.mktemp("report") / "probe.json"
        assert main(["probe", *arguments, f"json={path}"]) == 0
        return path.read_text()

    return run


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["probe", *arguments]) == 1
    message = capsys.readouterr().err
    assert message.startswith("bdg probe: error: ")
    return message


def test_clean_photographs_are_degraded_and_told_apart(photographs, probe, capsys):
    report = json.loads(probe(str(photographs), *fast()))
    protocol, wavelet = report["protocol"], report["descriptors"]["wavelet"]
    assert (protocol["images"], protocol["photographs"]) == (6 * 2 * 2, 6)
    assert (protocol["types"], protocol["levels"]) == (["noise", "low_light"], ["1", "5"])
    assert protocol["guessing"] == {"type": 0.5, "level": 0.25}
    assert wavelet["length"] == 20
    assert wavelet["type"]["accuracy"] > protocol["guessing"]["type"]
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{100 * wavelet['type']['accuracy']:.1f} ±" in printed
    assert "24 images of 6 photographs, central 64 x 64 pixels; types: noise, low_light; levels: 1, 5." in printed
    assert "k=5, euclidean distance, 3 folds split by photograph, seed 0." in printed


def test_degradations_without_severity_are_told_apart_by_type_alone(photographs, probe):
    report = json.loads(probe(str(photographs), *fast(degradation="real_esrgan", descriptor="wavelet")))
    assert report["protocol"]["images"] == 6 * 8
    assert report["protocol"]["types"] == [f"order_{k}" for k in range(1, 9)]
    assert report["protocol"]["levels"] == []
    assert report["descriptors"]["wavelet"].keys() == {"length", "type"}


def test_descriptors_and_degradations_of_a_trusted_package_are_taken(photographs, probe, tmp_path, monkeypatch):
    (tmp_path / "grainy.py").write_text(
        "import torch\nfrom datamodules.degradations.noise import GaussianNoise\n\n"
        "class Grain(GaussianNoise):\n    name = 'grain'\n\n"
        "class Mean(torch.nn.Module):\n    def forward(self, x):\n        return x.float().mean((2, 3))\n"
    )
    for group, name, target in (("degradation", "grain", "Grain"), ("descriptor", "mean", "Mean")):
        path = tmp_path / "conf" / group / f"{name}.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(f"{name}: {{_target_: grainy.{target}}}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    words = fast(degradation="[grain,noise]", descriptor="mean")
    assert json.loads(probe(str(photographs), *words, "trust=[grainy]"))["descriptors"].keys() == {"mean"}


def test_the_same_seed_gives_the_same_bytes(photographs, probe):
    first, again = (probe(str(photographs), *fast(seed=1)) for _ in range(2))
    assert first == again


def test_an_image_depends_on_the_seed_and_not_on_what_else_is_in_the_folder(photographs, tmp_path):
    shutil.copy(photographs / "3.png", tmp_path)
    shutil.copy(photographs / "5.png", tmp_path)

    def image_of_3(source: Path, seed: int) -> Tensor:
        samples = find_samples(source, {("noise", "3"): GaussianNoise(3)}, seed)
        return next(sample.image(64) for sample in samples if sample.photograph == "3.png")

    assert image_of_3(photographs, seed=0).equal(image_of_3(tmp_path, seed=0))
    assert not image_of_3(photographs, seed=0).equal(image_of_3(photographs, seed=1))


def test_level_is_right_only_together_with_the_type(photographs, probe):
    for scores in json.loads(probe(str(photographs), *fast()))["descriptors"].values():
        assert scores["level"]["accuracy"] <= scores["type"]["accuracy"]
        assert np.mean(list(scores["type"]["per_type"].values())) == pytest.approx(scores["type"]["accuracy"])


def test_labelled_folders_are_probed_as_they_are(labelled, probe):
    report = json.loads(probe(str(labelled), "size=64", "folds=3", "descriptor=[lq_pixels]"))
    assert report["protocol"]["photographs"] == 6  # the same stem in another folder is the same photograph
    assert report["protocol"]["types"] == ["brighter", "darker"]
    assert report["protocol"]["levels"] == ["strong", "weak"]
    assert report["descriptors"]["lq_pixels"]["level"]["accuracy"] == 1


def test_labelled_folders_without_levels_have_no_level_column(labelled, probe, capsys):
    for path in labelled.glob("*/strong"):
        shutil.rmtree(path)
    for path in labelled.glob("*/weak/*"):
        path.rename(path.parent.parent / path.name)
    scores = json.loads(probe(str(labelled), "size=64", "folds=3", "descriptor=[lq_pixels]"))["descriptors"][
        "lq_pixels"
    ]
    assert scores["type"]["accuracy"] == 1
    assert "level" not in scores
    assert "levels: none" in capsys.readouterr().out


def test_the_split_is_the_one_asked_for(photographs, probe):
    assert json.loads(probe(str(photographs), *fast(split="random")))["protocol"]["split"] == "random"


def test_the_packaged_photographs_are_large_enough_for_the_default_size():
    size = compose("probe", ["descriptor=wavelet"]).size
    samples = find_samples(PACKAGED, {("noise", "1"): GaussianNoise(1)}, seed=0)
    assert {sample.image(size).shape for sample in samples} == {(3, size, size)}


def test_every_descriptor_of_the_default_config_is_built_and_describes(photographs, probe):
    scores = json.loads(probe(str(photographs), *fast(descriptor="all")))["descriptors"]
    assert {
        "lq_pixels",
        "sobel",
        "laplace",
        "fourier",
        "mas_glcm",
        "lbp",
        "wavelet",
        "fourier_profile",
    } <= scores.keys()


def test_mas_glcm_takes_its_options_from_the_command_line(photographs, probe):
    options = ["descriptor.mas_glcm.levels=16", "descriptor.mas_glcm.scales=[1]"]
    scores = json.loads(probe(str(photographs), *fast(descriptor="mas_glcm"), *options))["descriptors"]
    assert scores["mas_glcm"]["length"] == 16**2


def test_a_folder_without_images_is_refused(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("nothing to see")
    assert f"source={tmp_path} has no images (.png .jpg" in refusal(capsys, str(tmp_path), *fast())


def test_a_folder_that_does_not_exist_is_refused(tmp_path, capsys):
    assert "is not a folder: name one that holds photographs" in refusal(capsys, str(tmp_path / "nowhere"), *fast())


def test_images_at_two_depths_are_refused_with_one_of_each(labelled, photographs, capsys):
    shutil.copy(photographs / "0.png", labelled)
    message = refusal(capsys, str(labelled), *fast())
    assert "at several depths (0.png, brighter/strong/0.png)" in message


def test_a_single_photograph_is_refused(photographs, tmp_path, capsys):
    shutil.copy(photographs / "0.png", tmp_path)
    assert "give at least two" in refusal(capsys, str(tmp_path), *fast())


def test_a_photograph_smaller_than_the_crop_is_named_with_the_size_that_fits(photographs, capsys):
    message = refusal(capsys, str(photographs), *fast(size=90))
    assert "0.png: 96 x 80 pixels, smaller than size=90" in message
    assert "size=80" in message


def test_what_is_not_an_image_is_named(photographs, tmp_path, capsys):
    shutil.copytree(photographs, tmp_path, dirs_exist_ok=True)
    (tmp_path / "7.png").write_text("not an image")
    assert "7.png: not an image" in refusal(capsys, str(tmp_path), *fast())


def test_more_neighbours_than_training_images_are_refused(photographs, capsys):
    assert "k=17 neighbours of 16 training samples" in refusal(capsys, str(photographs), *fast(k=17))


def test_an_unknown_split_names_those_that_exist(photographs, capsys):
    assert "type split=photograph or split=random" in refusal(capsys, str(photographs), *fast(split="scene"))


def test_an_unknown_descriptor_names_those_that_exist(photographs, capsys):
    message = refusal(capsys, str(photographs), "descriptor=gabor")
    assert "descriptor/gabor" in message
    assert "fourier_profile" in message
