"""Signed distance functions: each maker returns a function from points [..., 3] to distances [...].

World axes are those of glTF: +x right, +y up, +z towards the viewer of the front. Formulas follow the elementary
geometry of each solid; bounds that are not exact (ellipsoid, intersections) never exceed the true distance by much,
which the tracer's step factor absorbs.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Distance = Callable[[Tensor], Tensor]
Axis = Literal["x", "y", "z"]
Vector = tuple[float, float, float]


def _local(points: Tensor, centre: Vector, axis: Axis = "y") -> Tensor:
    """Points relative to ``centre``, coordinates turned so that ``axis`` becomes y."""
    relative = points - points.new_tensor(centre)
    order = {"x": (1, 0, 2), "y": (0, 1, 2), "z": (0, 2, 1)}[axis]
    return relative if axis == "y" else relative[..., list(order)]


def sphere(centre: Vector, radius: float) -> Distance:
    """A ball."""
    return lambda p: _local(p, centre).norm(dim=-1) - radius


def ellipsoid(centre: Vector, radii: Vector) -> Distance:
    """A first-order bound: exact on the surface, scaled by the local gradient elsewhere."""

    def distance(p: Tensor) -> Tensor:
        r = p.new_tensor(radii)
        q = _local(p, centre)
        k0, k1 = (q / r).norm(dim=-1), (q / r.square()).norm(dim=-1).clamp_min(1e-6)
        return k0 * (k0 - 1) / k1

    return distance


def box(centre: Vector, half: Vector, rounding: float = 0.0) -> Distance:
    """A box of half-extents ``half``, grown by ``rounding`` with round edges."""

    def distance(p: Tensor) -> Tensor:
        q = _local(p, centre).abs() - p.new_tensor(half)
        return q.clamp_min(0).norm(dim=-1) + q.amax(-1).clamp_max(0) - rounding

    return distance


def cylinder(centre: Vector, radius: float, half_height: float, axis: Axis = "y") -> Distance:
    """A capped cylinder along ``axis``."""

    def distance(p: Tensor) -> Tensor:
        q = _local(p, centre, axis)
        d = torch.stack([q[..., [0, 2]].norm(dim=-1) - radius, q[..., 1].abs() - half_height], -1)
        return d.amax(-1).clamp_max(0) + d.clamp_min(0).norm(dim=-1)

    return distance


def cone(base: Vector, radius: float, height: float) -> Distance:
    """An upright cone standing on ``base``."""
    slope = radius / height

    def distance(p: Tensor) -> Tensor:
        q = _local(p, base)
        side = (q[..., [0, 2]].norm(dim=-1) - (height - q[..., 1]) * slope) / math.sqrt(1 + slope * slope)
        return torch.maximum(side, -q[..., 1])

    return distance


def torus(centre: Vector, ring: float, tube: float, axis: Axis = "y") -> Distance:
    """A ring of radius ``ring`` around ``axis`` with a tube of radius ``tube``."""

    def distance(p: Tensor) -> Tensor:
        q = _local(p, centre, axis)
        return torch.stack([q[..., [0, 2]].norm(dim=-1) - ring, q[..., 1]], -1).norm(dim=-1) - tube

    return distance


def halfspace(normal: Vector, offset: float) -> Distance:
    """Everything with ``normal . p <= offset``; ``normal`` has unit length."""
    return lambda p: p @ p.new_tensor(normal) - offset


def both(*shapes: Distance) -> Distance:
    """The intersection of shapes."""
    return lambda p: torch.stack([s(p) for s in shapes]).amax(0)


def without(shape: Distance, hole: Distance) -> Distance:
    """``shape`` with ``hole`` cut out."""
    return lambda p: torch.maximum(shape(p), -hole(p))


def union(*shapes: Distance) -> Distance:
    """Several shapes as one."""
    return lambda p: torch.stack([s(p) for s in shapes]).amin(0)
