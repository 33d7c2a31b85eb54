"""Zero123 (arXiv 2303.11328): what a pictured object looks like from elsewhere; it is told by a picture, not by words.

The picture's camera is taken to stand at azimuth 0, at the elevation that the folder's hints say.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from guidance.priors.latents import Autoencoder
from guidance.priors.network import Asked, given_rows
from guidance.priors.picture_prompt import clip_input


@dataclass(frozen=True)
class NovelView:
    """A U-Net of diffusers with eight input channels: noisy latent and the picture's latent."""

    model: Any
    encoder: Any
    """CLIP's picture side."""
    projection: Any
    """From the picture's embedding and four numbers about the camera to the token that the network attends to."""
    latents: Autoencoder
    resolution: int
    elevation: float = 0.0
    """Of the picture's camera, in degrees."""
    takes: frozenset[str] = frozenset({"pose", "image"})

    @torch.no_grad()
    def see(self, image: Float[Tensor, "1 3 h w"]) -> dict[str, Tensor]:
        """What the network reads of a picture in [0, 1]; zeros stand for no picture."""
        given = clip_input(image, self.encoder.config.image_size).to(self.encoder.device, self.encoder.dtype)
        size = (self.resolution, self.resolution)
        signed = F.interpolate(image.float(), size, mode="bilinear", antialias=True) * 2 - 1
        return {
            "image_embedding": self.encoder(given).image_embeds.float(),
            "image_latents": self.latents.mode(signed.to(self.encoder.device)),
        }

    def answer(self, model: Any, asked: Asked) -> Float[Tensor, "b c i j"]:
        """The raw answer."""
        if "image_embedding" not in asked.extra:
            raise ValueError("this prior is told by a picture; name one with --image FILE")
        seen, latents = asked.extra["image_embedding"], asked.extra["image_latents"]
        told = torch.cat([seen, relative_pose(asked.pose, self.elevation, seen)], 1)
        token = self.projection(told.to(asked.z)) * given_rows(seen)[:, None]
        z = torch.cat([asked.z, latents.to(asked.z)], 1)
        return model(
            z.contiguous(memory_format=torch.channels_last),
            asked.time,
            token[:, None].to(asked.z),
            class_labels=asked.with_camera(None),
        ).sample


def relative_pose(pose: Float[Tensor, "b 4 4"] | None, elevation: float, like: Tensor) -> Float[Tensor, "b 4"]:
    """Difference in polar angle, sine and cosine of that in azimuth, difference in distance (0: all alike)."""
    if pose is None:
        return like.new_zeros(len(like), 4)
    x, y, z = pose[:, :3, 3].to(like).unbind(1)
    polar = math.radians(elevation) - torch.atan2(y, torch.hypot(x, z))
    azimuth = torch.atan2(x, z)
    return torch.stack([polar, azimuth.sin(), azimuth.cos(), torch.zeros_like(polar)], 1)
