"""A restored image does not depend on what else is restored, on tiles that need not matter, or on code from a file."""

import math
import re
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import PIL.Image
import pytest
import torch
from torch import nn

from bdg import devices, samplers
from bdg.denoiser import Denoiser
from bdg.diffusion import Diffusion
from bdg.networks.unet import UNet
from bdg.restoration import PACKAGED, Cost, Restorer, noise_drawer, turned, turned_back
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


def test_a_line_of_40000_pixels_is_restored(pointwise):
    restored = pointwise(photo(1, 3, 40_000), ["a"], tile=4096)
    assert restored.shape == (1, 3, 3, 40_000)
    assert restored.isfinite().all()


@pytest.mark.parametrize(
    ("sampler", "tile", "ensemble"), [(samplers.ddim, None, 1), (samplers.ddpm, 32, 1), (samplers.ddim, None, 4)]
)
def test_an_image_is_restored_the_same_alone_and_in_any_batch(restorer, sampler, tile, ensemble):
    x_lq, names = photo(3, 16, 40), ["a", "b", "c"]
    restore = partial(restorer, sampler=sampler, sample_steps=2, tile=tile, ensemble=ensemble)
    together = restore(x_lq, names)
    torch.testing.assert_close(restore(x_lq.flip(0), names[::-1]).flip(0), together, atol=1e-5, rtol=0)
    torch.testing.assert_close(restore(x_lq[1:2], ["b"]), together[1:2], atol=1e-5, rtol=0)


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
    whole = pointwise(x_lq, ["a", "b"], sampler, tile=None)
    torch.testing.assert_close(
        pointwise(x_lq, ["a", "b"], sampler, tile=tile, overlap=overlap), whole, atol=1e-4, rtol=0
    )


def test_a_tile_that_holds_the_image_is_the_whole_image(restorer):
    assert torch.equal(restorer(photo(), ["a"], tile=32), restorer(photo(), ["a"]))


def doubtful(sampler):
    """A restorer whose sampler is a plain function of x_lq and the noise."""
    return Restorer(Denoiser(Pointwise(), Diffusion()), lambda denoise, diffusion, x_lq, z, draw: sampler(x_lq, z))


def test_strength_is_the_share_of_the_way_to_the_result(restorer):
    x_lq = photo()
    full = restorer(x_lq, ["a"])
    assert torch.equal(restorer(x_lq, ["a"], strength=0), x_lq)
    torch.testing.assert_close(restorer(x_lq, ["a"], strength=0.25), 0.75 * x_lq + 0.25 * full)


def test_the_views_of_an_ensemble_are_different_and_can_be_undone():
    x = photo(1, 5, 5)
    views = [turned(x, view) for view in range(8)]
    assert len({tuple(view.flatten().tolist()) for view in views}) == 8
    assert all(torch.equal(turned_back(view, i), x) for i, view in enumerate(views))


@pytest.mark.parametrize("ensemble", [2, 4, 8])
def test_an_ensemble_averages_noise_and_preferred_directions(ensemble):
    x_lq = torch.zeros(1, 3, 60, 80)
    noise = doubtful(lambda x, z: 0.1 * z)(x_lq, ["a"], ensemble=ensemble)
    assert noise.std().item() == pytest.approx(0.1 / ensemble**0.5, rel=0.05)
    ramp = doubtful(lambda x, z: torch.linspace(-1, 1, x.shape[-1]).expand(x.shape))(x_lq, ["a"], ensemble=ensemble)
    torch.testing.assert_close(ramp, torch.zeros_like(ramp))


def test_keep_color_undoes_a_drift_and_leaves_detail():
    x_lq, tint = photo(1, 130, 150) * 0.5, torch.tensor([0.3, 0, -0.2])[:, None, None]
    detail = 0.2 * (-1) ** torch.arange(150)
    drift = doubtful(lambda x, z: x + tint + detail)
    kept = drift(x_lq, ["a"], keep_color=True)
    torch.testing.assert_close(kept, x_lq + detail, atol=0.01, rtol=0)
    assert (drift(x_lq, ["a"]) - kept).mean((0, 2, 3)).tolist() == pytest.approx([0.3, 0, -0.2], abs=0.01)


