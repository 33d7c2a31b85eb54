"""The forward process and its conversions, each written once, and the weights of the methods.

``abar``, ``a`` and ``s`` are kept apart by name: ``abar = alphas_cumprod[t]``, ``a = sqrt(abar)``,
``s = sqrt(1 - abar)``.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from guidance.contract import Prior

PlainWeighting = Literal["sds", "uniform", "fantasia3d", "snr_sqrt"]
Weighting = Literal["sds", "uniform", "fantasia3d", "snr_sqrt", "dmd"]


def levels(
    prior: Prior, t: Int[Tensor, " b"], like: Tensor
) -> tuple[Float[Tensor, "b 1 1 1"], Float[Tensor, "b 1 1 1"]]:
    """Signal and noise level (a, s) at each timestep, in the type and on the device of ``like``."""
    abar = prior.alphas_cumprod[t.to(prior.alphas_cumprod.device)].view(-1, 1, 1, 1)
    return abar.sqrt().to(like), (1 - abar).sqrt().to(like)


def add_noise(
    prior: Prior, latents: Float[Tensor, "b c i j"], noise: Float[Tensor, "b c i j"], t: Int[Tensor, " b"]
) -> Float[Tensor, "b c i j"]:
    """``z_t = a z0 + s n``."""
    a, s = levels(prior, t, latents)
    return a * latents + s * noise


def clean_estimate(
    prior: Prior, noisy: Float[Tensor, "b c i j"], eps: Float[Tensor, "b c i j"], t: Int[Tensor, " b"]
) -> Float[Tensor, "b c i j"]:
    """``z0_hat = (z_t - s eps) / a``: the clean latent that predicted noise ``eps`` implies."""
    a, s = levels(prior, t, noisy)
    return (noisy - s * eps) / a


def noise_estimate(
    prior: Prior, noisy: Float[Tensor, "b c i j"], clean: Float[Tensor, "b c i j"], t: Int[Tensor, " b"]
) -> Float[Tensor, "b c i j"]:
    """``eps = (z_t - a z0_hat) / s``: the noise that a clean latent implies."""
    a, s = levels(prior, t, noisy)
    return (noisy - a * clean) / s


def ddim_step(
    prior: Prior,
    noisy: Float[Tensor, "b c i j"],
    eps: Float[Tensor, "b c i j"],
    now: Int[Tensor, " b"],
    then: Int[Tensor, " b"],
) -> Float[Tensor, "b c i j"]:
    """``z_then = a_then z0_hat + s_then eps``, up or down (DDIM, arXiv 2010.02502, eq. 12 with eta 0)."""
    return add_noise(prior, clean_estimate(prior, noisy, eps, now), eps, then)


# v-prediction (Salimans and Ho, arXiv 2202.00512) ---------------------------------------------------------------------


def noise_from_v(prior: Prior, noisy: Tensor, v: Tensor, t: Int[Tensor, " b"]) -> Tensor:
    """``eps = s z_t + a v``; all [b, c, i, j]."""
    a, s = levels(prior, t, noisy)
    return s * noisy + a * v


def clean_from_v(prior: Prior, noisy: Tensor, v: Tensor, t: Int[Tensor, " b"]) -> Tensor:
    """``z0_hat = a z_t - s v``; all [b, c, i, j]."""
    a, s = levels(prior, t, noisy)
    return a * noisy - s * v


# Rectified flow, presented as variance preserving ---------------------------------------------------------------------
# v = n - z0, z_sigma = sigma n + (1 - sigma) z0, sigma = s / (a + s), z_sigma = z_t / (a + s)


def alphas_cumprod_of_flow(sigma: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
    """``abar`` of the variance-preserving process with the signal-to-noise ratio that a flow has at ``sigma``."""
    return (1 - sigma) ** 2 / ((1 - sigma) ** 2 + sigma**2)


def flow_input(
    prior: Prior, noisy: Float[Tensor, "b c i j"], t: Int[Tensor, " b"]
) -> tuple[Float[Tensor, "b c i j"], Float[Tensor, "b 1 1 1"]]:
    """What a flow network is asked for ``z_t``: (z_sigma, sigma)."""
    a, s = levels(prior, t, noisy)
    return noisy / (a + s), s / (a + s)


def noise_from_flow(z_sigma: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """``eps = z_sigma + (1 - sigma) v``; [b, c, i, j] with sigma [b, 1, 1, 1]."""
    return z_sigma + (1 - sigma) * velocity


def clean_from_flow(z_sigma: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """``z0_hat = z_sigma - sigma v``; [b, c, i, j] with sigma [b, 1, 1, 1]."""
    return z_sigma - sigma * velocity


# Weights --------------------------------------------------------------------------------------------------------------


def weight(prior: Prior, t: Int[Tensor, " b"], kind: PlainWeighting, like: Tensor) -> Float[Tensor, "b 1 1 1"]:
    """``w(t)``: ``sds`` 1 - abar (DreamFusion), ``uniform`` 1, ``fantasia3d`` a (1 - abar), ``snr_sqrt`` s / a."""
    a, s = levels(prior, t, like)
    if kind == "sds":
        return s**2
    if kind == "fantasia3d":
        return a * s**2
    if kind == "snr_sqrt":
        return s / a
    return torch.ones_like(a)


def weighted(
    prior: Prior,
    latents: Float[Tensor, "b c i j"],
    noisy: Float[Tensor, "b c i j"],
    t: Int[Tensor, " b"],
    target: Float[Tensor, "b c i j"],
    reference: Float[Tensor, "b c i j"],
    kind: Weighting,
    group: bool = False,
) -> Float[Tensor, "b c i j"]:
    """``w(t) (target - reference)``, for two predictions of noise of which the first was made of ``noisy`` at ``t``.

    ``dmd`` is ``(s / a) (target - reference) / mean|z0 - z0_hat_target|``, the mean over each sample, or over all of
    them if they are a ``group`` (DMD, arXiv 2311.18828, eq. 8; DMD2, arXiv 2405.14867).
    """
    if kind != "dmd":
        return weight(prior, t, kind, latents) * (target - reference)
    distance = (latents - clean_estimate(prior, noisy, target, t)).abs()
    size = distance.mean((0, 1, 2, 3) if group else (1, 2, 3), keepdim=True)
    return weight(prior, t, "snr_sqrt", latents) * (target - reference) / size.clamp_min(1e-8)


def stable_diffusion_alphas() -> Float[Tensor, " t"]:
    """``alphas_cumprod`` of Stable Diffusion: 1000 steps, betas linear in their square root; float64."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0)
