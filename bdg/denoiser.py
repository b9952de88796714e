"""A network and a process joined to what a sampler needs: (x_t, x_lq, t) -> Estimate."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from bdg.diffusion import Diffusion
from bdg.types import Estimate, Image, Timestep

Condition = Literal["x_lq", "none"]


@dataclass(frozen=True)
class Denoiser:
    """Calls the network and reads its two heads.

    condition: what stands beside x_t in the network's input: x_lq, or zeros ("none").
    clamp: keep the believed x_hq in [-1, 1], and let residual and noise follow from it.
    """

    network: nn.Module
    diffusion: Diffusion
    condition: Condition = "x_lq"
    clamp: bool = True

    def __call__(self, x_t: Image, x_lq: Image, t: Timestep) -> Estimate:
        given = x_lq if self.condition == "x_lq" else torch.zeros_like(x_lq)
        prediction, _ = self.network(x_t, given, self.diffusion.time(t), features=())
        residual, noise = prediction.to(x_t.dtype).chunk(2, dim=1)
        estimate = self.diffusion.estimate(residual, noise, x_t, x_lq, t)
        return self.diffusion.complete(estimate.x_hq.clamp(-1, 1), x_t, x_lq, t) if self.clamp else estimate
