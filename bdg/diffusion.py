"""The forward process and its inverses, as algebra on images; no network and no loop.

    x_t = x_hq + alpha_bar_t residual + beta_bar_t noise - delta_bar_t x_lq          (forward process)

A stage is this process with some of the curves switched off: generation keeps beta, bridging alpha and beta,
restoration all three.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bdg.schedule import Coefficients, Schedule
from bdg.types import Estimate, Image, Timestep

CURVES = ("alpha", "beta", "delta")
ESTIMATES = ("both", "residual")
TIMES = ("beta", "alpha", "index")


class Diffusion(nn.Module):
    """The process of one stage.

    curves: those that are on. beta must be: without noise there is no diffusion.
    estimate: where x_hq comes from. "both": from x_t and the two heads; "residual": x_hq = x_lq - r, and the noise follows.
        Where alpha is off the residual head is idle, and x_hq follows from the noise whatever is asked.
    time: what the network is told about t. "beta": num_steps beta_bar; "alpha": num_steps alpha_bar (DiffUIR's); "index": t.
        It names t and is read off the schedule even where that curve is off.
    """

    def __init__(
        self,
        schedule: Schedule | None = None,
        curves: Sequence[str] = ("alpha", "beta", "delta"),
        estimate: str = "both",
        time: str = "beta",
    ) -> None:
        super().__init__()
        unknown = set(curves) - set(CURVES)
        if unknown or "beta" not in curves:
            raise ValueError(f"curves={list(curves)}: choose from {list(CURVES)}, with beta among them")
        if estimate not in ESTIMATES:
            raise ValueError(f"estimate={estimate!r}: choose one of {list(ESTIMATES)}")
        if time not in TIMES:
            raise ValueError(f"time={time!r}: choose one of {list(TIMES)}")
        self.schedule = schedule or Schedule()
        self.curves = tuple(curves)
        self.estimate_from = estimate if "alpha" in curves else "both"
        self.time_input = time

    @property
    def num_steps(self) -> int:
        return self.schedule.num_steps

    def at(self, t: Timestep, dtype: torch.dtype = torch.float32) -> Coefficients:
        """The coefficients at t, 0 where the curve is off."""
        on = [name in self.curves for name in CURVES]
        return Coefficients(*(c * flag for c, flag in zip(self.schedule.at(t, dtype), on, strict=True)))

    def time(self, t: Timestep) -> Float[Tensor, " b"]:
        """t as the network sees it, in 0 .. num_steps."""
        alpha_bar, beta_bar, _ = self.schedule.at(t)
        names = {
            "alpha": alpha_bar.flatten() * self.num_steps,
            "beta": beta_bar.flatten() * self.num_steps,
            "index": t.float(),
        }
        return names[self.time_input]

    def q_sample(self, truth: Estimate, x_lq: Image, t: Timestep) -> Image:
        """The noisy image x_t of the forward process."""
        alpha_bar, beta_bar, delta_bar = self.at(t, x_lq.dtype)
        return truth.x_hq + alpha_bar * truth.residual + beta_bar * truth.noise - delta_bar * x_lq

    def start(self, x_lq: Image, noise: Image) -> Image:
        """x_T, the forward process at its end with x_hq unknown: alpha_bar_T is taken as 1.

        Restoration (1 - delta_bar_T) x_lq + beta_bar_T z; bridging x_lq + beta_bar_T z; generation has no start of its own.
        """
        _, beta_bar, delta_bar = self.at(self._last(x_lq), x_lq.dtype)
        if "alpha" not in self.curves:
            raise ValueError("a process without the alpha curve does not end at x_lq: it cannot be sampled from x_lq")
        return (1 - delta_bar) * x_lq + beta_bar * noise

    def estimate(self, residual: Image, noise: Image, x_t: Image, x_lq: Image, t: Timestep) -> Estimate:
        """x_hq, residual and noise that the two heads amount to at x_t."""
        alpha_bar, beta_bar, delta_bar = self.at(t, x_t.dtype)
        if self.estimate_from == "both":
            x_hq = x_t - alpha_bar * residual - beta_bar * noise + delta_bar * x_lq
            return Estimate(x_hq, residual, noise)
        return self.complete(x_lq - residual, x_t, x_lq, t)

    def complete(self, x_hq: Image, x_t: Image, x_lq: Image, t: Timestep) -> Estimate:
        """The residual and the noise that go with x_hq at x_t, t >= 0: the forward process solved for the noise."""
        alpha_bar, beta_bar, delta_bar = self.at(t, x_t.dtype)
        residual = x_lq - x_hq
        noise = (x_t - x_hq - alpha_bar * residual + delta_bar * x_lq) / beta_bar
        return Estimate(x_hq, residual, noise)

    def reverse_mean(self, estimate: Estimate, x_lq: Image, t: Timestep, s: Timestep, eta: float) -> Image:
        """The mean of x_s for s < t: the forward process of the estimate at s, with less noise where some will be drawn.

        x_s = x_t - (A_t - A_s) r - (B_t - sqrt(B_s^2 - sigma^2)) e + (D_t - D_s) x_lq, with x_t written out.
        """
        alpha_bar, beta_bar, delta_bar = self.at(s, x_lq.dtype)
        kept = (beta_bar**2 - self.reverse_std(t, s, eta, x_lq.dtype) ** 2).clamp_min(0).sqrt()
        return estimate.x_hq + alpha_bar * estimate.residual + kept * estimate.noise - delta_bar * x_lq

    def reverse_std(
        self, t: Timestep, s: Timestep, eta: float, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "b 1 1 1"]:
        """sigma = sqrt(eta (B_t^2 - B_s^2)) B_s / B_t, for s < t."""
        B_t, B_s = self.at(t, dtype).beta_bar, self.at(s, dtype).beta_bar
        return (eta * (B_t**2 - B_s**2)).clamp_min(0).sqrt() * B_s / B_t

    def one_step(self, t: Timestep, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """alpha_t and beta_t^2 / beta_bar_t: what the paper's reverse step from t to t - 1 takes off, each b 1 1 1."""
        now, before = self.at(t, dtype), self.at(t - 1, dtype)
        return now.alpha_bar - before.alpha_bar, (now.beta_bar**2 - before.beta_bar**2) / now.beta_bar

    def _last(self, x: Image) -> Timestep:
        return torch.full((x.shape[0],), self.num_steps - 1, device=x.device)
