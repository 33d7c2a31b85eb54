"""Domain score distillation: the pull of the prompt and the push away from the critic have weights of their own."""

from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from guidance.classifier_free import combine, predict_branches
from guidance.contract import Condition, Draw, Prior
from guidance.controls import Controls
from guidance.critic import Critic, Learning, learn_renders, untrained_critic
from guidance.losses import distil
from guidance.noising import Weighting, add_noise, weighted
from guidance.schedules import Schedule


@dataclass(frozen=True)
class DSD:
    """Domain score distillation (DreamPolish, arXiv 2411.01602):
    ``w(t) [scale (eps_c - eps_u) + variation (eps_u - eps_phi)]``.

    ``eps_phi`` is the critic of VSD, and ``variation=1`` is VSD. The first term alone is CSD's, which gives strong
    detail and little variety; the second keeps the renders natural. The published weights are not known: these
    defaults stand half way between the two methods.
    """

    scale: float = 7.5
    """Weight of the prompt against the null prompt."""
    variation: float = 0.5
    """Weight of the null prompt against the critic."""
    weighting: Weighting = "sds"
    """w(t)."""
    critic: Learning = field(default=Learning())
    """How the critic learns."""
    t_min: Schedule = field(default=Schedule(0.02))
    """First timestep, as a fraction of the prior's schedule."""
    t_max: Schedule = field(default=Schedule(points=((0.0, 0.98), (0.2, 0.98), (0.2, 0.5)), shape="piecewise"))
    """Last timestep, as a fraction of the prior's schedule; drawn too."""
    controls: Controls = field(default=Controls())
    """Options that every method has."""
    requires: ClassVar[frozenset[str]] = frozenset()

    init = untrained_critic
    loss = distil
    train_critic = learn_renders

    def gradient(
        self,
        state: Critic,
        prior: Prior,
        latents: Float[Tensor, "b c i j"],
        condition: Condition,
        draw: Draw,
        progress: float,
    ) -> Float[Tensor, "b c i j"]:
        """The update direction for ``latents``."""
        t, scale = draw.timesteps, self.controls.scale(self.scale, progress, draw)
        noisy = add_noise(prior, latents, draw.noise, t)
        conditional, null = predict_branches(prior, noisy, t, condition)
        target = self.controls.bounded(prior, noisy, t, combine(conditional, null, scale), conditional)
        # (target - eps_u) + variation (eps_u - eps_phi), as a target and a reference
        reference = combine(state.predict(prior, noisy, t, condition), null, self.variation)
        gradient = weighted(prior, latents, noisy, t, target, reference, self.weighting, self.controls.group)
        return self.controls.finish(gradient, condition, progress)
