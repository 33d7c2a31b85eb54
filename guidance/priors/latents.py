"""The picture side: what a prior works on instead of pictures, and back."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


@runtime_checkable
class Latents(Protocol):
    """Pictures in [-1, 1] to latents, and back."""

    @property
    def factor(self) -> int:
        """Pixels a side of a latent's element."""
        ...

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        ...

    def encode(self, signed: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c i j"]:
        """Latents, differentiable, without randomness."""
        ...

    def decode(self, latents: Float[Tensor, "b c i j"]) -> Float[Tensor, "b 3 h w"]:
        """Pictures."""
        ...


@dataclass(frozen=True)
class Pixels:
    """Pictures themselves, squares of ``factor`` pixels a side folded into channels."""

    factor: int = 1

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        return 3 * self.factor**2

    def encode(self, signed: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c i j"]:
        """The same pixels, rearranged."""
        return F.pixel_unshuffle(signed, self.factor)

    def decode(self, latents: Float[Tensor, "b c i j"]) -> Float[Tensor, "b 3 h w"]:
        """The same pixels, rearranged."""
        return F.pixel_shuffle(latents.float(), self.factor)


@dataclass(frozen=True)
class Autoencoder:
    """An autoencoder of diffusers. Latents are the mode of its distribution: encoding has no randomness of its own."""

    vae: Any
    slicing: bool = False
    """Encode and decode one picture at a time, whatever the autoencoder itself is set to. For encoding it is done here,
    so that it serves gradients too."""

    @property
    def factor(self) -> int:
        """Pixels a side of a latent's element."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        return self.vae.config.latent_channels

    def encode(self, signed: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c i j"]:
        """Latents, shifted and scaled as the prior was trained with."""
        mode = self.mode(signed)
        shift, scale = self._scaling(mode)
        return (mode - shift) * scale

    def mode(self, signed: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c i j"]:
        """Latents as the autoencoder has them, unscaled."""
        if (self.slicing or self.vae.use_slicing) and len(signed) > 1:
            return torch.cat([self._mode(one) for one in signed.split(1)])
        return self._mode(signed)

    def _mode(self, signed: Tensor) -> Tensor:
        return self.vae.encode(signed.to(self.vae.dtype)).latent_dist.mode().float()

    def decode(self, latents: Float[Tensor, "b c i j"]) -> Float[Tensor, "b 3 h w"]:
        """Pictures."""
        shift, scale = self._scaling(latents)
        return self.vae.decode((latents / scale + shift).to(self.vae.dtype)).sample.float()

    def _scaling(self, like: Tensor) -> tuple[Any, Any]:
        """Shift and scale: one for all channels, or one for each where the prior was trained with their own."""
        config = self.vae.config
        if config.latents_mean is None or config.latents_std is None:
            return config.shift_factor or 0.0, config.scaling_factor
        mean, spread = (like.new_tensor(v)[:, None, None] for v in (config.latents_mean, config.latents_std))
        return mean, config.scaling_factor / spread
