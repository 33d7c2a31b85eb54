"""The hash grid in plain torch: the specification, the oracle, and what runs where nothing compiles.

Gradients are autograd's own, so they know nothing of the formulas in the kernels.
"""

import itertools

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

PRIMES = (1, 2654435761, 805459861)
"""Factors of x, y and z in the spatial hash (Teschner et al. 2003, as used by Instant-NGP)."""


def hash_encode(
    points: Float[Tensor, "n 3"],
    table: Float[Tensor, "entries f"],
    resolutions: tuple[int, ...],
    entries: tuple[int, ...],
    weights: Float[Tensor, " levels"] | None,
) -> Float[Tensor, "n lf"]:
    """See ``cuda_ext.ops.hash_encode``; ``entries`` are the rows of each level, dense where all vertices fit."""
    valid = points.isfinite().all(1, keepdim=True)
    inside = torch.where(valid, points, 0).clamp(0, 1)
    features = []
    for level, (cells, part) in enumerate(zip(resolutions, table.split(entries), strict=True)):
        rows, shares = corners(inside, cells, len(part))
        values = F.embedding_bag(rows, part, per_sample_weights=shares, mode="sum")
        if weights is not None:
            weight = weights[level].detach()
            values = torch.where(weight == 0, 0, values * weight)
        features.append(values)
    return torch.where(valid, torch.cat(features, 1), 0)


def corners(points: Float[Tensor, "n 3"], cells: int, entries: int) -> tuple[Int[Tensor, "n 8"], Float[Tensor, "n 8"]]:
    """Rows within a level, and weights, of the vertices around points in the unit cube."""
    scaled = points * cells
    low = scaled.detach().floor().clamp_max(cells - 1)  # the last vertex belongs to the last cell
    place = scaled - low
    sides = (1 - place, place)
    dense = entries == (cells + 1) ** 3
    rows, weights = [], []
    for z, y, x in itertools.product((0, 1), repeat=3):
        vertex = low.long() + torch.tensor((x, y, z), device=points.device)
        if dense:
            row = vertex[:, 0] + (cells + 1) * (vertex[:, 1] + (cells + 1) * vertex[:, 2])
        else:
            hashed = vertex * torch.tensor(PRIMES, device=points.device)
            row = (hashed[:, 0] ^ hashed[:, 1] ^ hashed[:, 2]) % entries
        rows.append(row)
        weights.append(sides[x][:, 0] * sides[y][:, 1] * sides[z][:, 2])
    return torch.stack(rows, 1), torch.stack(weights, 1)
