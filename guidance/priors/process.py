"""From a scheduler's settings and a network's own kind of answer to predicted noise under one kind of process."""

import inspect
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from guidance.contract import Prior
from guidance.noising import (
    alphas_cumprod_of_flow,
    flow_input,
    noise_estimate,
    noise_from_flow,
    noise_from_v,
)

Prediction = Literal["epsilon", "v_prediction", "sample", "flow"]
NOISIEST = 0.999
"""Largest sigma of a flow. At 1 there is no signal left, and no clean estimate could be made of a prediction."""
_LEAST_SIGNAL = 2.0**-24  # abar of a schedule that ends in pure noise, as diffusers has it too


def alphas_cumprod(scheduler: Any, tokens: int = 0) -> Float[Tensor, " t"]:
    """``abar`` of a scheduler of diffusers; float64 for a flow, whose lowest levels float32 could not tell apart.

    Args:
        scheduler: a DDPM scheduler, or a flow-matching one.
        tokens: pieces of a picture at the resolution in use; some flows shift their levels by it.
    """
    if not is_flow(scheduler):
        return scheduler.alphas_cumprod.float().clamp_min(_LEAST_SIGNAL)
    return alphas_cumprod_of_flow(flow_sigmas(scheduler.config, tokens).clamp_max(NOISIEST))


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler, or a class of them, is that of a rectified flow."""
    return "FlowMatch" in (scheduler if isinstance(scheduler, type) else type(scheduler)).__name__


def process_like(kind: type) -> Any:
    """The scheduler of diffusers whose process, forwards, is that of another one's class, however that one samples.

    Raises:
        ValueError: it has another process, such as EDM's (arXiv 2206.00364), whose settings would say nothing here.
    """
    import diffusers

    if is_flow(kind):
        return diffusers.FlowMatchEulerDiscreteScheduler
    if not {"trained_betas", "beta_schedule"} & set(inspect.signature(kind.__init__).parameters):
        raise ValueError(f"not supported: noise as {kind.__name__} has it; schedules of betas, and flows, are")
    return diffusers.DDPMScheduler


def flow_sigmas(config: Any, tokens: int) -> Float[Tensor, " t"]:
    """The training levels of a flow, shifted towards noise as its scheduler says; rising, float64, the last is 1."""
    count = config.num_train_timesteps
    sigma = torch.arange(1, count + 1, dtype=torch.float64) / count
    if not config.use_dynamic_shifting:
        return config.shift * sigma / (1 + (config.shift - 1) * sigma)
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    mu = config.base_shift + slope * (tokens - config.base_image_seq_len)
    shift = math.exp(mu) if config.time_shift_type == "exponential" else mu
    return shift * sigma / (1 + (shift - 1) * sigma)


def noise_of(
    prior: Prior,
    prediction: Prediction,
    z: Float[Tensor, "b c i j"],
    t: Int[Tensor, " b"],
    answer: Callable[[Tensor, Tensor], Tensor],
) -> Float[Tensor, "b c i j"]:
    """The noise in ``z`` that a network predicts, whatever it answers itself.

    Args:
        prior: gives the process.
        prediction: what the network answers.
        z: ``z_t``.
        t: timesteps.
        answer: the network: of ``z_t`` and t, or of ``z_sigma`` and sigma [b] for a flow.
    """
    if prediction == "flow":
        z_sigma, sigma = flow_input(prior, z, t)
        return noise_from_flow(z_sigma, answer(z_sigma, sigma.flatten()), sigma)
    answered = answer(z, t)
    if prediction == "v_prediction":
        return noise_from_v(prior, z, answered, t)
    if prediction == "sample":
        return noise_estimate(prior, z, answered, t)
    return answered
