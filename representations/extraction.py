"""From a density field to a surface: sampling, the iso-threshold and marching cubes.

The threshold is never a user's guess. A pixel lies inside the silhouette of the iso-surface at t exactly when the
largest density along its ray exceeds t, so one maximum-intensity projection of the grid gives the silhouettes of every
threshold at once, and the one that agrees best with the representation's own pictures is found by sorting.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from representations.cameras import Cameras, orbit
from representations.scene import EmptySceneError, Mesh

Density = Callable[[Tensor], Tensor]
"""Non-negative density [n] at points [n, 3]."""
Silhouettes = Callable[[Cameras], Tensor]
"""Opacity [b, 1, h, w] as the representation renders it."""

SOLID_ALPHA = 0.5
"""A pixel at least this opaque belongs to the silhouette."""
_PLATEAU = 0.003
_CHUNK = 1 << 18


@dataclass(frozen=True)
class Threshold:
    """An iso-threshold and how well it was chosen."""

    value: float
    """Density at the surface."""
    iou: float
    """Intersection over union of the surface's silhouettes with the pictures', over all pixels of all views."""


def mesh_from_density(
    density: Density, bound: float, resolution: int, silhouettes: Silhouettes, device: torch.device | str = "cpu"
) -> Mesh:
    """The surface of a field inside the cube [-bound, bound]^3, sampled at ``resolution`` points a side.

    Raises:
        EmptySceneError: nothing is solid.
        ValueError: the density is not finite.
    """
    with torch.no_grad():
        grid = sample_grid(density, bound, resolution, device)
        threshold = choose_threshold(grid, bound, silhouettes, survey_cameras(bound).to(device))
        return extract_surface(grid, bound, threshold.value)


def survey_cameras(bound: float, size: int = 64) -> Cameras:
    """Six views around and two from above and below that see the whole cube, for choosing a threshold."""
    azimuths = [0, 60, 120, 180, 240, 300, 0, 0]
    elevations = [15, -15, 15, -15, 15, -15, 80, -80]
    return orbit(azimuths, elevations, size, distance=4 * bound, field_of_view=50)


def sample_grid(
    density: Density, bound: float, resolution: int, device: torch.device | str = "cpu"
) -> Float[Tensor, "n n n"]:
    """Density at ``resolution``^3 points, the outermost on the faces of the cube; axes are x, y, z."""
    axis = torch.linspace(-bound, bound, resolution, device=device)
    points = torch.cartesian_prod(axis, axis, axis)
    values = [density(chunk).reshape(-1) for chunk in points.split(_CHUNK)]
    return torch.cat(values).view(resolution, resolution, resolution)


def extract_surface(density: Float[Tensor, "n n n"], bound: float, threshold: float) -> Mesh:
    """The iso-surface by marching cubes (Lewiner et al. 2003, through scikit-image), on the density's device.

    Solids that reach the edge of the cube are closed there. Faces wind counter-clockwise seen from outside.

    Raises:
        EmptySceneError: no sample is above the threshold.
        ValueError: the density is not finite.
    """
    from skimage.measure import marching_cubes

    _require_finite(density)
    top = float(density.max())
    if top <= threshold:
        raise EmptySceneError(f"nothing is solid: the largest density is {top:.4g}, the threshold {threshold:.4g}")
    # A pad this low puts the closing faces within a twentieth of a cell of the cube.
    low = min(threshold - 20 * (top - threshold), float(density.min()))
    padded = torch.nn.functional.pad(density.detach().double(), (1,) * 6, value=low).cpu().numpy()
    cell = 2 * bound / (density.shape[0] - 1)
    vertices, faces, _, _ = marching_cubes(padded, threshold, gradient_direction="ascent", allow_degenerate=False)
    world = torch.from_numpy(vertices.copy()).double() * cell - (bound + cell)
    return Mesh(world.float().to(density.device), torch.from_numpy(faces.copy()).long().to(density.device))


def choose_threshold(
    density: Float[Tensor, "n n n"], bound: float, silhouettes: Silhouettes, cameras: Cameras
) -> Threshold:
    """The threshold whose surface has the silhouettes that the representation shows.

    Every density that occurs on a ray is a candidate. Where many agree equally well (the flank of a steep surface),
    their median is taken.

    Raises:
        EmptySceneError: the pictures show nothing opaque, or the grid holds nothing where they do.
        ValueError: density or opacity is not finite.
    """
    _require_finite(density)
    alpha = silhouettes(cameras).detach()
    _require_finite(alpha)
    shown = (alpha >= SOLID_ALPHA).flatten()
    peak = peak_density(density, bound, cameras).flatten()
    if not shown.any() or float(peak[shown].max()) <= 0:
        raise EmptySceneError(_emptiness(density, alpha))
    # A bar of height zero is no surface: thresholds are positive, below the densest ray.
    value, order = peak.sort(descending=True)
    inside, covered = shown[order].cumsum(0), torch.arange(1, len(order) + 1, device=order.device)
    iou = inside / (covered + shown.sum() - inside)
    # The surface lies between a ray that is in and the next that is out; ties cannot be separated.
    after = torch.cat([value[1:], value.new_zeros(1)])
    iou = torch.where((value > after) & (value > 0), iou, -1)
    good = (iou >= iou.max() - _PLATEAU).nonzero()[:, 0]
    chosen = good[len(good) // 2]
    return Threshold(float(value[chosen] + after[chosen]) / 2, float(iou[chosen]))


def peak_density(density: Float[Tensor, "n n n"], bound: float, cameras: Cameras) -> Float[Tensor, "b h w"]:
    """The largest (trilinear) density along each pixel's ray: a maximum-intensity projection."""
    origin, direction = cameras.rays()
    volume = density.permute(2, 1, 0)[None, None].float()  # grid_sample's last axis is x
    reach = bound * 3**0.5
    steps = 2 * density.shape[0]
    offsets = torch.linspace(-reach, reach, steps, device=density.device)
    peaks = []
    for eye, rays in zip(origin, direction, strict=True):
        along = -(rays @ eye)[..., None] + offsets
        points = (eye + along[..., None] * rays[..., None, :]) / bound
        values = torch.nn.functional.grid_sample(volume, points[None], align_corners=True)
        peaks.append(values[0, 0].amax(-1))
    return torch.stack(peaks)


def _require_finite(values: Tensor) -> None:
    wrong = int((~values.isfinite()).sum())
    if wrong:
        raise ValueError(f"{wrong} of {values.numel()} values of the field are not finite")


def _emptiness(density: Tensor, alpha: Tensor) -> str:
    return (
        f"nothing is solid: largest density {float(density.max()):.4g}, largest opacity {float(alpha.max()):.3f} "
        f"(a surface needs {SOLID_ALPHA}), {float((density > 0).float().mean()):.2%} of the cube above zero density"
    )
