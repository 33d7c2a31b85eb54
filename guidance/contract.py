"""What every prior and every distillation method agrees on: pictures and poses in, a gradient or a loss out.

Notation, used in every file of this package: ``abar`` is ``alphas_cumprod[t]`` (t counts from 0), ``a = sqrt(abar)``,
``s = sqrt(1 - abar)``, ``z_t = a z0 + s n`` with unit normal noise ``n``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from guidance.sharing import WHOLE, Share


@dataclass(frozen=True)
class Views:
    """All that guidance may know of the 3D side: rendered pictures and where they were taken from."""

    images: Float[Tensor, "b 3 h w"]
    """sRGB in [0, 1], on the autograd graph."""
    pose: Float[Tensor, "b 4 4"]
    """Camera-to-world, OpenGL axes."""
    background: Float[Tensor, "b 3"]
    """sRGB behind the object."""
    depth: Float[Tensor, "b 1 h w"] | None = None
    normal: Float[Tensor, "b 3 h w"] | None = None
    source: Float[Tensor, "b 3 h w"] | None = None
    """The same views of the object that an edit starts from."""
    mask: Float[Tensor, "b 1 h w"] | None = None
    """Where an edit may change the picture."""
    share: Share = WHOLE
    """Which of the step's views these are: all, unless several processes work on a step."""
    alpha: Float[Tensor, "b 1 h w"] | None = None
    """Share of each pixel that the object covers; where that is little, so does ``depth`` mean little."""


@dataclass(frozen=True)
class Condition:
    """What the prior is told about each view, resolved to embeddings."""

    text: Float[Tensor, "b t d"]
    """The (view-dependent) prompt."""
    negative: Float[Tensor, "b t d"]
    null: Float[Tensor, "b t d"]
    plain: Float[Tensor, "b t d"] | None = None
    """The prompt without the direction of view; none: ``text`` has no direction."""
    pose: Float[Tensor, "b 4 4"] | None = None
    """Camera-to-world, if the prior takes it."""
    pose_in_null: bool = False
    """The null branch is told the camera too, as some multi-view priors were trained."""
    camera: Float[Tensor, "b 4 4"] | None = None
    """Camera-to-world whatever the prior takes: for critics."""
    repelled: Float[Tensor, "b k t d"] | None = None
    """Prompts of directions that must not be seen (Perp-Neg)."""
    repelled_weight: Float[Tensor, "b k"] | None = None
    """Weights of ``repelled``, 0 or below."""
    source: Float[Tensor, "b t d"] | None = None
    """The prompt of the object that an edit starts from."""
    source_latents: Float[Tensor, "b c i j"] | None = None
    mask: Float[Tensor, "b 1 h w"] | None = None
    """Where a gradient counts, at any size."""
    empty_null: bool = True
    """The null prompt says nothing; False where a negative prompt stands in its place."""
    extra: dict[str, Tensor] = field(default_factory=dict)
    """Named tensors that the prior declares in ``takes``. Those whose names begin with ``image`` are a prompt, which
    the null branch is not told: zeros there."""


@dataclass(frozen=True)
class Draw:
    """One step's randomness as a value; each independent use has a number of its own."""

    timesteps: Int[Tensor, " b"]
    noise: Float[Tensor, "b c i j"]
    shift: Float[Tensor, " b"]
    gap: Float[Tensor, " b"]
    scale: Float[Tensor, " b"]
    seed: int


@dataclass(frozen=True)
class Trace:
    """What a loss was made of, off the autograd graph: for pictures of what a method asks for."""

    latents: Float[Tensor, "b c i j"]
    gradient: Float[Tensor, "b c i j"]
    draw: Draw


@dataclass(frozen=True)
class Loss:
    """A scalar to differentiate and what is worth plotting about it; nothing here has been read back to the host."""

    value: Float[Tensor, ""]
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    trace: Trace | None = None
    resting: bool = False
    """The method asks that nothing of the scene changes in this step."""


class Stateless(nn.Module):
    """State of a method that learns nothing: an empty module that checkpoints like any other."""


