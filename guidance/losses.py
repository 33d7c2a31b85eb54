"""From a method's gradient to the loss that the run differentiates: the same reduction for every method."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from guidance.contract import Condition, Draw, Loss, Prior, Stateless, Trace, Views, surrogate
from guidance.controls import Controls
from guidance.drawing import make_draw, timestep_bounds
from guidance.schedules import Schedule


@runtime_checkable
class Distilling(Protocol):
    """A method as ``distil`` needs it."""

    @property
    def t_min(self) -> Schedule:
        """First timestep, as a fraction of the prior's schedule."""
        ...

    @property
    def t_max(self) -> Schedule:
        """Last timestep, as a fraction of the prior's schedule; drawn too."""
        ...

    @property
    def controls(self) -> Controls:
        """Options."""
        ...

    def gradient(
        self, state: Any, prior: Prior, latents: Tensor, condition: Condition, draw: Draw, progress: float
    ) -> Tensor:
        """The update direction for ``latents``."""
        ...


@runtime_checkable
class Directing(Protocol):
    """A method as ``follow`` needs it."""

    def gradient(
        self, state: Any, prior: Prior, latents: Tensor, condition: Condition, draw: Draw, progress: float
    ) -> Tensor:
        """The update direction for ``latents``."""
        ...


def distil(
    method: Distilling,
    state: Any,
    prior: Prior,
    views: Views,
    condition: Condition,
    progress: float,
    rng: torch.Generator,
) -> Loss:
    """Draw a step's randomness, ask ``method`` for its gradient, and make it a loss on the rendered pictures."""
    latents = prior.encode(views.images)
    bounds = timestep_bounds(prior, method.t_min, method.t_max, progress)
    draw = make_draw(latents, bounds, rng, method.controls.shared_t or method.controls.group, views.share)
    return follow(method, state, prior, latents, views, condition, draw, progress)


def follow(
    method: Directing,
    state: Any,
    prior: Prior,
    latents: Float[Tensor, "b c i j"],
    views: Views,
    condition: Condition,
    draw: Draw,
    progress: float,
) -> Loss:
    """The loss of a step whose randomness is drawn."""
    with torch.no_grad():
        if views.source is not None:
            condition = dataclasses.replace(condition, source_latents=prior.encode(views.source))
        gradient = method.gradient(state, prior, latents.detach(), condition, draw, progress)
    return distillation_loss(latents, gradient, draw)


def stateless(method: Any, prior: Prior, seed: int = 0) -> Stateless:
    """``init`` of a method without memory."""
    return Stateless()


def nothing_learnt(
    method: Any, state: nn.Module, prior: Prior, views: Views, condition: Condition, rng: torch.Generator
) -> dict[str, Tensor]:
    """``train_critic`` of a method without a critic."""
    return {}


def distillation_loss(latents: Float[Tensor, "b c i j"], gradient: Float[Tensor, "b c i j"], draw: Draw) -> Loss:
    """Surrogate whose gradient for ``latents`` is ``gradient / b``.

    Diagnostics: ``value``, 0.5 ||g||^2 / b, which is what to plot, as the surrogate itself means nothing;
    ``gradient_norm``, the mean norm of a sample's gradient; ``timestep``, the mean timestep.
    """
    norms = gradient.detach().flatten(1).norm(dim=1)
    return Loss(
        surrogate(latents, gradient),
        {
            "value": 0.5 * norms.square().mean(),
            "gradient_norm": norms.mean(),
            "timestep": draw.timesteps.float().mean(),
        },
        Trace(latents.detach(), gradient.detach(), draw),
    )
