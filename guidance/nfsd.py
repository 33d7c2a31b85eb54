"""Noise-free score distillation: the residual noise of SDS is taken out, not averaged out."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from guidance.classifier_free import predict_branches
from guidance.contract import Condition, Draw, Prior, Stateless
from guidance.controls import Controls
from guidance.losses import distil, nothing_learnt, stateless
from guidance.noising import PlainWeighting, add_noise, weight
from guidance.schedules import Schedule

NEGATIVE = "unrealistic, blurry, low quality, out of focus, ugly, low contrast, dull, dark, low-resolution, gloomy"
"""The negative prompt of the paper."""


@dataclass(frozen=True)
class NFSD:
    """Noise-free score distillation (arXiv 2310.17590, eq. 8 and 9): ``w (delta_D + S (eps_c - eps_u))``.

    ``eps_u`` is a direction towards the data plus predicted noise. At low t the noise is small, so
    ``delta_D = eps_u``; above, a negative prompt that describes bad pictures predicts the same noise, so
    ``delta_D = eps_u - eps_neg``.
    """

    scale: float = 7.5
    """Classifier-free guidance weight."""
    early: float = 0.2
    """Fraction of the schedule below which the noise counts as small."""
    weighting: PlainWeighting = "sds"
    """w(t)."""
    t_min: Schedule = field(default=Schedule(0.02))
    """First timestep, as a fraction of the prior's schedule."""
    t_max: Schedule = field(default=Schedule(0.98))
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
        noisy = add_noise(prior, latents, draw.noise, t)
        conditional, null, negative = predict_branches(prior, noisy, t, condition, ("text", "null", "negative"))
        early = (t < self.early * len(prior.alphas_cumprod))[:, None, None, None]
        towards_data = torch.where(early, null, null - negative)
        gradient = weight(prior, t, self.weighting, latents) * (towards_data + scale * (conditional - null))
        return self.controls.finish(gradient, condition, progress)
