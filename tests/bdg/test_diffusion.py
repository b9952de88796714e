import pytest
import torch

from bdg.diffusion import Diffusion
from bdg.types import Estimate, Image

CURVES = {
    "generation": ["beta"],
    "bridging": ["alpha", "beta"],
    "restoration": ["alpha", "beta", "delta"],
}
JUMPS = [(999, 998), (999, 332), (500, 499), (332, 0), (1, 0), (7, 3)]


def pair(seed: int = 0) -> tuple[Estimate, Image]:
    x_hq, x_lq, noise = torch.randn(3, 2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return Estimate(x_hq, x_lq - x_hq, noise), x_lq


def times(t: int) -> torch.Tensor:
    return torch.full((2,), t)


@pytest.mark.parametrize("curves", CURVES.values(), ids=CURVES)
@pytest.mark.parametrize(("t", "s"), JUMPS)
def test_reverse_mean_with_eta_1_is_gaussian_conditioning(curves: list[str], t: int, s: int) -> None:
    """q(x_s | x_t, x_hq, x_lq): x_s and x_t share their noise up to s, and are jointly Gaussian given the pair."""
    diffusion, (truth, x_lq) = Diffusion(curves=curves), pair()
    x_t = diffusion.q_sample(truth, x_lq, times(t))
    silent = Estimate(truth.x_hq, truth.residual, torch.zeros_like(x_lq))
    mean_t, mean_s = diffusion.q_sample(silent, x_lq, times(t)), diffusion.q_sample(silent, x_lq, times(s))
    var_t, var_s = (diffusion.at(times(u), torch.float64).beta_bar ** 2 for u in (t, s))

    mean = diffusion.reverse_mean(truth, x_lq, times(t), times(s), eta=1.0)
    std = diffusion.reverse_std(times(t), times(s), 1.0, torch.float64)

    torch.testing.assert_close(mean, mean_s + var_s / var_t * (x_t - mean_t), rtol=0, atol=1e-12)
    torch.testing.assert_close(std**2, var_s - var_s**2 / var_t, rtol=0, atol=1e-12)


@pytest.mark.parametrize("curves", CURVES.values(), ids=CURVES)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("t", "s"), JUMPS)
def test_reverse_mean_is_the_update_the_paper_prints(curves: list[str], eta: float, t: int, s: int) -> None:
    diffusion, (truth, x_lq) = Diffusion(curves=curves), pair()
    x_t = diffusion.q_sample(truth, x_lq, times(t))
    (A_t, B_t, D_t), (A_s, B_s, D_s) = (diffusion.at(times(u), torch.float64) for u in (t, s))
    sigma2 = eta * (B_t**2 - B_s**2) * B_s**2 / B_t**2

    mean = diffusion.reverse_mean(truth, x_lq, times(t), times(s), eta)

    off = (A_t - A_s) * truth.residual + (B_t - (B_s**2 - sigma2).sqrt()) * truth.noise - (D_t - D_s) * x_lq
    torch.testing.assert_close(mean, x_t - off, rtol=0, atol=1e-12)


@pytest.mark.parametrize("curves", CURVES.values(), ids=CURVES)
def test_one_step_gives_the_coefficients_of_the_reverse_update(curves: list[str]) -> None:
    diffusion, (truth, x_lq) = Diffusion(curves=curves), pair()
    t, s = times(500), times(499)
    alpha, noise_removal = diffusion.one_step(t, torch.float64)
    delta = diffusion.at(t, torch.float64).delta_bar - diffusion.at(s, torch.float64).delta_bar

    mean = diffusion.reverse_mean(truth, x_lq, t, s, eta=1.0)

    x_t = diffusion.q_sample(truth, x_lq, t)
    torch.testing.assert_close(mean, x_t - alpha * truth.residual - noise_removal * truth.noise + delta * x_lq)


@pytest.mark.parametrize("curves", CURVES.values(), ids=CURVES)
@pytest.mark.parametrize("rule", ["both", "residual"])
@pytest.mark.parametrize("t", [0, 332, 999])
def test_perfect_heads_estimate_the_truth(curves: list[str], rule: str, t: int) -> None:
    diffusion, (truth, x_lq) = Diffusion(curves=curves, estimate=rule), pair()
    x_t = diffusion.q_sample(truth, x_lq, times(t))

    estimate = diffusion.estimate(truth.residual, truth.noise, x_t, x_lq, times(t))

    torch.testing.assert_close(estimate.x_hq, truth.x_hq)
    torch.testing.assert_close(estimate.noise, truth.noise, rtol=0, atol=1e-10)


def test_without_the_alpha_curve_an_idle_residual_head_is_not_believed() -> None:
    diffusion, (truth, x_lq) = Diffusion(curves=["beta"], estimate="residual"), pair()
    x_t = diffusion.q_sample(truth, x_lq, times(500))

    estimate = diffusion.estimate(torch.zeros_like(x_lq), truth.noise, x_t, x_lq, times(500))

    torch.testing.assert_close(estimate.x_hq, truth.x_hq)


@pytest.mark.parametrize("t", [0, 500, 999])
def test_completing_any_x_hq_explains_x_t(t: int) -> None:
    diffusion, (truth, x_lq) = Diffusion(), pair()
    x_t = diffusion.q_sample(truth, x_lq, times(t))

    estimate = diffusion.complete(truth.x_hq.clamp(-0.1, 0.1), x_t, x_lq, times(t))

    torch.testing.assert_close(diffusion.q_sample(estimate, x_lq, times(t)), x_t)


def test_start_is_x_lq_and_noise_as_each_stage_says() -> None:
    _, x_lq = pair()
    z = torch.ones_like(x_lq)

    torch.testing.assert_close(Diffusion().start(x_lq, z), (1 - 0.9005) * x_lq + 0.99997982064757, rtol=0, atol=1e-8)
    torch.testing.assert_close(
        Diffusion(curves=["alpha", "beta"]).start(x_lq, z), x_lq + 0.99997982064757, rtol=0, atol=1e-8
    )


def test_generation_has_no_start() -> None:
    _, x_lq = pair()

    with pytest.raises(ValueError, match="does not end at x_lq"):
        Diffusion(curves=["beta"]).start(x_lq, x_lq)


@pytest.mark.parametrize(("choice", "expected"), [("beta", 824.14513), ("alpha", 433.62132), ("index", 332.0)])
def test_time_is_what_the_network_is_told(choice: str, expected: float) -> None:
    told = Diffusion(curves=["beta"], time=choice).time(torch.tensor([332]))

    assert told.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "wrong", [{"curves": ["alpha"]}, {"curves": ["beta", "gamma"]}, {"estimate": "x_hq"}, {"time": "gamma"}]
)
def test_a_choice_that_does_not_exist_is_named_with_those_that_do(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="choose"):
        Diffusion(**wrong)  # type: ignore[arg-type]
