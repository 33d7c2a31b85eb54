"""Sphere tracing of toys into layers that any colouring shares.

Shading does not depend on paint, so a view is traced once and kept as one shade image per paint; a picture in any
colours over any background is then a weighted sum. Training draws thousands of coloured pictures from each trace.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from studio.toybox.world import PARTS, Toy, distances

DISTANCE = 2.6
"""Distance of every training camera from the origin, in world units."""
FIELD_OF_VIEW = 40.0
"""Vertical field of view of every training camera, in degrees."""
REACH = 1.0
"""Radius of the ball around the origin that holds every toy."""
_LIGHT = (0.35, 0.90, 0.25)
_HIT = 0.003
_MARCH_STEPS = 48


@dataclass(frozen=True)
class Layers:
    """A traced view before it is painted."""

    shade: Float[Tensor, "paints h w"]
    """Coverage times shading of each paint, in [0, 1]."""
    alpha: Float[Tensor, "h w"]
    """Coverage by the object, in [0, 1]."""
    paints: tuple[str, ...]
    """Names of the paints, in the order of ``shade``."""

    def painted(self, toy: Toy, background: Float[Tensor, " 3"]) -> Float[Tensor, "3 h w"]:
        """The picture of ``toy`` over ``background``, sRGB in [0, 1]."""
        colours = torch.tensor([toy.paint(name) for name in self.paints], device=self.shade.device)
        object_ = torch.einsum("phw,pc->chw", self.shade.float(), colours)
        return object_ + (1 - self.alpha.float()) * background[:, None, None]


def look_from(azimuth: float, elevation: float, distance: float = DISTANCE) -> Float[Tensor, "4 4"]:
    """Camera-to-world pose (OpenGL axes) that looks at the origin; azimuth 0 faces the front (+z)."""
    ca, sa, ce, se = math.cos(azimuth), math.sin(azimuth), math.cos(elevation), math.sin(elevation)
    pose = torch.eye(4)
    pose[:3, 0] = torch.tensor([ca, 0.0, -sa])
    pose[:3, 1] = torch.tensor([-se * sa, ce, -se * ca])
    pose[:3, 2] = torch.tensor([ce * sa, se, ce * ca])
    pose[:3, 3] = pose[:3, 2] * distance
    return pose


def trace(kind: str, pose: Float[Tensor, "4 4"], size: int, supersampling: int = 2) -> Layers:
    """Trace one view of a kind.

    Args:
        kind: one of ``world.KINDS``.
        pose: camera-to-world.
        size: pixels a side of the result.
        supersampling: rays a pixel a side.
    """
    origin, direction = _rays(pose, size * supersampling)
    paints = tuple(dict.fromkeys(part.paint for part in PARTS[kind]))
    shade = direction.new_zeros(len(paints), len(direction))
    ray, position = _march(kind, origin, direction)
    if len(ray):
        part = distances(kind, position).argmin(0)
        slot_of_part = torch.tensor([paints.index(p.paint) for p in PARTS[kind]], device=ray.device)
        shade[slot_of_part[part], ray] = _shading(_normals(kind, position), direction[ray])
    hit = direction.new_zeros(len(direction)).index_fill(0, ray, 1.0)
    pooled = torch.cat([shade, hit[None]]).view(-1, size, supersampling, size, supersampling).mean((2, 4))
    return Layers(pooled[:-1], pooled[-1], paints)


def _rays(pose: Tensor, size: int) -> tuple[Tensor, Tensor]:
    half = math.tan(math.radians(FIELD_OF_VIEW) / 2)
    centres = ((torch.arange(size, device=pose.device) + 0.5) / size * 2 - 1) * half
    y, x = torch.meshgrid(-centres, centres, indexing="ij")
    local = torch.stack([x, y, torch.full_like(x, -1.0)], -1).view(-1, 3)
    direction = local @ pose[:3, :3].T
    return pose[:3, 3], direction / direction.norm(dim=-1, keepdim=True)


def _march(kind: str, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the rays that hit, and where; rays that miss the bounding ball are never evaluated."""
    along = -(direction @ origin)
    discriminant = along.square() - (origin.square().sum() - REACH**2)
    live = (discriminant > 0).nonzero()[:, 0]
    reach = discriminant[live].sqrt()
    t, far = along[live] - reach, along[live] + reach
    rays, points = [live[:0]], [direction[:0]]
    for _ in range(_MARCH_STEPS):
        point = origin + t[:, None] * direction[live]
        distance = distances(kind, point).amin(0)
        arrived = distance < _HIT
        rays.append(live[arrived])
        points.append(point[arrived])
        t = t + distance * 0.95
        on = ~arrived & (t < far)
        live, t, far = live[on], t[on], far[on]
        if not len(live):
            break
    return torch.cat(rays), torch.cat(points)


def _normals(kind: str, points: Tensor, step: float = 2e-3) -> Tensor:
    # Four probes at the corners of a tetrahedron give the gradient with the fewest evaluations.
    corners = points.new_tensor([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]])
    probes = (points[None] + step * corners[:, None]).reshape(-1, 3)
    value = distances(kind, probes).amin(0).view(4, -1)
    gradient = torch.einsum("kn,kc->nc", value, corners)
    return gradient / gradient.norm(dim=-1, keepdim=True).clamp_min(1e-8)


def _shading(normal: Tensor, direction: Tensor) -> Tensor:
    light = normal.new_tensor(_LIGHT)
    sun = (normal @ (light / light.norm())).clamp_min(0)
    sky = normal[:, 1] * 0.5 + 0.5
    rim = (-(normal * direction).sum(-1)).clamp_min(0)
    return (0.42 + 0.36 * sun + 0.14 * sky + 0.08 * rim).clamp(0, 1)
