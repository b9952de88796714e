"""`bdg restore` keeps what an image is, writes nothing it was not asked to, and says which weights it used."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from bdg.cli import main
from bdg.commands import restore
from bdg.networks.unet import UNet
from bdg.weights import save_weights
from datamodules.images import Picture, read_image, write_image

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
    path = tmp_path_factory.mktemp("run") / "weights" / "ema.safetensors"
    save_weights(path, {f"network.{name}": value for name, value in network.state_dict().items()}, METADATA)
    return path


def photo(channels: int = 3, dtype: type = np.uint8, height: int = 20, width: int = 24) -> np.ndarray:
    return RNG.integers(0, np.iinfo(dtype).max + 1, (height, width, channels), dtype=dtype)


@pytest.fixture
def folder(tmp_path):
    source = tmp_path / "in"
    write_image(source / "a.png", photo())
    write_image(source / "deep" / "b.jpg", photo())
    (source / "notes.txt").write_text("dear diary")
    (source / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    (source / ".hidden.png").write_bytes(b"")
    return source


def run(*words: object) -> int:
    return main(["restore", *map(str, words)])


@pytest.mark.parametrize(
    ("channels", "dtype", "suffix"),
    [
        (1, np.uint8, ".png"),
        (1, np.uint16, ".png"),
        (3, np.uint16, ".tif"),
        (4, np.uint8, ".png"),
        (4, np.uint16, ".png"),
    ],
)
def test_depth_gray_alpha_and_profile_are_those_of_the_input(tmp_path, weights, channels, dtype, suffix):
    given = Picture(photo(channels, dtype), icc=b"a profile")
    write_image(tmp_path / f"in{suffix}", given)
    assert run(tmp_path / f"in{suffix}", tmp_path / f"out{suffix}", f"weights={weights}") == 0
    restored = read_image(tmp_path / f"out{suffix}")
    assert restored.array.shape == given.array.shape
    assert restored.array.dtype == dtype
    assert restored.icc == b"a profile"
    assert not np.array_equal(restored.array[..., 0], given.array[..., 0])
    if channels == 4:
        np.testing.assert_array_equal(restored.array[..., 3], given.array[..., 3])


def test_sixteen_bit_results_use_their_depth(tmp_path, weights):
    write_image(tmp_path / "in.png", photo(3, np.uint16))
    run(tmp_path / "in.png", tmp_path / "out.png", f"weights={weights}")
    assert len(np.unique(read_image(tmp_path / "out.png").array % 257)) > 100


def test_an_image_three_pixels_wide_is_restored(tmp_path, weights):
    write_image(tmp_path / "in.png", photo(3, np.uint8, 20, 3))
    assert run(tmp_path / "in.png", tmp_path / "out.png", f"weights={weights}") == 0
    assert read_image(tmp_path / "out.png").array.shape == (20, 3, 3)


def test_a_folder_is_searched_and_what_is_no_image_is_counted(folder, tmp_path, weights, capsys):
    assert run(folder, tmp_path / "out", f"weights={weights}", f"json={tmp_path / 'done.json'}") == 0
    written = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert written == ["a.png", "deep/b.jpg"]
    printed = capsys.readouterr().out
    assert (
        f"weights {weights} (stage restoration, identity 0123456789ab); sampler ddim, sample_steps 3, seed 0" in printed
    )
    assert "restored 2 images" in printed
    assert "skipped 2 files" in printed
    assert "notes.txt: not an image" in printed
    assert "broken.png: " in printed
    assert [len(json.loads((tmp_path / "done.json").read_text())[key]) for key in ("restored", "skipped")] == [2, 2]


def test_an_image_is_restored_the_same_alone_and_in_a_folder(folder, tmp_path, weights):
    run(folder, tmp_path / "out", f"weights={weights}")
    run(folder / "a.png", tmp_path / "alone.png", f"weights={weights.parents[1]}")  # the run's folder will do
    assert np.array_equal(read_image(tmp_path / "alone.png").array, read_image(tmp_path / "out" / "a.png").array)


def test_settings_reach_the_sampler(folder, tmp_path, weights, capsys):
    assert (
        run(folder / "a.png", tmp_path / "a.png", f"weights={weights}", "sampler=ddpm", "sample_steps=2", "tile=32")
        == 0
    )
    assert "sampler ddpm, sample_steps 2, seed 0, tile 32" in capsys.readouterr().out


def test_nothing_is_overwritten_unless_asked(folder, tmp_path, weights, capsys):
    target = tmp_path / "out.png"
    write_image(target, photo())
    before = target.read_bytes()
    assert run(folder / "a.png", target, f"weights={weights}") == 1
    assert "out.png: exists already: choose another output, or replace with overwrite=true" in capsys.readouterr().err
    assert target.read_bytes() == before
    assert run(folder / "a.png", target, f"weights={weights}", "overwrite=true") == 0
    assert target.read_bytes() != before


def test_one_existing_result_stops_a_folder_before_it_begins(folder, tmp_path, weights, capsys):
    write_image(tmp_path / "out" / "deep" / "b.jpg", photo())
    assert run(folder, tmp_path / "out", f"weights={weights}") == 1
    assert "b.jpg: exists already" in capsys.readouterr().err
    assert not (tmp_path / "out" / "a.png").exists()


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("notes.txt", "out.png", "notes.txt: not an image: give a file such as"),
        ("broken.png", "out.png", "broken.png: "),
        ("gone.png", "out.png", "gone.png: no such file or folder: name an image"),
        ("a.png", "out.xyz", "unknown image format '.xyz'"),
        (".", "in/a.png", "a.png is a file, but input="),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line_and_leaves_nothing(
    folder, tmp_path, weights, capsys, source, target, message
):
    before = sorted(tmp_path.rglob("*"))
    assert run(folder / source, tmp_path / target, f"weights={weights}") == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("bdg restore: error: ")
    assert message in error
    assert "\n" not in error
    assert sorted(tmp_path.rglob("*")) == before


def test_sixteen_bits_or_alpha_do_not_get_lost_in_a_jpeg(tmp_path, weights, capsys):
    write_image(tmp_path / "in.png", photo(4))
    assert run(tmp_path / "in.png", tmp_path / "out.jpg", f"weights={weights}") == 1
    assert ".jpg cannot hold alpha: write to one of .png" in capsys.readouterr().err


def test_a_folder_without_images_is_an_error(tmp_path, weights, capsys):
    (tmp_path / "in").mkdir()
    assert run(tmp_path / "in", tmp_path / "out", f"weights={weights}") == 1
    assert "no image among its 0 files" in capsys.readouterr().err


def test_a_single_image_goes_into_a_folder_that_is_meant(folder, tmp_path, weights):
    assert run(folder / "a.png", f"{tmp_path}/new/", f"weights={weights}") == 0
    assert (tmp_path / "new" / "a.png").is_file()


def test_missing_weights_say_what_to_type(folder, tmp_path, capsys, monkeypatch):
    assert run(folder / "a.png", tmp_path / "out.png", f"weights={tmp_path / 'gone.safetensors'}") == 1
    assert "gone.safetensors: no weights there: give a file with weights=PATH" in capsys.readouterr().err
    monkeypatch.setattr(restore, "PACKAGED", tmp_path / "demo.safetensors")
    assert run(folder / "a.png", tmp_path / "out.png") == 1
    assert "name yours with weights=PATH, or train some with: make demo" in capsys.readouterr().err
    assert not (tmp_path / "out.png").exists()


def test_foreign_code_in_weights_is_refused_unless_allowed(folder, tmp_path, capsys):
    save_weights(tmp_path / "w", {}, METADATA | {"network": {"_target_": "shutil.rmtree", "path": str(folder)}})
    assert run(folder / "a.png", tmp_path / "out.png", f"weights={tmp_path / 'w'}") == 1
    assert "'shutil.rmtree', which is not code of" in capsys.readouterr().err
    assert folder.is_dir()


def test_a_device_that_is_not_there_is_named(folder, tmp_path, weights, capsys):
    assert run(folder / "a.png", tmp_path / "out.png", f"weights={weights}", "device=warp") == 1
    assert "device=warp cannot be used" in capsys.readouterr().err
