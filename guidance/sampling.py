"""What a prior itself imagines: deterministic sampling of pictures."""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from guidance.classifier_free import guided
from guidance.contract import Condition, Prior
from guidance.noising import clean_estimate, levels, noise_estimate


@torch.no_grad()
def sample(
    prior: Prior, condition: Condition, *, steps: int = 25, scale: float = 4.0, seed: int = 0, clamp: bool = True
) -> Float[Tensor, "b 3 h w"]:
    """Pictures that a prior draws by itself (DDIM, arXiv 2010.02502, eq. 12 with eta 0).

    Args:
        prior: the prior.
        condition: what to draw; its batch is the number of pictures.
        steps: evaluations of the network, evenly spaced from the last timestep down.
        scale: classifier-free guidance weight.
        seed: of the noise, which is drawn on the CPU.
        clamp: keep each step's clean estimate in [-1, 1] if the prior works on pixels; ignored for others.

    Returns:
        sRGB in [0, 1] at the prior's resolution.

    Raises:
        ValueError: no steps, or more than the prior has timesteps.
    """
    count = len(prior.alphas_cumprod)
    if not 1 <= steps <= count:
        raise ValueError(f"a sample takes 1 to {count} steps, not {steps}")
    noisy = _starting_noise(prior, len(condition.text), seed)
    limit = 1.0 if clamp and getattr(prior, "pixel_space", False) else float("inf")
    times = [round(count * (steps - i) / steps) - 1 for i in range(steps)]
    for now, later in pairwise(times):
        t = torch.full((len(noisy),), now, device=noisy.device)
        clean = _clean(prior, noisy, t, condition, scale, limit)
        a, s = levels(prior, torch.full_like(t, later), noisy)
        noisy = a * clean + s * noise_estimate(prior, noisy, clean, t)
    last = torch.full((len(noisy),), times[-1], device=noisy.device)
    return prior.decode(_clean(prior, noisy, last, condition, scale, limit))


def _clean(prior: Prior, noisy: Tensor, t: Tensor, condition: Condition, scale: float, limit: float) -> Tensor:
    return clean_estimate(prior, noisy, guided(prior, noisy, t, condition, scale), t).clamp(-limit, limit)


def _starting_noise(prior: Prior, count: int, seed: int) -> Tensor:
    blank = torch.zeros(1, 3, prior.resolution, prior.resolution, device=prior.alphas_cumprod.device)
    latent = prior.encode(blank)
    noise = torch.randn((count, *latent.shape[1:]), generator=torch.Generator().manual_seed(seed))
    return noise.to(latent)
