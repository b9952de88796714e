"""`bdg restore` keeps what an image is, writes nothing it was not asked to, and says which weights it used."""

import errno
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from bdg.cli import main
from bdg.commands import batches, restore
from bdg.commands.journal import NAME, Journal
from bdg.explain import Explanation
from bdg.networks.unet import UNet
from bdg.restoration import Restorer
from bdg.weights import save_weights
from datamodules import images
from datamodules.images import Picture, read_image, write_image
from datamodules.restored import restore_file

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
    assert run(folder, tmp_path / "out", f"weights={weights}", f"json={tmp_path / 'done.json'}") == 1
    written = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("[!.]*.*"))
    assert written == ["a.png", "deep/b.jpg"]
    printed, said = capsys.readouterr()
    assert said == "bdg restore: error: 1 image of 3 could not be restored (named above)\n"
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


# --- formats ---


@pytest.mark.parametrize(("given", "made"), [("png", "b.png"), ("webp", "b.webp"), ("tiff", "b.tif"), ("jpg", "b.jpg")])
def test_results_of_a_folder_have_the_format_that_is_asked_for(tmp_path, weights, given, made):
    write_image(tmp_path / "in" / "deep" / "b.jpg", photo())
    assert run(tmp_path / "in", tmp_path / "out", f"weights={weights}", f"format={given}") == 0
    assert read_image(tmp_path / "out" / "deep" / made).array.shape == (20, 24, 3)


def test_sixteen_bits_are_reduced_only_if_asked(tmp_path, weights, capsys):
    write_image(tmp_path / "in" / "a.png", photo(3, np.uint16))
    words = (tmp_path / "in", tmp_path / "out", f"weights={weights}", "format=jpg")
    assert run(*words) == 1
    assert ".jpg cannot hold 16 bits" in capsys.readouterr().out
    assert run(*words, "bits=8") == 0
    assert read_image(tmp_path / "out" / "a.jpg").bits == 8


