"""`bdg evaluate` gives the numbers one computes by hand, each with its protocol, and the same on every way to the data."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from bdg.commands.compose import compose
from bdg.commands.evaluate import Gallery, evaluate, open_source, run
from bdg.commands.request import Request
from bdg.metrics import Protocol, psnr
from bdg.networks.unet import UNet
from bdg.panel import to_uint8
from bdg.restoration import Restorer
from bdg.weights import save_weights
from datamodules.images import read_image, write_image
from datamodules.pack import pack
from datamodules.pipeline import to_float

RNG = np.random.default_rng(0)
METADATA = {
    "stage": "restoration",
    "identity": "0123456789ab",
    "network": {"_target_": "bdg.networks.unet.UNet", "dim": 8, "mults": [1, 2]},
    "diffusion": {"_target_": "bdg.diffusion.Diffusion"},
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    network = UNet(dim=8, mults=(1, 2))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(path, {f"network.{name}": value for name, value in network.state_dict().items()}, METADATA)
    return path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Two degradations, of two and of one pair; one image is gray."""
    folder = tmp_path_factory.mktemp("pairs")
    for kind, stem, names, channels in (
        ("rain", "0", ("lq", "gt"), 3),
        ("rain", "1", ("lq", "gt"), 1),
        ("haze", "0", ("input", "target"), 3),
    ):
        clean = RNG.integers(0, 256, (24, 20, channels), dtype=np.uint8)
        degraded = (clean // 2 + 60).astype(np.uint8)
        for name, array in zip(names, (degraded, clean), strict=True):
            write_image(folder / kind / name / f"{stem}.png", array)
    return folder


def command(*overrides: object) -> None:
    words = tuple(map(str, overrides))
    run(compose("evaluate", words), Request("evaluate", words))


def as_tensor(path) -> torch.Tensor:
    return torch.from_numpy(read_image(path).to_rgb()).permute(2, 0, 1)[None] * 2 - 1


@pytest.mark.parametrize("color", ["rgb", "y"])
def test_numbers_are_those_computed_by_hand(pairs, weights, tmp_path, capsys, color):
    command(f"source={pairs}", f"weights={weights}", f"protocol={color}", f"json={tmp_path / 'scores.json'}")
    written = json.loads((tmp_path / "scores.json").read_text())
    protocol, restorer, expected = Protocol(color), Restorer.load(weights), {}
    for image in sorted(pairs.rglob("*.png")):
        if image.parent.name in ("lq", "input"):
            clean = protocol(
                as_tensor(image.parent.parent / {"lq": "gt", "input": "target"}[image.parent.name] / image.name)
            )
            x_lq = as_tensor(image)
            before, after = (psnr(protocol(x), clean).item() for x in (x_lq, restorer(x_lq, [image.name])))
            expected.setdefault(image.parent.parent.name, []).append((before, after))
    for name, values in expected.items():
        before, after = np.mean(values, axis=0)
        row = written["scores"][name]
        assert (row["psnr_input"], row["psnr"], row["gain"]) == pytest.approx((before, after, after - before), abs=1e-4)
    assert written["scores"]["mean"]["num_images"] == 3
    assert written["protocol"]["text"] == str(protocol)
    assert "identity 0123456789ab" in written["weights"]
    assert [(i["degradation"], i["key"], i["severity"]) for i in written["images"]] == [
        ("haze", "haze_0", None),
        ("rain", "rain_0", None),
        ("rain", "rain_1", None),
    ]
    printed = capsys.readouterr().out
    assert {"rgb": "RGB, border 0, rounded to uint8", "y": "Y of BT.601"}[color] in printed
    assert f"{written['scores']['rain']['psnr']:.2f}" in printed


def test_a_border_is_cut_off_by_one_override(pairs, weights, tmp_path):
    command(f"source={pairs}", f"weights={weights}", "protocol.border=3", f"json={tmp_path / 'scores.json'}")
    assert json.loads((tmp_path / "scores.json").read_text())["protocol"]["border"] == 3


def test_pairs_give_the_same_numbers_from_a_folder_and_from_shards(pairs, tmp_path):
    pack(pairs, tmp_path / "shards", {"test": "rest"})
    overrides = (f"source={tmp_path / 'shards'}", "degradation=[rain,haze]")

    def scores(source) -> dict:
        same = lambda x_lq, names: x_lq  # noqa: E731
        return evaluate(same, source.batches, source.degradations, Protocol()).scores

    config = compose("evaluate", overrides)
    by_shards, by_folder = scores(open_source(config)), scores(open_source(compose("evaluate", [f"source={pairs}"])))
    assert {name: dict(row) for name, row in by_shards.items()} == {
        name: pytest.approx(dict(row)) for name, row in by_folder.items()
    }


@pytest.fixture(scope="module")
def clean_shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clean")
    for name in "abc":
        write_image(folder / "photos" / f"{name}.png", RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8))
    pack(folder / "photos", folder / "shards", {"train": "rest", "test": 0.67})
    return folder / "shards"


