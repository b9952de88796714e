import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bdg.commands.request import Request
from bdg.commands.train import build_stage
from bdg.stages import Stage

LABELS = 5
SMALL = ("experiment=demo_smoke", "glcm.levels=16")


def make(stage: str, *overrides: str, small: tuple[str, ...] = SMALL) -> Stage:
    torch.manual_seed(0)
    config = Request("train", (*small, f"stage={stage}", *overrides)).compose()
    config.run_folder = ""
    return build_stage(config)


def batch(n: int = 6, seed: int = 0) -> dict[str, Any]:
    g = torch.Generator().manual_seed(seed)
    x_hq = torch.rand(n, 3, 32, 32, generator=g) * 2 - 1
    x_lq = (x_hq + 0.2 * torch.randn(n, 3, 32, 32, generator=g)).clamp(-1, 1)
    return {"x_hq": x_hq, "x_lq": x_lq, "label": torch.arange(n) % LABELS, "index": torch.arange(n)}


def noise_of(made: Stage, given: dict[str, Any]) -> torch.Tensor:
    return torch.randn(given["x_hq"].shape, generator=torch.Generator().manual_seed(9))


def scrambled(made: Stage) -> Stage:
    """A trained network stands in: no head is at its zero start."""
    with torch.no_grad():
        for p in made.network.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return made


def modules(made: Stage) -> set[str]:
    if made.discriminator is None:
        return set()
    return {name for name, part in made.discriminator.named_children() if isinstance(part, nn.Module)}


@pytest.mark.parametrize(
    ("stage", "override", "built"),
    [
        ("generation", "seed=0", set()),
        ("bridging", "seed=0", {"encoder", "project_mas", "project_diff", "classifier"}),
        ("bridging", "stage.weights.classify=0", {"encoder", "project_mas", "project_diff"}),
        ("bridging", "stage.weights.bridge=0", {"encoder", "classifier"}),
        ("bridging", "stage.lambda=0", set()),
        ("restoration", "seed=0", {"encoder", "project_mas", "project_diff"}),
        ("restoration", "stage.weights.bridge=0", {"encoder"}),
    ],
)
def test_modules_that_serve_no_loss_are_not_built(stage: str, override: str, built: set[str]) -> None:
    assert modules(make(stage, override)) == built


def test_a_loss_on_mas_glcm_without_mas_glcm_is_refused() -> None:
    with pytest.raises(ValueError, match="glcm=none"):
        make("bridging", "glcm=none", small=SMALL[:1])


def test_generation_sees_no_degraded_image() -> None:
    made, given = scrambled(make("generation")), batch()
    t = torch.full((6,), 2)

    seen = made.compute(given, t, noise_of(made, given)).noise_head
    other = made.compute(given | {"x_lq": -given["x_lq"]}, t, noise_of(made, given)).noise_head

    assert torch.equal(seen, other)


def test_at_step_0_of_bridging_the_noise_head_is_where_generation_left_it() -> None:
    """The x_lq slice starts at zero, so the condition changes nothing until it is trained."""
    generation, bridging, given = make("generation"), make("bridging"), batch()
    with torch.no_grad():  # train what generation can train
        for name, p in generation.network.named_parameters():
            if "init" not in name:
                p.add_(0.05 * torch.randn_like(p))
    bridging.network.load_state_dict(generation.network.state_dict())
    x_t, t = torch.randn(6, 3, 32, 32), torch.full((6,), 1)

    _, before, _ = generation.denoise.heads(x_t, given["x_lq"], t)
    _, after, _ = bridging.denoise.heads(x_t, given["x_lq"], t)

    assert torch.equal(before, after)


@pytest.mark.parametrize(
    ("stage", "names"),
    [
        ("generation", {"noise"}),
        ("bridging", {"residual", "noise", "bridge", "classify"}),
        ("restoration", {"restored", "bridge", "negative"}),
    ],
)
def test_a_stage_sums_the_terms_of_its_yaml(stage: str, names: set[str]) -> None:
    made = make(stage)

    assert set(made.losses) == names
    for name, (weight, _) in made.losses.items():
        assert weight == (0.1 if name in ("bridge", "classify", "negative") else 1)


def test_gradients_of_the_bridge_loss_reach_both_sides() -> None:
    made, given = scrambled(make("bridging")), batch()
    step = made.compute(given, torch.full((6,), 2), noise_of(made, given))

    made.losses["bridge"][1](step).backward()

    for part in ("network", "discriminator.encoder", "discriminator.project_mas", "discriminator.project_diff"):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in made.get_submodule(part).parameters()), part


def test_validation_does_not_depend_on_how_samples_are_batched() -> None:
    made, given = scrambled(make("restoration")).eval(), batch(4)

    with torch.no_grad():
        together = made.sampled(given)
        alone = torch.cat([made.sampled({k: v[i : i + 1] for k, v in given.items()}) for i in range(4)])

    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["bridging", "restoration"])
def test_two_ranks_train_the_same_weights_as_one(stage: str, tmp_path: Path) -> None:
    """Same samples, t and noise by (seed, step, index), and gradients of the gathered losses that add up."""
    subprocess.run(
        [
            sys.executable,
            "-m",
            "bdg",
            "pack",
            "pkg://datamodules/photographs",
            tmp_path / "photographs",
            "parts=photographs",
        ],
        check=True,
    )
    weights = {}
    for devices in (1, 2):
        root = tmp_path / str(devices)
        command = [
            *(sys.executable, "-m", "bdg", "train", *SMALL, f"stage={stage}", f"root={root}", "inherit.from=none"),
            *(f"data.root={tmp_path}/photographs", "data.num_workers=0", f"trainer.devices={devices}"),
            # plain gradient descent: what differs in the weights is what differs in the gradients
            *("stage.optimizer._target_=torch.optim.SGD", "~stage.optimizer.betas", "stage.scheduler=null"),
            *(
                "stage.optimizer.lr=0.1",
                "trainer.max_steps=2",
                "+trainer.strategy=ddp",
                "trainer.gradient_clip_val=null",
            ),
        ]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300)
        (path,) = root.glob("*/*/*/weights/ema.safetensors")
        weights[devices] = load_file(path)

    assert weights[1].keys() == weights[2].keys()
    for name, tensor in weights[1].items():
        torch.testing.assert_close(weights[2][name], tensor, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
