"""Asynchronous score distillation: the prior itself, asked later in time, takes the place of a trained critic."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from guidance.classifier_free import Ask, combine, predict
from guidance.contract import Condition, Draw, Prior, Stateless
from guidance.controls import Controls
from guidance.losses import distil, nothing_learnt, stateless
from guidance.noising import Weighting, add_noise, weighted
from guidance.schedules import Schedule


@dataclass(frozen=True)
class ASD:
    """Asynchronous score distillation (ScaleDreamer, arXiv 2407.02040, eq. 9).

    ``w [eps_cfg(z_t, t) - eps_c(z_t+, t+)]``: a critic that knows the renders predicts their noise better than the
    prior does, and so does the prior at a later timestep, without any training. ``t+ = t + floor(r (t - t_min) u)``,
    the noise is the same in both. Perp-Neg's weights are halved, as the authors do.
    """

    scale: float = 7.5
    """Classifier-free guidance weight of the target prediction; the reference has none."""
    shift: float = 0.1
    """r: largest shift of the reference's timestep, relative to its distance from the lower bound."""
    weighting: Weighting = "sds"
    """w(t)."""
    t_min: Schedule = field(default=Schedule(0.5, 0.02))
    """First timestep, as a fraction of the prior's schedule."""
    t_max: Schedule = field(default=Schedule(0.98, 0.5))
    """Last timestep, as a fraction of the prior's schedule; drawn too."""
    controls: Controls = field(default=Controls())
    """Options that every method has."""
    requires: ClassVar[frozenset[str]] = frozenset()

    init = stateless
    loss = distil
    train_critic = nothing_learnt

    def gradient(
        self,
        state: Stateless,
        prior: Prior,
        latents: Float[Tensor, "b c i j"],
        condition: Condition,
        draw: Draw,
        progress: float,
    ) -> Float[Tensor, "b c i j"]:
        """The update direction for ``latents``."""
        t, scale = draw.timesteps, self.controls.scale(self.scale, progress, draw)
        later = self._later(prior, draw, progress)
        noisy = add_noise(prior, latents, draw.noise, t)
        conditional, null, reference = predict(
            prior,
            condition,
            Ask(noisy, t, "text"),
            Ask(noisy, t, "null"),
            Ask(add_noise(prior, latents, draw.noise, later), later, "text"),
            repel=0.5,
        )
        eps = self.controls.bounded(prior, noisy, t, combine(conditional, null, scale), conditional)
        gradient = weighted(prior, latents, noisy, t, eps, reference, self.weighting, self.controls.group)
        return self.controls.finish(gradient, condition, progress)

    def _later(self, prior: Prior, draw: Draw, progress: float) -> Tensor:
        count = len(prior.alphas_cumprod)
        reach = (self.shift * (draw.timesteps - round(self.t_min(progress) * count))).clamp(min=0)
        shift = draw.shift[:1].expand_as(draw.shift) if self.controls.group else draw.shift
        return (draw.timesteps + torch.floor(reach * shift).long()).clamp(1, count - 1)