def test_clean_shards_are_degraded_and_pictures_and_outputs_written(clean_shards, weights, tmp_path):
    command(
        f"source={clean_shards}",
        f"weights={weights}",
        "degradation=[rain,noise]",
        "severities=[1,4]",
        "crop=32",
        f"json={tmp_path / 'scores.json'}",
        f"outputs={tmp_path / 'restored'}",
        f"picture={tmp_path / 'rows.png'}",
    )
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written["data"].endswith("test-*.tar")
    assert (written["severities"], written["crop"]) == ([1, 4], 32)
    assert len(written["images"]) == 2 * 2 * 2  # photographs, degradations, severities
    assert {image["severity"] for image in written["images"]} == {1, 4}
    files = [path.relative_to(tmp_path / "restored").as_posix() for path in (tmp_path / "restored").rglob("*.png")]
    assert len(files) == len(written["images"])
    image = written["images"][0]
    assert f"{image['degradation']}/{image['key']}_{image['severity']:g}.png" in files
    height, width, _ = read_image(tmp_path / "rows.png").array.shape
    assert width > 3 * 320
    assert height > 2 * 320


def test_evaluating_twice_gives_the_same_bytes(clean_shards, weights, tmp_path):
    for name in ("1.json", "2.json"):
        words = ("degradation=noise", "severities=[3]", "crop=32", f"json={tmp_path / name}")
        command(f"source={clean_shards}", f"weights={weights}", *words)
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()


def test_what_is_there_is_not_overwritten(pairs, weights, tmp_path):
    (tmp_path / "restored").mkdir()
    with pytest.raises(FileExistsError, match="restored: exists already"):
        command(f"source={pairs}", f"weights={weights}", f"outputs={tmp_path / 'restored'}")
    (tmp_path / "rows.png").touch()
    with pytest.raises(FileExistsError, match=r"rows\.png: exists already"):
        command(f"source={pairs}", f"weights={weights}", f"picture={tmp_path / 'rows.png'}")


def test_sources_that_cannot_be_measured_say_what_to_do(tmp_path, clean_shards):
    def source_error(folder) -> str:
        with pytest.raises((ValueError, OSError)) as error:
            list(open_source(compose("evaluate", [f"source={folder}"])).batches)
        return str(error.value)

    assert "check the path" in source_error(tmp_path / "gone")
    assert "clean images only" in source_error(clean_shards.parent / "photos")
    for part in ("train", "val"):
        (tmp_path / "parts").mkdir(exist_ok=True)
        (tmp_path / "parts" / f"{part}-000000.tar").touch()
    assert "has no part 'test': part=train or part=val" in source_error(tmp_path / "parts")
    write_image(tmp_path / "odd" / "lq" / "a.png", np.zeros((20, 20, 3), np.uint8))
    write_image(tmp_path / "odd" / "gt" / "a.png", np.zeros((20, 21, 3), np.uint8))
    assert "20 x 20 and 20 x 21 pixels: a pair must have one size" in source_error(tmp_path / "odd")


def noise(path, size: int = 24, seed: int = 0) -> None:
    write_image(path, np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


@pytest.fixture
def lol(tmp_path):
    """Two training pairs, and one to test on."""
    for i, folder in enumerate(("our485", "our485", "eval15")):
        for side in ("low", "high"):
            noise(tmp_path / "LOLdataset" / folder / side / f"{i}.png", seed=i)
    return tmp_path / "LOLdataset"


@pytest.mark.parametrize(("words", "keys"), [((), {"eval15_2"}), (("part=train",), {"our485_0", "our485_1"})])
def test_of_a_data_set_with_parts_only_one_is_measured_and_named(lol, weights, tmp_path, capsys, words, keys):
    pack(lol, tmp_path / "shards", {"train": "rest"})
    part = "train" if words else "test"
    for source in (lol, tmp_path / "shards"):
        command(f"source={source}", f"weights={weights}", *words, f"json={tmp_path / 'scores.json'}")
        assert {image["key"] for image in json.loads((tmp_path / "scores.json").read_text())["images"]} == keys
    said = capsys.readouterr().out
    assert f"layout lol: {len(keys)} pairs of the part {part}; not measured: {3 - len(keys)} pairs" in said
    assert f"data {tmp_path}/shards/{part}-*.tar: {len(keys)} images" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("part=val",), "has no part 'val': part=test or part=train"),
        (("layout=photographs",), "clean images only"),
        (("scale=4",), "scale=4: .* no versions to choose from"),
    ],
)
def test_what_a_data_set_does_not_have_is_refused(lol, words, message):
    with pytest.raises(ValueError, match=message):
        open_source(compose("evaluate", [f"source={lol}", *words]))


