"""Classifier-free guidance (Ho and Salimans, arXiv 2207.12598): several answers of the prior in one forward pass.

One convention everywhere, the one of diffusers: ``eps_cfg = eps_u + S (eps_c - eps_u)``.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from guidance.contract import Condition, Prior

Branch = Literal["text", "null", "negative"]


def predict_branches(
    prior: Prior,
    noisy: Float[Tensor, "b c i j"],
    t: Int[Tensor, " b"],
    condition: Condition,
    branches: tuple[Branch, ...] = ("text", "null"),
) -> tuple[Float[Tensor, "b c i j"], ...]:
    """Predicted noise of each branch, in the order asked, from one batched forward pass.

    The null branch leaves the camera out (a pose of zeros); every branch keeps what ``condition.extra`` holds, such as
    the background.
    """
    count = len(branches)
    pose = None if condition.pose is None else torch.cat([_pose(condition.pose, branch) for branch in branches])
    predicted = prior.predict_noise(
        torch.cat([noisy] * count),
        t.repeat(count),
        torch.cat([_text(condition, branch) for branch in branches]),
        pose=pose,
        extra={name: torch.cat([value] * count) for name, value in condition.extra.items()},
    )
    return predicted.chunk(count)


def _text(condition: Condition, branch: Branch) -> Tensor:
    return {"text": condition.text, "null": condition.null, "negative": condition.negative}[branch]


def _pose(pose: Tensor, branch: Branch) -> Tensor:
    return torch.zeros_like(pose) if branch == "null" else pose


def combine(
    conditional: Float[Tensor, "b c i j"], null: Float[Tensor, "b c i j"], scale: float
) -> Float[Tensor, "b c i j"]:
    """``eps_u + S (eps_c - eps_u)``."""
    return null + scale * (conditional - null)


def guided(
    prior: Prior, noisy: Float[Tensor, "b c i j"], t: Int[Tensor, " b"], condition: Condition, scale: float
) -> Float[Tensor, "b c i j"]:
    """``eps_cfg`` of the prompt against the null prompt."""
    conditional, null = predict_branches(prior, noisy, t, condition)
    return combine(conditional, null, scale)
