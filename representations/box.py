"""A box with sides along the axes: the part of space that an edit may change."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Box:
    """Two opposite corners, in world units: objects are about a unit in size, around the origin.

    Axes are those of ``cameras``: +x to the right of who looks at the front, +y up, the front faces +z.
    """

    low: tuple[float, float, float]
    """The corner of least x, y and z."""
    high: tuple[float, float, float]
    """The corner of largest x, y and z."""

    @property
    def corners(self) -> Float[Tensor, "2 3"]:
        """``low`` and ``high``."""
        return torch.tensor([self.low, self.high], dtype=torch.float32)

    def problems(self, bound: float) -> list[str]:
        """What is wrong with it for an object in the cube [-bound, bound]^3, in words without a full stop."""
        if not all(map(math.isfinite, (*self.low, *self.high))):
            return ["its corners must be finite numbers"]
        wrong = []
        for axis, low, high in zip("xyz", self.low, self.high, strict=True):
            if low == high:
                wrong.append(f"it is empty: {axis} runs from {low:g} to {high:g}")
            elif low > high:
                wrong.append(f"it is upside down: {axis} runs from {low:g} to {high:g}; the low corner comes first")
            elif low >= bound or high <= -bound:
                where = f"all objects lie between {-bound:g} and {bound:g}"
                wrong.append(f"it misses the object: {axis} runs from {low:g} to {high:g}, and {where}")
        return wrong


def depth_inside(points: Float[Tensor, "n 3"], corners: Float[Tensor, "2 3"]) -> Float[Tensor, " n"]:
    """Distance to the nearest side of a box, positive inside; outside some number that is not."""
    return torch.minimum(points - corners[0], corners[1] - points).amin(-1)


def rays_meet(
    origins: Float[Tensor, "*n 3"], directions: Float[Tensor, "*n 3"], corners: Float[Tensor, "2 3"]
) -> Bool[Tensor, "*n"]:
    """Which rays meet a box ahead of where they begin: the slab test (Kay and Kajiya 1986)."""
    inverse = 1 / torch.where(directions.abs() < 1e-9, directions.new_tensor(1e-9), directions)
    one, other = (corners[0] - origins) * inverse, (corners[1] - origins) * inverse
    enter, leave = torch.minimum(one, other).amax(-1), torch.maximum(one, other).amin(-1)
    return enter.clamp_min(0) <= leave
