"""Prompts resolved per view: which direction is seen, and what the prior is told about it.

World axes: +y is up, the front faces +z, azimuth grows towards +x.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from guidance.contract import Condition, Prior, Views

ViewDependence = Literal["off", "bucketed", "interpolated"]

DIRECTIONS: tuple[str, ...] = ("front", "side", "back", "overhead")
_FRONT, _SIDE, _BACK, _OVERHEAD = range(4)


@dataclass(frozen=True)
class Prompts:
    """A run's embedded prompts, from which each step's views take their condition."""

    text: Float[Tensor, "k t d"]
    """The prompt: one row, or one for each of ``DIRECTIONS``."""
    negative: Float[Tensor, "1 t d"]
    null: Float[Tensor, "1 t d"]
    view_dependent: ViewDependence
    takes: frozenset[str]
    """What the prior takes beyond text."""

    @classmethod
    def embed(
        cls,
        prior: Prior,
        prompt: str,
        negative: str = "",
        view_dependent: ViewDependence = "bucketed",
        negative_as_null: bool = False,
    ) -> "Prompts":
        """Embed a prompt in all the forms that a run needs.

        Args:
            prior: whose text encoder to ask.
            prompt: what to make.
            negative: what it should not look like.
            view_dependent: ``bucketed`` names the direction of view in the prompt (DreamFusion, arXiv 2209.14988,
                sec. 3.2), ``interpolated`` passes from one direction's embedding to the next, ``off`` does neither.
            negative_as_null: put the negative prompt in the null prompt's place in classifier-free guidance.
        """
        seen = [prompt] if view_dependent == "off" else [f"{prompt}, {direction} view" for direction in DIRECTIONS]
        embedded = prior.embed([*seen, negative, negative if negative_as_null else ""])
        return cls(embedded[:-2], embedded[-2:-1], embedded[-1:], view_dependent, prior.takes)

    def condition(self, views: Views) -> Condition:
        """What the prior is told about each of ``views``: text always, camera and the like if it takes them."""
        count = len(views.images)
        offered = {"background": views.background, "depth": views.depth, "normal": views.normal, "mask": views.mask}
        return Condition(
            text=self._text(views.pose),
            negative=self.negative.expand(count, -1, -1),
            null=self.null.expand(count, -1, -1),
            pose=views.pose if "pose" in self.takes else None,
            mask=views.mask,
            extra={name: value for name, value in offered.items() if name in self.takes and value is not None},
        )

    def _text(self, pose: Float[Tensor, "b 4 4"]) -> Float[Tensor, "b t d"]:
        if self.view_dependent == "off":
            return self.text.expand(len(pose), -1, -1)
        if self.view_dependent == "bucketed":
            return self.text[direction_seen(pose).to(self.text.device)]
        return torch.einsum("bk,ktd->btd", direction_shares(pose).to(self.text), self.text)


def viewing_angles(pose: Float[Tensor, "b 4 4"]) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Azimuth in (-180, 180] and elevation in [-90, 90] degrees at which cameras stand around the origin."""
    x, y, z = pose[:, :3, 3].unbind(1)
    return torch.rad2deg(torch.atan2(x, z)), torch.rad2deg(torch.atan2(y, torch.hypot(x, z)))


def direction_seen(pose: Float[Tensor, "b 4 4"]) -> Int[Tensor, " b"]:
    """Index into ``DIRECTIONS``: front within 45 degrees of azimuth 0, back beyond 135, overhead above 60."""
    azimuth, elevation = viewing_angles(pose)
    turned = azimuth.abs()
    # A camera's angles come out of float32: what stands on a boundary is a side view on every machine.
    seen = torch.full_like(turned, _SIDE, dtype=torch.long)
    seen[turned < 45 - 1e-3] = _FRONT
    seen[turned > 135 + 1e-3] = _BACK
    seen[elevation > 60 + 1e-3] = _OVERHEAD
    return seen


def direction_shares(pose: Float[Tensor, "b 4 4"]) -> Float[Tensor, "b 4"]:
    """Share of each of ``DIRECTIONS`` in a view, linear in azimuth: all side at 90 degrees; overhead above 60 alone."""
    azimuth, elevation = viewing_angles(pose)
    quarter = azimuth.abs() / 90
    front, back = (1 - quarter).clamp_min(0), (quarter - 1).clamp_min(0)
    around = torch.stack([front, 1 - front - back, back, torch.zeros_like(front)], 1)
    overhead = torch.nn.functional.one_hot(torch.tensor(_OVERHEAD), len(DIRECTIONS)).to(around)
    return torch.where((elevation > 60 + 1e-3)[:, None], overhead, around)
