"""Properties of the UNet that hold with any weights; what it must compute is in test_golden.py."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from bdg.networks.diffuir import from_diffuir
from bdg.networks.unet import UNet

ROOT = Path(__file__).parents[3]
PARAMETERS = {"T": 886_435, "S": 3_268_643, "B": 12_406_851, "L": 36_261_187}


def awake(*args: object, **kwargs: object) -> UNet:
    """A network in which nothing starts at zero or one that could hide a missing term."""
    torch.manual_seed(0)
    network = UNet(*args, **kwargs)  # type: ignore[arg-type]
    for w in network.parameters():
        w.data += 0.1 * torch.randn_like(w)
    return network


def images(b: int = 2, h: int = 16, w: int = 16, channels: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    x_t, x_lq = torch.randn(2, b, channels, h, w, generator=g)
    return x_t, x_lq, 1000 * torch.rand(b, generator=g)


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    """benchmarks/network.py, which holds a straightforward implementation of the same equations."""
    spec = importlib.util.spec_from_file_location("benchmark", ROOT / "benchmarks" / "network.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("size", "count"), PARAMETERS.items())
def test_sizes_have_the_published_number_of_parameters(size: str, count: int) -> None:
    config = OmegaConf.load(ROOT / "conf" / "network" / f"{size}.yaml")
    with torch.device("meta"):
        one_head, both = instantiate(config, out_channels=3), instantiate(config)

    assert sum(w.numel() for w in one_head.parameters()) == count
    assert sum(w.numel() for w in both.parameters()) == count + 3 * config.dim + 3


def test_demo_weights_fit_into_the_package() -> None:
    network = instantiate(OmegaConf.load(ROOT / "conf" / "network" / "demo.yaml"))

    assert sum(w.numel() * w.element_size() for w in network.parameters()) <= 4e6


@pytest.mark.parametrize("mults", [(1, 2), (1, 2, 2, 4)])
def test_equals_the_straightforward_implementation(benchmark: ModuleType, mults: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    straightforward = benchmark.Straightforward(8, mults)
    network = benchmark.same_function(straightforward)
    given = images(h=17, w=24)
    expected, (prediction, _) = straightforward(*given), network(*given)
    torch.testing.assert_close(prediction, expected, atol=2e-5, rtol=0)

    expected.square().mean().backward()
    prediction.square().mean().backward()
    theirs, own = straightforward.final_conv.weight.grad, network.final_conv.weight.grad
    torch.testing.assert_close(own, theirs, atol=1e-5 * theirs.abs().max().item(), rtol=1e-4)
    theirs, own = straightforward.init_conv.weight.grad, network.init_conv.weight.grad
    torch.testing.assert_close(own, theirs, atol=1e-4 * theirs.abs().max().item(), rtol=0)


@pytest.mark.parametrize(("h", "w"), [(1, 1), (3, 3), (3, 40), (15, 17), (16, 32), (33, 50)])
def test_any_size_comes_back_in_its_size(h: int, w: int) -> None:
    prediction, _ = awake(8, (1, 2, 2))(*images(1, h, w))

    assert prediction.shape == (1, 6, h, w)
    assert prediction.isfinite().all()


def test_fresh_network_ignores_x_lq_and_predicts_no_residual() -> None:
    network = UNet(8, (1, 2))
    x_t, x_lq, time = images()
    prediction, _ = network(x_t, x_lq, time)
    other, _ = network(x_t, torch.zeros_like(x_lq), time)

    assert torch.equal(prediction, other)
    assert not prediction[:, :3].any()
    assert prediction[:, 3:].any()


def test_fresh_network_learns_to_see_x_lq() -> None:
    network = UNet(8, (1, 2))
    network(*images())[0].sum().backward()

    assert network.init_conv.weight.grad is not None
    assert network.init_conv.weight.grad[:, 3:].any()
    assert network.final_conv.weight.grad is not None
    assert network.final_conv.weight.grad[:3].any()


def test_an_image_does_not_depend_on_the_rest_of_the_batch() -> None:
    network = awake(8, (1, 2))
    x_t, x_lq, time = images(3)
    together, _ = network(x_t, x_lq, time)
    alone, _ = network(x_t[1:2], x_lq[1:2], time[1:2])

    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-5)


def test_memory_format_of_the_input_does_not_matter() -> None:
    network = awake(8, (1, 2))
    x_t, x_lq, time = images()
    expected, _ = network(x_t, x_lq, time)
    prediction, _ = network(*(x.contiguous(memory_format=torch.channels_last) for x in (x_t, x_lq)), time)

    torch.testing.assert_close(prediction, expected)


def test_time_is_not_rounded() -> None:
    network = awake(8, (1, 2))
    x_t, x_lq, time = images()

    assert (network(x_t, x_lq, time)[0] - network(x_t, x_lq, time.round())[0]).abs().max() > 1e-3


def test_folded_copy_computes_the_same_and_does_not_learn() -> None:
    network = awake(8, (1, 2))
    folded = network.fold()
    given = images()

    torch.testing.assert_close(folded(*given)[0], network(*given)[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(folded.fold()(*given)[0], folded(*given)[0])
    assert not any(w.requires_grad for w in folded.parameters())
    assert all(w.requires_grad for w in network.parameters())
    assert list(folded.state_dict()) == list(network.state_dict())


def test_folded_copy_keeps_its_weights_when_the_network_is_trained() -> None:
    network = awake(8, (1, 2))
    folded, given = network.fold(), images()
    before, _ = folded(*given)
    for w in network.parameters():
        w.data.mul_(1.5)  # past autograd's version counter, as averaged weights are swapped in

    assert torch.equal(folded(*given)[0], before)
    assert not torch.allclose(network(*given)[0], before)


def test_bfloat16_autocast_stays_close_to_float32() -> None:
    network = awake(16, (1, 2))
    given = images(2, 32, 32)
    expected, _ = network(*given)
    with torch.autocast("cpu", torch.bfloat16):
        prediction, _ = network(*given)
        prediction.float().square().mean().backward()

    assert prediction.dtype is torch.bfloat16
    assert (prediction.float() - expected).abs().mean() < 0.02 * expected.abs().mean()
    assert all(w.grad is not None and w.grad.isfinite().all() for w in network.parameters())


def test_norms_keep_float32_statistics_under_autocast() -> None:
    """A large mean beside a small spread is lost in a bfloat16 variance (8 bits), but not in the values themselves."""
    x = (128 + torch.randn(2, 16, 32, 32)).bfloat16()
    norm = nn.GroupNorm(8, 16)
    with torch.autocast("cpu", torch.bfloat16):
        low = norm(x).float()

    torch.testing.assert_close(low, norm(x.float()), atol=0.02, rtol=0.01)


def test_features_are_those_asked_for_and_as_wide_as_announced() -> None:
    network = awake(8, (1, 2, 4))
    widths = network.feature_widths()
    _, features = network(*images(1, 32, 32), features=tuple(widths))

    assert list(features) == list(widths) == ["down0", "down1", "down2", "mid", "up0", "up1", "up2"]
    assert {name: x.shape[1] for name, x in features.items()} == widths
    assert features["mid"].shape == (1, 32, 8, 8)
    assert list(network(*images())[1]) == ["mid"]
    assert network(*images(), features=())[1] == {}


def test_unknown_feature_names_the_blocks_there_are() -> None:
    with pytest.raises(ValueError, match=r"features=\['middle'\].*'down0', 'down1', 'mid', 'up0', 'up1'"):
        UNet(8, (1, 2))(*images(), features=("middle",))


def test_wrong_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="8 channels together, but this network takes 6"):
        UNet(8, (1, 2))(*images(channels=4))


def test_gray_images_need_only_say_so() -> None:
    prediction, _ = UNet(8, (1, 2), in_channels=2, out_channels=2)(*images(channels=1))

    assert prediction.shape == (2, 2, 16, 16)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"dim": 12}, "dim=12: choose a multiple of 8"),
        ({"dim": 0}, "dim=0: choose a multiple of 8"),
        ({"mults": ()}, r"mults=\[\]: give one whole number"),
        ({"mults": (1, 0)}, r"mults=\[1, 0\]: give one whole number"),
        ({"in_channels": 5}, "in_channels=5: x_t and x_lq together"),
        ({"heads": 0}, "heads=0: every attention needs at least one"),
        ({"out_channels": 4}, "out_channels=4: choose 6 for residual and noise, or 3"),
    ],
)
def test_impossible_shapes_are_refused_with_a_way_out(given: dict, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        UNet(**({"dim": 8, "mults": (1, 2)} | given))


def test_diffuir_weights_predict_a_residual_and_no_noise(benchmark: ModuleType) -> None:
    reference = benchmark.Straightforward(8, (1, 2), out_channels=3)
    names = {f"ema_model.model.unet0.{name}": w for name, w in reference.state_dict().items()}
    network = from_diffuir(names | {"ema_model.alphas_cumsum": torch.zeros(1000)})
    prediction, _ = network(*images())

    torch.testing.assert_close(prediction[:, :3], reference(*images()), atol=2e-5, rtol=0)
    assert not prediction[:, 3:].any()


def test_weights_that_are_not_diffuirs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no tensor is named model\.unet0\.\*, but e\.g\. 'head\.weight'"):
        from_diffuir({"head.weight": torch.zeros(1)})