def test_parts_of_what_has_none_are_refused(pairs):
    for source in (pairs, "x/test-*.tar"):
        with pytest.raises(ValueError, match="has no part 'test': leave part out"):
            open_source(compose("evaluate", [f"source={source}", "part=test"]))


def test_clean_images_beside_pairs_are_left_out_and_counted(tmp_path):
    noise(tmp_path / "test" / "denoise" / "bsd68" / "1.png")
    for side in ("input", "target"):
        noise(tmp_path / "test" / "derain" / "Rain100L" / side / "1.png")
    source = open_source(compose("evaluate", [f"source={tmp_path}"]))
    assert [batch["key"] for batch in source.batches] == [["test_derain_Rain100L_1"]]
    assert source.text.endswith("layout airnet: 1 pairs of the part test; not measured: 1 clean images")


def test_smaller_degraded_images_are_enlarged_as_in_training_and_the_protocol_says_so(weights, tmp_path, capsys):
    noise(tmp_path / "realsr" / "gt" / "a.png", 40)
    noise(tmp_path / "realsr" / "lq" / "a.png", 10)
    pack(tmp_path / "realsr", tmp_path / "shards", {"test": "rest"})
    expected = Image.open(tmp_path / "realsr/lq/a.png").resize((40, 40), Image.Resampling.BICUBIC)
    for source in (tmp_path / "realsr", tmp_path / "shards"):
        words = (f"source={source}", "+degradation.real_sr=null")
        (batch,) = map(to_float, open_source(compose("evaluate", words)).batches)
        assert np.array_equal(to_uint8(batch["x_lq"][0]), np.asarray(expected))
        command(*words, f"weights={weights}", f"json={tmp_path / 'scores.json'}")
        assert "; degraded images of x4 enlarged by bicubic" in capsys.readouterr().out.replace("\n", " ")
        assert json.loads((tmp_path / "scores.json").read_text())["protocol"]["text"].endswith(
            "of x4 enlarged by bicubic"
        )


def test_degradations_without_severity_are_drawn_once_when_asked(clean_shards):
    words = [f"source={clean_shards}", "degradation=real_esrgan", "crop=32"]
    with pytest.raises(ValueError, match=r"severities=\[1, 2, 3, 4, 5\], but order_1, .* none: type severities=null"):
        open_source(compose("evaluate", words))
    source = open_source(compose("evaluate", [*words, "severities=null"]))
    labels = [label for batch in source.batches for label in batch["label"].tolist()]
    assert sorted(labels) == sorted([*range(8)] * 2)


def test_one_severity_needs_no_list(clean_shards):
    source = open_source(compose("evaluate", [f"source={clean_shards}", "degradation=noise", "severities=3"]))
    assert [batch["severity"].tolist() for batch in source.batches] == [[3.0]] * 2


def test_images_smaller_than_the_windows_of_ssim_are_refused(tmp_path):
    for name in ("lq", "gt"):
        write_image(tmp_path / "rain" / name / "a.png", np.zeros((20, 3, 3), np.uint8))
    source = open_source(compose("evaluate", [f"source={tmp_path}"]))
    with pytest.raises(ValueError, match="20 x 3 pixels is too small"):
        evaluate(lambda x_lq, names: x_lq, source.batches, source.degradations, Protocol())


def test_a_gallery_shows_each_degradation_once_near_severity_3_on_different_photographs():
    gallery = Gallery(("rain", "haze"), Protocol())
    image = torch.zeros(1, 3, 16, 16)
    for key in ("a", "b"):
        for label in (0, 1):
            for severity in (1.0, 3.0, 5.0):
                batch = {"x_hq": image, "x_lq": image + 0.1, "label": torch.tensor([label]), "key": [key]}
                gallery(batch | {"severity": torch.tensor([severity])}, image + 0.05)
    captions = [gallery.kept[label][2] for label in (0, 1)]
    assert [(c[0].split(":")[0], c[2]) for c in captions] == [("rain 3", "a"), ("haze 3", "b")]
    assert gallery.picture(64).shape[1] > 3 * 64
