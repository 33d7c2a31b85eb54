"""Classifier score distillation: what remains of SDS when only the pull of the prompt is kept."""

from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from guidance.classifier_free import predict_branches
from guidance.contract import Condition, Draw, Prior, Stateless
from guidance.controls import Controls
from guidance.losses import distil, nothing_learnt, stateless
from guidance.noising import Weighting, add_noise, weighted
from guidance.schedules import Schedule


@dataclass(frozen=True)
class CSD:
    """Classifier score distillation (arXiv 2310.19415, eq. 8 and 10): ``w (eps_c - (1 - b) eps_u - b eps_neg)``.

    There is no noise term, so the gradient does not vanish where the prompt's distribution has its mode: the picture
    goes on moving away from what the null and the negative prompt describe. Something else (annealed timesteps, a
    falling b, regularisers) has to end that. The paper's first stage lets b rise to 1 over its first half under uniform
    weights; its refinement lets b fall from 1 to 0.5 under ``sds`` weights.

    Where the negative prompt is empty, as every one is for a prior that reads no words, ``eps_neg`` is ``eps_u``
    (``classifier_free.predict``), and the reference is ``eps_u`` whatever b is.
    """

    blend: Schedule = field(default=Schedule(0.0, 1.0, until=0.5))
    """b: share of the negative prompt in the reference."""
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
        t, b = draw.timesteps, self.blend(progress)
        noisy = add_noise(prior, latents, draw.noise, t)
        conditional, null, negative = predict_branches(prior, noisy, t, condition, ("text", "null", "negative"))
        reference = (1 - b) * null + b * negative
        gradient = weighted(prior, latents, noisy, t, conditional, reference, self.weighting, self.controls.group)
        return self.controls.finish(gradient, condition, progress)
