"""Variational score distillation: the prior's score against that of the renders, which a critic learns."""

from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from guidance.classifier_free import guided
from guidance.contract import Condition, Draw, Prior
from guidance.controls import Controls
from guidance.critic import Critic, Learning, learn_renders, untrained_critic
from guidance.losses import distil
from guidance.noising import Weighting, add_noise, weighted
from guidance.schedules import Schedule


@dataclass(frozen=True)
class VSD:
    """Variational score distillation (ProlificDreamer, arXiv 2305.16213, eq. 9): ``w(t) (eps_cfg - eps_phi)``.

    ``eps_phi`` is a critic: a low-rank adapter of the prior that knows the camera and is trained, a step for each of
    the scene's, on the renders with the prompt that names no direction of view. Until it has learnt something it is
    the prior itself. It looks at the whole scene, so several scenes (particles) may share one.
    """

    scale: float = 7.5
    """Classifier-free guidance weight of the prior's side."""
    weighting: Weighting = "sds"
    """w(t)."""
    critic: Learning = field(default=Learning())
    """How the critic learns."""
    t_min: Schedule = field(default=Schedule(0.02))
    """First timestep, as a fraction of the prior's schedule."""
    t_max: Schedule = field(default=Schedule(points=((0.0, 0.98), (0.2, 0.98), (0.2, 0.5)), shape="piecewise"))
    """Last timestep, as a fraction of the prior's schedule; drawn too. The high levels that decide what the thing is
    are left after a fifth of the run."""
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
        target = guided(prior, noisy, t, condition, scale, self.controls)
        reference = state.predict(prior, noisy, t, condition)
        gradient = weighted(prior, latents, noisy, t, target, reference, self.weighting, self.controls.group)
        return self.controls.finish(gradient, condition, progress)
