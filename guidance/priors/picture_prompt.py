"""Pictures as prompts: what CLIP sees in one, for an IP-Adapter (arXiv 2308.06721) and for novel views."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from guidance.priors.network import Asked, given_rows

_MEAN, _SPREAD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def clip_input(image: Float[Tensor, "b 3 h w"], size: int) -> Float[Tensor, "b 3 s s"]:
    """A picture in [0, 1] as CLIP was trained to see it: its middle square, ``size`` pixels a side."""
    side = min(image.shape[-2:])
    top, left = (image.shape[-2] - side) // 2, (image.shape[-1] - side) // 2
    square = image[:, :, top : top + side, left : left + side].float()
    if side != size:
        square = F.interpolate(square, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
    mean, spread = (square.new_tensor(v)[None, :, None, None] for v in (_MEAN, _SPREAD))
    return (square - mean) / spread


@dataclass(frozen=True)
class PicturePrompt:
    """An IP-Adapter in a U-Net, and the encoder of its pictures."""

    encoder: Any
    hidden: bool
    """It reads the encoder's hidden states ("plus"), not its one embedding."""

    @torch.no_grad()
    def see(self, image: Float[Tensor, "1 3 h w"]) -> dict[str, Tensor]:
        """What the network reads of a picture in [0, 1]; zeros stand for no picture."""
        given = clip_input(image, self.encoder.config.image_size).to(self.encoder.device, self.encoder.dtype)
        return {"image_embedding": self._embedded(given).float()}

    def _embedded(self, given: Tensor) -> Tensor:
        if self.hidden:
            return self.encoder(given, output_hidden_states=True).hidden_states[-2]
        return self.encoder(given).image_embeds

    @torch.no_grad()
    def conditions(self, asked: Asked) -> dict[str, list[Tensor]]:
        """The picture, for the network."""
        seen, size = asked.extra.get("image_embedding"), self.encoder.config.image_size
        if seen is None or (self.hidden and not given_rows(seen).all()):
            blank = torch.zeros(1, 3, size, size, device=self.encoder.device, dtype=self.encoder.dtype)
            nothing = self._embedded(blank) if self.hidden else torch.zeros_like(self._embedded(blank))
            nothing = nothing.float().expand(len(asked.z), *nothing.shape[1:])
            told = None if seen is None else given_rows(seen).view(-1, *[1] * (seen.ndim - 1))
            seen = nothing if seen is None or told is None else torch.where(told, seen, nothing)
        return {"image_embeds": [seen[:, None].to(asked.z)]}
