"""The step that all stages share: from a batch to loss terms, and from a degraded image to a score.

A stage is which curves of the process are on, which loss terms are summed, and what it takes over from the stage before.
The first two are values of `conf/stage/*.yaml`; the classes beside this file say the third, and how a stage is validated.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric

from bdg import draws
from bdg.denoiser import Denoiser
from bdg.diffusion import Diffusion
from bdg.draws import Stream
from bdg.glcm import MasGlcm
from bdg.losses import LossTerm, active, mean_pairwise_cosine
from bdg.metrics import RestorationMetrics
from bdg.networks.discriminator import Discriminator
from bdg.samplers import Denoise
from bdg.types import Estimate, Image, Step, Timestep

FEATURES = "mid"
"""The block of the network whose pooled output is F_diff (paper: the UNet's middle)."""
PRIOR_TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Where on the path, as a fraction of num_steps, the prior and the generation stage are measured."""

Batch = Mapping[str, Any]
"""x_hq, x_lq: b 3 h w in [-1, 1]; label, index: int b; key, recipe: lists. See `datamodules.restoration`."""


class Stage(L.LightningModule):
    """One training stage.

    fresh, dropped: prefixes of tensor names that are new here, or that the parent has and this stage does not need.
    weights: factor of each loss term by name; modules that only serve terms of weight 0 are not built.
    metrics: what validation measures, and the names of the degradations in the order of their labels.
    sampler: as in `bdg.samplers`, for validation. scheduler: of the learning rate, stepped every step; None: constant.
    seed: with the step and the index of a sample it determines t and noise.
    """

    restores: ClassVar[bool] = True  # else what is validated has nothing to do with the degraded input
    fresh: ClassVar[tuple[str, ...]] = ()
    dropped: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        network: nn.Module,
        diffusion: Diffusion,
        terms: Mapping[str, LossTerm],
        weights: Mapping[str, float],
        metrics: RestorationMetrics,
        optimizer: Callable[..., torch.optim.Optimizer],
        sampler: Callable[..., Image],
        glcm: MasGlcm | None = None,
        condition: str = "x_lq",
        scheduler: Callable[..., torch.optim.lr_scheduler.LRScheduler] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.network = network
        self.diffusion = diffusion
        self.losses = active(weights, terms)
        needs = frozenset[str]().union(*(term.needs for _, term in self.losses.values()))
        self.discriminator = self._discriminator(needs, glcm, len(metrics.degradations)) if needs else None
        self.glcm = glcm if needs else None
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.sampler = sampler
        self.seed = seed
        self.denoise = Denoiser(network, diffusion, condition)
        # the generation stage's view of the network: is the prior it learned still there?
        self.prior = Denoiser(network, Diffusion(diffusion.schedule, ["beta"], "both", diffusion.time_input), "none")
        self.prior_noise_loss = MeanMetric()
        self.metrics = metrics

    def _discriminator(self, needs: frozenset[str], glcm: MasGlcm | None, num_classes: int) -> Discriminator:
        if glcm is None:
            raise ValueError(
                "glcm=none, but a loss term reads MAS-GLCM: choose glcm=paper, or set its stage.weights to 0"
            )
        return Discriminator(
            in_channels=glcm.out_channels,
            diff_channels=self.network.feature_widths()[FEATURES],  # type: ignore[operator]
            num_classes=num_classes if "classifier" in needs else None,
            bridge="projections" in needs,
        )

    def compute(self, batch: Batch, t: Timestep, noise: Image) -> Step:
        """One forward pass at t with this noise, and everything the loss terms look at."""
        x_hq, x_lq = batch["x_hq"], batch["x_lq"]
        truth = Estimate(x_hq, residual=x_lq - x_hq, noise=noise)
        x_t = self.diffusion.q_sample(truth, x_lq, t)
        wanted = (FEATURES,) if self.discriminator else ()
        residual_head, noise_head, features = self.denoise.heads(x_t, x_lq, t, wanted)
        estimate = self.diffusion.estimate(residual_head, noise_head, x_t, x_lq, t)
        alpha, noise_removal = self.diffusion.one_step(t, x_t.dtype)
        seen = self._discriminate(x_lq, features) if self.discriminator else {}
        label = self._gather(batch["label"])
        return Step(truth, estimate, residual_head, noise_head, alpha, noise_removal, label, **seen)

    def _discriminate(self, x_lq: Image, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the discriminator makes of the degraded images, over all ranks, so that negatives are shared."""
        part = self.discriminator
        assert part is not None
        assert self.glcm is not None
        f_mas = part.encoder(self.glcm(x_lq))
        seen = {"f_mas": self._gather(f_mas)}
        if part.classifier is not None:
            seen["logits"] = self._gather(part.classifier(f_mas))
        if part.project_mas is not None and part.project_diff is not None:
            seen["z_mas"] = self._gather(part.project_mas(f_mas))
            seen["z_diff"] = self._gather(part.project_diff(features[FEATURES].mean(dim=(2, 3))))
            assert part.temperature is not None
            seen["temperature"] = part.temperature
        return seen

    def _gather(self, x: Tensor) -> Tensor:
        """Rows of all ranks, with gradient.

        Every rank then computes the same loss over the global batch. The gradient that reaches its rows is summed over
        ranks, and DDP takes the mean over ranks: together the gradient of one process with the whole batch.
        """
        if self._trainer is None or self.trainer.world_size == 1:
            return x
        gathered = self.all_gather(x, sync_grads=x.is_floating_point())
        assert isinstance(gathered, Tensor)
        return gathered.flatten(0, 1)

    def drawn(self, batch: Batch, step: int) -> tuple[Timestep, Image]:
        """The time and the noise of each sample in a step of training."""
        x_lq = batch["x_lq"]
        generators = draws.each(batch["index"], x_lq.device, self.seed, Stream.TRAIN, step)
        return draws.times(self.diffusion.num_steps, generators, x_lq.device), draws.noise_like(x_lq, generators)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        step = self.compute(batch, *self.drawn(batch, self.global_step))
        losses = {name: term(step) for name, (_, term) in self.losses.items()}
        loss = torch.stack([weight * losses[name] for name, (weight, _) in self.losses.items()]).sum()
        self.log_dict({f"loss/{name}": value.detach() for name, value in losses.items()})
        self.log("loss/total", loss.detach(), prog_bar=True)
        if step.f_mas is not None and len(step.f_mas) > 1:
            self.log("mas/cosine", mean_pairwise_cosine(step.f_mas.detach()))
        if step.temperature is not None:
            self.log("mas/temperature", step.temperature.detach())
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.prior_noise_loss.update(self._prior_noise_loss(batch))
        self.metrics.update(self.validated(batch), batch["x_hq"], batch["x_lq"], batch["label"], batch["index"])

    def validated(self, batch: Batch) -> Image:
        """The image whose distance from x_hq is this stage's score."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it is validated: return an image")

    def sampled(self, batch: Batch, denoise: Denoise | None = None) -> Image:
        """x_lq restored by the whole reverse path. denoise: another one than the stage's own, such as one that looks on."""
        x_lq = batch["x_lq"]
        generators = draws.each(batch["index"], x_lq.device, self.seed, Stream.VALIDATE)
        noise = draws.noise_like(x_lq, generators)
        return self.sampler(denoise or self.denoise, self.diffusion, x_lq, noise, draw=draws.noise_drawer(generators))

    def denoised(self, batch: Batch) -> Image:
        """x_hq believed at a fixed t: for a stage whose process does not start at x_lq."""
        t, truth = self._fixed(batch)
        x_t = self.diffusion.q_sample(truth, batch["x_lq"], t)
        return self.denoise(x_t, batch["x_lq"], t).x_hq

    def _prior_noise_loss(self, batch: Batch) -> Float[Tensor, " b"]:
        """|e - eps| of the generation stage's process on the clean images at fixed t, one value per image."""
        t, truth = self._fixed(batch)
        x_t = self.prior.diffusion.q_sample(truth, batch["x_lq"], t)
        _, noise, _ = self.prior.heads(x_t, batch["x_lq"], t)
        return F.l1_loss(noise, truth.noise, reduction="none").mean(dim=(1, 2, 3))

    def _fixed(self, batch: Batch) -> tuple[Timestep, Estimate]:
        """A time that cycles through PRIOR_TIMES over the samples, and the truth with fixed noise."""
        x_hq, x_lq, index = batch["x_hq"], batch["x_lq"], batch["index"]
        points = torch.tensor([int(f * self.diffusion.num_steps) for f in PRIOR_TIMES], device=x_hq.device)
        noise = draws.noise_like(x_hq, draws.each(index, x_hq.device, self.seed, Stream.PRIOR))
        return points[index % len(points)], Estimate(x_hq, x_lq - x_hq, noise)

    def on_validation_epoch_end(self) -> None:
        for degradation, values in self.metrics.compute().items():
            kept = {k: v for k, v in values.items() if self.restores or not (k == "gain" or k.endswith("_input"))}
            self.log_dict({f"val/{degradation}/{name}": value for name, value in kept.items()}, rank_zero_only=True)
        self.log("val/prior_noise_loss", self.prior_noise_loss.compute(), rank_zero_only=True)
        self.metrics.reset()
        self.prior_noise_loss.reset()

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        if self.scheduler is None:
            return optimizer
        try:
            scheduler = self.scheduler(optimizer)
        except ZeroDivisionError:
            raise ValueError(
                f"stage.scheduler divides by zero at trainer.max_steps={self.trainer.max_steps}, as OneCycleLR does when "
                "pct_start * max_steps is 1: take a step more"
            ) from None
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
