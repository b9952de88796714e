"""`bdg evaluate` gives the numbers one computes by hand, each with its protocol, and the same on every way to the data."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from bdg.cli import main
from bdg.commands.compose import build, compose
from bdg.commands.evaluate import Gallery, evaluate, open_source, run
from bdg.commands.request import Request
from bdg.metrics import Protocol, psnr
from bdg.networks.unet import UNet
from bdg.panel import to_uint8
from bdg.perceptual import weights_path
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
        f"save={tmp_path / 'restored'}",
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
        command(f"source={pairs}", f"weights={weights}", f"save={tmp_path / 'restored'}")
    (tmp_path / "rows.png").touch()
    with pytest.raises(FileExistsError, match=r"rows\.png: exists already"):
        command(f"source={pairs}", f"weights={weights}", f"picture={tmp_path / 'rows.png'}")


def test_sources_that_cannot_be_measured_say_what_to_do(tmp_path, clean_shards):
    def source_error(folder) -> str:
        with pytest.raises((ValueError, OSError)) as error:
            list(open_source(compose("evaluate", [f"source={folder}"])).batches)
        return str(error.value)

    assert "check the path" in source_error(tmp_path / "gone")
    assert "holds no pairs, and psnr, ssim compare with clean images" in source_error(clean_shards.parent / "photos")
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
        (("layout=photographs",), "holds no pairs"),
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


# --- protocols with test sets ---


@pytest.fixture
def sets(tmp_path):
    """Two sets of rain, of one and of two pairs, and one of haze that no protocol names."""
    folder = tmp_path / "data"
    for place, names in (("derain/Rain100L", "1"), ("derain/Rain100H", "12"), ("dehaze/other", "1")):
        for seed, name in enumerate(names):
            for side in ("input", "target"):
                noise(folder / place / side / f"{name}.png", 24, seed + 10 * len(side))
    return folder


def test_a_row_is_the_mean_over_its_sets_however_many_images_each_has(sets, tmp_path, capsys):
    words = ("weights=none", "protocol=diffuir5d", f"json={tmp_path / 'x.json'}")
    command(f"source={sets}", *words)
    written, said = json.loads((tmp_path / "x.json").read_text()), capsys.readouterr().out
    of_set = {
        name: [row["psnr_input"] for row in written["images"] if row["set"] == name]
        for name in ("Rain100H", "Rain100L")
    }
    assert [len(values) for values in of_set.values()] == [2, 1]
    assert list(written["scores"]) == ["rain", "mean"]
    expected = np.mean([np.mean(values) for values in of_set.values()])
    assert written["scores"]["rain"]["psnr_input"] == pytest.approx(expected)
    assert "3 pairs; not measured: 1 pairs of other sets" in said
    assert "without the sets Test100, Test1200, Test2800" in said.replace("\n", " ")
    assert written["protocol"]["metrics"] == {"psnr": "psnr_y_uint8", "ssim": "ssim_y_uint8"}


def test_sets_are_the_same_from_shards(sets, tmp_path):
    pack(sets, tmp_path / "shards", {"test": "rest"})
    words = ("weights=none", "protocol=diffuir5d", "+degradation.other=null", f"json={tmp_path / 'x.json'}")
    scores = []
    for source in (sets, tmp_path / "shards"):
        command(f"source={source}", *words)
        scores.append(json.loads((tmp_path / "x.json").read_text())["scores"])
    assert scores[0] == scores[1]


def test_a_source_without_a_set_of_the_protocol_is_refused(pairs):
    with pytest.raises(
        ValueError, match=r"holds the sets haze, rain, and protocol=diffuir5d the sets Rain100H, .*protocol=rgb"
    ):
        command(f"source={pairs}", "weights=none", "protocol=diffuir5d")


def test_a_set_may_be_one_severity():
    protocol = build(compose("evaluate", ["source=x", "protocol=airnet3d"]).protocol)
    assert [protocol.row("CBSD68", severity) for severity in (1.5, 5.0, 3.0)] == [
        ("noise_15", "CBSD68@1.5"),
        ("noise_50", "CBSD68@5"),
        None,
    ]
    assert protocol.row("SOTS-outdoor") == ("haze", "SOTS-outdoor")


@pytest.mark.parametrize("name", ["rgb", "y", "diffuir5d", "airnet5d", "airnet3d", "cdd11"])
def test_every_protocol_can_be_chosen_and_names_its_metrics(name):
    protocol = build(compose("evaluate", ["source=x", f"protocol={name}"]).protocol)
    assert {protocol.metric_name(measure).partition("_")[0] for measure in protocol.measures} <= {
        "psnr",
        "ssim",
        "ssim7",
    }
    assert protocol.name in (name, "")


# --- what others restored ---


@pytest.fixture
def theirs(pairs, tmp_path):
    """Somebody's outputs, named as the degraded images, in folders of the degradations."""
    for image in pairs.rglob("*.png"):
        if image.parent.name in ("lq", "input"):
            array = read_image(image).to_uint8()
            write_image(tmp_path / "theirs" / image.parent.parent.name / image.name, (array // 2 + 64).astype(np.uint8))
    return tmp_path / "theirs"


def test_outputs_of_others_are_rows_under_the_same_protocol(pairs, theirs, weights, tmp_path, capsys):
    words = (f"source={pairs}", f"outputs=[{theirs}]", "protocol=y", f"json={tmp_path / 'x.json'}")
    command(*words, f"weights={weights}", "name=BDG", f"save={tmp_path / 'saved'}")
    written, said = json.loads((tmp_path / "x.json").read_text()), capsys.readouterr().out
    assert list(written["methods"]) == ["degraded", "BDG", "theirs"]
    assert "theirs" in said
    clean, protocol = as_tensor(pairs / "haze" / "target" / "0.png"), Protocol("y")
    expected = psnr(protocol(as_tensor(theirs / "haze" / "0.png")), protocol(clean)).item()
    assert written["methods"]["theirs"]["haze"]["psnr"] == pytest.approx(expected, abs=1e-4)
    for method in written["methods"]:
        low, high = written["intervals_95"][method]["psnr"]
        assert low <= written["methods"][method]["mean"]["psnr"] <= high
    # what was saved can be measured again, without weights, and is the same but for what rounding does
    command(*words[:1], "protocol=y", "weights=none", f"outputs={tmp_path / 'saved'}", f"json={tmp_path / 'y.json'}")
    again = json.loads((tmp_path / "y.json").read_text())
    assert list(again["methods"]) == ["degraded", "saved"]
    for measure in ("psnr", "ssim"):
        assert again["methods"]["saved"]["mean"][measure] == pytest.approx(
            written["methods"]["BDG"]["mean"][measure], 1e-4
        )


def test_outputs_of_clean_shards_are_found_by_degradation_and_severity(clean_shards, weights, tmp_path):
    words = (f"source={clean_shards}", "degradation=noise", "severities=[1,4]", "crop=32")
    command(*words, f"weights={weights}", f"save={tmp_path / 'saved'}", f"json={tmp_path / 'x.json'}")
    command(*words, "weights=none", f"outputs={tmp_path / 'saved'}", f"json={tmp_path / 'y.json'}")
    first, again = (json.loads((tmp_path / name).read_text()) for name in ("x.json", "y.json"))
    assert again["methods"]["saved"]["mean"] == pytest.approx(first["methods"]["restored"]["mean"], abs=1e-3)


def outputs_error(pairs, folder) -> str:
    with pytest.raises((ValueError, OSError)) as error:
        command(f"source={pairs}", "weights=none", f"outputs={folder}")
    return str(error.value)


def test_outputs_that_do_not_fit_say_what_to_do(pairs, theirs, tmp_path):
    assert "no such folder: name one of restored images" in outputs_error(pairs, tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    assert "no image in it" in outputs_error(pairs, tmp_path / "empty")
    write_image(theirs / "rain" / "1.png", np.zeros((24, 21, 3), np.uint8))
    assert "1.png has 24 x 21 pixels, but the clean image of rain_1 24 x 20" in outputs_error(pairs, theirs)
    (theirs / "rain" / "1.png").unlink()
    assert "lacks 1 of 3 images, such as that of rain_1 (looked for rain/rain_1 and rain/1 and" in outputs_error(
        pairs, theirs
    )
    (theirs / "haze" / "0.png").rename(theirs / "1.png")
    (theirs / "rain" / "0.png").rename(theirs / "0.png")
    (theirs / "rain").rmdir()
    assert "would be the output of haze_0 and of rain_0: put outputs in folders" in outputs_error(pairs, theirs)
    (tmp_path / "degraded").mkdir()
    assert "a method is called by its folder, 'degraded': rename it" in outputs_error(pairs, tmp_path / "degraded")


def test_an_earlier_report_gives_further_rows_under_the_same_protocol_only(pairs, theirs, weights, tmp_path):
    command(f"source={pairs}", f"weights={weights}", "name=older", f"json={tmp_path / 'old.json'}")
    words = (f"source={pairs}", "weights=none", f"outputs={theirs}", f"add=[{tmp_path / 'old.json'}]")
    command(*words, f"json={tmp_path / 'x.json'}")
    assert list(json.loads((tmp_path / "x.json").read_text())["methods"]) == ["degraded", "theirs", "older"]
    with pytest.raises(
        ValueError, match=r"was measured under another protocol \('RGB.* than this \('Y of .*a table has one"
    ):
        command(*words, "protocol=y")
    command(f"source={pairs}", f"weights={weights}", "name=theirs", f"json={tmp_path / 'old.json'}", "overwrite=true")
    with pytest.raises(ValueError, match="there is a 'theirs' already"):
        command(*words)
    (tmp_path / "old.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no measurement"):
        command(*words)
    with pytest.raises(FileNotFoundError, match=r"add=gone\.json: no such file"):
        command(f"source={pairs}", "weights=none", "add=[gone.json]")


def test_without_weights_nothing_is_restored(pairs, tmp_path, capsys):
    command(f"source={pairs}", "weights=none", f"json={tmp_path / 'x.json'}")
    written = json.loads((tmp_path / "x.json").read_text())
    assert (written["weights"], list(written["methods"])) == (None, ["degraded"])
    assert "no weights: only what is there is measured" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"save=x needs restored images, and weights=none restores none"):
        command(f"source={pairs}", "weights=none", "save=x")


# --- without clean images ---


@pytest.fixture
def niqe(tmp_path, monkeypatch):
    monkeypatch.setenv("BDG_CACHE", str(tmp_path / "cache"))
    tensors = {"mu": torch.zeros(36), "cov": torch.eye(36), "window": torch.full((7, 7), 1 / 49)}
    save_weights(weights_path("niqe"), {name: tensor.double() for name, tensor in tensors.items()}, {"metric": "niqe"})


def test_images_without_clean_ones_get_what_needs_none(niqe, tmp_path, capsys):
    for name in "ab":
        noise(tmp_path / "photos" / f"{name}.png", 192, ord(name))
    words = [f"source={tmp_path / 'photos'}", "weights=none"]
    for more in ("protocol=no_reference", "metrics=niqe"):
        command(*words, more, f"json={tmp_path / 'x.json'}")
        scores = json.loads((tmp_path / "x.json").read_text())["scores"]
        assert list(scores) == ["photos", "mean"]
        assert scores["mean"].keys() == {"niqe_input", "num_images"}
    assert "2 degraded images without clean ones; not measured: psnr, ssim" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"shows clean images, and there are none: take save=FOLDER"):
        command(words[0], "metrics=niqe", f"picture={tmp_path / 'x.png'}")
    config = compose("evaluate", [*words, "protocol=no_reference"])
    source, protocol = open_source(config, build(config.protocol)), build(config.protocol)
    found = evaluate(lambda x_lq, names: -x_lq, source.batches, source.degradations, protocol).scores["photos"]
    assert found["niqe"] != found["niqe_input"]


def test_comparing_with_clean_images_that_are_not_there_is_refused(tmp_path):
    noise(tmp_path / "photos" / "a.png")
    with pytest.raises(
        ValueError, match=r"holds no pairs, and psnr, ssim compare with clean images: .*protocol=no_reference"
    ):
        command(f"source={tmp_path / 'photos'}", "weights=none")


def test_measures_are_added_to_those_of_the_protocol(niqe, tmp_path):
    for side in ("lq", "gt"):
        noise(tmp_path / "rain" / side / "a.png", 200)
    command(f"source={tmp_path / 'rain'}", "weights=none", "metrics=[niqe]", f"json={tmp_path / 'x.json'}")
    written = json.loads((tmp_path / "x.json").read_text())
    assert list(written["protocol"]["metrics"].values()) == ["psnr_rgb", "ssim_rgb", "niqe_y_uint8"]
    scores = written["scores"]["mean"]
    assert (scores["psnr_input"], scores["ssim_input"]) == (100, pytest.approx(1))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("metrics=lpips",), "lpips needs weights .* get them with: bdg weights fetch lpips"),
        (("metrics=[niqe]",), "24 x 20 pixels is too small to measure: niqe and a border of 0 need 96 x 192"),
        (("table=x.html",), r"table=x.html: end the name with one of .md, .tex"),
        (("protocol.color=lab",), "protocol.color='lab': choose one of"),
    ],
)
def test_what_cannot_be_measured_is_one_error(pairs, niqe, words, message):
    with pytest.raises((ValueError, OSError), match=message):
        command(f"source={pairs}", "weights=none", *words)


