"""VSD under other divergences: each sample counts by how likely the prior finds it, compared with the critic."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from guidance.classifier_free import guided
from guidance.contract import Condition, Draw, Prior, Views
from guidance.controls import Controls
from guidance.critic import Critic, Learner, Learning
from guidance.drawing import make_draw, timestep_bounds
from guidance.losses import distil
from guidance.noising import Weighting, add_noise, clean_estimate, weighted
from guidance.schedules import Schedule

Divergence = Literal["reverse_kl", "forward_kl", "jensen_shannon", "hellinger"]


@dataclass(frozen=True)
class FVSD:
    """VSD that minimises an f-divergence (f-distill, arXiv 2502.15681; in 3D it is ours):
    ``h(r) w(t) (eps_cfg - eps_phi)``, ``r = p_prior(z_t) / p_renders(z_t)``.

    VSD minimises the reverse Kullback-Leibler divergence, ``h = 1``, which seeks one mode. The others give a sample
    the more weight the more the prior likes it. ``r`` comes from a discriminator that tells the prior's estimates of
    clean pictures from renders, both noised; ``h`` is divided by its running mean over the renders, so that a
    divergence shifts weight between samples and does not change the step. Until something is learnt, this is VSD.
    """

    scale: float = 7.5
    """Classifier-free guidance weight of the prior's side."""
    divergence: Divergence = "jensen_shannon"
    """``reverse_kl``: h = 1; ``forward_kl``: r; ``jensen_shannon``: r / (1 + r); ``hellinger``: sqrt(r) / 4."""
    ratio_limit: float = 10.0
    """r is kept between this and its inverse."""
    discriminator_rate: float = 2e-4
    """Learning rate of the discriminator. At 1e-3 it is sure of what renders looked like some steps ago, and wrong."""
    memory: float = 0.99
    """How much of the running mean of h a step leaves."""
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

    loss = distil

    def __post_init__(self) -> None:
        if not (self.ratio_limit >= 1 and 0 <= self.memory < 1):
            raise ValueError("FVSD takes a ratio_limit of 1 or more, and a memory from 0 up to 1, without 1")

    def init(self, prior: Prior, seed: int = 0) -> "Comparison":
        """A critic and a discriminator that have learnt nothing."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            discriminator = Discriminator(prior.channels).to(prior.alphas_cumprod.device)
        learner = Learner(discriminator, self.discriminator_rate)
        return Comparison(Critic(prior, self.critic, seed), learner, _emphasis(torch.ones(()), self.divergence))

    def gradient(
        self,
        state: "Comparison",
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
        reference = state.critic.predict(prior, noisy, t, condition)
        emphasis = (self._weights(state, prior, noisy, t) / state.mean).to(latents)[:, None, None, None]
        gradient = weighted(prior, latents, noisy, t, target, reference, self.weighting, self.controls.group)
        return self.controls.finish(emphasis * gradient, condition, progress)

    def train_critic(
        self, state: "Comparison", prior: Prior, views: Views, condition: Condition, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """One step of the critic and one of the discriminator: ``critic_loss``, ``discriminator_loss``, the mean of h
        as ``emphasis``, and the steps skipped so far as ``critic_skipped`` and ``discriminator_skipped``."""
        shared, share = self.controls.shared_t or self.controls.group, views.share
        with torch.no_grad():
            latents = prior.encode(views.images)
        learnt = state.critic.train_step(prior, latents, condition, rng, shared, share)
        with torch.no_grad():
            # All but the ends, whatever the run's bounds: there an estimate is all guess, or the render itself.
            draw = make_draw(latents, timestep_bounds(prior, Schedule(0.02), Schedule(0.98), 0.0), rng, shared, share)
            drawn = torch.randn((share.total(len(latents)), *latents.shape[1:]), generator=rng)
            other, t = share.own(drawn).to(latents), draw.timesteps
            renders = add_noise(prior, latents, draw.noise, t)
            eps = guided(prior, renders, t, condition, self.scale, self.controls)
            estimates = add_noise(prior, clean_estimate(prior, renders, eps, t), other, t)
            seen = self._weights(state, prior, renders, t).mean()
            share.average([seen])
            state.mean.lerp_(torch.where(seen.isfinite(), seen, state.mean), 1 - self.memory)
        with torch.enable_grad():
            liked, disliked = state.log_ratio(prior, estimates, t), state.log_ratio(prior, renders, t)
            loss = (F.softplus(-liked) + F.softplus(disliked)).mean()
            state.discriminator.descend(loss, share)
        return learnt | {
            "discriminator_loss": loss.detach(),
            "discriminator_skipped": state.discriminator.skipped.clone(),
            "emphasis": state.mean.clone(),
        }

    @torch.no_grad()
    def _weights(self, state: "Comparison", prior: Prior, noisy: Tensor, t: Tensor) -> Float[Tensor, " b"]:
        log_ratio = state.log_ratio(prior, noisy, t)
        if self.controls.group:
            log_ratio = log_ratio.mean().expand_as(log_ratio)
        ratio = log_ratio.exp()
        # Not clamp alone: what is not a number must stay so, and be seen.
        limited = torch.where(ratio.isnan(), ratio, ratio.clamp(1 / self.ratio_limit, self.ratio_limit))
        return _emphasis(limited, self.divergence)


class Comparison(nn.Module):
    """Memory of FVSD: critic, discriminator, and the running mean of h over the renders."""

    mean: Float[Tensor, ""]

    def __init__(self, critic: Critic, discriminator: Learner, mean: Float[Tensor, ""]) -> None:
        super().__init__()
        self.critic, self.discriminator = critic, discriminator
        self.register_buffer("mean", mean.to(discriminator.steps.device))

    def log_ratio(self, prior: Prior, noisy: Float[Tensor, "b c i j"], t: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """``log(p_prior / p_renders)`` of each noisy latent, as the discriminator sees it."""
        return self.discriminator.module(noisy.float(), t.float() / len(prior.alphas_cumprod))


class Discriminator(nn.Module):
    """Log of how much likelier a noisy latent is under the prior than among the renders; 0 until it has learnt."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 32, 3, padding=1)
        self.time = nn.Linear(8, 32)
        self.second = nn.Conv2d(32, 64, 3, stride=2, padding=1)
        self.third = nn.Conv2d(64, 64, 3, stride=2, padding=1)
        self.last = nn.Linear(64, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, noisy: Float[Tensor, "b c i j"], time: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        """One number a sample; ``time`` is the timestep as a fraction of the schedule."""
        angles = torch.pi * time[:, None] * 2 ** torch.arange(4, device=time.device)
        now = self.time(torch.cat([angles.sin(), angles.cos()], 1))[:, :, None, None]
        hidden = F.silu(self.first(noisy) + now)
        hidden = F.silu(self.third(F.silu(self.second(hidden))))
        return self.last(hidden.mean((2, 3)))[:, 0]


def _emphasis(ratio: Float[Tensor, "*b"], divergence: Divergence) -> Float[Tensor, "*b"]:
    """``h(r) = f''(r) r^2`` up to a factor (f-distill, arXiv 2502.15681, table 1)."""
    if divergence == "reverse_kl":
        return torch.ones_like(ratio)
    if divergence == "forward_kl":
        return ratio
    if divergence == "jensen_shannon":
        return ratio / (1 + ratio)
    return ratio.sqrt() / 4
