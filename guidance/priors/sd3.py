"""Stable Diffusion 3 and 3.5 (arXiv 2403.03206): a transformer that predicts the velocity of a rectified flow."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from guidance.priors.network import Asked


@dataclass(frozen=True)
class SD3:
    """The transformer of Stable Diffusion 3, told two CLIP encoders' and T5's tokens and the CLIPs' pooled prompt."""

    model: Any
    steps: int = 1000
    """Timesteps that sigma 1 stands for."""
    takes: frozenset[str] = frozenset()

    def answer(self, model: Any, asked: Asked) -> Float[Tensor, "b c i j"]:
        """The velocity ``n - z0`` at ``z_sigma``."""
        return model(
            hidden_states=asked.z,
            timestep=asked.time * self.steps,
            encoder_hidden_states=asked.tokens,
            pooled_projections=asked.with_camera(asked.pooled),
        ).sample
