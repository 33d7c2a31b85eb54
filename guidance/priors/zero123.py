"""Zero123 (arXiv 2303.11328): what a pictured object looks like from elsewhere; it is told by a picture, not by words.

The picture's camera is taken to stand at azimuth 0, at the elevation that the folder's hints say. Conventions are those
of the authors' code (``get_T`` of ``ldm/data/simple.py``), of threestudio's ``zero123_guidance.py`` and of diffusers'
community pipeline, which agree: the picture's latents are the mode of the autoencoder, without its scaling factor; the
null branch is told zeros for these latents and for the token, after the projection.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

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
    fourth: Literal["distance", "elevation"] = "distance"
    """What the last of the four numbers is; see ``Hints.picture_camera``."""
    takes: frozenset[str] = frozenset({"pose", "image"})

    @torch.no_grad()
    def see(self, image: Float[Tensor, "1 3 h w"]) -> dict[str, Tensor]:
        """What the network reads of a picture in [0, 1]; zeros stand for no picture."""
        square = F.interpolate(squared(image.float()), (self.resolution,) * 2, mode="bilinear", antialias=True)
        # CLIP sees the same square, brought to its size as it was in training: bicubic, corner on corner.
        side = (self.encoder.config.image_size,) * 2
        given = clip_input(F.interpolate(square, side, mode="bicubic", align_corners=True), side[0])
        return {
            "image_embedding": self.encoder(given.to(self.encoder.device, self.encoder.dtype)).image_embeds.float(),
            "image_latents": self.latents.mode((square * 2 - 1).to(self.encoder.device)),
        }

    def answer(self, model: Any, asked: Asked) -> Float[Tensor, "b c i j"]:
        """The raw answer."""
        if "image_embedding" not in asked.extra:
            raise ValueError("this prior is told by a picture; name one with --image FILE")
        seen, latents = asked.extra["image_embedding"], asked.extra["image_latents"]
        told = torch.cat([seen, relative_pose(asked.pose, self.elevation, seen, self.fourth)], 1)
        token = self.projection(told.to(asked.z)) * given_rows(seen)[:, None]
        z = torch.cat([asked.z, latents.to(asked.z)], 1)
        return model(
            z.contiguous(memory_format=torch.channels_last),
            asked.time,
            token[:, None].to(asked.z),
            class_labels=asked.with_camera(None),
        ).sample


def relative_pose(
    pose: Float[Tensor, "b 4 4"] | None,
    elevation: float,
    like: Tensor,
    fourth: Literal["distance", "elevation"] = "distance",
) -> Float[Tensor, "b 4"]:
    """Where a camera stands, seen from the picture's: what the network is told besides the picture.

    Difference in polar angle (from the zenith, so a higher camera has a negative one), sine and cosine of the
    difference in azimuth (which grows against the clock, seen from above), and difference in distance, which is 0 as
    all cameras stand alike. Stable Zero123 is told the polar angle of the picture's camera in the last one's place. A
    camera at azimuth 90 and elevation 30 degrees, for a picture taken at elevation 0: (-0.5236, 1, 0, 0), or
    (-0.5236, 1, 0, 1.5708).
    """
    if pose is None:
        return like.new_zeros(len(like), 4)
    x, y, z = pose[:, :3, 3].to(like).unbind(1)
    polar = math.radians(elevation) - torch.atan2(y, torch.hypot(x, z))
    azimuth = torch.atan2(x, z)
    last = torch.full_like(polar, 0.0 if fourth == "distance" else math.radians(90.0 - elevation))
    return torch.stack([polar, azimuth.sin(), azimuth.cos(), last], 1)


def squared(image: Float[Tensor, "1 3 h w"]) -> Float[Tensor, "1 3 s s"]:
    """A picture in the middle of a white square: such networks were trained on squares with white around the object."""
    height, width = image.shape[-2:]
    side = max(height, width)
    left, top = (side - width) // 2, (side - height) // 2
    return F.pad(image, (left, side - width - left, top, side - height - top), value=1.0)
