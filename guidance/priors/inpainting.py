"""Stable Diffusion for inpainting: a U-Net that sees what surrounds the part it is to fill.

Its input is the noisy latent, a mask (1 where it is to fill) and the latent of the picture without the masked part.
Both come with a run that edits; where there is neither, everything is to be filled and nothing surrounds it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from guidance.priors.latents import Latents
from guidance.priors.network import Asked


@dataclass(frozen=True)
class Inpainting:
    """A U-Net of diffusers with nine input channels."""

    model: Any
    latents: Latents
    resolution: int
    takes: frozenset[str] = frozenset({"mask", "source"})

    def answer(self, model: Any, asked: Asked) -> Float[Tensor, "b c i j"]:
        """The raw answer."""
        mask, around = self._surroundings(asked)
        z = torch.cat([asked.z, mask.to(asked.z), around.to(asked.z)], 1)
        return model(
            z.contiguous(memory_format=torch.channels_last),
            asked.time,
            asked.tokens,
            class_labels=asked.with_camera(None),
        ).sample

    @torch.no_grad()
    def _surroundings(self, asked: Asked) -> tuple[Tensor, Tensor]:
        """Mask [b, 1, i, j] and latents [b, c, i, j] of what lies around it."""
        source, mask = asked.extra.get("source"), asked.extra.get("mask")
        size = (self.resolution, self.resolution)
        if source is None:
            source, mask = asked.z.new_zeros(1, 3, *size), None
        else:
            source = F.interpolate(source.float(), size, mode="bilinear", antialias=True) * 2 - 1
        if mask is None:
            mask = source.new_ones(1, 1, *size)
        filled = (F.interpolate(mask.float(), size) > 0.5).float()
        around = self.latents.encode((source * (1 - filled)).float())
        small = F.interpolate(filled, asked.z.shape[-2:])
        return small.expand(len(asked.z), -1, -1, -1), around.expand(len(asked.z), -1, -1, -1)
