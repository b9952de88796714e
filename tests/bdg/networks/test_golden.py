"""The UNet is DiffUIR's: recorded values of the reference network, by block where they are small, and as a whole."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from bdg import samplers
from bdg.denoiser import Denoiser
from bdg.diffusion import Diffusion
from bdg.networks.blocks import Attention, LinearAttention, ResBlock, SinCos
from bdg.networks.diffuir import PREFIX, from_diffuir, our_name
from bdg.networks.unet import UNet

ATOL = 2e-5  # ten times the noise floor of the record, a tenth of the smallest mistake one can make
RECORDED = load_file(Path(__file__).parents[2] / "golden" / "diffuir_blocks.safetensors")
BLOCKS = {
    "time_mlp": lambda: nn.Sequential(SinCos(32), nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 128)),
    "downs.2.2": lambda: LinearAttention(32, heads=4),
    "mid_attn": lambda: Attention(32, heads=4),
    "ups.0.0": lambda: ResBlock(64, 32, 128),
    "ups.0.3": lambda: nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(32, 32, 3, padding=1)),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_block_gives_what_the_reference_gave(name: str) -> None:
    block = BLOCKS[name]()
    shapes = {n: w.shape for n, w in block.state_dict().items()}
    prefix = f"{name}.weights."
    theirs = {our_name(n.removeprefix(prefix)): w for n, w in RECORDED.items() if n.startswith(prefix)}
    block.load_state_dict({n: w.reshape(shapes[n]) for n, w in theirs.items()})
    inputs = [RECORDED[n] for n in sorted(RECORDED) if n.startswith(f"{name}.inputs.")]

    torch.testing.assert_close(block(*inputs), RECORDED[f"{name}.output"], atol=ATOL, rtol=0)


@pytest.fixture(scope="module")
def record(shared: Path) -> dict:
    return torch.load(shared / "golden" / "diffuir_tiny.pt", weights_only=True)


@pytest.fixture
def network(record: dict) -> UNet:
    return from_diffuir(record["state_dict"])


def residual(network: UNet, case: dict) -> Tensor:
    return network(*case["x"].chunk(2, dim=1), case["time"])[0][:, :3]


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("i", range(3))
def test_network_gives_what_the_reference_gave(network: UNet, record: dict, i: int, folded: bool) -> None:
    case = record["unet"][i]
    with torch.no_grad():
        output = residual(network.fold() if folded else network, case)

    torch.testing.assert_close(output, case["out"], atol=ATOL, rtol=0)


def test_every_block_gives_what_the_reference_gave(network: UNet, record: dict) -> None:
    outputs: dict[str, Tensor] = {}
    for name in record["trace"]["acts"]:
        block = network.get_submodule(our_name(f"{name}.").removesuffix("."))
        block.register_forward_hook(lambda _, __, output, name=name: outputs.update({name: output}))
    residual(network, record["trace"])

    assert list(outputs) == list(record["trace"]["acts"]), "the blocks run in the reference's order"
    for name, expected in record["trace"]["acts"].items():
        torch.testing.assert_close(outputs[name], expected, atol=ATOL, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


def loss_of(network: UNet, train: dict) -> Tensor:
    x_hq, x_lq = 2 * train["gt"] - 1, 2 * train["lq"] - 1
    prediction, _ = network(train["x_t"], x_lq, Diffusion(time="alpha").time(train["t"]))
    return F.l1_loss(prediction[:, :3], x_lq - x_hq)


def test_gradients_are_the_references(network: UNet, record: dict) -> None:
    train = record["train"]
    loss = loss_of(network, train)
    loss.backward()
    gradients = {name: w.grad for name, w in network.named_parameters()}

    torch.testing.assert_close(loss, train["loss"], atol=1e-6, rtol=0)
    for name, expected in train["grad"].items():
        own = gradients[our_name(name.removeprefix(PREFIX))].flatten()[: expected.numel()].view_as(expected)
        torch.testing.assert_close(own, expected, atol=1e-4 * expected.abs().max().item(), rtol=0)
    for name, norm in train["grad_norm"].items():
        own = gradients[our_name(name.removeprefix(PREFIX))].norm()
        torch.testing.assert_close(own, norm, atol=1e-4 * train["total_grad_norm"].item(), rtol=1e-3)


def test_three_steps_of_adam_are_the_references(network: UNet, record: dict) -> None:
    optimizer = torch.optim.Adam(network.parameters(), lr=8e-5, betas=(0.9, 0.99))
    steps = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = loss_of(network, record["train"])
        loss.backward()
        steps.append((loss.item(), nn.utils.clip_grad_norm_(network.parameters(), 1.0).item()))
        optimizer.step()

    expected = record["train"]["three_adam_steps_loss_and_norm"]
    # Adam's first steps are signs: gradients near 0 turn rounding into a step of lr, so later losses are less exact
    torch.testing.assert_close(torch.tensor(steps), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("i", range(5))
def test_sampler_walks_the_references_way(network: UNet, record: dict, i: int) -> None:
    run = record["sampler"][i]
    diffusion = Diffusion(time="alpha", estimate="residual")
    denoise = Denoiser(network.fold(), diffusion, clamp=False)
    seen: list[Tensor] = []
    noises = iter(run["step_noise"])

    def watched(x_t: Tensor, x_lq: Tensor, t: Tensor) -> samplers.Estimate:
        seen.append(x_t)
        return denoise(x_t, x_lq, t)

    restored = samplers.diffuir(
        watched,
        diffusion,
        2 * run["lq"] - 1,
        run["init_noise"],
        sample_steps=run["steps"],
        draw=lambda x: next(noises, torch.zeros_like(x)),
        eta=run["eta"],
    )

    # the record's last image is clamped, which is left to whoever writes it here
    for own, expected in zip([*seen, restored.clamp(-1, 1)], run["images"], strict=True):
        torch.testing.assert_close((own + 1) / 2, expected, atol=ATOL, rtol=0)
