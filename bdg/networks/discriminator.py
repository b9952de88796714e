"""The branch that reads MAS-GLCM: encoder, the two projections that meet, and a classifier; absent at inference.

F_mas and F_diff are pooled features of the degradation, seen in the matrix and in the UNet; what is done with them is a loss.
"""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bdg.networks.blocks import GROUPS

WIDTHS = (32, 64, 128)
TEMPERATURE_START, TEMPERATURE_RANGE = 0.07, (0.001, 0.5)


class MasEncoder(nn.Sequential):
    """MAS-GLCM -> F_mas: four times (convolution of stride 2, GroupNorm, SiLU), then the mean over the plane.

    Any number of levels: 16 and more leave a plane to the last convolution, 8 come down to one pixel after the third.
    Expects (levels^2 M)^power, whose scale does not depend on the levels (`bdg.glcm.MasGlcm`).
    """

    def __init__(self, in_channels: int, width: int) -> None:
        widths = (in_channels, *WIDTHS, width)
        super().__init__(
            *(
                nn.Sequential(nn.Conv2d(a, c, 3, stride=2, padding=1), nn.GroupNorm(GROUPS, c), nn.SiLU())
                for a, c in pairwise(widths)
            )
        )

    def forward(self, glcm: Float[Tensor, "b c levels levels"]) -> Float[Tensor, "b width"]:
        return super().forward(glcm).mean(dim=(2, 3))


class Projection(nn.Linear):
    """A linear map onto the unit sphere."""

    def forward(self, feature: Float[Tensor, "b c"]) -> Float[Tensor, "b width"]:
        return F.normalize(super().forward(feature), dim=1)


class Discriminator(nn.Module):
    """What is trained beside the UNet to tell degradations apart.

    in_channels: of the MAS-GLCM. diff_channels: of F_diff. width: of F_mas and of the projections, a multiple of 8.
    num_classes None: no classifier. bridge False: no projections and no temperature. The absent parts are None.
    """

    def __init__(
        self, in_channels: int, diff_channels: int, num_classes: int | None, width: int = 256, bridge: bool = True
    ) -> None:
        super().__init__()
        self.encoder = MasEncoder(in_channels, width)
        self.project_mas = Projection(width, width) if bridge else None
        self.project_diff = Projection(diff_channels, width) if bridge else None
        self.tau = nn.Parameter(torch.tensor(TEMPERATURE_START)) if bridge else None
        self.classifier = None if num_classes is None else _classifier(width, num_classes)

    @property
    def temperature(self) -> Float[Tensor, ""] | None:
        """tau, held in [0.001, 0.5]; its gradient passes as if it were not, or tau could not come back from outside."""
        return None if self.tau is None else self.tau + (self.tau.clamp(*TEMPERATURE_RANGE) - self.tau).detach()


def _classifier(width: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, num_classes))
