"""Interval score matching: two timesteps of one deterministic path, instead of two random ones."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from guidance.classifier_free import Ask, combine, predict
from guidance.contract import Condition, Draw, Prior, Stateless
from guidance.controls import Controls
from guidance.inversion import carry_up
from guidance.losses import distil, nothing_learnt, stateless
from guidance.noising import Weighting, add_noise, ddim_step, weighted
from guidance.schedules import Schedule


@dataclass(frozen=True)
class ISM:
    """Interval score matching (LucidDreamer, arXiv 2311.11284, eq. 17): ``w [eps_cfg(z_t, t) - eps_u(z_s, s)]``, s < t.

    ``z_s`` is reached from the render by DDIM inversion with the null prompt, ``z_t`` by one more such step; the
    prediction that makes that step is the reference. The path is the same in every step of a run, so the target is
    consistent where that of SDS averages over noise.
    """

    scale: float = 7.5
    """Classifier-free guidance weight."""
    base: Literal["negative", "null"] = "negative"
    """What guidance is measured from: ``eps_base + S (eps_c - eps_base)``."""
    delta: Schedule = field(default=Schedule(100.0, 50.0, until=0.3))
    """t - s, in thousandths of the prior's schedule, cut to a whole timestep."""
    stride: float = 0.2
    """Stride of the inversion, as a fraction of the schedule."""
    weighting: Weighting = "snr_sqrt"
    """w(t)."""
    t_min: Schedule = field(default=Schedule(0.02))
    """First timestep, as a fraction of the prior's schedule."""
    t_max: Schedule = field(default=Schedule(0.98, 0.5, until=0.3))
    """Last timestep, as a fraction of the prior's schedule; drawn too."""
    controls: Controls = field(default=Controls(loss_weight=0.1, shared_t=True))
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
        count = len(prior.alphas_cumprod)
        s = (t - int(self.delta(progress) * count / 1000)).clamp(min=0)

        def unguided(z: Tensor, at: Tensor) -> Tensor:
            return predict(prior, condition, Ask(z, at, "null"))[0]

        # Index 0 is a level of noise like any other, so the path begins with that much of the step's noise.
        start = add_noise(prior, latents, draw.noise, torch.zeros_like(t))
        stride = max(1, round(self.stride * count))
        z_s = carry_up(start, s, stride, lambda z, at, then: ddim_step(prior, z, unguided(z, at), at, then))
        reference = unguided(z_s, s)
        z_t = ddim_step(prior, z_s, reference, s, t)
        asks = [Ask(z_t, t, "text"), Ask(z_t, t, self.base)]
        if condition.repelled is not None and self.base != "null":
            asks.append(Ask(z_t, t, "null"))  # Perp-Neg measures its directions from there
        conditional, base = predict(prior, condition, *asks)[:2]
        eps = self.controls.bounded(prior, z_t, t, combine(conditional, base, scale), conditional)
        gradient = weighted(prior, latents, z_t, t, eps, reference, self.weighting, self.controls.group)
        return self.controls.finish(gradient, condition, progress)