@runtime_checkable
class Prior(Protocol):
    """A diffusion model as the methods see it: epsilon prediction under a variance-preserving schedule."""

    alphas_cumprod: Tensor
    """[t], float64 or float32, on the prior's device."""
    channels: int
    """Channels of a latent."""
    resolution: int
    """Pixels a side of the pictures that ``encode`` takes without resizing."""
    takes: frozenset[str]
    """Names of the conditions beyond text: ``pose``, ``pose_in_null`` where the null branch wants it too, keys of
    ``extra``, ``image`` for those that are told by a picture, and ``both`` for a ``OnePassPrior``."""

    def embed(self, prompts: Sequence[str]) -> Float[Tensor, "n t d"]:
        """Text embeddings of prompts."""
        ...

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c i j"]:
        """Latents of sRGB pictures in [0, 1]; differentiable."""
        ...

    def decode(self, latents: Float[Tensor, "b c i j"]) -> Float[Tensor, "b 3 h w"]:
        """Pictures in [0, 1] of latents."""
        ...

    def predict_noise(
        self,
        noisy: Float[Tensor, "b c i j"],
        t: Int[Tensor, " b"],
        text: Float[Tensor, "b t d"],
        pose: Float[Tensor, "b 4 4"] | None = None,
        extra: dict[str, Tensor] | None = None,
        adapter: Any = None,
    ) -> Float[Tensor, "b c i j"]:
        """Predicted noise; a pose of zeros leaves the camera out for that sample.

        Builds no graph, except for the parameters of ``adapter`` where there is one and gradients are enabled. With an
        adapter, the pose reaches the adapter even if the prior itself does not take it.
        """
        ...

    def adapter(self, rank: int, seed: int) -> nn.Module:
        """A small trainable change of this prior, for ``predict_noise``: none at all until it has learnt something.

        Its parameters and state are its own, and nothing in the prior changes while it is used or trained.
        """
        ...


@runtime_checkable
class OnePassPrior(Prior, Protocol):
    """A prior that answers with the prompt and without it in one pass, where ``takes`` names ``both``."""

    def predict_both(
        self,
        noisy: Float[Tensor, "b c i j"],
        t: Int[Tensor, " b"],
        text: Float[Tensor, "b t d"],
        pose: Float[Tensor, "b 4 4"] | None = None,
        extra: dict[str, Tensor] | None = None,
    ) -> tuple[Float[Tensor, "b c i j"], Float[Tensor, "b c i j"]]:
        """Predicted noise told ``text`` and ``pose``, and told neither; builds no graph."""
        ...


State = TypeVar("State", bound=nn.Module)


@runtime_checkable
class Guidance(Protocol[State]):
    """A distillation method: frozen knobs here, memory in the state that ``init`` makes."""

    requires: ClassVar[frozenset[str]]
    """What the method needs beyond text, e.g. ``{"source"}``; refused in words before any model loads."""

    def init(self, prior: Prior, seed: int = 0) -> State:
        """Fresh memory; what it draws once for a whole run depends on the run's seed."""
        ...

    def gradient(
        self,
        state: State,
        prior: Prior,
        latents: Float[Tensor, "b c i j"],
        condition: Condition,
        draw: Draw,
        progress: float,
    ) -> Float[Tensor, "b c i j"]:
        """The method's update direction for ``latents``, as a function of its arguments alone."""
        ...

    def loss(
        self,
        state: State,
        prior: Prior,
        views: Views,
        condition: Condition,
        progress: float,
        rng: torch.Generator,
    ) -> Loss:
        """Draw this step's randomness from ``rng`` and turn the gradient into a loss on the rendered pictures."""
        ...

    def train_critic(
        self, state: State, prior: Prior, views: Views, condition: Condition, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """Let the method learn from the renders; ``{}`` unless it does."""
        ...


def surrogate(latents: Float[Tensor, "b c i j"], gradient: Float[Tensor, "b c i j"]) -> Float[Tensor, ""]:
    """A scalar whose gradient with respect to ``latents`` is exactly ``gradient / b``.

    The more usual ``0.5 * ||z0 - (z0 - g)||^2`` loses up to 5 % of small gradients to float32 rounding.
    """
    return (latents * gradient.detach()).sum() / len(latents)
