"""Delta denoising score: what the prior says of an edited picture, less what it says of the original."""

from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from guidance.classifier_free import guided_edit
from guidance.contract import Condition, Draw, Prior, Stateless
from guidance.controls import Controls
from guidance.losses import distil, nothing_learnt, stateless
from guidance.noising import Weighting, weighted
from guidance.schedules import Schedule


@dataclass(frozen=True)
class DDS:
    """Delta denoising score (arXiv 2304.07090, eq. 3): ``eps_cfg(z_t, y) - eps_cfg(z_t_src, y_src)``, same t and n.

    Whatever the prior dislikes about the source, the noise included, is in both terms and cancels; what remains is the
    change from one prompt to the other.
    """

    scale: float = 7.5
    """Classifier-free guidance weight of both predictions."""
    weighting: Weighting = "uniform"
    """w(t); the paper has none."""
    t_min: Schedule = field(default=Schedule(0.05))
    """First timestep, as a fraction of the prior's schedule."""
    t_max: Schedule = field(default=Schedule(0.948))
    """Last timestep, as a fraction of the prior's schedule; drawn too."""
    controls: Controls = field(default=Controls())
    """Options that every method has."""
    requires: ClassVar[frozenset[str]] = frozenset({"source"})

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
        noisy, eps, reference = guided_edit(prior, latents, condition, draw, scale, self.controls)
        gradient = weighted(prior, latents, noisy, t, eps, reference, self.weighting, self.controls.group)
        return self.controls.finish(gradient, condition, progress)
