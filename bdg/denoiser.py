"""A network and a process joined to what a sampler needs: (x_t, x_lq, t) -> Estimate."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bdg.diffusion import Diffusion
from bdg.types import Estimate, Image, Timestep

CONDITIONS = ("x_lq", "none")


@dataclass(frozen=True)
class Denoiser:
    """Calls the network and reads its two heads.

    condition: what stands beside x_t in the network's input: x_lq, or zeros ("none").
    clamp: keep the believed x_hq in [-1, 1], and let residual and noise follow from it.
    """

    network: nn.Module
    diffusion: Diffusion
    condition: str = "x_lq"
    clamp: bool = True

    def __post_init__(self) -> None:
        if self.condition not in CONDITIONS:
            raise ValueError(f"condition={self.condition!r}: choose one of {list(CONDITIONS)}")

    def heads(
        self, x_t: Image, x_lq: Image, t: Timestep, features: Sequence[str] = ()
    ) -> tuple[Image, Image, dict[str, Tensor]]:
        """The residual and noise the network predicts, in the dtype of x_t, and the features asked for by block name."""
        given = x_lq if self.condition == "x_lq" else torch.zeros_like(x_lq)
        prediction, found = self.network(x_t, given, self.diffusion.time(t), features=features)
        residual, noise = prediction.to(x_t.dtype).chunk(2, dim=1)
        return residual, noise, found

    def __call__(self, x_t: Image, x_lq: Image, t: Timestep) -> Estimate:
        residual, noise, _ = self.heads(x_t, x_lq, t)
        estimate = self.diffusion.estimate(residual, noise, x_t, x_lq, t)
        return self.diffusion.complete(estimate.x_hq.clamp(-1, 1), x_t, x_lq, t) if self.clamp else estimate
