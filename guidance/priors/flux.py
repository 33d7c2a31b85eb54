"""FLUX.1: a transformer that predicts the velocity of a rectified flow, on latents folded into squares of four."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from guidance.priors.network import Asked


@dataclass(frozen=True)
class Flux:
    """The transformer of FLUX.1, told T5's tokens and CLIP's pooled prompt."""

    model: Any
    distilled_guidance: float = 3.5
    """Guidance weight to name to a network that was distilled with it (dev); the weight of a method comes on top."""
    takes: frozenset[str] = frozenset()

    def answer(self, model: Any, asked: Asked) -> Float[Tensor, "b c i j"]:
        """The velocity ``n - z0`` at ``z_sigma``."""
        height, width = asked.z.shape[-2] // 2, asked.z.shape[-1] // 2
        packed = F.pixel_unshuffle(asked.z, 2).flatten(2).transpose(1, 2)
        weight = asked.z.new_full((len(asked.z),), self.distilled_guidance, dtype=torch.float32)
        answer = model(
            hidden_states=packed,
            timestep=asked.time,
            guidance=weight if model.config.guidance_embeds else None,
            encoder_hidden_states=asked.tokens,
            pooled_projections=asked.with_camera(asked.pooled),
            txt_ids=asked.z.new_zeros(asked.tokens.shape[1], 3),
            img_ids=places(height, width, asked.z),
        ).sample
        return F.pixel_shuffle(answer.transpose(1, 2).unflatten(2, (height, width)), 2)


def places(height: int, width: int, like: Tensor) -> Float[Tensor, "n 3"]:
    """Where each folded square lies: 0, row, column."""
    rows = torch.arange(height, device=like.device, dtype=like.dtype)[:, None].expand(height, width)
    columns = torch.arange(width, device=like.device, dtype=like.dtype)[None].expand(height, width)
    return torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3)
