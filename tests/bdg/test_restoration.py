"""A restored image does not depend on what else is restored, on tiles that need not matter, or on code from a file."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bdg import samplers
from bdg.denoiser import Denoiser
from bdg.diffusion import Diffusion
from bdg.networks.unet import UNet
from bdg.restoration import Restorer, noise_drawer, tiled
from bdg.types import Estimate
from bdg.weights import load_weights, save_weights

NETWORK = {"_target_": "bdg.networks.unet.UNet", "dim": 8, "mults": [1, 2]}
DIFFUSION = {"_target_": "bdg.diffusion.Diffusion", "schedule": {"_target_": "bdg.schedule.Schedule", "num_steps": 50}}
METADATA = {"stage": "restoration", "identity": "0123456789ab", "network": NETWORK, "diffusion": DIFFUSION}


class Pointwise(nn.Module):
    """A network that looks at single pixels."""

    def forward(self, x_t, x_lq, time, features=()):
        pixel = torch.tanh(x_t + 0.5 * x_lq + time[:, None, None, None] / 1000)
        return torch.cat([pixel, -pixel], dim=1), {}


def photo(b: int = 1, h: int = 24, w: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand(b, 3, h, w, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    network = UNet(dim=8, mults=(1, 2))
    for parameter in network.parameters():  # what training begins with at zero must not hide anything here
        nn.init.normal_(parameter, std=0.1)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    save_weights(path, tensors | {"discriminator.encoder": torch.zeros(3)}, METADATA)
    return path


@pytest.fixture(scope="module")
def restorer(weights):
    return Restorer.load(weights)


@pytest.fixture
def pointwise():
    return Restorer(Denoiser(Pointwise(), Diffusion()))


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 3), (17, 3), (16, 16), (33, 50)])
def test_an_image_of_any_size_comes_back_in_its_size_and_range(restorer, size):
    restored = restorer(photo(1, *size), ["a"])
    assert restored.shape == (1, 3, *size)
    assert restored.isfinite().all()
    assert restored.abs().max() <= 1


def test_an_image_is_restored_the_same_alone_and_in_any_batch(restorer):
    x_lq, names = photo(3), ["a", "b", "c"]
    together = restorer(x_lq, names)
    torch.testing.assert_close(restorer(x_lq.flip(0), names[::-1]).flip(0), together, atol=1e-5, rtol=0)
    torch.testing.assert_close(restorer(x_lq[1:2], ["b"]), together[1:2], atol=1e-5, rtol=0)


def test_noise_is_a_function_of_seed_and_name_and_of_nothing_else():
    x = photo(2)
    noise = noise_drawer(["a", "b"], 0)(x)
    assert torch.equal(noise_drawer(["b", "a"], 0)(x), noise.flip(0))
    assert not torch.equal(noise[0], noise[1])
    assert not torch.equal(noise_drawer(["a", "b"], 1)(x), noise)
    assert noise.std() == pytest.approx(1, abs=0.05)


def test_draws_of_one_image_differ_from_step_to_step():
    draw = noise_drawer(["a"], 0)
    assert not torch.equal(draw(photo()), draw(photo()))


@pytest.mark.parametrize("sampler", [samplers.ddim, samplers.ddpm, samplers.paper, samplers.diffuir])
@pytest.mark.parametrize(("tile", "overlap"), [(32, 0), (32, 16), (40, None), (200, None)])
def test_tiles_change_nothing_for_a_network_that_looks_at_single_pixels(pointwise, sampler, tile, overlap):
    x_lq = photo(2, 71, 100)
    whole = pointwise(x_lq, ["a", "b"], sampler)
    torch.testing.assert_close(
        pointwise(x_lq, ["a", "b"], sampler, tile=tile, overlap=overlap), whole, atol=1e-4, rtol=0
    )


def test_a_tile_that_holds_the_image_is_the_whole_image(restorer):
    assert torch.equal(restorer(photo(), ["a"], tile=32), restorer(photo(), ["a"]))


def test_the_network_never_sees_more_than_a_tile_and_every_pixel_is_seen():
    sizes = []

    def denoise(x_t, x_lq, t):
        sizes.append(tuple(x_t.shape[-2:]))
        return Estimate(x_lq, x_t, x_t)

    x = photo(1, 70, 131)
    estimate = tiled(denoise, 32, 8)(x, x, torch.tensor([0]))
    assert set(sizes) == {(32, 32)}
    assert len(sizes) == math.ceil((70 - 8) / 24) * math.ceil((131 - 8) / 24)
    torch.testing.assert_close(estimate.x_hq, x)


def test_blended_tiles_have_no_seams():
    """Tiles that disagree by a constant are joined by slopes, not by steps."""
    counter = iter(range(100))

    def denoise(x_t, x_lq, t):
        level = torch.full_like(x_t, float(next(counter)))
        return Estimate(level, level, level)

    x = photo(1, 32, 56)
    belief = tiled(denoise, 32, 8)(x, x, torch.tensor([0])).x_hq[0, 0, 0]
    assert (belief[0], belief[-1]) == (0, 1)
    assert belief.diff().min() >= 0
    assert belief.diff().max() < 0.25


@pytest.mark.parametrize(
    ("tile", "overlap", "message"), [(8, None, "tile=8"), (64, 40, "overlap=40"), (64, -1, "overlap")]
)
def test_tiles_that_cannot_be_are_refused(restorer, tile, overlap, message):
    with pytest.raises(ValueError, match=message):
        restorer(photo(), ["a"], tile=tile, overlap=overlap)


def test_the_seed_and_the_number_of_steps_matter(restorer):
    x_lq = photo()
    assert not torch.equal(restorer(x_lq, ["a"], seed=1), restorer(x_lq, ["a"]))
    assert not torch.equal(restorer(x_lq, ["a"], sample_steps=2), restorer(x_lq, ["a"]))
    with pytest.raises(ValueError, match="sample_steps=51: choose 1 to 50"):
        restorer(x_lq, ["a"], sample_steps=51)


def test_restored_is_what_sampler_and_network_give(weights, restorer):
    network = UNet(dim=8, mults=(1, 2)).eval()
    tensors, _ = load_weights(weights)
    network.load_state_dict({k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")})
    x_lq, draw = photo(), noise_drawer(["a"], 0)
    diffusion = restorer.denoise.diffusion
    with torch.no_grad():
        expected = samplers.ddim(Denoiser(network, diffusion), diffusion, x_lq, draw(x_lq), sample_steps=3)
    torch.testing.assert_close(restorer(x_lq, ["a"]), expected.clamp(-1, 1), atol=1e-4, rtol=0)


def test_weights_say_what_they_are_and_how_they_want_to_be_sampled(tmp_path, weights, restorer):
    assert str(restorer) == f"{weights} (stage restoration, identity 0123456789ab)"
    sampler = {"_target_": "bdg.samplers.ddpm", "_partial_": True, "sample_steps": 2}
    tensors = {f"network.{name}": value for name, value in UNet(dim=8, mults=(1, 2)).state_dict().items()}
    save_weights(tmp_path / "w", tensors, METADATA | {"sampler": sampler, "condition": "none"})
    other = Restorer.load(tmp_path / "w")
    assert (other.sampler.func, other.sampler.keywords) == (samplers.ddpm, {"sample_steps": 2})
    assert other.denoise.condition == "none"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"network": {"_target_": "os.system", "command": "true"}},
            r"'os\.system', which is not code of bdg\.networks",
        ),
        ({"network": {"_target_": "bdg.networks.unet.torch.load"}}, "does not exist here"),
        ({"network": {"_target_": "bdg.networks_evil.Net"}}, "not code of"),
        ({"network": {"_target_": "bdg.networks.unet.Mystery"}}, "does not exist here"),
        ({"network": {"_target_": "bdg.networks.unet.annotations"}}, "does not exist here|no torch module"),
        ({"network": NETWORK | {"petals": 4}}, "UNet does not take these arguments"),
        ({"network": NETWORK | {"dim": 16}}, "its tensors do not fit"),
        ({"diffusion": DIFFUSION | {"schedule": {"_target_": "subprocess.run"}}}, "diffusion.schedule._target_ is"),
        ({"diffusion": NETWORK}, "its diffusion is a UNet"),
        ({"sampler": {"_target_": "os.getcwd"}}, "only those of bdg.samplers are trusted"),
        ({"sampler": {"_target_": "bdg.samplers.torch"}}, "only those of bdg.samplers are trusted"),
    ],
)
def test_foreign_or_unfit_weights_are_refused(tmp_path, change, message):
    tensors = {f"network.{name}": value for name, value in UNet(dim=8, mults=(1, 2)).state_dict().items()}
    save_weights(tmp_path / "w", tensors, METADATA | change)
    with pytest.raises(ValueError, match=message):
        Restorer.load(tmp_path / "w")


def test_metadata_of_something_else_are_refused(tmp_path):
    save_weights(tmp_path / "w", {}, {"stage": "restoration"})
    with pytest.raises(ValueError, match=r"lack \['diffusion', 'network'\]"):
        Restorer.load(tmp_path / "w")


def test_a_package_the_user_allows_is_trusted(tmp_path, monkeypatch):
    class Mine(nn.Module):
        def forward(self, x_t, x_lq, time, features=()):
            return torch.cat([x_t, x_t], dim=1), {}

    monkeypatch.setitem(__import__("sys").modules, "garden", SimpleNamespace(Mine=Mine))
    save_weights(tmp_path / "w", {}, METADATA | {"network": {"_target_": "garden.Mine"}})
    with pytest.raises(ValueError, match=r"trust=\[garden\]"):
        Restorer.load(tmp_path / "w")
    assert isinstance(Restorer.load(tmp_path / "w", trust=["garden"]).denoise.network, Mine)
