"""The operations that rendering stands on: checked, typed, differentiable.

Every operation takes ``backend``: ``auto`` picks the fastest form there is for the inputs' device, ``reference`` asks
for the plain-torch form. Shapes, types, devices and index ranges are checked before any form sees the data.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cuda_ext import reference, triangles
from cuda_ext.gaussians import GaussianImages as GaussianImages
from cuda_ext.gaussians import rasterize_gaussians as rasterize_gaussians
from cuda_ext.hashgrid import GridLayout as GridLayout
from cuda_ext.hashgrid import hash_encode as hash_encode
from cuda_ext.triangles import Raster

Backend = Literal["auto", "reference"]


def march_rays(
    origins: Float[Tensor, "r 3"],
    directions: Float[Tensor, "r 3"],
    occupancy: Bool[Tensor, "x y z"],
    bound: float,
    step: float,
    seed: int | None = None,
    backend: Backend = "auto",
    first: int = 0,
) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """Sample rays at even steps wherever a grid is occupied.

    Args:
        origins, directions: rays in world units; directions have unit length.
        occupancy: cells of the cube [-bound, bound]^3 that may hold something.
        step: distance between samples, in world units.
        seed: shifts the samples of each ray by its own part of a step; ``None`` puts them in the middle.
        first: number of the first ray, where others have those before it: rays with the same number are shifted alike.

    Returns:
        Distances along the rays and the rays they belong to, packed: rays ascending, near to far.

    Raises:
        ValueError: shapes, types or devices do not fit, or ``step`` or ``bound`` is not positive.
    """
    _check_backend(backend)
    _check("origins", origins, 2, origins.device)
    _check("directions", directions, 2, origins.device)
    if origins.shape != directions.shape or occupancy.dtype != torch.bool or occupancy.ndim != 3:
        raise ValueError("march_rays needs origins and directions [r, 3] and a boolean occupancy [x, y, z]")
    if not (step > 0 and bound > 0):
        raise ValueError(f"march_rays needs a positive step and bound, got {step} and {bound}")
    return reference.march_rays(origins, directions, occupancy, bound, step, seed, first)


def composite(
    density: Float[Tensor, " n"],
    colour: Float[Tensor, "n c"],
    t: Float[Tensor, " n"],
    ray: Int[Tensor, " n"],
    rays: int,
    step: float,
    backend: Backend = "auto",
) -> tuple[Float[Tensor, "r c"], Float[Tensor, " r"], Float[Tensor, " r"], Float[Tensor, " n"]]:
    """Emission and absorption along packed samples (Max 1995; NeRF, arXiv 2003.08934, eq. 3).

    Args:
        density: absorption per world unit, not negative.
        colour: any features to blend.
        t, ray: samples as ``march_rays`` returns them.
        rays: number of rays.
        step: length that each sample stands for.

    Returns:
        Blended colour (premultiplied by opacity, no background), opacity, expected distance times opacity, and the
        weight of each sample. Rays without samples get zeros.

    Raises:
        ValueError: shapes, types or devices do not fit, or a ray index is out of range.
    """
    _check_backend(backend)
    _check("density", density, 1, density.device)
    _check("colour", colour, 2, density.device)
    _check("t", t, 1, density.device)
    if not len(density) == len(colour) == len(t) == len(ray) or ray.dtype != torch.long:
        raise ValueError("composite needs one density, colour, distance and int64 ray index a sample")
    return reference.composite(density, colour, t, ray, rays, step)


def rasterize_triangles(
    screen: Float[Tensor, "b v 3"],
    faces: Int[Tensor, "f 3"],
    size: tuple[int, int],
    cull: bool = False,
    backend: Backend = "auto",
) -> Raster:
    """The nearest triangle at every pixel centre; see ``cuda_ext.triangles.rasterize_triangles``."""
    _check_backend(backend)
    return triangles.rasterize_triangles(screen, faces, size, cull)


def interpolate(
    attributes: Float[Tensor, "*b v c"], faces: Int[Tensor, "f 3"], raster: Raster, backend: Backend = "auto"
) -> Float[Tensor, "n h w c"]:
    """Per-vertex values at every pixel; see ``cuda_ext.triangles.interpolate``."""
    _check_backend(backend)
    return triangles.interpolate(attributes, faces, raster)


def _check_backend(backend: str) -> None:
    if backend not in ("auto", "reference"):
        raise ValueError(f"no backend {backend!r} here: choose 'auto' or 'reference'")


def _check(name: str, value: Tensor, dimensions: int, device: torch.device) -> None:
    if value.ndim != dimensions or not value.is_floating_point():
        raise ValueError(
            f"{name} must be a floating-point tensor of {dimensions} dimensions, got {value.dtype} {tuple(value.shape)}"
        )
    if value.device != device:
        raise ValueError(f"{name} is on {value.device}, the rest on {device}: move them to one device")
