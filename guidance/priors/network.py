"""What every family's network is asked, and how it answers: the seam between one ``Prior`` class and many models."""

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Asked:
    """A question to a network, in the type that it computes in."""

    z: Float[Tensor, "b c i j"]
    """What it is to look at: ``z_t``, or ``z_sigma`` for a flow."""
    time: Tensor
    """[b]: timestep, or sigma for a flow."""
    tokens: Float[Tensor, "b t d"]
    pooled: Float[Tensor, "b p"] | None = None
    """One vector for the whole prompt, for those that want it."""
    pose: Float[Tensor, "b 4 4"] | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)
    """Named tensors among those that the network takes."""
    camera: Float[Tensor, "b 16"] | None = None
    """The pose for an adapter, which reads it in front of what the network itself takes; None: there is no adapter."""

    def with_camera(self, own: Float[Tensor, "b n"] | None) -> Float[Tensor, "b m"] | None:
        """``own`` with the adapter's camera in front, if there is an adapter."""
        if self.camera is None:
            return own
        return self.camera if own is None else torch.cat([self.camera, own.to(self.camera)], 1)


@runtime_checkable
class Network(Protocol):
    """How a family's network is called."""

    @property
    def model(self) -> Any:
        """The network of diffusers; adapters are made of it."""
        ...

    @property
    def takes(self) -> frozenset[str]:
        """Names of the conditions beyond text, as in ``Prior.takes``."""
        ...

    def answer(self, model: Any, asked: Asked) -> Float[Tensor, "b c i j"]:
        """The raw answer of ``model``: its own, or one with an adapter inside."""
        ...


def size_of(config: Any) -> int:
    """Elements a side of the latents that a network of diffusers was trained with; 128 where it does not say."""
    size = config.get("sample_size") or 128
    return min(size) if isinstance(size, list | tuple) else size


def width_of(config: Any) -> int:
    """Numbers of a token that a network of diffusers attends to."""
    width = config.get("joint_attention_dim") or config.get("encoder_hid_dim") or config["cross_attention_dim"]
    return max(width) if isinstance(width, list | tuple) else width


def given_rows(value: Tensor) -> Tensor:
    """Which rows [b] say something: rows of zeros stand for nothing given."""
    return (value != 0).flatten(1).any(1)
