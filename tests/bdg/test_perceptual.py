"""Perceptual measures keep their properties with any weights, stay out of what is trained, and say what they lack."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from bdg import perceptual
from bdg.metrics import Protocol, RestorationMetrics
from bdg.perceptual import ALEXNET, BLOCK, Dists, Lpips, Niqe, Pyiqa, asymmetric, halved, weights_path
from bdg.weights import save_weights


def small(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape))) / 10


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the right shapes, drawn at random; DISTS with VGG16 made thin."""
    monkeypatch.setenv("BDG_CACHE", str(tmp_path))
    lpips, channels = {}, 3
    for place, (out, side, _, _) in enumerate(ALEXNET):
        lpips |= {f"weight_{place}": small(out, channels, side, side), f"bias_{place}": small(out)}
        lpips[f"head_{place}"] = small(1, out, 1, 1).abs()
        channels = out
    widths = [3, *[4] * 13]
    dists = {f"weight_{i}": small(4, widths[i], 3, 3) for i in range(13)} | {f"bias_{i}": small(4) for i in range(13)}
    dists |= {name: torch.rand(1, 3 + 5 * 4, 1, 1) for name in ("alpha", "beta")}
    root = small(36, 36).double()
    niqe = {
        "mu": small(36).double(),
        "cov": root @ root.T + torch.eye(36),
        "window": torch.full((7, 7), 1 / 49).double(),
    }
    for name, tensors in (("lpips", lpips), ("dists", dists), ("niqe", niqe)):
        save_weights(weights_path(name), tensors, {"metric": name})


def levels(*size: int, seed: int = 0) -> torch.Tensor:
    return 255 * torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", [Lpips, Dists])
def test_distances_are_zero_for_equal_images_and_grow_with_noise(weights, kind):
    measure, clean = kind(), levels(40, 48)
    noise = levels(40, 48, seed=1) - 127
    assert measure(clean, clean).abs().max() < 1e-5
    near, far = (measure((clean + share * noise).clamp(0, 255), clean) for share in (0.05, 0.5))
    assert (near > 0).all()
    assert (near < far).all()


@pytest.mark.parametrize("kind", [Lpips, Dists, Niqe])
def test_a_batch_is_measured_image_by_image(weights, kind):
    measure, image, clean = kind(), levels(96, 192), levels(96, 192, seed=1)
    image, clean = (x[:, :1] if kind is Niqe else x for x in (image, clean))
    together = measure(image, clean)
    alone = [measure(image[i : i + 1], clean[i : i + 1]).item() for i in range(2)]
    assert together.tolist() == pytest.approx(alone, rel=1e-4)


def test_weights_of_measures_are_neither_trained_nor_saved(weights):
    protocol = Protocol(measures={"lpips": Lpips(), "dists": Dists()})
    metrics = RestorationMetrics(("rain",), protocol)
    assert not list(metrics.parameters())
    assert not metrics.state_dict()


def test_measures_of_equal_values_are_kept_apart(weights):
    """Both are 0 for equal images; torchmetrics would take them for one from there on."""
    protocol = Protocol(measures={"lpips": Lpips(), "dists": Dists()})
    metrics, clean = protocol.collection(), levels(40, 48) / 127.5 - 1
    metrics.update(clean, clean)
    metrics.update(levels(40, 48, seed=1) / 127.5 - 1, clean)
    found = metrics.compute()
    assert found["lpips_rgb"] != found["dists_rgb"]


def test_half_the_size_is_that_of_matlab():
    """imresize(x, 0.5) of a ramp is a ramp, and of one bright pixel the bicubic's weights."""
    ramp = torch.arange(32, dtype=torch.double).expand(32, 32)
    torch.testing.assert_close(halved(ramp)[4:12, 4:12], (2 * ramp + 0.5)[4:12, :16][:, 4:12])
    pixel = torch.zeros(32, 32, dtype=torch.double)
    pixel[16, 16] = 1
    weights = torch.tensor([-3, -9, 29, 111], dtype=torch.double) / 256
    torch.testing.assert_close(
        halved(pixel)[6:10, 8] / halved(pixel)[6:10, 8].sum(), weights[[0, 2, 3, 1]] / weights.sum()
    )


def test_the_shape_of_a_normal_distribution_is_two():
    x = torch.randn(1, 400, 400, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    alpha, left, right = asymmetric(x)
    assert alpha.item() == pytest.approx(2, abs=0.05)
    assert (left.item(), right.item()) == pytest.approx((2**0.5, 2**0.5), rel=0.02)


def test_flat_blocks_do_not_count_in_niqe(weights):
    image = levels(2 * BLOCK, 3 * BLOCK)[:1, :1].round()
    image[..., :BLOCK, :BLOCK] = 128
    assert Niqe()(image, None).isfinite().all()


def test_images_without_two_blocks_are_too_small_for_niqe(weights):
    protocol = Protocol(measures={"niqe": Niqe()})
    with pytest.raises(ValueError, match=r"190 x 95 pixels is too small to measure: niqe .* need 96 x 192"):
        protocol.check_size(190, 95)
    protocol.check_size(192, 96)


@pytest.mark.parametrize(("kind", "name"), [(Lpips, "lpips"), (Dists, "dists"), (Niqe, "niqe")])
def test_missing_and_damaged_weights_name_the_command(tmp_path, monkeypatch, kind, name):
    monkeypatch.setenv("BDG_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"{name} needs weights .* get them with: bdg weights fetch {name}"):
        kind()
    weights_path(name).parent.mkdir()
    weights_path(name).write_bytes(b"half a file")
    with pytest.raises(ValueError, match=f"bdg weights fetch {name} overwrite=true"):
        kind()


def test_the_cache_is_in_the_home_folder_unless_named(monkeypatch, tmp_path):
    monkeypatch.delenv("BDG_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert perceptual.cache() == tmp_path / ".cache" / "bdg"


def test_without_pyiqa_its_measures_say_what_to_install_and_its_licence(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(ValueError, match=r"metrics=musiq .*pip install pyiqa, if its licence .PolyForm Noncommercial."):
        Pyiqa("musiq")


def test_with_pyiqa_its_measures_see_colours_in_0_to_1(monkeypatch):
    seen = []

    def create_metric(name: str, device: str) -> object:
        def metric(x: torch.Tensor) -> torch.Tensor:
            seen.append((name, x.min().item(), x.max().item()))
            return x.mean(dim=(1, 2, 3), keepdim=True)

        made = torch.nn.Module()
        made.forward = metric  # type: ignore[method-assign]
        made.metric_mode, made.lower_better = "NR", False
        return made

    pyiqa = ModuleType("pyiqa")
    vars(pyiqa).update(SimpleNamespace(create_metric=create_metric, __version__="0").__dict__)
    monkeypatch.setitem(sys.modules, "pyiqa", pyiqa)
    measure = Pyiqa("musiq")
    assert (measure.reference, measure.larger_is_better, measure.text) == (False, True, "musiq of pyiqa 0")
    image = torch.from_numpy(np.array([0, 255], np.float32)).view(1, 1, 1, 2).expand(2, 3, 1, 2)
    assert measure(image, None).tolist() == [0.5, 0.5]
    assert seen == [("musiq", 0, 1)]
