"""A prior that is asked a few samples at a time: the same answers from less memory, more slowly."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from guidance.contract import OnePassPrior, Prior


class Piecewise:
    """A prior whose passes hold at most ``most`` samples; a prior too, and the same to every method.

    What is learnt or followed through it is exact: on the way back each piece is computed once more, so that no two
    are in memory at a time. Answers differ by rounding alone.
    """

    def __init__(self, prior: Prior, most: int, group: int = 1) -> None:
        """Ask ``prior`` in pieces.

        Args:
            most: samples in a piece.
            group: views that the prior sees as one, which are never parted.
        """
        self._prior, self._most, self._asked = prior, max(1, most), max(group, most // group * group)
        self.alphas_cumprod, self.channels = prior.alphas_cumprod, prior.channels
        self.resolution, self.takes = prior.resolution, prior.takes

    def beside(self, prior: Prior, group: int) -> "Piecewise":
        """Another prior that is asked as few samples at a time; ``group``: as above, of that one."""
        return Piecewise(prior, self._most, group)

    def embed(self, prompts: Sequence[str]) -> Float[Tensor, "n t d"]:
        """As the prior does."""
        return self._prior.embed(prompts)

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c i j"]:
        """As the prior does, piece by piece."""
        return _pieces(lambda part: self._prior.encode(images[part]), len(images), self._most, images.requires_grad)

    def decode(self, latents: Float[Tensor, "b c i j"]) -> Float[Tensor, "b 3 h w"]:
        """As the prior does, piece by piece."""
        return _pieces(lambda part: self._prior.decode(latents[part]), len(latents), self._most, latents.requires_grad)

    def adapter(self, rank: int, seed: int) -> nn.Module:
        """As the prior does: of the prior itself."""
        return self._prior.adapter(rank, seed)

    def predict_noise(
        self,
        noisy: Float[Tensor, "b c i j"],
        t: Int[Tensor, " b"],
        text: Float[Tensor, "b t d"],
        pose: Float[Tensor, "b 4 4"] | None = None,
        extra: dict[str, Tensor] | None = None,
        adapter: Any = None,
    ) -> Float[Tensor, "b c i j"]:
        """As the prior does, piece by piece."""

        def ask(part: slice) -> Tensor:
            return self._prior.predict_noise(*_part(part, noisy, t, text, pose, extra), adapter)

        return _pieces(ask, len(noisy), self._asked, adapter is not None)

    def predict_both(
        self,
        noisy: Float[Tensor, "b c i j"],
        t: Int[Tensor, " b"],
        text: Float[Tensor, "b t d"],
        pose: Float[Tensor, "b 4 4"] | None = None,
        extra: dict[str, Tensor] | None = None,
    ) -> tuple[Float[Tensor, "b c i j"], Float[Tensor, "b c i j"]]:
        """As the prior does, piece by piece."""

        def ask(part: slice) -> Tensor:
            prior = cast(OnePassPrior, self._prior)
            return torch.cat(prior.predict_both(*_part(part, noisy, t, text, pose, extra)), 1)

        told, null = _pieces(ask, len(noisy), self._asked, False).chunk(2, 1)
        return told, null


def _part(part: slice, noisy: Tensor, t: Tensor, text: Tensor, pose: Tensor | None, extra: dict[str, Tensor] | None):
    """Some rows of a question."""
    told = {name: value[part] for name, value in (extra or {}).items()}
    return noisy[part], t[part], text[part], None if pose is None else pose[part], told


def _pieces(ask: Callable[[slice], Tensor], count: int, most: int, differentiable: bool) -> Tensor:
    """What ``ask`` says of rows 0 to ``count``, asked about ``most`` of them at a time."""
    parts = [slice(first, first + most) for first in range(0, count, most)]
    if len(parts) == 1:
        return ask(parts[0])
    if differentiable and torch.is_grad_enabled():
        return torch.cat([checkpoint(ask, part, use_reentrant=False) for part in parts])
    return torch.cat([ask(part) for part in parts])