def test_quality_makes_a_jpeg_smaller(tmp_path, weights):
    write_image(tmp_path / "in.png", photo(3, np.uint8, 64, 64))
    for quality in (95, 40):
        run(tmp_path / "in.png", tmp_path / f"{quality}.jpg", f"weights={weights}", f"quality={quality}")
    assert (tmp_path / "40.jpg").stat().st_size < 0.7 * (tmp_path / "95.jpg").stat().st_size


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["format=gif"], "format=gif: choose one of same, png, jpg, webp, tiff"),
        (["format=jpg"], "out.png does not end in .jpg, as format asks"),
        (["quality=0"], "quality=0: give 1 to 100"),
        (["bits=12"], "bits=12: give 8"),
        (["batch_size=0"], "batch_size=0: give 1 or more"),
        (["crop=[0,0,8,8]"], "crop=[0, 0, 8, 8]: give [top,left,height,width] in pixels, with sheet=PATH"),
        (["sheet=x.gif"], "sheet=x.gif: unknown image format '.gif'"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_read(tmp_path, capsys, words, message):
    write_image(tmp_path / "in.png", photo())
    assert run(tmp_path / "in.png", tmp_path / "out.png", f"weights={tmp_path / 'none'}", *words) == 1
    assert message in capsys.readouterr().err


def test_images_that_would_become_one_are_refused(tmp_path, weights, capsys):
    for name in ("a.png", "a.jpg"):
        write_image(tmp_path / "in" / name, photo())
    assert run(tmp_path / "in", tmp_path / "out", f"weights={weights}", "format=png") == 1
    assert "would both become" in capsys.readouterr().err


def test_without_strength_a_picture_of_any_profile_stays_as_it_is(tmp_path, weights, profiles):
    for name, icc in profiles.items():
        given = Picture(photo(3, np.uint16), icc)
        write_image(tmp_path / "in.png", given)
        assert run(tmp_path / "in.png", tmp_path / f"{name}.png", f"weights={weights}", "strength=0") == 0
        np.testing.assert_array_equal(read_image(tmp_path / f"{name}.png").array, given.array)


def test_colours_beyond_srgb_are_counted(tmp_path, weights, profiles, capsys):
    array = np.full((20, 24, 3), 128, np.uint8)
    array[:5] = (0, 255, 0)
    write_image(tmp_path / "in.png", Picture(array, profiles["Display P3"]))
    run(tmp_path / "in.png", tmp_path / "out.png", f"weights={weights}", f"json={tmp_path / 'x.json'}")
    assert "in.png: Display P3; 25.0% of its pixels lie beyond sRGB and keep their distance" in capsys.readouterr().out
    (facts,) = json.loads((tmp_path / "x.json").read_text())["images"]
    assert (facts["profile"], facts["beyond_srgb"]) == ("Display P3", 0.25)


# --- again ---


def made(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.*") if path.name != NAME}


@pytest.fixture
def several(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png", "c.png"):
        write_image(tmp_path / "in" / name, photo())
    return tmp_path / "in"


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException, times: int) -> None:
    """Writing raises after so many files."""
    write, written = batches.encode, []

    def encode(path: Path, *given: Any) -> bytes:
        if len(written) == times:
            raise error
        written.append(path)
        return write(path, *given)

    monkeypatch.setattr(batches, "encode", encode)


def test_the_same_command_again_does_nothing(several, tmp_path, weights, capsys):
    words = (several, tmp_path / "out", f"weights={weights}")
    run(*words)
    before = made(tmp_path / "out")
    assert run(*words, "batch_size=1", "overwrite=true") == 0
    assert made(tmp_path / "out") == before
    assert "restored 0 images" in (printed := capsys.readouterr().out)
    assert "kept 3 images that had been restored before" in printed


def test_an_interrupted_folder_goes_on_where_it_stopped(several, tmp_path, weights, monkeypatch):
    words = (several, tmp_path / "out", f"weights={weights}")
    with monkeypatch.context() as patch:
        failing(patch, KeyboardInterrupt(), 1)
        assert run(*words) == 130
    first = made(tmp_path / "out")
    assert [*first] == ["a.png"]
    assert run(*words) == 0
    assert made(tmp_path / "out").items() > first.items()
    assert len(made(tmp_path / "out")) == 3


def test_a_full_disk_stops_a_folder_with_whole_files_only(several, tmp_path, weights, monkeypatch, capsys):
    words = (several, tmp_path / "out", f"weights={weights}")

    def full(self: Journal, source: Path, target: Path, written: os.stat_result) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", full)
        assert run(*words) == 1
    assert "a.png: No space left on device: nothing was written there" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []
    assert run(*words) == 0


def test_other_settings_are_refused_and_named(several, tmp_path, weights, capsys):
    words = (several, tmp_path / "out", f"weights={weights}")
    run(*words)
    before = made(tmp_path / "out")
    assert run(*words, "seed=1") == 1
    assert "a.png: was restored with other settings (seed 0, now 1); " in (said := capsys.readouterr().err)
    assert "or replace with overwrite=true" in said
    assert made(tmp_path / "out") == before
    assert run(*words, "seed=1", "overwrite=true") == 0
    assert not made(tmp_path / "out").items() & before.items()
    assert run(*words, "seed=1") == 0


def test_a_source_or_a_result_that_was_changed_is_not_taken_for_done(several, tmp_path, weights, capsys):
    words = (several, tmp_path / "out", f"weights={weights}")
    run(*words)
    write_image(several / "a.png", photo(3, np.uint8, 22, 24))
    write_image(tmp_path / "out" / "b.png", photo(3, np.uint8, 22, 24))
    assert run(*words) == 1
    said = capsys.readouterr().err
    assert "a.png: was restored from another a.png, which has changed since" in said
    assert "b.png: was changed since it was restored" in said


def test_a_journal_that_was_cut_off_is_read_as_far_as_it_goes(several, tmp_path, weights):
    words = (several, tmp_path / "out", f"weights={weights}")
    run(*words)
    journal = tmp_path / "out" / NAME
    journal.write_bytes(journal.read_bytes()[:-9])
    (tmp_path / "out" / "c.png").unlink()
    assert run(*words) == 0
    assert run(*words) == 0
    assert len(journal.read_text().splitlines()) == 5  # settings, three pictures, one of them torn


def test_results_do_not_depend_on_the_batch(several, tmp_path, weights):
    for size in (1, 2, 3):
        run(several, tmp_path / f"{size}", f"weights={weights}", f"batch_size={size}")
    for name in ("a.png", "b.png", "c.png"):
        alone, *others = (read_image(tmp_path / f"{size}" / name).array.astype(int) for size in (1, 2, 3))
        for other in others:  # float sums differ in their last bits, which may tip a rounding
            assert np.abs(other - alone).max() <= 1


# --- what is bad ---


def animated(path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(path, "PNG", save_all=True, append_images=frames[1:])


def floats(path: Path) -> None:
    Image.new("F", (8, 8)).save(path, "TIFF")


def half(path: Path) -> None:
    write_image(path, photo(3, np.uint8, 64, 64))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BAD: list[tuple[str, Callable[[Path], object], str]] = [
    ("text.png", lambda path: path.write_text("dear diary"), "not an image"),
    ("half.png", half, "cut off or damaged"),
    ("animated.png", animated, "holds 2 pictures"),
    ("floats.tif", floats, "32-bit samples are not supported"),
]


@pytest.mark.parametrize(("name", "make", "message"), BAD)
def test_a_bad_picture_is_one_error(tmp_path, weights, capsys, name, make, message):
    make(tmp_path / name)
    assert run(tmp_path / name, tmp_path / "out.png", f"weights={weights}") == 1
    assert message in (said := capsys.readouterr().err)
    assert said.startswith(f"bdg restore: error: {tmp_path / name}: ")
    assert len(said.splitlines()) == 1


def test_bad_pictures_of_a_folder_are_skipped_named_and_counted(several, tmp_path, weights, capsys):
    for name, make, _ in BAD:
        make(several / name)
    assert run(several, tmp_path / "out", f"weights={weights}") == 1
    printed, said = capsys.readouterr()
    for name, _, message in BAD:
        assert message in next(line for line in printed.splitlines() if f"{name}: " in line)
    assert "4 images of 7 could not be restored" in said
    assert sorted(made(tmp_path / "out")) == ["a.png", "b.png", "c.png"]


def test_a_picture_that_may_not_be_read_is_one_error_or_one_skip(several, tmp_path, weights, capsys, monkeypatch):
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:  # root may read everything
        if path.name == "b.png":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(images.Path, "read_bytes", refuse)
    assert run(several / "b.png", tmp_path / "out.png", f"weights={weights}") == 1
    assert "b.png: may not be read: chmod +r it" in capsys.readouterr().err
    assert run(several, tmp_path / "out", f"weights={weights}") == 1
    assert "skipped 1 file:\n" in capsys.readouterr().out
    assert sorted(made(tmp_path / "out")) == ["a.png", "c.png"]


def test_a_folder_inside_that_is_closed_is_named(several, tmp_path, weights, capsys, monkeypatch):
    (several / "private").mkdir()
    monkeypatch.setattr(restore.os, "access", lambda path, mode: path.name != "private")  # root may read everything
    assert run(several, tmp_path / "out", f"weights={weights}") == 1
    assert "private: this folder may not be read" in capsys.readouterr().out
    assert len(made(tmp_path / "out")) == 3


@pytest.mark.parametrize("size", [(1, 1), (3, 40_000), (4_000, 3)])
def test_pictures_of_any_shape_are_restored(tmp_path, weights, size):
    write_image(tmp_path / "in.png", photo(3, np.uint8, *size))
    words = (tmp_path / "in.png", tmp_path / "out.png", f"weights={weights}", "sample_steps=1", "tile=512")
    assert run(*words, f"sheet={tmp_path / 'sheet.jpg'}") == 0
    assert read_image(tmp_path / "out.png").array.shape == (*size, 3)
    assert max(read_image(tmp_path / "sheet.jpg").array.shape) < 2000


def test_a_picture_too_long_for_its_format_is_refused_before_it_is_restored(tmp_path, weights, capsys):
    write_image(tmp_path / "in.png", photo(3, np.uint8, 1, 20_000))
    assert run(tmp_path / "in.png", tmp_path / "out.webp", f"weights={weights}") == 1
    assert ".webp ends at 16383 pixels a side, not 20000" in capsys.readouterr().err


def test_cmyk_is_restored_as_rgb(tmp_path, weights):
    Image.new("CMYK", (24, 20), (10, 80, 30, 0)).save(tmp_path / "in.jpg")
    assert run(tmp_path / "in.jpg", tmp_path / "out.jpg", f"weights={weights}") == 0
    assert read_image(tmp_path / "out.jpg").array.shape == (20, 24, 3)


def test_a_palette_with_holes_becomes_rgb_with_alpha(tmp_path, weights):
    buffer = io.BytesIO()
    palette = Image.fromarray(photo()).quantize(4)
    palette.save(buffer, "PNG", transparency=0)
    (tmp_path / "in.png").write_bytes(buffer.getvalue())
    assert run(tmp_path / "in.png", tmp_path / "out.png", f"weights={weights}") == 0
    np.testing.assert_array_equal(
        read_image(tmp_path / "out.png").array[..., 3], read_image(tmp_path / "in.png").array[..., 3]
    )


@pytest.mark.parametrize("overwrite", ["true", "false"])
def test_an_original_is_never_replaced(several, weights, capsys, overwrite):
    before = made(several)
    (several.parent / "link").symlink_to(several)
    for one, other in ((several / "a.png", several.parent / "link" / "a.png"), (several, several.parent / "link")):
        assert run(one, other, f"weights={weights}", f"overwrite={overwrite}") == 1
        assert "is the input itself: choose another" in capsys.readouterr().err or overwrite == "false"
    assert made(several) == before


def test_weights_of_another_architecture_are_refused(several, tmp_path, capsys):
    tensors = {f"network.{name}": value for name, value in UNet(dim=16, mults=(1, 2)).state_dict().items()}
    save_weights(tmp_path / "w.safetensors", tensors, METADATA)
    assert run(several, tmp_path / "out", f"weights={tmp_path / 'w.safetensors'}") == 1
    assert "its tensors do not fit the network it names" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_a_gpu_that_is_not_there_is_named(several, tmp_path, weights, capsys):
    assert run(several, tmp_path / "out", f"weights={weights}", "device=cuda") == 1
    assert "device=cuda cannot be used" in capsys.readouterr().err


def test_what_is_too_much_for_memory_is_tried_alone_and_then_skipped(several, tmp_path, weights, capsys, monkeypatch):
    call = Restorer.__call__

    def greedy(self: Restorer, x_lq: torch.Tensor, names: list[str], **given: Any) -> torch.Tensor:
        if names != ["b.png"]:
            raise ValueError("out of memory: give tile=auto")
        return call(self, x_lq, names, **given)

    monkeypatch.setattr(Restorer, "__call__", greedy)
    assert run(several, tmp_path / "out", f"weights={weights}", "tile=null") == 1
    assert "a.png: out of memory: give tile=auto" in capsys.readouterr().out
    assert [*made(tmp_path / "out")] == ["b.png"]


# --- what is told ---


def explanation(**probabilities: float) -> Explanation:
    return Explanation(probabilities, [("cat", "rain", 3.0, 0.1)], 0.1, False, 0.5, "MAS-GLCM")


def test_what_is_said_of_a_picture_decides_whether_its_colour_is_kept(several, tmp_path, weights, capsys, monkeypatch):
    kept: list[bool] = []
    call = Restorer.__call__

    def told(config: Any, restorer: Any, x_lq: torch.Tensor) -> list[Explanation]:
        return [explanation(rain=1.0), explanation(haze=0.9, rain=0.1), explanation(rain=0.95, haze=0.05)][: len(x_lq)]

    def spy(self: Restorer, x_lq: Any, names: Any, **given: Any) -> Any:
        kept.extend([given["keep_color"]] * len(names))
        return call(self, x_lq, names, **given)

    monkeypatch.setattr(restore, "explanations", told)
    monkeypatch.setattr(restore, "explainer_of", lambda restorer: None)
    monkeypatch.setattr(Restorer, "__call__", spy)
    words = (several, tmp_path / "out", f"weights={weights}", "explain=true", f"json={tmp_path / 'x.json'}")
    assert run(*words, "keep_color=auto") == 0
    assert kept == [True, False, True]
    assert "b.png: haze 90 %, rain 10 %" in capsys.readouterr().out
    facts = json.loads((tmp_path / "x.json").read_text())["images"]
    assert [image["explanation"]["probabilities"].get("rain") for image in facts] == [1.0, 0.1, 0.95]
    assert run(*words[:3], "keep_color=auto") == 1
    assert "keep_color=auto asks what degraded a picture: add explain=true" in capsys.readouterr().err


def test_an_explanation_without_explainer_says_how_to_get_one(several, tmp_path, weights, capsys):
    assert run(several, tmp_path / "out", f"weights={weights}", "explain=true") == 1
    assert "there is no explainer" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_tiles_are_compared_with_the_whole(tmp_path, weights, capsys):
    write_image(tmp_path / "in.png", photo(3, np.uint8, 48, 64))
    words = (tmp_path / "in.png", tmp_path / "out.png", f"weights={weights}", "tile=32", "verify=true")
    assert run(*words, f"json={tmp_path / 'x.json'}") == 0
    assert "in.png: tiles of 32 against the whole, on 48 x 64: PSNR " in capsys.readouterr().out
    (facts,) = json.loads((tmp_path / "x.json").read_text())["images"]
    assert facts["verify"]["psnr"] > 10
    assert facts["verify"]["seam_energy"] > 0


def test_long_work_is_announced(several, tmp_path, weights, capsys, monkeypatch):
    monkeypatch.setattr(Restorer, "seconds", lambda *_, **__: 200.0)
    monkeypatch.setattr(restore, "WORTH_MEASURING", 1000)
    assert run(several, tmp_path / "out", f"weights={weights}") == 0
    assert "3 images on cpu: some 3 min" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"), [(12.4, "12 s"), (89, "89 s"), (91, "2 min"), (5400, "1.5 h"), (90_000, "25 h")]
)
def test_durations_are_told_as_one_says_them(seconds, text):
    assert restore.duration(seconds) == text


@pytest.mark.parametrize("end", [".png", ".html"])
def test_a_sheet_shows_what_is_done_now_and_before(several, tmp_path, weights, capsys, end):
    words = (several, tmp_path / "out", f"weights={weights}")
    run(*words)
    sheet = tmp_path / f"sheet{end}"
    assert run(*words, f"sheet={sheet}", "sheet_images=2", "crop=[1,2,8,9]") == 0
    assert f"sheet{end}: 2 images before and after" in capsys.readouterr().out
    if end == ".html":
        page = sheet.read_text()
        assert page.count("data:image/webp") == 10
        assert "9 x 8 pixels at 2, 1" in page
        assert "1 of 3 are not shown (sheet_images=2)" in page
        assert "http" not in page.replace("http-equiv", "")
    else:
        assert read_image(sheet).array.shape[1] == 5 * 324 + 4
    assert run(*words, f"sheet={sheet}") == 1
    assert "exists already" in capsys.readouterr().err


def test_a_crop_outside_of_its_picture_is_refused(several, tmp_path, weights, capsys):
    words = (several / "a.png", tmp_path / "out.png", f"weights={weights}", f"sheet={tmp_path / 's.png'}")
    assert run(*words, "crop=[10,10,20,8]") == 1
    assert "crop=[10, 10, 20, 8] does not lie inside" in capsys.readouterr().err
    assert not (tmp_path / "out.png").exists()


def test_a_function_does_what_the_command_does(several, tmp_path, weights):
    run(several / "a.png", tmp_path / "command.png", f"weights={weights}", "sample_steps=2")
    restore_file(Restorer.load(weights), several / "a.png", tmp_path / "function.png", sample_steps=2)
    assert (tmp_path / "command.png").read_bytes() == (tmp_path / "function.png").read_bytes()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("sheet={photo}", "is one of the pictures themselves"),
        ("sheet={result}", "is one of the pictures themselves"),
        ("json={photo}", "end the name with .json"),
        ("keep_color=perhaps", "keep_color=perhaps: choose true, false or auto"),
        ("seed=-1", "seed=-1: give 0 or more"),
    ],
)
def test_no_option_replaces_a_picture_or_is_let_pass_unknown(several, tmp_path, weights, capsys, word, message):
    source, result = several / "a.png", tmp_path / "result.png"
    before = source.read_bytes()
    words = (f"weights={weights}", "overwrite=true", word.format(photo=source, result=result))
    assert run(source, result, *words) == 1
    assert message in capsys.readouterr().err
    assert source.read_bytes() == before
    assert not result.exists()


def test_the_tile_that_memory_asked_for_is_told(several, tmp_path, weights):
    told = tmp_path / "told.json"
    assert run(several / "a.png", tmp_path / "result.png", f"weights={weights}", f"json={told}") == 0
    assert json.loads(told.read_text())["images"][0]["tile"] is None
