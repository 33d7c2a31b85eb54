"""Posterior distillation sampling: an edit that matches the source's stochastic latents and so keeps what it may."""

from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from guidance.classifier_free import guided_edit
from guidance.contract import Condition, Draw, Prior, Stateless
from guidance.controls import Controls
from guidance.losses import distil, nothing_learnt, stateless
from guidance.schedules import Schedule


@dataclass(frozen=True)
class PDS:
    """Posterior distillation sampling (arXiv 2311.13831, eq. 13): ``psi (z0 - z0_src) + chi (eps_cfg - eps_cfg_src)``.

    The first term keeps the source's identity, the second changes the prompt. As published, both follow from one step
    of a stochastic sampler, and how much identity counts is a hidden function of that step's stride: none at 1.
    """

    scale: float = 100.0
    """Classifier-free guidance weight of both predictions."""
    identity: float | None = None
    """psi, for every timestep; none: as published, from ``stride``."""
    change: float | None = None
    """chi, for every timestep; none: as published, from ``stride``."""
    stride: int = 2
    """Timesteps between two steps of the sampler that the published coefficients come from."""
    t_min: Schedule = field(default=Schedule(0.02))
    """First timestep, as a fraction of the prior's schedule."""
    t_max: Schedule = field(default=Schedule(0.98))
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
        _, eps, reference = guided_edit(prior, latents, condition, draw, scale, self.controls)
        psi, chi = published_coefficients(prior, t, self.stride, latents)
        psi = psi if self.identity is None else self.identity
        chi = chi if self.change is None else self.change
        assert condition.source_latents is not None
        gradient = psi * (latents - condition.source_latents) + chi * (eps - reference)
        return self.controls.finish(gradient, condition, progress)


def published_coefficients(
    prior: Prior, t: Int[Tensor, " b"], stride: int, like: Tensor
) -> tuple[Float[Tensor, "b 1 1 1"], Float[Tensor, "b 1 1 1"]]:
    """psi and chi of the paper (arXiv 2311.13831, eq. 10 to 13) for a sampler that goes down by ``stride``.

    With abar' at ``t - stride``: ``chi = c0 (s / a) / sigma`` and ``psi = (sqrt(abar') - c0 - c1 a) / sigma``, where
    ``c0 = sqrt(abar') beta / (1 - abar)``, ``c1 = sqrt(1 - beta) (1 - abar') / (1 - abar)`` and
    ``sigma^2 = beta (1 - abar') / (1 - abar)``; beta is that of the single timestep t.
    """
    alphas = prior.alphas_cumprod.double()
    t = t.to(alphas.device)
    now, before, last = (alphas[i.clamp(min=0)].view(-1, 1, 1, 1) for i in (t, t - stride, t - 1))
    beta = 1 - now / last
    sigma = (beta * (1 - before) / (1 - now)).sqrt()
    c0 = before.sqrt() * beta / (1 - now)
    c1 = (1 - beta).sqrt() * (1 - before) / (1 - now)
    psi, chi = (before.sqrt() - c0 - c1 * now.sqrt()) / sigma, c0 * ((1 - now) / now).sqrt() / sigma
    return psi.to(like), chi.to(like)
