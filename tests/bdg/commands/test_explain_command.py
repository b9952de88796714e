"""`bdg calibrate` on made-up shards, where explainers lie, and what is said with them."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from bdg.cli import main
from bdg.commands.compose import compose
from bdg.commands.explain import explainer_file, explanations, is_color_degradation, lines, plain
from bdg.explain import Explainer, Explanation
from bdg.networks.discriminator import MasEncoder
from bdg.restoration import PACKAGED, Restorer
from bdg.weights import load_weights, save_weights
from datamodules.images import write_image

FAST = ["severities=[3]", "grid=1", "width=4", "mas_glcm.levels=16"]
WORDS = ["degradation=[noise,low_light]", "side=32", *FAST]
NEAREST = [("cat", "rain", 3.0, 0.25), ("fig", "clean", None, 0.5)]


def explained(unusual: bool = False, **probabilities: float) -> Explanation:
    return Explanation(probabilities, NEAREST, 0.5, unusual, 0.7)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of soft blobs, two of them held out."""
    folder = tmp_path_factory.mktemp("blobs")
    rng = np.random.default_rng(0)
    for number in range(6):
        blobs = cv2.GaussianBlur(rng.random((40, 48, 3)), (0, 0), 3)
        write_image(folder / "in" / f"{number}.png", cv2.normalize(blobs, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U))
    assert main(["pack", f"{folder}/in", f"{folder}/shards", "parts={train: rest, test: 0.34}"]) == 0
    return folder / "shards"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """The packaged ones under another name, with an encoder as training leaves it."""
    tensors, about = load_weights(PACKAGED)
    torch.manual_seed(0)
    encoder = MasEncoder(1, 16).state_dict()
    glcm = {"_target_": "bdg.glcm.MasGlcm", "levels": 16, "angles": [0.0], "scales": [1]}
    tensors |= {f"discriminator.encoder.{name}": value for name, value in encoder.items()}
    save_weights(tmp_path / "mine.safetensors", tensors, about | {"glcm": glcm})
    return tmp_path / "mine.safetensors"


def test_an_explainer_is_made_beside_the_weights(weights: Path, shards: Path, tmp_path: Path) -> None:
    assert main(["calibrate", f"{weights}", f"source={shards}", *WORDS, f"json={tmp_path}/s.json"]) == 0

    said = json.loads((tmp_path / "s.json").read_text())
    made = Explainer.load(tmp_path / "mine.explain.safetensors")
    assert made.description.seen_by == said["seen_by"] == "MAS-GLCM, wavelet, chroma, lbp, laplace_histogram, F_mas"
    assert list(made.classes) == list(said["recall"]) == ["clean", "noise", "low_light"]
    assert (said["num_photographs"], said["num_pictures"]) == (2, 6)
    assert len(made.known) == 12
    restorer = Restorer.load(weights)
    found = explanations(compose("restore", ["input=x", "output=y"]), restorer, torch.rand(2, 3, 40, 48) * 2 - 1)
    assert [sum(each.probabilities.values()) for each in found] == pytest.approx([1, 1], abs=1e-4)


def test_a_run_brings_its_shards_its_degradations_and_its_crop(weights: Path, shards: Path, tmp_path: Path) -> None:
    noise = {"_target_": "datamodules.degradations.noise.GaussianNoise", "severity": [4, 5]}
    data = {"crop": 24, "shards": f"{shards}/train-*.tar", "val_shards": None, "test_shards": f"{shards}/test-*.tar"}
    run = tmp_path / "run"
    (run / "weights").mkdir(parents=True)
    weights.rename(run / "weights" / "ema.safetensors")
    OmegaConf.save({"data": data, "degradation": {"grain": noise}, "trust": []}, run / "config.yaml")

    assert main(["calibrate", f"{run}", *FAST]) == 0

    made = Explainer.load(run / "weights" / "explain.safetensors")
    assert list(made.classes) == ["clean", "grain"]
    assert made.description.side == 24
    assert {severity for _, kind, severity in made.known if kind == "grain"} == {3.0}


