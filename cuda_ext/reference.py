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


class _Trilinear(torch.autograd.Function):
    # Advanced indexing and index_add beat grid_sample two to one on a CPU: features of a vertex are contiguous.

    @staticmethod
    def forward(ctx, grid: Tensor, points: Tensor) -> Tensor:
        index, weight = _corners(points, grid.shape[:3])
        ctx.save_for_backward(index, weight)
        ctx.shape = grid.shape
        return torch.einsum("nk,nkf->nf", weight, grid.view(-1, grid.shape[3])[index])

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, None]:
        index, weight = ctx.saved_tensors
        features = ctx.shape[3]
        spread = weight[..., None] * gradients[0][:, None]
        total = spread.new_zeros(math.prod(ctx.shape[:3]), features)
        total.index_add_(0, index.view(-1), spread.view(-1, features))
        return total.view(ctx.shape), None


def _corners(points: Float[Tensor, "n 3"], shape: tuple[int, ...]) -> tuple[Int[Tensor, "n 8"], Float[Tensor, "n 8"]]:
    cells = points.new_tensor(shape) - 1
    scaled = points.clamp(0, 1) * cells
    low = torch.minimum(scaled.floor(), cells - 1)
    high_part = scaled - low
    strides = torch.tensor([shape[1] * shape[2], shape[2], 1], device=points.device)
    steps = torch.tensor([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)], device=points.device)
    index = (low.long() * strides).sum(1, keepdim=True) + (steps * strides).sum(1)
    x, y, z = torch.stack([1 - high_part, high_part], -1).unbind(1)
    weight = (x[:, :, None, None] * y[:, None, :, None] * z[:, None, None, :]).reshape(-1, 8)
    return index, weight


def trilinear(grid: Float[Tensor, "x y z f"], points: Float[Tensor, "n 3"]) -> Float[Tensor, "n f"]:
    """See ``cuda_ext.ops.trilinear``."""
    return _Trilinear.apply(grid, points)  # pyright: ignore[reportReturnType]


def ray_jitter(count: int, seed: int, device: torch.device) -> Float[Tensor, " r"]:
    """A number in [0, 1) for each ray from a counter-based hash, the same on every device (lowbias32, C. Wellons)."""
    mask = 0xFFFFFFFF
    x = (torch.arange(count, device=device) + (seed * 0x9E3779B9 & mask)) & mask
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
) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """See ``cuda_ext.ops.march_rays``."""
    ray, near, far = _enter(origins, directions, bound)
    u = near.new_full(near.shape, 0.5) if seed is None else ray_jitter(len(origins), seed, origins.device)[ray]
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
    cell = 2 * bound / min(occupancy.shape)
    radius = math.ceil(reach / cell)
    return F.max_pool3d(occupancy[None, None].float(), 2 * radius + 1, 1, radius)[0, 0] > 0


def _occupied(origins: Tensor, directions: Tensor, t: Tensor, occupancy: Tensor, bound: float) -> Tensor:
    sizes = occupancy.shape
    flat = torch.zeros(t.shape, dtype=torch.long, device=t.device)
    inside = torch.ones_like(flat, dtype=torch.bool)
    for axis in range(3):  # axis by axis: a [rays, steps, 3] tensor would be the largest of the whole render
        cell = origins[:, axis, None] + directions[:, axis, None] * t
        cell = ((cell + bound) * (sizes[axis] / (2 * bound))).floor()
        inside &= (cell >= 0) & (cell < sizes[axis])
        flat = flat * sizes[axis] + cell.clamp(0, sizes[axis] - 1).long()
    return occupancy.reshape(-1)[flat] & inside


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
