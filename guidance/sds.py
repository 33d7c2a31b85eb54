"""Score distillation sampling: DreamFusion's method, and the reconstruction form that MVDream gives it."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from guidance.classifier_free import guided
from guidance.contract import Condition, Draw, Prior, Stateless
from guidance.controls import Controls
from guidance.losses import distil, nothing_learnt, stateless
from guidance.noising import Weighting, add_noise, clean_estimate, weighted
from guidance.schedules import Schedule


@dataclass(frozen=True)
class SDS:
    """Score distillation sampling (DreamFusion, arXiv 2209.14988, eq. 3): ``w(t) (eps_cfg - n)``.

    With ``form="clean"`` it is a reconstruction of the clean latent (MVDream, arXiv 2308.16512, sec. 3.3):
    ``z0 - z0_hat_cfg``, which equals ``(s / a) (eps_cfg - n)``. The papers of pixel priors clamp that estimate, and
    MVDream rescales it: ``Controls(clamp=1.0)``, ``Controls(rescale=0.5)``.
    """

    scale: float = 101.0
    """Classifier-free guidance weight: 101 for Stable Diffusion, 21 for pixel priors, 50 for MVDream."""
    form: Literal["noise", "clean"] = "noise"
    """Compare the predicted noise with the drawn one, or the predicted clean latent with the render."""
    weighting: Weighting = "sds"
    """w(t) of the noise form; the clean form has none."""
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
        if self.form == "clean":
            gradient = latents - clean_estimate(prior, noisy, eps, t)
        else:
            gradient = weighted(prior, latents, noisy, t, eps, draw.noise, self.weighting, self.controls.group)
        return self.controls.finish(gradient, condition, progress)
