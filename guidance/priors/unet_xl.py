"""Stable Diffusion XL (arXiv 2307.01952): a U-Net that also reads a pooled prompt and the size of the picture."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from guidance.priors.network import Asked
from guidance.priors.picture_prompt import PicturePrompt


@dataclass(frozen=True)
class UNetXL:
    """A U-Net of diffusers with added conditions: a pooled text embedding and six numbers about the picture."""

    model: Any
    resolution: int
    """Pixels a side, told to the network as the original size and the target size; nothing is cropped."""
    picture: PicturePrompt | None = None
    """An IP-Adapter."""

    @property
    def takes(self) -> frozenset[str]:
        """Names of the conditions beyond text."""
        return frozenset(() if self.picture is None else ("image",))

    def answer(self, model: Any, asked: Asked, **further: Any) -> Float[Tensor, "b c i j"]:
        """The raw answer; ``further`` goes to the network as it is."""
        added = self.conditions(asked) | ({} if self.picture is None else self.picture.conditions(asked))
        return model(
            asked.z.contiguous(memory_format=torch.channels_last),
            asked.time,
            asked.tokens,
            class_labels=asked.with_camera(None),
            added_cond_kwargs=added,
            **further,
        ).sample

    def conditions(self, asked: Asked) -> dict[str, Tensor]:
        """What the network is told beside tokens."""
        size = [float(self.resolution)] * 2
        about = torch.tensor([[*size, 0.0, 0.0, *size]], device=asked.z.device, dtype=asked.z.dtype)
        assert asked.pooled is not None
        return {"text_embeds": asked.pooled, "time_ids": about.expand(len(asked.z), -1)}