def test_bf16_is_nearly_the_same_and_comes_back_as_float32(weights, restorer):
    x_lq = photo()
    restored = Restorer.load(weights, precision="bf16")(x_lq, ["a"])
    assert restored.dtype == torch.float32
    assert 0 < (restored - restorer(x_lq, ["a"])).square().mean().sqrt() < 0.05


@pytest.mark.skipif(not PACKAGED.is_file(), reason="no weights are packaged")
def test_without_a_path_the_packaged_weights_are_loaded():
    assert Restorer.load().path == PACKAGED


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tile": 8}, "tile=8: give at least 32 pixels, auto, or null"),
        ({"tile": "large"}, "tile=large: give a number of pixels, auto, or null"),
        ({"tile": 64, "overlap": 40}, "overlap=40: choose 0 to 32"),
        ({"tile": 64, "overlap": -1}, "overlap=-1"),
        ({"strength": 1.5}, "strength=1.5: choose 0"),
        ({"strength": -0.1}, "strength=-0.1"),
        ({"strength": math.nan}, "strength=nan"),
        ({"ensemble": 3}, r"ensemble=3: choose one of \[1, 2, 4, 8\]"),
        ({"names": ["a", "b"]}, "2 names for 1 images"),
    ],
)
def test_settings_that_cannot_be_are_refused(restorer, settings, message):
    with pytest.raises(ValueError, match=message):
        restorer(photo(), **{"names": ["a"]} | settings)


def test_an_unknown_precision_and_an_absent_device_are_refused(weights):
    with pytest.raises(ValueError, match=r"precision='half': choose one of \['float32', 'bf16'\]"):
        Restorer.load(weights, precision="half")
    with pytest.raises(ValueError, match="device=cuda:99 cannot be used"):
        Restorer.load(weights, device="cuda:99")


@pytest.fixture
def planner(monkeypatch):
    """A restorer of known cost, 1 kB and 1 us for a pixel, in a process that holds 100 MB with 1 GB free."""
    monkeypatch.setattr(devices, "held_bytes", lambda device: 10**8)
    monkeypatch.setattr(devices, "free_bytes", lambda device: 10**9)
    restorer = Restorer(Denoiser(Pointwise(), Diffusion()))
    restorer.__dict__["cost"] = Cost(1000.0, 1e-6)
    return restorer


def test_an_image_stays_whole_where_memory_allows_and_is_cut_where_not(planner):
    tile = planner.fitting_tile
    assert tile(800, 800) is None
    assert tile(2000, 2000) == 736  # 3/4 of 1 GB less 3 images of 48 MB hold 800 x 800; 3 x 3 of 736 do
    assert tile(2000, 2000, memory_gb=0.65) < tile(2000, 2000)
    assert tile(2000, 2000, memory_gb=6) is None
    assert tile(2000, 2000, ensemble=2, memory_gb=0.75) < tile(2000, 2000, memory_gb=0.75)
    assert tile(190, 190, memory_gb=0.001) is None  # smaller than what memory is measured with


def test_a_tile_is_no_larger_than_its_number_demands(planner):
    assert planner.fitting_tile(900, 900) == 512  # 832 would fit, but 2 x 2 tiles of 512 cover it as well


def test_too_little_memory_is_refused_with_what_would_do(planner):
    with pytest.raises(ValueError, match=r"memory_gb=0.15: an image of 2000 x 2000 needs") as refused:
        planner.fitting_tile(2000, 2000, memory_gb=0.15)
    enough = float(re.search(r"needs (\S+),", str(refused.value))[1])
    assert planner.fitting_tile(2000, 2000, memory_gb=enough) >= 32
    with pytest.raises(ValueError, match=r"an image of 9000 x 9000 needs .* but 1.00 GB are free"):
        planner.fitting_tile(9000, 9000)


