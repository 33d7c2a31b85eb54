"""Score distillation sampling: DreamFusion's method, and the reconstruction form that MVDream gives it."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from guidance.classifier_free import combine, predict_branches
from guidance.contract import Condition, Draw, Loss, Prior, Stateless, Views
from guidance.drawing import make_draw, timestep_bounds
from guidance.limiting import clamped, clip_norm, masked, rescaled
from guidance.losses import distillation_loss
from guidance.noising import Weighting, add_noise, clean_estimate, weight
from guidance.schedules import Schedule


@dataclass(frozen=True)
class SDS:
    """Score distillation sampling (DreamFusion, arXiv 2209.14988, eq. 3): ``w(t) (eps_cfg - n)``.

    With ``form="clean"`` it is a reconstruction of the clean latent (MVDream, arXiv 2308.16512, sec. 3.3):
    ``z0 - z0_hat_cfg``, which equals ``(s / a) (eps_cfg - n)`` before the estimate is rescaled.
    """

    scale: float = 101.0
    """Classifier-free guidance weight: 101 for Stable Diffusion, 21 for pixel priors, 50 for MVDream."""
    final_scale: float | None = None
    """Guidance weight at the end of the run, reached in a straight line; none: the weight stays. A high weight decides
    what the thing is, a low one gives it true colours."""
    form: Literal["noise", "clean"] = "noise"
    """Compare the predicted noise with the drawn one, or the predicted clean latent with the render."""
    weighting: Weighting = "sds"
    """w(t) of the noise form; the clean form has none."""
    rescale: float = 0.5
    """Clean form: share of the guided estimate that is brought back to the spread of the unguided one."""
    clamp: float | None = None
    """Clean form: largest absolute value of the estimate; 1 for pixel priors."""
    t_min: Schedule = field(default=Schedule(0.02))
    """First timestep, as a fraction of the prior's schedule."""
    t_max: Schedule = field(default=Schedule(0.98))
    """Last timestep, as a fraction of the prior's schedule; drawn too."""
    shared_t: bool = False
    """One timestep for all views of a step."""
    group: bool = False
    """The views of a step are one sample of a multi-view prior: spread and norm are joint over them."""
    score_clamp: Schedule | None = None
    """Largest absolute value of an element of the gradient; (0.5, 2.0) suits pixel priors, (2.0, 8.0) latents."""
    max_norm: float | None = None
    """Largest norm of a sample's gradient."""
    requires: ClassVar[frozenset[str]] = frozenset()

    def init(self, prior: Prior) -> Stateless:
        """No memory."""
        return Stateless()

    def gradient(
        self,
        state: Stateless,
        prior: Prior,
        latents: Float[Tensor, "b c i j"],
        condition: Condition,
        draw: Draw,
        progress: float,
    ) -> Float[Tensor, "b c i j"]:
        """The update direction for ``latents``, clamped, masked and clipped as the knobs say."""
        noisy = add_noise(prior, latents, draw.noise, draw.timesteps)
        conditional, null = predict_branches(prior, noisy, draw.timesteps, condition)
        scale = self.scale if self.final_scale is None else Schedule(self.scale, self.final_scale)(progress)
        if self.form == "clean":
            gradient = latents - self._target(prior, noisy, conditional, null, draw, scale)
        else:
            w = weight(prior, draw.timesteps, self.weighting, latents)
            gradient = w * (combine(conditional, null, scale) - draw.noise)
        if self.score_clamp is not None:
            gradient = clamped(gradient, self.score_clamp(progress))
        gradient = masked(gradient, condition.mask)
        return gradient if self.max_norm is None else clip_norm(gradient, self.max_norm, self.group)

    def _target(
        self, prior: Prior, noisy: Tensor, conditional: Tensor, null: Tensor, draw: Draw, scale: float
    ) -> Tensor:
        guided = clean_estimate(prior, noisy, combine(conditional, null, scale), draw.timesteps)
        plain = clean_estimate(prior, noisy, conditional, draw.timesteps)
        target = rescaled(guided, plain, self.rescale, self.group)
        return target if self.clamp is None else clamped(target, self.clamp)

    def loss(
        self,
        state: Stateless,
        prior: Prior,
        views: Views,
        condition: Condition,
        progress: float,
        rng: torch.Generator,
    ) -> Loss:
        """A loss on the rendered pictures, with diagnostics of ``losses.distillation_loss``."""
        latents = prior.encode(views.images)
        bounds = timestep_bounds(prior, self.t_min, self.t_max, progress)
        draw = make_draw(latents, bounds, rng, self.shared_t)
        with torch.no_grad():
            gradient = self.gradient(state, prior, latents.detach(), condition, draw, progress)
        return distillation_loss(latents, gradient, draw)

    def train_critic(
        self, state: Stateless, prior: Prior, views: Views, condition: Condition, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """Nothing to learn."""
        return {}
