"""Score distillation via inversion: the noise is not drawn but found, by inverting the render."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from guidance.classifier_free import guided
from guidance.contract import Condition, Draw, Prior, Stateless
from guidance.controls import Controls
from guidance.inversion import carry_up
from guidance.losses import distil, nothing_learnt, stateless
from guidance.noising import clean_estimate, ddim_step, levels
from guidance.schedules import Schedule


@dataclass(frozen=True)
class SDI:
    """Score distillation via inversion (arXiv 2405.15891, eq. 13 and alg. 1): ``z0 - z0_hat_cfg(z_t, t)``.

    ``z_t`` comes from DDIM inversion of the render under a negative guidance weight, with a little noise in each step.
    The network is always asked at the timestep that the latent really has.
    """

    scale: float = 7.5
    """Classifier-free guidance weight of the estimate."""
    inversion_scale: float = -7.5
    """Classifier-free guidance weight of the inversion."""
    stride: float = 0.1
    """Stride of the inversion, as a fraction of the schedule."""
    eta: float = 0.3
    """Noise in each step of the inversion: 0 none, 1 as much as a stochastic sampler takes away."""
    t_min: Schedule = field(default=Schedule(0.98, 0.25))
    """First timestep, as a fraction of the prior's schedule."""
    t_max: Schedule = field(default=Schedule(0.98, 0.25))
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
        rng = torch.Generator().manual_seed(draw.seed)

        def step(z: Tensor, now: Tensor, then: Tensor) -> Tensor:
            eps = guided(prior, z, now, condition, self.inversion_scale)
            return ddim_step(prior, z, eps, now, then) + self._noise(prior, z, now, then, rng)

        noisy = carry_up(latents, t, max(1, round(self.stride * len(prior.alphas_cumprod))), step)
        eps = guided(prior, noisy, t, condition, scale, self.controls)
        return self.controls.finish(latents - clean_estimate(prior, noisy, eps, t), condition, progress)

    def _noise(self, prior: Prior, z: Tensor, now: Tensor, then: Tensor, rng: torch.Generator) -> Tensor:
        """``eta sqrt(var) n``; all samples of a step share n, so that a batch is its samples one by one."""
        (a, s), (a_then, s_then) = levels(prior, now, z), levels(prior, then, z)
        variance = (s / s_then) ** 2 * (1 - (a_then / a) ** 2)
        return self.eta * variance.clamp(min=0).sqrt() * torch.randn(z[:1].shape, generator=rng).to(z)
