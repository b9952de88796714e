"""The vocabulary of the method: images, times, what is true, what is believed, what one training step computed."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

Image = Float[Tensor, "b c h w"]
"""RGB in [-1, 1]; a noisy image leaves that range."""

Timestep = Int[Tensor, " b"]
"""0 .. num_steps - 1; -1 is the clean end of the path."""


@dataclass(frozen=True)
class Estimate:
    """What a pair consists of, true or believed: x_lq = x_hq + residual, and the unit noise that was added.

    With `Diffusion(estimate="both")` a believed residual and noise come from two heads, and x_hq follows from the noisy
    image: residual = x_lq - x_hq then holds only for a perfect network.
    """

    x_hq: Image
    residual: Image
    noise: Image


@dataclass(frozen=True)
class Step:
    """Everything a loss term may look at after one forward pass. Discriminator outputs are None when not built.

    `f_mas`, `z_mas` and `z_diff` are gathered over all ranks (n rows, n >= b), `label` likewise; images are this rank's.
    """

    truth: Estimate
    estimate: Estimate
    residual_head: Image  # as the network predicts it, whatever `estimate` makes of it
    noise_head: Image
    alpha: Float[Tensor, "b 1 1 1"]  # alpha_t, the last increment of alpha_bar
    noise_removal: Float[Tensor, "b 1 1 1"]  # beta_t^2 / beta_bar_t, what one exact reverse step takes off the noise
    label: Int[Tensor, " n"]
    f_mas: Float[Tensor, "n d"] | None = None
    z_mas: Float[Tensor, "n k"] | None = None
    z_diff: Float[Tensor, "n k"] | None = None
    logits: Float[Tensor, "n classes"] | None = None
    temperature: Float[Tensor, ""] | None = None
