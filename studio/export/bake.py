"""Colour from a scene into a texture.

Every texel that lies on the surface asks the scene what colour it shows there. Colours are sRGB from the scene to the
file (glTF defines the base colour texture as sRGB), so nothing is ever converted.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from representations.scene import Scene
from representations.textured_mesh import TexturedMesh, texel_geometry
from studio.export.unwrap import Unwrapped

_CHUNK = 1 << 16


@dataclass(frozen=True)
class Baked:
    """A textured mesh and the share of its texture that lies on the surface."""

    mesh: TexturedMesh
    uv_fill: float


def bake(scene: Scene, surface: Unwrapped, size: int) -> Baked:
    """Bake a square texture of ``size`` texels a side; free texels repeat their nearest covered neighbour.

    Raises:
        ValueError: the unwrapping covers no texel, or the scene's colours are not finite.
    """
    with torch.no_grad():
        position, normal, covered = texel_geometry(surface.vertices, surface.faces, surface.uv, (size, size))
        if not covered.any():
            raise ValueError(f"no texel of {size} x {size} lies on the surface of {len(surface.faces)} faces")
        points, normals = position[covered], normal[covered]
        pairs = zip(points.split(_CHUNK), normals.split(_CHUNK), strict=True)
        colours = torch.cat([scene.surface_colour(p, n) for p, n in pairs]).to(position.dtype)
        wrong = int((~colours.isfinite()).any(-1).sum())
        if wrong:
            raise ValueError(f"the scene gave no finite colour for {wrong} of {len(colours)} texels")
        texture = position.new_zeros(size, size, 3)
        texture[covered] = colours.clamp(0, 1)
        texture = fill_gutter(texture, covered).permute(2, 0, 1).contiguous()
    mesh = TexturedMesh(surface.vertices, surface.faces, surface.uv, texture)
    return Baked(mesh, float(covered.float().mean()))


def fill_gutter(texture: Float[Tensor, "h w 3"], covered: Tensor) -> Float[Tensor, "h w 3"]:
    """Give every texel that is not ``covered`` [h, w] the colour of the nearest that is."""
    from scipy.ndimage import distance_transform_edt

    place = np.asarray(distance_transform_edt(~covered.cpu().numpy(), return_distances=False, return_indices=True))
    y, x = torch.from_numpy(place.astype(np.int64)).to(texture.device)
    return texture[y, x]