def test_an_unknown_metric_is_named(pairs, capsys):
    assert main(["evaluate", f"{pairs}", "metrics=[vmaf]"]) == 1
    said = capsys.readouterr().err
    assert "Could not load 'metrics/vmaf'" in said
    assert "Available options in 'metrics': brisque, clipiqa, dists, lpips" in said


# --- tables and files ---


def test_tables_have_a_row_per_method_and_say_their_protocol(pairs, theirs, weights, tmp_path):
    for suffix in ("md", "tex"):
        words = (f"weights={weights}", f"outputs={theirs}", "protocol=y", "name=my_method")
        command(f"source={pairs}", *words, f"table={tmp_path / f'x.{suffix}'}")
    md, tex = ((tmp_path / f"x.{suffix}").read_text() for suffix in ("md", "tex"))
    rows = [line for line in md.splitlines() if line.startswith("|")]
    assert rows[0] == "| method | haze | rain | mean |"
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| degraded", "| my_method", "| theirs"]
    assert md.count("**") == 2 * 3 * 2  # of three methods the best of each column, for both measures
    assert "PSNR up / SSIM up. Protocol: Y of BT.601" in md
    assert "(psnr_y, ssim_y)" in md
    assert "bootstrapped over 3 photographs" in md
    assert tex.count(r" \\") == 4
    assert r"my\_method" in tex
    assert r"PSNR$\uparrow$ / SSIM$\uparrow$. Protocol: Y of BT.601" in tex
    assert tex.count(r"\textbf{") == 6


