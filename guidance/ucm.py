"""Unique couple matching: score distillation on a rectified flow, with the noise that belongs to the render."""

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from guidance.classifier_free import Ask, guided, predict
from guidance.contract import Condition, Draw, Loss, Prior, Stateless, Views
from guidance.controls import Controls
from guidance.drawing import make_draw
from guidance.losses import follow, nothing_learnt, stateless
from guidance.noising import add_noise, clean_estimate
from guidance.schedules import Schedule


@dataclass(frozen=True)
class UCM:
    """Unique couple matching (FlowDreamer, arXiv 2408.05008): ``v_cfg(z_sigma, sigma) - (n - z0)``.

    A flow carries each noise to one picture, so a render has a noise of its own: that found by following the flow
    backwards from it, in a few steps without guidance. With it the same render is always compared with the same target,
    where plain noise, taken in the first part of a run, lets the shape still change its mind. With plain noise it is
    SDS under the weight ``1 / (1 - sigma)``. Any prior will do: its predicted noise says the velocity as well.

    Published settings are those for fields (configs/ucm.yaml of FlowDreamer_threestudio): weight 60, 3 equal Euler
    steps told the prompt, 10,000 steps of which 1800 take plain noise. Its code draws positions .3 to .98 in a list of
    levels that falls from pure noise, which with Stable Diffusion 3's shift are sigmas from .875 down to .058; here the
    same numbers are sigmas. Its code for gaussians steps backwards told nothing, in 4 steps, under a weight of 40.
    """

    scale: float = 60.0
    """Classifier-free guidance weight."""
    steps: int = 3
    """Euler steps from the render to its noise."""
    plain_until: float = 0.18
    """Part of the run whose noise is plain: published are 1800 of 10,000 steps."""
    sigma_min: Schedule = field(default=Schedule(0.3))
    """Lowest sigma that is drawn; sigma is noise as a share of noise and signal, whatever the prior's schedule."""
    sigma_max: Schedule = field(default=Schedule(0.98))
    """Highest sigma that is drawn."""
    controls: Controls = field(default=Controls())
    """Options that every method has."""
    requires: ClassVar[frozenset[str]] = frozenset()

    init = stateless
    train_critic = nothing_learnt

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"UCM takes 1 step or more to a render's noise, not {self.steps}")

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
        noise = draw.noise if progress < self.plain_until else self._own_noise(prior, latents, condition)
        noisy = add_noise(prior, latents, noise, t)
        eps = guided(prior, noisy, t, condition, scale, self.controls)
        velocity = eps - clean_estimate(prior, noisy, eps, t)
        return self.controls.finish(velocity - (noise - latents), condition, progress)

    def loss(
        self,
        state: Stateless,
        prior: Prior,
        views: Views,
        condition: Condition,
        progress: float,
        rng: torch.Generator,
    ) -> Loss:
        """The loss on the rendered pictures."""
        latents = prior.encode(views.images)
        low, high = self.sigma_min(progress), self.sigma_max(progress)
        if not 0 <= low <= high <= 1:
            raise ValueError(f"sigma is drawn between 0 and 1, sigma_min first; here from {low:.4g} to {high:.4g}")
        bounds = (nearest_timestep(prior, low), nearest_timestep(prior, high))
        draw = make_draw(latents, bounds, rng, self.controls.shared_t or self.controls.group, views.share)
        return follow(self, state, prior, latents, views, condition, draw, progress)

    def _own_noise(self, prior: Prior, latents: Tensor, condition: Condition) -> Tensor:
        """``n_inv``: the flow from the render at sigma 0 to the noise at sigma 1, told the prompt, without guidance."""
        plain = dataclasses.replace(condition, repelled=None, repelled_weight=None)
        z, stride = latents, 1 / self.steps
        for step in range(self.steps):
            t = torch.full((len(z),), nearest_timestep(prior, step * stride), device=z.device)
            noisy = _as_noised(prior, z, t)
            (eps,) = predict(prior, plain, Ask(noisy, t, "text"))
            z = z + stride * (eps - clean_estimate(prior, noisy, eps, t))
        return z


def sigmas(prior: Prior) -> Float[Tensor, " t"]:
    """``s / (a + s)`` at each timestep: how far along a rectified flow it lies."""
    abar = prior.alphas_cumprod.double()
    a, s = abar.sqrt(), (1 - abar).sqrt()
    return s / (a + s)


def nearest_timestep(prior: Prior, sigma: float) -> int:
    """The timestep whose level of noise is nearest to ``sigma``."""
    return int((sigmas(prior) - sigma).abs().argmin())


def _as_noised(prior: Prior, z_sigma: Tensor, t: Tensor) -> Tensor:
    """``z_t = (a + s) z_sigma``, as a variance-preserving prior is asked."""
    abar = prior.alphas_cumprod[t.to(prior.alphas_cumprod.device)].view(-1, 1, 1, 1)
    return z_sigma * (abar.sqrt() + (1 - abar).sqrt()).to(z_sigma)
