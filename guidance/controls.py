"""What every method can be told besides its own knobs: bounds on guidance, on estimates and on gradients."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from guidance.contract import Condition, Draw, Prior
from guidance.limiting import clamped, clip_norm, masked, rescaled
from guidance.noising import clean_estimate, noise_estimate
from guidance.schedules import Schedule


@dataclass(frozen=True)
class Controls:
    """Options that compose with every method. View-dependent prompts, Perp-Neg, negative prompts and masks come with
    the condition; bounds of timesteps are the method's own."""

    final_scale: float | None = None
    """Guidance weight at the end of the run, reached in a straight line; none: the weight stays. A high weight decides
    what the thing is, a low one gives it true colours."""
    random_scale: tuple[float, float] | None = None
    """Guidance weight drawn anew for each sample from this range, in place of the method's (SNOOPI, arXiv
    2412.02687)."""
    rescale: float = 0.0
    """Share of the guided clean estimate that is brought back to the spread of the unguided one (phi of arXiv
    2305.08891)."""
    clamp: float | None = None
    """Largest absolute value of the guided clean estimate; 1 for pixel priors."""
    score_clamp: Schedule | None = None
    """Largest absolute value of an element of the gradient (arXiv 2303.15413); (0.5, 2.0) suits pixel priors,
    (2.0, 8.0) latents."""
    max_norm: float | None = None
    """Largest norm of a sample's gradient."""
    loss_weight: float = 1.0
    """Factor of the gradient."""
    shared_t: bool = False
    """One timestep for all views of a step."""
    group: bool = False
    """The views of a step are one sample of a multi-view prior: timestep, guidance weight, spread and norm are joint
    over them."""

    def scale(self, base: float, progress: float, draw: Draw) -> Float[Tensor, "b 1 1 1"]:
        """The guidance weight of each sample, where a method's own is ``base``."""
        if self.random_scale is not None:
            low, high = self.random_scale
            share = draw.scale[:1].expand_as(draw.scale) if self.group else draw.scale
            return (low + (high - low) * share)[:, None, None, None]
        now = base if self.final_scale is None else Schedule(base, self.final_scale)(progress)
        return torch.full_like(draw.scale, now)[:, None, None, None]

    def bounded(
        self,
        prior: Prior,
        noisy: Float[Tensor, "b c i j"],
        t: Tensor,
        eps: Float[Tensor, "b c i j"],
        conditional: Float[Tensor, "b c i j"],
    ) -> Float[Tensor, "b c i j"]:
        """A guided prediction whose clean estimate is rescaled and clamped as asked for; itself if nothing is."""
        if self.rescale == 0 and self.clamp is None:
            return eps
        clean = clean_estimate(prior, noisy, eps, t)
        clean = rescaled(clean, clean_estimate(prior, noisy, conditional, t), self.rescale, self.group)
        return noise_estimate(prior, noisy, clean if self.clamp is None else clamped(clean, self.clamp), t)

    def finish(
        self, gradient: Float[Tensor, "b c i j"], condition: Condition, progress: float
    ) -> Float[Tensor, "b c i j"]:
        """A method's gradient clamped, masked, clipped and weighted, in this order."""
        if self.score_clamp is not None:
            gradient = clamped(gradient, self.score_clamp(progress))
        gradient = masked(gradient, condition.mask)
        if self.max_norm is not None:
            gradient = clip_norm(gradient, self.max_norm, self.group)
        return gradient if self.loss_weight == 1 else self.loss_weight * gradient