def test_values_of_images_are_written_as_parquet_with_the_protocol_in_their_names(pairs, theirs, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    words = ("weights=none", f"outputs={theirs}", "protocol=y", f"parquet={tmp_path / 'x.parquet'}")
    command(f"source={pairs}", *words, f"json={tmp_path / 'x.json'}")
    table, written = parquet.read_table(tmp_path / "x.parquet"), json.loads((tmp_path / "x.json").read_text())
    rows = table.to_pylist()
    assert [(row["method"], row["degradation"]) for row in rows[2:4]] == [("degraded", "rain"), ("theirs", "haze")]
    assert rows[0]["psnr_y"] == written["images"][0]["psnr_input"]
    assert json.loads(table.schema.metadata[b"bdg"])["protocol"] == written["protocol"]


def test_without_pyarrow_the_extra_is_named_before_anything_is_measured(pairs, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"pip install 'bdg\[parquet\]', or take json=FILE"):
        command(f"source={pairs}", "weights=none", "parquet=x.parquet")


def test_what_a_report_is_about_does_not_hide_its_protocol(pairs):
    source = open_source(compose("evaluate", [f"source={pairs}"]))
    same = lambda x_lq, names: x_lq  # noqa: E731
    report = evaluate(same, source.batches, source.degradations, Protocol("y"), {"protocol": "rgb", "scores": 1})
    assert report.to_dict()["protocol"]["color"] == "y"
    assert report.to_dict()["scores"]["mean"]["gain"] == 0