def test_time_is_refused_for_what_will_be_refused_once_the_image_is_held(planner, monkeypatch):
    """x_lq takes 48 MB and its picture 24 MB at most, so no estimate may be announced for what they leave no room for."""
    planner.fitting_tile(2000, 2000, memory_gb=0.5)
    with pytest.raises(ValueError, match=r"memory_gb=0.5: an image of 2000 x 2000 needs 0.6"):
        planner.seconds(2000, 2000, memory_gb=0.5)
    seconds = planner.seconds(2000, 2000, memory_gb=0.6, sample_steps=1)
    monkeypatch.setattr(devices, "held_bytes", lambda device: 172 * 10**6)
    tile = planner.fitting_tile(2000, 2000, memory_gb=0.6)
    assert seconds == planner.seconds(2000, 2000, tile=tile, sample_steps=1)


def test_estimates_blended_in_three_parts_leave_less_to_the_network(planner):
    free = Restorer(Denoiser(Pointwise(), Diffusion(), clamp=False))
    free.__dict__["cost"] = planner.cost
    assert free.fitting_tile(2000, 2000, memory_gb=1) < planner.fitting_tile(2000, 2000, memory_gb=1)


def test_images_that_do_not_fit_together_are_restored_one_by_one_as_they_are_alone(planner):
    sizes, x_lq = [], photo(3, 500, 600)

    def note(denoise, diffusion, x_lq, z, draw):
        sizes.append(tuple(x_lq.shape))
        return denoise(x_lq, x_lq, torch.zeros(len(x_lq), dtype=torch.long)).x_hq

    together = planner(x_lq, ["a", "b", "c"], note)
    assert sizes == 3 * [(1, 3, 500, 600)]
    assert torch.equal(planner(x_lq[1:2], ["b"], note), together[1:2])


def test_tiles_that_memory_asks_for_are_said_once(planner, monkeypatch, caplog):
    monkeypatch.setattr(devices, "free_bytes", lambda device: 5 * 10**8)
    x_lq = torch.zeros(1, 3, 701, 603)
    for name in "ab":
        planner(x_lq, [name], sample_steps=1)
    assert caplog.text.count("images of 701 x 603 do not fit into memory whole: restored in tiles of") == 1


def test_where_memory_cannot_be_measured_large_images_are_cut(planner, monkeypatch):
    monkeypatch.setattr(devices, "free_bytes", lambda device: None)
    assert planner.fitting_tile(300, 400) is None
    assert planner.fitting_tile(300, 4000) == 512


def test_time_grows_with_pixels_steps_views_and_overlap(planner):
    seconds = partial(planner.seconds, 640, 640, sample_steps=1, tile=None)
    assert seconds() == pytest.approx(0.64**2)
    assert seconds(sample_steps=3, ensemble=2, keep_color=True) == pytest.approx(6 * seconds())
    assert seconds(sample_steps=None) == pytest.approx(3 * seconds())  # ddim's own
    assert seconds(tile=320) > seconds(tile=320, overlap=0) == pytest.approx(seconds())


@pytest.mark.parametrize("refused", [torch.OutOfMemoryError("CUDA"), RuntimeError("not enough memory"), MemoryError()])
def test_tiles_are_halved_until_memory_suffices(monkeypatch, caplog, refused):
    class Large(Pointwise):
        def forward(self, x_t, x_lq, time, features=()):
            if x_t.shape[-1] > 64:
                raise refused
            return super().forward(x_t, x_lq, time, features)

    restorer, x_lq = Restorer(Denoiser(Large(), Diffusion())), photo(1, 100, 150)
    assert torch.equal(restorer(x_lq, ["a"]), restorer(x_lq, ["a"], tile=64))
    assert "out of memory on cpu with tile=None: going on with tile=64" in caplog.text
    with pytest.raises(ValueError, match=r"out of memory with tile=96: give tile=auto or a smaller tile"):
        restorer(x_lq, ["a"], tile=96)


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    class Broken(Pointwise):
        def forward(self, x_t, x_lq, time, features=()):
            raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        Restorer(Denoiser(Broken(), Diffusion()))(photo(), ["a"])


