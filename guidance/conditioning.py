"""Prompts resolved per view: which direction is seen, and what the prior is told about it.

World axes: +y is up, the front faces +z, azimuth grows towards +x.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from guidance.contract import Condition, Prior, Views

ViewDependence = Literal["off", "bucketed", "interpolated", "perp_neg"]

DIRECTIONS: tuple[str, ...] = ("front", "side", "back", "overhead")
_FRONT, _SIDE, _BACK, _OVERHEAD = range(4)


@dataclass(frozen=True)
class Prompts:
    """A run's embedded prompts, from which each step's views take their condition."""

    text: Float[Tensor, "k t d"]
    """The prompt: one row, or one for each of ``DIRECTIONS``."""
    plain: Float[Tensor, "1 t d"]
    """The prompt without a direction."""
    negative: Float[Tensor, "1 t d"]
    null: Float[Tensor, "1 t d"]
    view_dependent: ViewDependence
    takes: frozenset[str]
    """What the prior takes beyond text."""
    source: Float[Tensor, "k t d"] | None = None
    """The prompt of the object that an edit starts from, in as many rows as ``text``."""
    image: dict[str, Float[Tensor, "1 ..."]] = field(default_factory=dict)
    """A picture that prompts, as the prior sees it."""
    empty_null: bool = True
    """Nothing stands in the null prompt's place."""

    @classmethod
    def embed(
        cls,
        prior: Prior,
        prompt: str,
        negative: str = "",
        view_dependent: ViewDependence = "bucketed",
        negative_as_null: bool = False,
        source: str | None = None,
        image: Float[Tensor, "1 3 h w"] | None = None,
    ) -> "Prompts":
        """Embed a prompt in all the forms that a run needs.

        Args:
            prior: whose text encoder to ask.
            prompt: what to make.
            negative: what it should not look like.
            view_dependent: ``bucketed`` names the direction of view in the prompt (DreamFusion, arXiv 2209.14988,
                sec. 3.2), ``interpolated`` passes from one direction's embedding to the next, ``perp_neg`` also keeps
                the other directions away (arXiv 2304.04968), ``off`` does none of it.
            negative_as_null: put the negative prompt in the null prompt's place in classifier-free guidance.
            source: the prompt of the object that an edit starts from.
            image: a picture in [0, 1] that prompts too, for priors that take one.

        Raises:
            ValueError: ``perp_neg`` with ``negative_as_null``: its directions are measured from the null prompt; or a
                picture for a prior that takes none.
        """
        if view_dependent == "perp_neg" and negative_as_null:
            raise ValueError(
                "perp_neg measures directions from the null prompt, so the negative prompt cannot take its place; "
                "leave one of the two out"
            )
        null = negative if negative_as_null else ""
        wanted = [*_seen(prompt, view_dependent), prompt, negative, null]
        count = len(wanted) - 3
        embedded = prior.embed([*wanted, *([] if source is None else _seen(source, view_dependent))])
        text, plain, negatives, nulls = embedded[:count], *embedded[count : count + 3].split(1)
        before = None if source is None else embedded[-count:]
        seen = _seen_by(prior, image)
        return cls(text, plain, negatives, nulls, view_dependent, prior.takes, before, seen, null == "")

    def condition(self, views: Views) -> Condition:
        """What the prior is told about each of ``views``: text always, camera and the like if it takes them."""
        count = len(views.images)
        offered = {name: getattr(views, name) for name in ("background", "depth", "alpha", "mask", "source")}
        told = {name: value.expand(count, *value.shape[1:]) for name, value in self.image.items()}
        repelled, weights = self._repelled(views.pose) if self.view_dependent == "perp_neg" else (None, None)
        return Condition(
            text=self._resolved(self.text, views.pose),
            negative=self.negative.expand(count, -1, -1),
            null=self.null.expand(count, -1, -1),
            plain=self.plain.expand(count, -1, -1),
            pose=views.pose if "pose" in self.takes else None,
            pose_in_null="pose_in_null" in self.takes,
            camera=views.pose,
            repelled=repelled,
            repelled_weight=weights,
            source=None if self.source is None else self._resolved(self.source, views.pose),
            mask=views.mask,
            empty_null=self.empty_null,
            extra={name: value for name, value in offered.items() if name in self.takes and value is not None} | told,
        )

    def _resolved(self, rows: Float[Tensor, "k t d"], pose: Float[Tensor, "b 4 4"]) -> Float[Tensor, "b t d"]:
        if self.view_dependent == "off":
            return rows.expand(len(pose), -1, -1)
        if self.view_dependent == "bucketed":
            return rows[direction_seen(pose).to(rows.device)]
        return torch.einsum("bk,ktd->btd", direction_shares(pose).to(rows), rows)

    def _repelled(self, pose: Float[Tensor, "b 4 4"]) -> tuple[Float[Tensor, "b 2 t d"], Float[Tensor, "b 2"]]:
        directions, weights = repelled_directions(pose)
        return self.text[directions.to(self.text.device)], weights.to(self.text)


def _seen_by(prior: Any, image: Tensor | None) -> dict[str, Tensor]:
    if image is None:
        return {}
    if "image" not in prior.takes:
        raise ValueError("this prior is told by words, not by a picture; leave the picture out")
    return prior.see(image)


def _seen(prompt: str, view_dependent: ViewDependence) -> list[str]:
    return [prompt] if view_dependent == "off" else [f"{prompt}, {direction} view" for direction in DIRECTIONS]


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


def repelled_directions(pose: Float[Tensor, "b 4 4"]) -> tuple[Int[Tensor, "b 2"], Float[Tensor, "b 2"]]:
    """The two of ``DIRECTIONS`` that Perp-Neg keeps away from each view, and their weights (arXiv 2304.04968, sec. 4).

    In front, between front and side, these are the front and the side itself; behind, the side and the front. From
    overhead nothing is kept away. A weight is ``-f(r)``, ``f(r) = A exp(-B r) + C``, where r falls from 1 to 0 between
    one direction and the next.
    """
    azimuth, elevation = viewing_angles(pose)
    quarter = azimuth.abs() / 90
    ahead, r = quarter < 1, torch.where(quarter < 1, 1 - quarter, 2 - quarter)
    front_side = torch.stack([_falling(r, 4, 0.5, -2.426), _falling(1 - r, 4, 0.5, -2.426)], 1)
    side_back = torch.stack([_falling(r, 1, 0.5, -0.606), _falling(r, 1, 0.5, 0.967)], 1)
    weights = -torch.where(ahead[:, None], front_side, side_back)
    directions = torch.tensor([[_SIDE, _FRONT], [_FRONT, _SIDE]], device=pose.device)[ahead.long()]
    return directions, torch.where((elevation > 60 + 1e-3)[:, None], torch.zeros_like(weights), weights)


def _falling(r: Tensor, a: float, b: float, c: float) -> Tensor:
    return a * torch.exp(-b * r) + c
