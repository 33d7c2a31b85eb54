"""Plain-torch forms of the volume operations: the specification, the oracle and the fallback.

Samples are packed: one row a sample, rays in order, samples of a ray from near to far, ``ray`` [n] the index of the
ray that each belongs to.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

_COARSE = 4
"""Fine steps in a coarse one; most of the volume is empty and is skipped at the coarse level."""


def ray_jitter(count: int, seed: int, device: torch.device, first: int = 0) -> Float[Tensor, " r"]:
    """A number in [0, 1) for each ray from ``first`` on: a counter-based hash, the same on every device (lowbias32,
    C. Wellons)."""
    mask = 0xFFFFFFFF
    x = (torch.arange(first, first + count, device=device) + (seed * 0x9E3779B9 & mask)) & mask
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = ((x ^ (x >> shift)) * factor) & mask
    return ((x ^ (x >> 16)) >> 8).float() / 2**24


def march_rays(
    origins: Float[Tensor, "r 3"],
    directions: Float[Tensor, "r 3"],
    occupancy: Bool[Tensor, "x y z"],
    bound: float,
    step: float,
    seed: int | None,
    first: int = 0,
) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """See ``cuda_ext.ops.march_rays``."""
    ray, near, far = _enter(origins, directions, bound)
    device = origins.device
    u = near.new_full(near.shape, 0.5) if seed is None else ray_jitter(len(origins), seed, device, first)[ray]
    coarse_step = step * _COARSE
    count = math.ceil(2 * math.sqrt(3) * bound / coarse_step)
    start = near[:, None] + torch.arange(count, device=near.device) * coarse_step
    nearby = _dilated(occupancy, coarse_step / 2 + step, bound)
    middle = start + coarse_step / 2
    hit = _occupied(origins[ray], directions[ray], middle, nearby, bound) & (start < far[:, None])
    segment, column = hit.nonzero(as_tuple=True)
    t = start[segment, column][:, None] + (torch.arange(_COARSE, device=near.device) + u[segment, None]) * step
    fine = _occupied(origins[ray[segment]], directions[ray[segment]], t, occupancy, bound) & (t < far[segment, None])
    return t[fine], ray[segment][:, None].expand_as(t)[fine]


def _enter(origins: Tensor, directions: Tensor, bound: float) -> tuple[Tensor, Tensor, Tensor]:
    """Rays that meet the cube, and the distances at which they enter and leave it."""
    inverse = 1 / torch.where(directions.abs() < 1e-9, directions.new_tensor(1e-9), directions)
    low, high = (-bound - origins) * inverse, (bound - origins) * inverse
    near = torch.minimum(low, high).amax(-1).clamp_min(0)
    far = torch.maximum(low, high).amin(-1)
    ray = (near < far).nonzero()[:, 0]
    return ray, near[ray], far[ray]


def _dilated(occupancy: Tensor, reach: float, bound: float) -> Tensor:
    radius = math.ceil(reach * min(occupancy.shape) / (2 * bound))
    grown = occupancy[None, None].float()
    for axis in range(3):  # one axis at a time: a cube's maximum is the maximum of its lines' maxima
        size, padding = [1, 1, 1], [0, 0, 0]
        size[axis], padding[axis] = 2 * radius + 1, radius
        grown = F.max_pool3d(grown, size, 1, padding)
    return grown[0, 0] > 0


def _occupied(origins: Tensor, directions: Tensor, t: Tensor, occupancy: Tensor, bound: float) -> Tensor:
    flat = torch.zeros(t.shape, dtype=torch.int32, device=t.device)
    inside = torch.ones(t.shape, dtype=torch.bool, device=t.device)
    for axis, size in enumerate(occupancy.shape):  # axis by axis: a [rays, steps, 3] tensor would dwarf all others
        scale = size / (2 * bound)
        first = (origins[:, axis, None] + bound) * scale
        cell = torch.addcmul(first, directions[:, axis, None], t, value=scale)
        inside &= (cell >= 0) & (cell < size)
        flat = flat * size + cell.clamp(0, size - 1).int()
    return occupancy.reshape(-1).index_select(0, flat.view(-1)).view(t.shape) & inside


def composite(
    density: Float[Tensor, " n"],
    colour: Float[Tensor, "n c"],
    t: Float[Tensor, " n"],
    ray: Int[Tensor, " n"],
    rays: int,
    step: float,
) -> tuple[Float[Tensor, "r c"], Float[Tensor, " r"], Float[Tensor, " r"], Float[Tensor, " n"]]:
    """See ``cuda_ext.ops.composite``."""
    optical = density * step
    # One running sum over all samples, in double, minus its value where the ray begins.
    total = optical.double().cumsum(0)
    first = torch.searchsorted(ray, torch.arange(rays, device=ray.device))
    before = torch.cat([total.new_zeros(1), total])
    passed = (total - optical.double() - before[first][ray]).clamp_min(0)
    weight = (torch.exp(-passed) * -torch.expm1(-optical.double())).to(density.dtype)
    gather = torch.cat([colour, torch.ones_like(t)[:, None], t[:, None]], 1) * weight[:, None]
    summed = gather.new_zeros(rays, gather.shape[1]).index_add(0, ray, gather)
    return summed[:, :-2], summed[:, -2], summed[:, -1], weight