def test_calibrating_again_gives_the_same_file(weights: Path, shards: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert main(["calibrate", f"{weights}", f"source={shards}", *WORDS, f"output={tmp_path}/{name}"]) == 0

    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_nothing_is_replaced_unasked(weights: Path, shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    explainer_file(weights).write_text("mine")

    assert main(["calibrate", f"{weights}", f"source={shards}", *WORDS]) == 1

    assert "exists already" in capsys.readouterr().err
    assert explainer_file(weights).read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "source=null, but these are no weights of a run: name a folder of shards"),
        (["source=/nowhere", "degradation=five"], "0 shards train-* and 0 others"),
        (["source=SHARDS"], "degradation=null, but these are no weights of a run: add degradation=five"),
        (["source=SHARDS", "degradation=five", "side=8"], "give squares of at least 16 pixels"),
        (["source=SHARDS", "degradation=five", "statistics=[fourier]"], "choose among wavelet"),
    ],
)
def test_what_cannot_be_calibrated_is_said(
    words: list[str], message: str, weights: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.replace("SHARDS", f"{shards}") for word in words]

    assert main(["calibrate", f"{weights}", *words]) == 1

    assert message in capsys.readouterr().err


def test_the_packaged_weights_have_an_explainer() -> None:
    path = explainer_file(PACKAGED)

    assert path.stat().st_size < 1_000_000
    explainer = Explainer.load(path)
    assert list(explainer.classes) == ["clean", "rain", "haze", "blur", "noise", "low_light"]
    assert explainer.about["identity"] == load_weights(PACKAGED)[1]["identity"]


def test_without_an_explainer_the_command_that_makes_one_is_named(weights: Path) -> None:
    config = compose("restore", ["input=x", "output=y"])
    restorer = Restorer.load(weights)
    x = torch.zeros(1, 3, 32, 32)

    with pytest.raises(FileNotFoundError, match=r"mine.explain.safetensors.*make it with bdg calibrate"):
        explanations(config, restorer, x)


def test_an_explainer_of_other_weights_is_refused(weights: Path) -> None:
    tensors, about = load_weights(explainer_file(PACKAGED))
    save_weights(explainer_file(weights), tensors, about | {"identity": "other"})

    with pytest.raises(ValueError, match="was made for the weights other"):
        explanations(compose("restore", ["input=x", "output=y"]), Restorer.load(weights), torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("weights", "explainer"),
    [
        ("RUN/weights/ema.safetensors", "RUN/weights/explain.safetensors"),
        ("export/model.safetensors", "export/explain.safetensors"),
        ("demo.safetensors", "demo.explain.safetensors"),
    ],
)
def test_where_an_explainer_lies(weights: str, explainer: str) -> None:
    assert explainer_file(Path(weights)) == Path(explainer)


def test_an_explanation_in_words() -> None:
    assert lines(explained(rain=0.8, clean=0.15, haze=0.04, noise=0.01)) == [
        "rain 80 %, clean 15 %, haze 4 % (seen by MAS-GLCM)",
        "nearest: cat rain 3 (0.25), fig clean (0.50)",
    ]
    assert lines(explained(unusual=True, rain=1.0))[2].startswith("unusual: unlike all known pictures (distance 0.50")


def test_an_explanation_as_json() -> None:
    said = json.loads(json.dumps(plain(explained(rain=1.0))))

    assert said["nearest"][1] == {"name": "fig", "degradation": "clean", "severity": None, "distance": 0.5}
    assert said["probabilities"] == {"rain": 1.0}


@pytest.mark.parametrize(
    ("explanation", "of_color"),
    [
        (explained(haze=0.9, clean=0.1), True),
        (explained(low_haze_rain=0.3, rain=0.7), True),
        (explained(low_light=0.15, haze=0.1, clean=0.75), True),
        (explained(rain=0.9, low_light=0.1), False),
        (explained(clean=1.0), False),
        (explained(unusual=True, rain=1.0), True),
    ],
)
def test_colour_is_held_only_where_it_is_known_to_be_right(explanation: Explanation, of_color: bool) -> None:
    assert is_color_degradation(explanation) is of_color
