"""DDIM inversion: the noise under which the prior would have made a given picture, found step by step."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

Step = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Carries latents [b, c, i, j] from timesteps ``now`` [b] to ``then`` [b]."""


def carry_up(
    latents: Float[Tensor, "b c i j"], end: Int[Tensor, " b"], stride: int, step: Step
) -> Float[Tensor, "b c i j"]:
    """Latents at index 0 carried to timestep ``end`` along 0, stride, 2 stride, ..., the short stride last.

    Each sample has an end of its own: one that has arrived waits, unchanged, for the others.
    """
    for start in range(0, int(end.max()), stride):
        now, then = end.clamp(max=start), end.clamp(max=start + stride)
        moved = step(latents, now, then)
        latents = torch.where((now < then)[:, None, None, None], moved, latents)
    return latents
