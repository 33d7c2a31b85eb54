"""Stable Diffusion 1.5 and 2.1, latent consistency models, and the bundled prior: a U-Net told text by attention.

With ``matrix`` for the camera and groups of views it is a multi-view prior such as MVDream (arXiv 2308.16512), whose
camera enters as a class embedding and whose self-attention sees the views of a group as one wide picture.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from guidance.camera_features import camera_features
from guidance.priors.multiview import camera_matrix, refuse_part_of_group
from guidance.priors.network import Asked
from guidance.priors.picture_prompt import PicturePrompt


@dataclass(frozen=True)
class UNet:
    """A U-Net of diffusers with cross-attention to the prompt's tokens."""

    model: Any
    camera: Literal["none", "harmonics", "matrix"] = "none"
    """How it takes the camera; see ``Hints``."""
    views: int = 1
    """Views that it sees as one."""
    distilled_guidance: float = 0.0
    """Guidance weight to name to a network that was distilled with it (LCM), if it asks."""
    picture: PicturePrompt | None = None
    """An IP-Adapter."""

    @property
    def takes(self) -> frozenset[str]:
        """Names of the conditions beyond text."""
        camera = {"none": (), "harmonics": ("pose", "background"), "matrix": ("pose", "pose_in_null")}[self.camera]
        return frozenset((*camera, *(() if self.picture is None else ("image",))))

    def answer(self, model: Any, asked: Asked, **further: Any) -> Float[Tensor, "b c i j"]:
        """The raw answer; ``further`` goes to the network as it is."""
        refuse_part_of_group(len(asked.z), self.views)
        if self.picture is not None:
            further["added_cond_kwargs"] = self.picture.conditions(asked)
        if model.config.time_cond_proj_dim:
            further["timestep_cond"] = guidance_embedding(self.distilled_guidance - 1, asked, model)
        return model(
            asked.z.contiguous(memory_format=torch.channels_last),
            asked.time,
            asked.tokens,
            class_labels=asked.with_camera(self._labels(asked)),
            **further,
        ).sample

    def _labels(self, asked: Asked) -> Tensor | None:
        if self.camera == "harmonics":
            white = asked.z.new_ones(len(asked.z), 3)
            features = camera_features(asked.pose, asked.extra.get("background", white.float()))
            return features.to(asked.z.device, asked.z.dtype)
        return camera_matrix(asked.pose, asked.z) if self.camera == "matrix" else None


def guidance_embedding(weight: float, asked: Asked, model: Any) -> Float[Tensor, "b d"]:
    """Sines and cosines of a guidance weight, as networks distilled with it read it (LCM, arXiv 2310.04378)."""
    half = model.config.time_cond_proj_dim // 2
    rates = torch.exp(torch.arange(half, device=asked.z.device) * -(torch.log(torch.tensor(10000.0)) / (half - 1)))
    angles = 1000.0 * weight * rates
    return torch.cat([angles.sin(), angles.cos()]).to(asked.z).expand(len(asked.z), -1)
