"""Objects that may change inside a box and nowhere else.

Of a cloud, only the gaussians that lie wholly inside are optimised, out to where the rasterizer cuts them off, and they
are kept there; those that reach across a side of the box stay as they are. A field's parameters are shared by far
places, so it cannot be frozen by position: two fields are composed, and each answers on its own side of the box.
"""

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cuda_ext import ops
from representations.box import Box, depth_inside
from representations.densify import rotations
from representations.field import RadianceField, along
from representations.hash_field import FieldGrid, HashField
from representations.kinds import AnyRepresentation
from representations.particles import ParticleCloud, Particles
from representations.scene import ParamGroup, RenderOutput, Representation
from representations.splat_scene import SplatScene
from representations.splats import SplatCloud, Splats

_HEADROOM = 1.0 - 1e-4
"""Gaussians are kept inside by this little, so that rounding never puts one across."""
_OUTSIDE, _INSIDE, _BOX = "outside.", "inside.", "box"


def inside(box: Box, whole: Representation) -> Representation:
    """What is ``whole`` now and may change inside ``box`` alone; takes ``whole`` over.

    Raises:
        ValueError: of a cloud, no gaussian lies wholly inside the box.
        TypeError: there is no way to confine this kind.
    """
    match whole:
        case ParticleCloud():
            return ParticleCloud([inside(box, whole.particle(i)) for i in range(whole.variants)])
        case SplatCloud():
            return CloudInside.of(box, whole)
        case FieldGrid() | FieldInside():
            fixed = copy.deepcopy(whole).requires_grad_(False)
            return FieldInside(box.corners, fixed, whole).to(next(whole.parameters()).device)
    raise TypeError(f"a {type(whole).__name__} cannot be confined to a box")


def restored(spec: AnyRepresentation, state: Mapping[str, Any], device: torch.device) -> Representation:
    """The representation that ``state`` was saved from, whether or not it was confined to a box, and free again.

    Args:
        spec: its knobs.

    Raises:
        RuntimeError: the state does not fit the knobs.
    """
    if isinstance(spec, Particles):
        states = [_under(f"particles.{i}.", state) for i in range(spec.count)]
        if sum(map(len, states)) == len(state) and all(states):
            return ParticleCloud([restored(spec.kind, one, device) for one in states])
    if isinstance(spec, Splats) and _BOX in state:
        return _load(spec.build(torch.Generator(), device), _joined(state))
    if isinstance(spec, HashField) and _BOX in state:
        parts = [restored(spec, _under(part, state), device) for part in (_OUTSIDE, _INSIDE)]
        return FieldInside(state[_BOX], *parts).to(device)
    return _load(spec.build(torch.Generator(), device), state)


@final
class CloudInside(Representation):
    """A cloud of which the gaussians wholly inside a box are trained; together they are an ordinary scene."""

    box: Tensor

    def __init__(self, corners: Float[Tensor, "2 3"], outside: SplatCloud, inside: SplatCloud):
        super().__init__()
        self.register_buffer(_BOX, corners)
        self.outside, self.inside = outside.requires_grad_(False), inside

    @classmethod
    def of(cls, box: Box, whole: SplatCloud) -> "CloudInside":
        """Divide a cloud.

        Raises:
            ValueError: no gaussian lies wholly inside.
        """
        corners = box.corners.to(whole.means)
        within = wholly_inside(whole, corners)
        if not within.any():
            raise ValueError(
                f"No gaussian lies wholly inside the box from {box.low} to {box.high}, so nothing could change. "
                "Make it larger: a tenth more on every side of what is to change is a good margin."
            )
        rows = {name: parameter.detach() for name, parameter in whole.rows.items()}
        kept = {name: value[~within] for name, value in rows.items()}
        free = {name: value[within] for name, value in rows.items()}
        count = int(within.sum())
        most = max(whole.knobs.most - len(whole) + count, count)
        knobs = dataclasses.replace(whole.knobs, most=most, count=min(whole.knobs.count, most))
        device = whole.means.device
        made = cls(corners, SplatCloud(whole.knobs, kept, whole.seed), SplatCloud(knobs, free, whole.seed))
        return made.to(device)

    def scene(self, text: Float[Tensor, " d"] | None = None, variant: int = 0) -> SplatScene:
        """See ``Representation.scene``: what is kept comes first."""
        kept, free = self.outside.rows, self.inside.rows
        joint = {name: torch.cat([kept[name], free[name]]) for name in free}
        probe = torch.zeros_like(joint["logit_opacities"], requires_grad=True)
        return SplatScene(**joint, bound=self.inside.knobs.bound, probe=probe)

    def groups(self) -> list[ParamGroup]:
        """See ``Representation.groups``."""
        return self.inside.groups()

    @torch.no_grad()
    def restructure(self, step: int, out: RenderOutput, optimiser: torch.optim.Optimizer) -> None:
        """Let the free gaussians restructure themselves, then put back inside what grew or strayed out of the box."""
        kept, probe = len(self.outside), out.aux["probe"]
        own = probe.detach()[kept:]
        own.grad = None if probe.grad is None else probe.grad[kept:]
        aux = {"probe": own, "radius": out.aux["radius"][:, kept:]}
        self.inside.restructure(step, dataclasses.replace(out, aux=aux), optimiser)
        put_inside(self.inside, self.box)


