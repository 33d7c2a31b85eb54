"""Consistent score distillation: neighbouring points of one deterministic path should agree about the picture."""

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from guidance.classifier_free import guided
from guidance.contract import Condition, Draw, Loss, Prior, Views
from guidance.controls import Controls
from guidance.drawing import make_draw, timestep_bounds
from guidance.losses import follow, nothing_learnt
from guidance.noising import Weighting, add_noise, ddim_step, weighted
from guidance.schedules import Schedule


class FixedNoise(nn.Module):
    """The one noise of a whole run, kept as its seed."""

    seed: Tensor

    def __init__(self, seed: int):
        super().__init__()
        self.register_buffer("seed", torch.tensor(seed))

    def like(self, latents: Float[Tensor, "b c i j"]) -> Float[Tensor, "b c i j"]:
        """The noise, the same for every sample."""
        rng = torch.Generator().manual_seed(int(self.seed))
        return torch.randn(latents[:1].shape, generator=rng).to(latents).expand_as(latents)


@dataclass(frozen=True)
class CDS:
    """Consistency distillation sampling (Consistent3D, arXiv 2401.09050, eq. 10): ``w [eps_cfg(z_t) - eps_cfg(z_t')]``.

    ``z_t`` is the render under one noise that is fixed for the whole run, ``z_t'`` the DDIM step from t down to t'. The
    prior's trajectory is consistent where both predictions agree. t' descends over the run as ``later`` says, and t
    lies a gap above it.
    """

    scale: float = 101.0
    """Classifier-free guidance weight."""
    weighting: Weighting = "uniform"
    """w(t), at the later timestep: ``uniform`` for a first stage, ``sds`` for refinement."""
    goal: Schedule = field(default=Schedule(0.7, 0.1, shape="square_root"))
    """t', as a fraction of the prior's schedule: 0.7 to 0.1 for a first stage, 0.3 to 0.02 for refinement, 0.5 to 0.02
    for texture."""
    gap: float = 0.1
    """Least t - t', as a fraction of the schedule."""
    gap_spread: float = 0.2
    """Random addition to the gap; 0.1 for refinement and texture."""
    t_min: Schedule = field(default=Schedule(0.02))
    """First timestep, as a fraction of the prior's schedule."""
    t_max: Schedule = field(default=Schedule(0.98))
    """Last timestep, as a fraction of the prior's schedule; drawn too."""
    controls: Controls = field(default=Controls(final_scale=51.0, score_clamp=Schedule(2.0, 8.0)))
    """Options that every method has."""
    requires: ClassVar[frozenset[str]] = frozenset()

    train_critic = nothing_learnt

    def init(self, prior: Prior, seed: int = 0) -> FixedNoise:
        """The run's noise."""
        return FixedNoise(seed)

    def gradient(
        self,
        state: FixedNoise,
        prior: Prior,
        latents: Float[Tensor, "b c i j"],
        condition: Condition,
        draw: Draw,
        progress: float,
    ) -> Float[Tensor, "b c i j"]:
        """The update direction for ``latents``."""
        t, scale = draw.timesteps, self.controls.scale(self.scale, progress, draw)
        lowest = timestep_bounds(prior, self.t_min, self.t_max, progress)[0]
        earlier = torch.minimum(t, (t - self._gap(prior, draw)).clamp(min=lowest))
        noisy = add_noise(prior, latents, draw.noise, t)
        eps = guided(prior, noisy, t, condition, scale, self.controls)
        stepped = ddim_step(prior, noisy, eps, t, earlier)
        reference = guided(prior, stepped, earlier, condition, scale, self.controls)
        gradient = weighted(prior, latents, noisy, t, eps, reference, self.weighting, self.controls.group)
        return self.controls.finish(gradient, condition, progress)

    def _gap(self, prior: Prior, draw: Draw) -> Int[Tensor, " b"]:
        count = len(prior.alphas_cumprod)
        spread = round(self.gap_spread * count)
        share = draw.gap[:1].expand_as(draw.gap) if self.controls.group or self.controls.shared_t else draw.gap
        further = torch.floor(spread * share).long().clamp(max=max(spread - 1, 0))
        return round(self.gap * count) + further

    def loss(
        self,
        state: FixedNoise,
        prior: Prior,
        views: Views,
        condition: Condition,
        progress: float,
        rng: torch.Generator,
    ) -> Loss:
        """A loss on the rendered pictures, with diagnostics of ``losses.distillation_loss``."""
        latents = prior.encode(views.images)
        bounds = timestep_bounds(prior, self.t_min, self.t_max, progress)
        draw = make_draw(latents, bounds, rng, share=views.share)
        goal = round(self.goal(progress) * len(prior.alphas_cumprod))
        timesteps = (goal + self._gap(prior, draw)).clamp(max=bounds[1])
        draw = dataclasses.replace(draw, timesteps=timesteps, noise=state.like(latents.detach()))
        return follow(self, state, prior, latents, views, condition, draw, progress)
