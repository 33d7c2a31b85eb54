"""Score Jacobian chaining: the chain rule through a render, with the score of a perturb-and-average."""

from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from guidance.classifier_free import guided
from guidance.contract import Condition, Draw, Prior, Stateless
from guidance.controls import Controls
from guidance.losses import distil, nothing_learnt, stateless
from guidance.noising import Weighting, add_noise, weighted
from guidance.schedules import Schedule


@dataclass(frozen=True)
class SJC:
    """Score Jacobian chaining (arXiv 2212.00774, eq. 12 and 17): ``eps_cfg - n``, or ``eps_cfg`` alone.

    The paper perturbs renders by ``sigma n``, ``sigma = s / a``, and asks the network at ``z / sqrt(1 + sigma^2)``;
    that input is ``a z0 + s n``, the ``z_t`` of every other method. Subtracting the noise changes nothing in the mean
    and takes most of the variance away, which makes it SDS under uniform weights.
    """

    scale: float = 101.0
    """Classifier-free guidance weight."""
    variance_reduced: bool = True
    """Subtract the noise that was added."""
    weighting: Weighting = "uniform"
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
        eps = guided(prior, noisy, t, condition, scale, self.controls)
        known = draw.noise if self.variance_reduced else 0 * draw.noise
        gradient = weighted(prior, latents, noisy, t, eps, known, self.weighting, self.controls.group)
        return self.controls.finish(gradient, condition, progress)
