"""The cumulated coefficients alpha_bar, beta_bar and delta_bar over time; nothing about images.

Source: method of RDDM (CVPR 2024) and DiffUIR (CVPR 2024), as BDG (arXiv 2602.00579) uses it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bdg.types import Timestep


class Coefficients(NamedTuple):
    """alpha_bar, beta_bar, delta_bar at the times asked for, ready to multiply images."""

    alpha_bar: Float[Tensor, "b 1 1 1"]
    beta_bar: Float[Tensor, "b 1 1 1"]
    delta_bar: Float[Tensor, "b 1 1 1"]


class Schedule(nn.Module):
    """P_t = prod(1 - b); alpha_bar = 1 - sqrt(P), beta_bar = sqrt(1 - P), delta_bar = cumsum of a line, clipped to [0, 1].

    The curves hold num_steps + 1 points whose first is the clean image (all 0), so that t = -1 needs no special case.
    They are kept in float64 and given out in the dtype of the images.
    """

    alpha_bar: Tensor
    beta_bar: Tensor
    delta_bar: Tensor

    def __init__(
        self,
        num_steps: int = 1000,
        b_range: Sequence[float] = (1e-4, 0.02),
        delta_range: Sequence[float] = (1e-6, 1.8e-3),
    ) -> None:
        super().__init__()
        if num_steps < 1:
            raise ValueError(f"schedule.num_steps={num_steps}: a path needs at least 1 step; the paper takes 1000")
        if not 0 < b_range[0] <= b_range[1] < 1:
            raise ValueError(
                f"schedule.b_range={list(b_range)}: give two rising numbers in 0 to 1, such as [1e-4, 0.02]"
            )
        if not 0 <= delta_range[0] <= delta_range[1]:
            raise ValueError(
                f"schedule.delta_range={list(delta_range)}: give two rising numbers, such as [1e-6, 1.8e-3]"
            )
        self.num_steps = num_steps
        P = torch.cumprod(1 - torch.linspace(b_range[0], b_range[1], num_steps, dtype=torch.float64), dim=0)
        delta = torch.cumsum(torch.linspace(delta_range[0], delta_range[1], num_steps, dtype=torch.float64), dim=0)
        clean = torch.zeros(1, dtype=torch.float64)
        self.register_buffer("alpha_bar", torch.cat([clean, 1 - P.sqrt()]), persistent=False)
        self.register_buffer("beta_bar", torch.cat([clean, (1 - P).sqrt()]), persistent=False)
        self.register_buffer("delta_bar", torch.cat([clean, delta.clamp(0, 1)]), persistent=False)

    def at(self, t: Timestep, dtype: torch.dtype = torch.float32) -> Coefficients:
        """The three coefficients at t in -1 .. num_steps - 1."""
        curves = (self.alpha_bar, self.beta_bar, self.delta_bar)
        return Coefficients(*(curve[t + 1].to(dtype)[:, None, None, None] for curve in curves))
