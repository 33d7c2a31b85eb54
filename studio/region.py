"""Where an edit that is confined to a box may act: on which pixels, and on which objects."""

from jaxtyping import Float
from torch import Tensor

from representations.box import Box, rays_meet
from representations.cameras import Cameras
from representations.kinds import AnyRepresentation
from representations.particles import Particles


def pixels_of(region: Box | None, cameras: Cameras) -> Float[Tensor, "b 1 h w"] | None:
    """1 at pixels through whose centre a ray meets the box, 0 at the others; nothing where there is no box.

    These are the pixels of the render. Whoever works on latents of another size averages over the pixels of each.
    """
    if region is None:
        return None
    origins, directions = cameras.rays()
    met = rays_meet(origins[:, None, None].expand_as(directions), directions, region.corners.to(directions))
    return met[:, None].to(directions.dtype)


def region_problems(region: Box, representation: AnyRepresentation) -> list[str]:
    """What is wrong with a box for this kind of object, in words without a full stop."""
    kind = representation.kind if isinstance(representation, Particles) else representation
    return [f"task.region: {problem}" for problem in region.problems(kind.bound)]
