"""One step's randomness as a value, drawn on the CPU so that every device sees the same numbers."""

import torch
from jaxtyping import Float
from torch import Tensor

from guidance.contract import Draw, Prior
from guidance.schedules import Schedule
from guidance.sharing import WHOLE, Share


def timestep_bounds(prior: Prior, t_min: Schedule, t_max: Schedule, progress: float) -> tuple[int, int]:
    """First and last timestep that may be drawn at this point of the run, both included.

    Args:
        prior: gives the number of timesteps T.
        t_min: lower bound as a fraction of T.
        t_max: upper bound as a fraction of T.
        progress: of the run, in [0, 1].

    Raises:
        ValueError: a bound lies outside [0, 1], or the lower one above the upper one.
    """
    low, high = t_min(progress), t_max(progress)
    if not 0 <= low <= high <= 1:
        raise ValueError(
            f"timesteps are drawn from t_min to t_max as fractions of the schedule, 0 <= t_min <= t_max <= 1; "
            f"at progress {progress:.3g} they are {low:.4g} and {high:.4g}"
        )
    count = len(prior.alphas_cumprod)
    return min(round(low * count), count - 1), min(round(high * count), count - 1)


def make_draw(
    latents: Float[Tensor, "b c i j"],
    bounds: tuple[int, int],
    rng: torch.Generator,
    shared: bool = False,
    share: Share = WHOLE,
) -> Draw:
    """Draw what any method may need in a step.

    Args:
        latents: give the shape of the noise, and its type and device.
        bounds: first and last timestep, both included.
        rng: a generator on the CPU; always advanced by the same amount, whatever the method uses of the draw.
        shared: one timestep for all samples, as a multi-view prior wants.
        share: which of the step's samples ``latents`` are; it is drawn for all.
    """
    count = share.total(len(latents))
    timesteps = torch.randint(bounds[0], bounds[1] + 1, (count,), generator=rng)
    noise = torch.randn((count, *latents.shape[1:]), generator=rng)
    shift, gap, scale = torch.rand(3, count, generator=rng).unbind()
    return Draw(
        timesteps=share.own(timesteps[:1].expand(count) if shared else timesteps).to(latents.device),
        noise=share.own(noise).to(latents),
        shift=share.own(shift).to(latents),
        gap=share.own(gap).to(latents),
        scale=share.own(scale).to(latents),
        seed=int(torch.randint(2**62, (), generator=rng)),
    )