def test_what_tiles_change_is_measured(restorer, pointwise, monkeypatch):
    x_lq = photo(1, 48, 72)
    assert restorer.compare_tiled(x_lq, ["a"]).psnr == math.inf  # it fits whole
    assert pointwise.compare_tiled(x_lq, ["a"], tile=32).psnr > 80
    compare = partial(restorer.compare_tiled, x_lq, ["a"], sample_steps=1)
    blended, cut = (compare(tile=32, overlap=overlap) for overlap in (16, 0))
    assert blended.psnr < 80
    assert cut.seam_energy > blended.seam_energy
    monkeypatch.setattr(Restorer, "fitting_tile", lambda *_: 64)
    found = compare()
    assert (found.height, found.width, found.tile) == (48, 64, 32)


@pytest.mark.gpu
def test_a_gpu_restores_the_same_and_its_memory_is_measured(weights, restorer):
    x_lq, on_gpu = photo(1, 300, 400), Restorer.load(weights, device="cuda")
    torch.testing.assert_close(on_gpu(x_lq, ["a"]), restorer(x_lq, ["a"], tile=None), atol=0.02, rtol=0)
    assert on_gpu.cost.bytes is not None
    held = torch.cuda.memory_allocated() / 1e9
    assert on_gpu.fitting_tile(300, 400) is None
    assert on_gpu.fitting_tile(3000, 4000, memory_gb=held + 1) is not None


PEAK = """
import sys, torch
from bdg import devices
from bdg.denoiser import Denoiser
from bdg.diffusion import Diffusion
from bdg.networks.unet import UNet
from bdg.restoration import Restorer
height, width, memory_gb = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
torch.set_num_threads(1)
restorer = Restorer(Denoiser(UNet(8, (1, 1, 1, 1), heads=1).fold(), Diffusion()))
x_lq = torch.rand(1, 3, height, width) * 2 - 1
assert restorer.fitting_tile(height, width, memory_gb=memory_gb)
restorer(x_lq, ["a"], sample_steps=1, memory_gb=memory_gb)
print(devices.peak_bytes())
"""

COMMAND = """
import sys
from bdg import devices
from bdg.cli import main
status = main(sys.argv[1:])
print(devices.peak_bytes())  # ru_maxrss would count what the parent held as well
sys.exit(status)
"""


@pytest.mark.slow
def test_a_large_image_is_restored_within_the_memory_given():
    command = [sys.executable, "-c", PEAK, "1600", "2000", "0.9"]
    peak = subprocess.run(command, capture_output=True, text=True, check=True, timeout=900).stdout
    assert int(peak) < 0.9e9


@pytest.mark.slow
@pytest.mark.skipif(not PACKAGED.is_file(), reason="no weights are packaged")
def test_the_command_restores_a_photograph_within_the_memory_given(tmp_path):
    source, target, memory_gb = tmp_path / "large.png", tmp_path / "restored.png", 0.8
    PIL.Image.new("RGB", (1600, 1200), "gray").save(source)
    options = [f"memory_gb={memory_gb}", "sample_steps=1", "device=cpu"]
    command = [sys.executable, "-c", COMMAND, "restore", str(source), str(target), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=900)
    with PIL.Image.open(target) as restored:
        assert restored.size == (1600, 1200)
    assert "images of 1200 x 1600 do not fit into memory whole: restored in tiles of" in done.stderr
    assert int(done.stdout.splitlines()[-1]) < 1e9 * memory_gb


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