@final
@dataclass(frozen=True)
class FieldInsideScene(RadianceField):
    """One field inside a box and another outside, as a value.

    Within ``margin`` of a side, inside, raw values pass from one to the other in a straight line; outside there is
    nothing of the inner field.
    """

    box: Float[Tensor, "2 3"]
    outside: RadianceField
    inside: RadianceField
    occupancy: Bool[Tensor, "m m m"]
    """Where either may have matter."""
    bound: float
    step: float
    margin: float
    jitter_seed: int | None = None

    @property
    def device(self) -> torch.device:
        """See ``RadianceField.device``."""
        return self.box.device

    def raw(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 4"]:
        """See ``RadianceField.raw``."""
        share = (depth_inside(points, self.box) / self.margin).clamp(0, 1)
        inner, outer = (share > 0).nonzero()[:, 0], (share < 1).nonzero()[:, 0]
        within = points.new_zeros(len(points), 4).index_put((inner,), self.inside.raw(points[inner]))
        beyond = points.new_zeros(len(points), 4).index_put((outer,), self.outside.raw(points[outer]))
        return torch.lerp(beyond, within, share[:, None])

    def march(
        self, origins: Float[Tensor, "r 3"], directions: Float[Tensor, "r 3"], first: int = 0
    ) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
        """See ``RadianceField.march``: outside the box exactly where the outer field alone would be sampled."""
        t, ray = ops.march_rays(
            origins, directions, self.occupancy, self.bound, self.step, self.jitter_seed, first=first
        )
        kept = self.occupied(along(origins, directions, t, ray))
        return t[kept], ray[kept]

    def occupied(self, points: Float[Tensor, "n 3"]) -> Bool[Tensor, " n"]:
        """See ``RadianceField.occupied``."""
        within = depth_inside(points, self.box) > 0
        near_side = within & (depth_inside(points, self.box) < self.margin)
        outer = self.outside.occupied(points)
        return torch.where(within, self.inside.occupied(points) | (near_side & outer), outer)

    def detach(self) -> "FieldInsideScene":
        """See ``Scene.detach``."""
        parts = {"outside": self.outside.detach(), "inside": self.inside.detach(), "jitter_seed": None}
        return dataclasses.replace(self, **parts)


@final
class FieldInside(Representation):
    """Two fields of the same shape; what ``requires_grad`` of them is trained."""

    box: Tensor

    def __init__(self, corners: Float[Tensor, "2 3"], outside: Representation, inside: Representation):
        super().__init__()
        self.register_buffer(_BOX, corners)
        self.outside, self.inside = outside, inside

    @property
    def _parts(self) -> list["FieldGrid | FieldInside"]:
        parts = [self.outside, self.inside]
        assert all(isinstance(part, FieldGrid | FieldInside) for part in parts)
        return parts  # pyright: ignore[reportReturnType]

    def scene(self, text: Float[Tensor, " d"] | None = None, variant: int = 0) -> FieldInsideScene:
        """See ``Representation.scene``."""
        outer, inner = (part.scene(text) for part in self._parts)
        either = outer.occupancy | inner.occupancy
        return FieldInsideScene(self.box, outer, inner, either, inner.bound, inner.step, inner.step, inner.jitter_seed)

    def groups(self) -> list[ParamGroup]:
        """The groups of what is trained."""
        groups = [group for part in self._parts for group in part.groups()]
        return [group for group in groups if all(p.requires_grad for p in group.parameters)]

    def restructure(self, step: int, out: RenderOutput, optimiser: torch.optim.Optimizer) -> None:
        """Let what is trained restructure itself."""
        for part in self._parts:
            if part.groups() and all(p.requires_grad for p in part.parameters()):
                part.restructure(step, out, optimiser)


def wholly_inside(cloud: SplatCloud, corners: Float[Tensor, "2 3"]) -> Bool[Tensor, " n"]:
    """Gaussians that no picture shows anywhere outside the box."""
    reach = half_extents(cloud)
    return ((cloud.means - reach >= corners[0]) & (cloud.means + reach <= corners[1])).all(1)


@torch.no_grad()
def put_inside(cloud: SplatCloud, corners: Float[Tensor, "2 3"]) -> None:
    """Shrink gaussians that the box cannot hold, and move to the nearest place inside those that reach out of it."""
    half = (corners[1] - corners[0]) / 2 * _HEADROOM
    reach, middle = half_extents(cloud), corners.mean(0)
    shrink = (half / reach.clamp_min(1e-12)).amin(1).clamp_max(1)
    cloud.log_scales.add_(shrink.log()[:, None])
    room = (half - reach * shrink[:, None]).clamp_min(0)
    cloud.means.copy_(torch.maximum(torch.minimum(cloud.means, middle + room), middle - room))


@torch.no_grad()
def half_extents(cloud: SplatCloud) -> Float[Tensor, "n 3"]:
    """Half the sides of the boxes out of which gaussians are too faint to be drawn: below 1/255 of full opacity."""
    cut = (2 * (255 * cloud.logit_opacities.sigmoid()).clamp_min(1).log()).sqrt()
    axes = rotations(cloud.quaternions) * cloud.log_scales.exp()[:, None]
    return cut[:, None] * axes.square().sum(2).sqrt()


def _joined(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a whole cloud from that of a confined one, in the order of its scene."""
    kept, free = _under(_OUTSIDE, state), _under(_INSIDE, state)
    return {k: free[k] if k == "_extra_state" else torch.cat([kept[k], free[k]]) for k in free}


def _under(prefix: str, state: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _load(made: Representation, state: Mapping[str, Any]) -> Representation:
    made.load_state_dict(state)
    return made
