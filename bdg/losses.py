"""Loss terms: each looks at one Step and gives one scalar. A stage is a sum of them; no term knows of another.

Source of the terms: BDG (arXiv 2602.00579), with the choices its sources leave open as constructor arguments.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from bdg.types import Image, Step

DISTANCES = {"l1": F.l1_loss, "l2": F.mse_loss}
FAINT = 1e-3
"""A degradation that changes an image by less, in the norm of the loss on [-1, 1], counts for no more than this one."""


class LossTerm:
    """A callable Step -> scalar.

    needs: the parts of the discriminator whose output it reads, of "encoder", "projections" and "classifier". What no
    term of a stage needs is not built.
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, step: Step) -> Float[Tensor, ""]:
        raise NotImplementedError


class Residual(LossTerm):
    """|r - x_res|, the residual head."""

    def __init__(self, norm: str = "l1") -> None:
        self.distance = _distance(norm)

    def __call__(self, step: Step) -> Float[Tensor, ""]:
        return self.distance(step.residual_head, step.truth.residual)


class Noise(LossTerm):
    """|e - eps|, the noise head."""

    def __init__(self, norm: str = "l1") -> None:
        self.distance = _distance(norm)

    def __call__(self, step: Step) -> Float[Tensor, ""]:
        return self.distance(step.noise_head, step.truth.noise)


class Restored(LossTerm):
    """|x_hq(estimate) - x_hq|, the restored image. With `estimate: both` the heads may trade errors: see `stage.anchor`.

    relative: each image counts as |x_res| ** -relative. 0: errors as they are, so that strong degradations decide (in the demo
    haze's squared error is 35 times that of blur). 1: the share of its degradation that is left, so that all count alike.
    """

    def __init__(self, norm: str = "l1", relative: float = 0.0) -> None:
        if not 0 <= relative <= 1:
            raise ValueError(f"relative={relative} of the loss term 'restored': give a number from 0 to 1")
        self.distance = _distance(norm)
        self.relative = relative

    def __call__(self, step: Step) -> Float[Tensor, ""]:
        left = self._per_image(step.estimate.x_hq, step.truth.x_hq)
        if not self.relative:
            return left.mean()
        strength = self._per_image(step.truth.residual, torch.zeros_like(step.truth.residual))
        return (left / (strength + FAINT) ** self.relative).mean()

    def _per_image(self, believed: Image, true: Image) -> Float[Tensor, " b"]:
        return self.distance(believed, true, reduction="none").mean(dim=(1, 2, 3))


class Joint(LossTerm):
    """|alpha_t (r - x_res) + (beta_t^2 / B_t)(e - eps)|^2, the joint form of the bridging loss.

    At t = 999 its residual part weighs about 1/900 and its noise part 1e-7 of that at t = 332, and the heads trade errors:
    an ablation, not the default.
    """

    def __call__(self, step: Step) -> Float[Tensor, ""]:
        residual_error = step.residual_head - step.truth.residual
        noise_error = step.noise_head - step.truth.noise
        return (step.alpha * residual_error + step.noise_removal * noise_error).square().mean()


class Bridge(LossTerm):
    """L_bridge = 1/2 [CE(S, I) + CE(S^T, I)] with S = z_m z_d^T / tau: the two views of one image find each other.

    targets: "identity" pairs each image with itself over the batch of all ranks; "class" shares the mass among equal labels.
    """

    needs = frozenset({"encoder", "projections"})

    def __init__(self, targets: str = "identity") -> None:
        if targets not in ("identity", "class"):
            raise ValueError(f"targets={targets!r} of the bridge loss: choose 'identity' or 'class'")
        self.targets = targets

    def __call__(self, step: Step) -> Float[Tensor, ""]:
        assert step.z_mas is not None
        assert step.z_diff is not None
        assert step.temperature is not None
        S = step.z_mas @ step.z_diff.T / step.temperature
        if self.targets == "identity":
            target = torch.eye(len(S), dtype=S.dtype, device=S.device)
        else:
            same = (step.label[:, None] == step.label[None, :]).to(S.dtype)
            target = same / same.sum(dim=1, keepdim=True)
        return (F.cross_entropy(S, target) + F.cross_entropy(S.T, target)) / 2


class Classify(LossTerm):
    """L_cls = CE(MLP(F_mas), label). Without it the encoder collapses (the paper's ablation)."""

    needs = frozenset({"encoder", "classifier"})

    def __call__(self, step: Step) -> Float[Tensor, ""]:
        assert step.logits is not None
        return F.cross_entropy(step.logits, step.label)


class Negative(LossTerm):
    """L_neg: the mean over i != j of relu(cos(F_i, F_j)) on F_mas, which pushes the features of a batch apart.

    literal: the sign as printed in the sources, which pulls them together.
    """

    needs = frozenset({"encoder"})

    def __init__(self, literal: bool = False) -> None:
        self.sign = -1.0 if literal else 1.0

    def __call__(self, step: Step) -> Float[Tensor, ""]:
        assert step.f_mas is not None
        if len(step.f_mas) < 2:
            raise ValueError(
                "the negative loss compares images: give data.batch_size=2 or more, or stage.weights.negative=0"
            )
        return self.sign * off_diagonal(_cosines(step.f_mas).relu()).mean()


def mean_pairwise_cosine(f_mas: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Mean over i != j of cos(F_i, F_j): near 1 when the encoder has collapsed. n >= 2."""
    return off_diagonal(_cosines(f_mas)).mean()


def off_diagonal(square: Float[Tensor, "n n"]) -> Float[Tensor, " m"]:
    """The n (n - 1) entries beside the diagonal, row by row."""
    n = len(square)
    return square.flatten()[1:].view(n - 1, n + 1)[:, :-1].flatten()


def _cosines(features: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    unit = F.normalize(features, dim=1)
    return unit @ unit.T


def _distance(norm: str) -> Callable[..., Tensor]:
    if norm not in DISTANCES:
        raise ValueError(f"norm={norm!r} of a loss term: choose one of {list(DISTANCES)}")
    return DISTANCES[norm]


def active(weights: Mapping[str, float], terms: Mapping[str, LossTerm]) -> dict[str, tuple[float, LossTerm]]:
    """Name -> (weight, term) of the terms that are on.

    Raises ValueError where a weight names no term, or nothing is on.
    """
    unknown = sorted(set(weights) - set(terms))
    if unknown:
        raise ValueError(
            f"stage.weights names {unknown}, but the loss terms are {sorted(terms)}: add stage.terms.{unknown[0]}"
        )
    on = {name: (float(weight), terms[name]) for name, weight in weights.items() if weight}
    if not on:
        raise ValueError(f"all of stage.weights are 0: give at least one of {sorted(terms)} a weight")
    return on
