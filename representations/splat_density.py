"""A cloud of gaussians as a field of matter on a grid, which is how a surface is found in it.

A gaussian's opacity is a column of matter seen from outside; the matter itself is taken as -log(1 - opacity) times the
gaussian's own profile, and the density of the field is the sum over all gaussians.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from representations.densify import rotations

_REACH = 3.0
"""A gaussian is taken to end after this many standard deviations."""
_BATCH = 1 << 22
"""Grid values that are computed at once."""


def density_grid(
    means: Float[Tensor, "n 3"],
    log_scales: Float[Tensor, "n 3"],
    quaternions: Float[Tensor, "n 4"],
    logit_opacities: Float[Tensor, " n"],
    bound: float,
    resolution: int,
) -> Float[Tensor, "r r r"]:
    """Matter at ``resolution``^3 points, the outermost on the faces of the cube; axes are x, y, z.

    Gaussians thinner than the grid's cells are blurred to half a cell, or they could fall between its points.
    """
    cell = 2 * bound / (resolution - 1)
    matter = -torch.log1p(-logit_opacities.sigmoid().clamp_max(0.999))
    centre = (means + bound) / cell
    scaled = rotations(quaternions) * (log_scales.exp() / cell)[:, None]
    covariance = scaled @ scaled.mT + 0.25 * torch.eye(3, device=scaled.device)
    shape = torch.linalg.inv(covariance)
    reach = (_REACH * covariance.diagonal(dim1=1, dim2=2).amax(1).sqrt()).ceil().long()
    # Boxes are cut off a margin that is as wide as the widest, so no index needs a test.
    drawn = ((centre > -reach[:, None]) & (centre < resolution - 1 + reach[:, None])).all(1) & centre.isfinite().all(1)
    margin = 2 * int(reach[drawn].max()) + 1 if drawn.any() else 0
    side = resolution + 2 * margin
    grid = centre.new_zeros(side**3)
    for size in reach[drawn].unique().tolist():
        those = (drawn & (reach == size)).nonzero()[:, 0]
        for some in those.split(max(1, _BATCH // (2 * size + 1) ** 3)):
            index, value = _boxes(centre[some], shape[some], matter[some], size, margin, side)
            grid.index_add_(0, index, value)
    inner = slice(margin, margin + resolution)
    return grid.view(side, side, side)[inner, inner, inner].contiguous()


def _boxes(centre: Tensor, shape: Tensor, matter: Tensor, size: int, margin: int, side: int) -> tuple[Tensor, Tensor]:
    """Flat grid indices and values of gaussians, each in a box of ``size`` cells to every side of its centre."""
    nearest = centre.round()
    steps = torch.arange(-size, size + 1, device=centre.device)
    d = steps + (nearest - centre)[..., None]
    x, y, z = d[:, 0, :, None, None], d[:, 1, None, :, None], d[:, 2, None, None, :]
    a = shape[:, :, :, None, None, None]
    square = (
        a[:, 0, 0] * x * x
        + (a[:, 1, 1] * y * y + 2 * a[:, 0, 1] * x * y)
        + (a[:, 2, 2] * z * z + 2 * (a[:, 0, 2] * x + a[:, 1, 2] * y) * z)
    )
    value = matter[:, None, None, None] * torch.exp(-0.5 * square)
    at = nearest.long() + margin
    i, j, k = (at[:, axis, None] + steps for axis in range(3))
    index = (i[:, :, None, None] * side + j[:, None, :, None]) * side + k[:, None, None, :]
    return index.flatten(), torch.where(square <= _REACH**2, value, 0.0).flatten()
